"""debug_compile: the program it writes really runs, in a process of its own."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import NotCompilableError, ReproError, debug_compile, nop

AGREES = "the compiled graph agrees with the graph"


def run_script(script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
        timeout=300,
    )


def warnings_of(caplog) -> list[str]:
    name = "lazyfx_compilers.debug"
    return [record.getMessage() for record in caplog.records if record.name == name]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x, index):
        picked = self.layers(x)[index]
        return picked * torch.tensor([2.0, 3.0]) + torch.inf * 0 + picked.sum(dtype=torch.float64)


def test_the_programs_of_a_training_run_in_a_fresh_process(tmp_path, caplog):
    model, x, index = Model(), torch.randn(5, 4, requires_grad=True), torch.tensor([0, 1, 4])
    with caplog.at_level(logging.WARNING, "lazyfx_compilers.debug"):
        compiled = torch.compile(model, backend=debug_compile(folder=tmp_path, compiler=nop))
        torch.manual_seed(0)
        result = compiled(x, index)
        result.nan_to_num().sum().backward()
    torch.manual_seed(0)
    torch.testing.assert_close(result, model(x, index), equal_nan=True)
    scripts = sorted(tmp_path.glob("*/repro.py"))
    assert [s.parent.name for s in scripts] == ["000", "001"]
    said = warnings_of(caplog)
    assert len(said) == len(scripts)
    for script, text in zip(scripts, said, strict=True):
        assert f"{script} (in a fresh process it shows no fault)" in text
        done = run_script(script)
        assert (done.returncode, done.stderr) == (0, "")
        assert AGREES in done.stdout


def test_the_default_compiler_is_torchscript_and_the_default_folder_temporary(caplog):
    gm = make_fx(lambda x: torch.relu(x) + 1)(torch.randn(3))
    with caplog.at_level(logging.WARNING, "lazyfx_compilers.debug"):
        run = debug_compile(gm, [torch.randn(3)])
    x = torch.randn(3)
    torch.testing.assert_close(run([x]), torch.relu(x) + 1)
    script = Path(re.findall(r"\S+repro\.py", caplog.text)[0])
    done = run_script(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert AGREES in done.stdout
    assert "ts_compile" in script.read_text()


def test_the_program_needs_only_torch_to_run_the_graph(tmp_path):
    gm = make_fx(lambda x: x.sin())(torch.randn(3))
    debug_compile(folder=tmp_path, verify=False)(gm, [torch.randn(3)])
    script = tmp_path / "000" / "repro.py"
    blocker = tmp_path / "block"
    (blocker / "lazyfx_compilers").mkdir(parents=True)
    (blocker / "lazyfx_compilers" / "__init__.py").write_text("raise ImportError('absent')")
    done = run_script(script, PYTHONPATH=str(blocker))
    assert (done.returncode, done.stderr) == (125, "")
    assert "the graph runs: outputs: 1" in done.stdout
    assert "not compiled, the compiler is missing: absent" in done.stdout


def test_a_folder_is_never_written_twice(tmp_path):
    gm = make_fx(lambda x: x.sin())(torch.randn(3))
    compiler = debug_compile(folder=tmp_path, compiler=nop, verify=False)
    compiler(gm, [torch.randn(3)])
    first = (tmp_path / "000" / "repro.py").read_bytes()
    debug_compile(folder=tmp_path, compiler=nop, verify=False)(
        make_fx(torch.cos)(torch.randn(3)), [torch.ones(3)]
    )
    assert (tmp_path / "000" / "repro.py").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000", "001"]


def every_kind_of_argument(x: torch.Tensor, y: torch.Tensor, k: Any) -> Any:
    held = torch.tensor([1.0, 2.0, 3.0])
    a = x.to(torch.float64).add(float("inf")).clamp(max=1e300)
    b = torch.full((2,), float("nan"), dtype=torch.float16, device=torch.device("cpu"))
    c = torch.empty_like(y, memory_format=torch.contiguous_format).fill_(1 + 2j)
    return a, b, c, x[:, 1:3], held * x[0, :3], torch.cat([x, x], 1), y.conj(), k


def test_dtypes_devices_infinities_complex_slices_and_constants_are_reproduced(tmp_path):
    inputs = [torch.randn(4, 6).t(), torch.randn(3, dtype=torch.complex64), 7]
    inputs[0] = torch.randn(6, 4).t()
    gm = make_fx(every_kind_of_argument)(*inputs)
    debug_compile(folder=tmp_path, compiler=nop, verify=False)(gm, inputs)
    done = run_script(tmp_path / "000" / "repro.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert AGREES in done.stdout


def test_subgraphs_of_higher_order_operators_are_reproduced(tmp_path):

    def f(x):
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    compiler = debug_compile(folder=tmp_path, compiler=nop, verify=False)
    x = torch.randn(3)
    torch.testing.assert_close(torch.compile(f, backend=compiler, fullgraph=True)(x), f(x))
    done = run_script(tmp_path / "000" / "repro.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert AGREES in done.stdout


def test_functions_of_symbolic_sizes_are_reproduced(tmp_path):
    def f(x):  # rounds a size in floating point: neither operator nor aten
        x = torch.nn.functional.interpolate(x, scale_factor=1.5, mode="bilinear")
        return x / x.shape[-1] ** 0.5

    compiler = debug_compile(folder=tmp_path, compiler=nop, verify=False)
    x = torch.randn(2, 2, 6, 6)
    torch.testing.assert_close(torch.compile(f, backend=compiler, dynamic=True)(x), f(x))
    done = run_script(tmp_path / "000" / "repro.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert AGREES in done.stdout


def failing_compiler(gm, example_inputs):
    raise ZeroDivisionError("no such luck")


def test_an_error_of_the_compiler_says_where_the_program_is(tmp_path, monkeypatch):
    place = types.ModuleType("a_users_compilers")
    place.failing_compiler = failing_compiler
    monkeypatch.setitem(sys.modules, place.__name__, place)
    monkeypatch.setattr(failing_compiler, "__module__", place.__name__)
    gm = make_fx(torch.sin)(torch.randn(3))
    with pytest.raises(ZeroDivisionError) as caught:
        debug_compile(folder=tmp_path, compiler=failing_compiler)(gm, [torch.randn(3)])
    assert str(tmp_path / "000" / "repro.py") in caught.value.__notes__[0]
    assert (tmp_path / "000" / "repro.py").is_file()


def test_a_function_that_cannot_be_imported_is_refused_and_nothing_is_left(tmp_path):
    gm = make_fx(torch.sin)(torch.randn(3))
    node = next(n for n in gm.graph.nodes if n.op == "call_function")
    node.args = (*node.args, object())
    with pytest.raises(ReproError, match=r"node 'sin' has an argument <object.*expected"):
        debug_compile(folder=tmp_path, compiler=nop)(gm, [torch.randn(3)])
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_without_an_importable_name_is_refused():
    with pytest.raises(ReproError, match=r"debug_compile\(compiler=<function.*importable"):
        debug_compile(compiler=lambda gm, inputs: gm)


def test_an_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    gm = make_fx(torch.sin)(torch.randn(3))
    with pytest.raises(ReproError, match=r"file/sub.*cannot be written"):
        debug_compile(folder=tmp_path / "file" / "sub", compiler=nop)(gm, [torch.randn(3)])


def test_what_is_no_graph_module_is_refused():
    with pytest.raises(NotCompilableError, match="debug_compile"):
        debug_compile(lambda x: x, [])


def test_the_reference_imports_a_module_that_does_not_exist(tmp_path, monkeypatch):
    from torch._functorch.compilers import debug_compile as reference

    monkeypatch.chdir(tmp_path)
    gm = make_fx(torch.sin)(torch.randn(3))
    with pytest.raises((ImportError, AssertionError, RuntimeError, AttributeError)):
        reference(gm, [torch.randn(3)])


def test_what_the_program_did_when_it_first_ran_is_said_before_anything_is_compiled(
    tmp_path, caplog, monkeypatch
):
    """A compiler that ends the process leaves its reproduction behind, and the warning says so."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "deadly_compilers.py").write_text(
        "import os, signal\n"
        "def dies(gm, inputs):\n"
        "    if os.environ.get('ALIVE') != str(os.getpid()):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return gm\n"
    )
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("ALIVE", str(os.getpid()))
    from deadly_compilers import dies

    gm = make_fx(torch.sin)(torch.randn(3))
    with caplog.at_level(logging.WARNING, "lazyfx_compilers.debug"):
        debug_compile(folder=tmp_path / "out", compiler=dies)(gm, [torch.randn(3)])
        debug_compile(folder=tmp_path / "out", compiler=dies, verify=False)(gm, [torch.randn(3)])
    first, second = warnings_of(caplog)
    assert "000/repro.py (in a fresh process it dies with status -9" in first
    assert "the graph runs: outputs: 1" in first
    assert "001/repro.py (it has not run yet)" in second


