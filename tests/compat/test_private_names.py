"""Every private name of torch that lazyfx uses is in the table of its seam, and in this torch."""

import re
import sys
import textwrap
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import fx, nn
from torch.torch_version import TorchVersion

HERE = Path(__file__).parent
NOXFILE = HERE.parents[1] / "noxfile.py"


def load(path):
    spec = spec_from_file_location(f"{path.stem}_of_compat", path)
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


record = load(HERE / "record.py")
seams = record.load_seams()
USES = seams.uses()
VERSION = torch.__version__.partition("+")[0]


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.name}-{use.seam}")
def test_a_name_is_there_unless_its_seam_says_that_this_release_does_not_have_it(use):
    expected = use.expected_in(VERSION)
    if expected is None:
        pytest.skip(f"nobody said whether torch {VERSION} has it")
    assert record.exists(use.name) is expected, f"{use.seam}: {use.name}: {use.purpose}"


def objects():
    """An object of each kind whose private attributes are used, under the name of the kind."""
    gm = fx.symbolic_trace(lambda x: torch.sin(x))
    return {
        "torch.nn.Module": nn.Linear(1, 1),
        "torch.fx.GraphModule": gm,
        "torch.fx.Graph": gm.graph,
        "torch.fx.Node": next(iter(gm.graph.nodes)),
        "torch.Tensor": torch.ones(1),
        "torch.UntypedStorage": torch.ones(1).untyped_storage(),
        "torch.ops.aten.sin.default": torch.ops.aten.sin.default,
        "torch.compile(function)": torch.compile(lambda x: x, backend="eager"),
        "AOTAutograd's functions": make_boxed_func(lambda x: x),
    }


NOT_EVERYWHERE = {"_prologue_start": (2, 10), "_lineno_map": (2, 6)}  # since which torch


@pytest.mark.parametrize("owner", seams.ATTRIBUTES)
def test_an_attribute_is_there_and_used(owner):
    found, used = objects()[owner], seams.attributes()[owner]
    for name, modules in used.items():
        assert modules, f"nobody uses {name}: take it out of ATTRIBUTES in docs/seams.py"
        if TorchVersion(torch.__version__) >= NOT_EVERYWHERE.get(name, (2, 6)):
            assert hasattr(found, name), (owner, name)


def test_no_other_private_attribute_is_used_outside_of_seams():
    known = {name for names in seams.ATTRIBUTES.values() for name in names}
    theirs = {name for found in objects().values() for name in dir(found) if name[:1] == "_"}
    theirs = {name for name in theirs if name[:2] != "__"} - known
    for path in seams.others():
        used = theirs.intersection(seams._said(path))
        assert not used, f"{path.name}: into a seam, or into ATTRIBUTES of docs/seams.py: {used}"


def test_the_record_of_this_release_is_what_is_there():
    recorded = seams.record()
    if VERSION not in recorded:
        pytest.skip(f"torch {VERSION} is not recorded: python tests/compat/record.py")
    found = {name: record.exists(name) for name in sorted({use.name for use in USES})}
    assert recorded[VERSION]["names"] == found, "run python tests/compat/record.py"


def test_what_the_seams_say_is_what_was_recorded_in_every_release():
    for version, entry in seams.record().items():
        for use in USES:
            expected = use.expected_in(version)
            assert expected is None or entry["names"].get(use.name) is expected, (version, use)


def test_the_default_release_is_recorded():
    (default,) = re.findall(r'^DEFAULT_TORCH = "(.+)"$', NOXFILE.read_text(), re.MULTILINE)
    assert default in seams.record()
    assert set(seams.record()) <= set(seams.torches())


def test_the_page_is_what_the_sources_give():
    assert seams.PAGE.read_text() == seams.page(), "run python docs/seams.py"


