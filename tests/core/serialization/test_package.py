"""``torch.package``: the same graph, in a package that brings the user's code along."""

import io
import operator
import sys
import textwrap
import zipfile

import pytest
import torch
from torch import fx, nn
from torch.package import PackageExporter, PackageImporter

from lazyfx_core import LazyGraphModule, assert_max_recompiles

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")

USERS_CODE = textwrap.dedent(
    """
    import torch
    from torch import fx
    from lazyfx_core import LazyGraphModule

    def scale(x):
        return x * 2

    class Gate(torch.nn.Module):
        def forward(self, x):
            return x + 1

    class Own(LazyGraphModule):
        pass

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, name):
            return True
    """
)


@pytest.fixture
def user(tmp_path, monkeypatch):
    (tmp_path / "users_code.py").write_text(USERS_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import users_code

    yield users_code
    sys.modules.pop("users_code", None)


def build(user, cls):
    root = nn.Module()
    root.gate, root.linear = user.Gate(), nn.Linear(3, 3)
    inside = fx.Graph()
    inside.output(inside.call_function(operator.iadd, (inside.placeholder("x"), 1)))
    root.child = fx.GraphModule(nn.Module(), inside)
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("child", (graph.call_module("gate", (x,)),))
    y = graph.call_function(user.scale, (graph.call_module("linear", (y,)),))
    y.meta.update(note=(1, {"a": 2}), stack_trace="File\n" * 20)
    graph.output(y)
    return cls(root, graph, "Named")


def packed(gm):
    file = io.BytesIO()
    with PackageExporter(file) as exporter:
        exporter.intern("users_code")
        exporter.extern(["torch.**", "torch"])
        exporter.save_pickle("graphs", "graph.pkl", gm)
    file.seek(0)
    return file


@pytest.mark.parametrize("own", [False, True])
def test_users_code_travels_with_the_graph(user, own):
    gm = build(user, user.Own if own else LazyGraphModule)
    x = torch.randn(2, 3)
    expected = gm(x.clone())
    file = packed(gm)
    assert any(name.endswith("users_code.py") for name in zipfile.ZipFile(file).namelist())
    sys.modules.pop("users_code")
    sys.path_importer_cache.clear()
    file.seek(0)
    importer = PackageImporter(file)
    with assert_max_recompiles(1):  # that of the plain child
        back = importer.load_pickle("graphs", "graph.pkl")
    assert "users_code" not in sys.modules
    assert isinstance(back, LazyGraphModule)
    assert not isinstance(back.child, LazyGraphModule)
    assert type(back).__name__ == "Named"
    assert torch.equal(back(x.clone()), expected)
    assert type(back.gate).__module__.startswith("<torch_package_")
    node = next(n for n in back.graph.nodes if n.name == "scale")
    assert node.target.__module__.startswith("<torch_package_")
    assert node.meta == {"note": (1, {"a": 2}), "stack_trace": "File\n" * 20}


def test_lazyfx_itself_is_not_packed(user):
    file = packed(build(user, LazyGraphModule))
    names = zipfile.ZipFile(file).namelist()
    assert not any("_graph_module.py" in name for name in names)


def test_a_package_can_be_packed_again(user):
    back = PackageImporter(packed(build(user, LazyGraphModule))).load_pickle("graphs", "graph.pkl")
    assert len(back.graph.nodes) == 6
    assert isinstance(back.child, fx.GraphModule)