def test_the_program_fails_where_the_compiled_graph_is_wrong(tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    (place / "a_wrong_compiler.py").write_text(
        "def wrong(gm, inputs):\n    return lambda *a: (gm(*a)[0] + 1,)\n"
    )
    monkeypatch.syspath_prepend(place)
    from a_wrong_compiler import wrong

    gm = make_fx(lambda x: (x.sin(),))(torch.randn(3))
    debug_compile(folder=tmp_path, compiler=wrong, verify=False)(gm, [torch.randn(3)])
    done = run_script(tmp_path / "000" / "repro.py")
    assert done.returncode == 1
    assert "the fault is there: differs: output 0: Tensor-likes are not close" in done.stdout


def test_constants_that_share_memory_share_it_in_the_program_as_well(tmp_path):
    gm = torch.fx.symbolic_trace(lambda x: x)
    whole = torch.arange(6.0)
    gm.register_buffer("row", whole[1:5])
    gm.register_buffer("column", whole.view(2, 3).t()[1:])
    graph = torch.fx.Graph()
    row, column = graph.get_attr("row"), graph.get_attr("column")
    filled = graph.call_function(torch.ops.aten.fill_.Scalar, (row, 7.0))
    graph.output((filled, column))
    gm.graph = graph
    debug_compile(folder=tmp_path, compiler=nop, verify=False)(gm, [])
    script = tmp_path / "000" / "repro.py"
    loader = (
        "import runpy, torch; from pathlib import Path\n"
        f"names = runpy.run_path({str(script)!r})\n"
        f"row, column = names['make_values'](Path({str(script.parent)!r}), 'constants')\n"
        "assert row.storage_offset() == 1 and column.stride() == (1, 3)\n"
        "row.fill_(7.0)\n"
        "assert column.tolist() == [[7.0, 7.0], [7.0, 5.0]], column\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", loader], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_no_file_of_a_program_is_a_pickle(tmp_path):
    inputs = [torch.randn(3)]
    gm = make_fx(lambda x: x + torch.arange(3.0) + torch.tensor([1.0, 2.0, 3.0]))(*inputs)
    debug_compile(folder=tmp_path, compiler=nop, verify=False)(gm, inputs)
    names = {p.name for p in (tmp_path / "000").iterdir()}
    data = {"constants.json", "constants.safetensors"}
    assert names == {"repro.py", "graph.py", "inputs.json"} | data
    assert not any(n.endswith((".pt", ".pkl", ".pth")) for n in names)
    assert "pickle" not in (tmp_path / "000" / "repro.py").read_text()