def test_a_name_that_no_torch_has_is_not_there():
    for name in (
        "torch._no_such_name",
        "torch._no_such_module.name",
        "torch.fx.Graph._no_such_attribute",
        "torch.Tensor._no_such_attribute",
    ):
        assert not record.exists(name)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import torch\ntorch._C._jit_x()", ["torch._C._jit_x"]),
        ("import torch._a.b as c\nc.d", ["torch._a.b.d"]),
        ("from torch.fx import graph as g\ng._X", ["torch.fx.graph._X"]),
        ("from torch._ops import OpOverload", ["torch._ops.OpOverload"]),
        ("import importlib\nx = importlib.import_module('torch._a')\nx.y.z", ["torch._a.y.z"]),
        ("import importlib\nM = 'torch._a'\nimportlib.import_module(M).y", ["torch._a.y"]),
        ("import torch\ngetattr(torch._C, '_x', None)", ["torch._C._x"]),
        ("attribute('torch._a', 'b')", ["torch._a.b"]),
        ("import torch\ntorch.relu(torch.fx.Graph())", []),
        ("if TYPE_CHECKING:\n    from torch._a import B", []),
        ("def f():\n    from torch import _a\n    return _a.b\n_a = 3\n_a.c", ["torch._a.b"]),
    ],
)
def test_names_are_read_off_the_code(code, names):
    reader = seams._Reader()
    reader.visit(seams.ast.parse(code))
    assert reader.names() == names


def seam(tmp_path, monkeypatch, code, rows=""):
    path = tmp_path / "packages/p/src/lazyfx_p/_torch_x.py"
    path.parent.mkdir(parents=True)
    head = f"{'=' * 30}  {'=' * 20}"
    title = f"{'private name':30}  used for"
    path.write_text("\n".join(['"""A seam.', "", head, title, head, rows, head, '"""', code]))
    monkeypatch.setattr(seams, "ROOT", tmp_path)
    return path


def row(names, purpose):
    return f"{names:30}  {purpose}"


@pytest.mark.parametrize(
    ("code", "rows", "message"),
    [
        ("import torch\ntorch._new()", row("``torch._old``", "a"), r"uses torch\._new"),
        ("def f(x):\n    return x._hidden", row("``torch.x``", "a"), "attribute _hidden"),
        ("import torch\ntorch._new()", row("``torch._new``, ``torch._old``", "a"), r"torch\._old"),
    ],
)
def test_a_table_that_does_not_agree_with_its_code_is_an_error(
    tmp_path, monkeypatch, code, rows, message
):
    path = seam(tmp_path, monkeypatch, code, rows)
    with pytest.raises(seams.UndocumentedNameError, match=message):
        list(seams.uses_of(path))


def test_a_row_says_what_its_names_are_used_for_and_where_they_are(tmp_path, monkeypatch):
    code = textwrap.dedent(
        """
        import torch
        torch._new(), torch._C._jit_a, torch._C._jit_b
        def f(storage):
            return storage._cdata
        """
    )
    rows = "\n".join(
        [
            row("``torch._C._jit_*``", "compiling, and what"),
            row("", "belongs to it"),
            row("``torch._C._jit_b``", "the same, later (before torch 2.9)"),
            row("``_new``", "the same (after torch 2.6)"),
            row("``UntypedStorage._cdata``", "telling storages apart"),
        ]
    )
    path = seam(tmp_path, monkeypatch, code, rows)
    monkeypatch.setattr(seams, "torches", lambda: ["2.6.0", "2.9.1", "2.11.0"])
    found = {use.name: use for use in seams.uses_of(path)}
    assert {name: use.purpose for name, use in found.items()} == {
        "torch._C._jit_a": "compiling, and what belongs to it",
        "torch._C._jit_b": "compiling, and what belongs to it, later (before torch 2.9)",
        "torch._new": "compiling, and what belongs to it, later (after torch 2.6)",
        "torch.UntypedStorage._cdata": "telling storages apart",
    }
    versions = ("2.6.1", "2.7.0", "2.9.0", "2.12.0")
    assert [found["torch._new"].expected_in(one) for one in versions] == [False, None, True, True]
    assert [found["torch._C._jit_b"].expected_in(one) for one in versions] == [
        *(True, None, False, False),
    ]
