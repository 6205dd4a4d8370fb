"""``torch.load(weights_only=True)``: our pickles load after one call, and only harmless ones."""

import io
import json
import subprocess
import sys
import zlib

import pytest
import torch
from torch import fx, nn

from lazyfx_core import GraphFormatError, LazyGraphModule, allow_in_weights_only_load
from lazyfx_core._pickle import StoredGraph, Unchecked, restore_module


def scale(x):
    return x * 2


fx.wrap("scale")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return self.linear(x).relu()


LEAVES = [nn.Linear, nn.Sequential, nn.ReLU, nn.LayerNorm, nn.ModuleList]


@pytest.fixture(autouse=True)
def _torchs_own_list():
    """Whatever a test allows is forgotten after it."""
    before = torch.serialization.get_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def lazy(function):
    return LazyGraphModule.from_graphmodule(fx.symbolic_trace(function))


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def load(file):
    return torch.load(file, weights_only=True)


def test_torch_refuses_our_modules_until_it_is_told_about_them():
    code = (
        "import io, torch\nfrom torch import fx\nfrom lazyfx_core import *\n"
        "gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(torch.nn.Linear(2, 1)))\n"
        "file = io.BytesIO(); torch.save(gm, file); file.seek(0)\n"
        "try:\n    torch.load(file, weights_only=True)\n"
        "except Exception as error:\n    print('refused', 'restore_module' in str(error))\n"
        "file.seek(0); allow_in_weights_only_load()\n"
        "print(torch.load(file, weights_only=True).needs_recompile)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "True", "True"]


def test_a_module_with_leaves_of_torch_nn_comes_back():
    allow_in_weights_only_load(*LEAVES)
    gm = lazy(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.LayerNorm(3)))
    back = load(saved(gm))
    x = torch.randn(2, 3)
    assert isinstance(back, LazyGraphModule)
    assert torch.equal(back(x), gm(x))
    assert type(back).__name__ == type(gm).__name__


def test_classes_that_were_not_allowed_are_refused_by_torch():
    allow_in_weights_only_load()
    with pytest.raises(Exception, match="Linear"):
        load(saved(lazy(nn.Sequential(nn.Linear(3, 3)))))


def test_metadata_with_fake_tensors_and_module_stacks_comes_back():
    from torch.fx.experimental.proxy_tensor import make_fx

    allow_in_weights_only_load()
    traced = make_fx(lambda x: x.relu() + 1, tracing_mode="symbolic")(torch.ones(3, 4))
    gm = LazyGraphModule.from_graphmodule(traced)
    for node in gm.graph.nodes:
        node.meta["nn_module_stack"] = {"L": ("block", Block)}
        node.meta["stack_trace"] = "File x, line 1\n" * 5
    back = load(saved(gm))
    for node, other in zip(gm.graph.nodes, back.graph.nodes, strict=True):
        assert other.meta["nn_module_stack"] == {"L": ("block", Block)}
        assert other.meta["stack_trace"] == node.meta["stack_trace"]
        if "val" in node.meta and isinstance(node.meta["val"], torch.Tensor):
            assert str(other.meta["val"].shape) == str(node.meta["val"].shape)


def test_a_plain_child_comes_back_plain_with_its_in_place_operators():
    import operator

    inside = fx.Graph()
    inside.output(inside.call_function(operator.iadd, (inside.placeholder("x"), 1)))
    child = fx.GraphModule(nn.Module(), inside)
    outside = fx.Graph()
    outside.output(outside.call_module("child", (outside.placeholder("x"),)))
    gm = LazyGraphModule({"child": child}, outside)
    allow_in_weights_only_load()
    back = load(saved(gm))
    x = torch.zeros(2)
    back(x)
    assert not isinstance(back.child, LazyGraphModule)
    assert torch.equal(x, torch.ones(2))


def test_a_graph_that_calls_a_users_function_is_refused():
    allow_in_weights_only_load()
    with pytest.raises(Exception, match="Unchecked|scale"):
        load(saved(lazy(lambda x: scale(x))))


def test_and_its_marker_cannot_be_allowed_by_the_call():
    allow_in_weights_only_load(scale)
    with pytest.raises(Exception, match="Unchecked"):
        load(saved(lazy(lambda x: scale(x))))


def document_of(gm):
    stored = gm.__reduce_ex__(4)[1][3]
    return json.loads(zlib.decompress(stored.document)), stored


FORBIDDEN = [
    {"fn": ["builtins", "eval"]},
    {"fn": ["builtins", "getattr"]},
    {"op": ["packet", "aten.from_file"]},
    {"name": "os:system"},
    {"object": 0},
]


@pytest.mark.parametrize("target", FORBIDDEN, ids=lambda t: json.dumps(t))
def test_a_pickle_without_the_marker_is_held_to_the_rules_when_the_graph_is_built(target):
    gm = lazy(lambda x: torch.sin(x))
    document, stored = document_of(gm)
    document["targets"][0] = target
    _, (cls, name, attributes, _) = gm.__reduce_ex__(4)[:2]
    text = json.dumps(document).encode()
    bad = StoredGraph(
        stored.format, stored.attributes, len(text), zlib.compress(text), (scale,), None
    )
    back = restore_module(cls, name, dict(attributes), bad)
    with pytest.raises(GraphFormatError, match="sin"):
        back(torch.ones(1))
    with pytest.raises(GraphFormatError, match="sin"):
        _ = back.graph


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["nodes"][0].__setitem__(1, "x=print(1)"),
        lambda d: d["nodes"][1].__setitem__(2, "a; b"),
        lambda d: d["nodes"][1][3].append({"fn": ["builtins", "getattr"]}),
        lambda d: d["nodes"][1][3].append({"object": 0}),
        lambda d: d["codegen"].update(attributes={"_func_name": "a b"}),
        lambda d: d["nodes"].insert(1, ["get_attr", "forward.__globals__", "g", []]),
        lambda d: d["nodes"].insert(1, ["get_attr", "_modules", "g", []]),
        lambda d: d["nodes"].insert(1, ["call_method", "__reduce_ex__", "g", [{"node": 0}, 2]]),
    ],
)
def test_names_paths_and_arguments_are_held_to_them_too(change):
    gm = lazy(lambda x: torch.sin(x))
    document, stored = document_of(gm)
    change(document)
    _, (cls, name, attributes, _) = gm.__reduce_ex__(4)[:2]
    text = json.dumps(document).encode()
    bad = StoredGraph(
        stored.format, stored.attributes, len(text), zlib.compress(text), (scale,), None
    )
    with pytest.raises(GraphFormatError):
        _ = restore_module(cls, name, dict(attributes), bad).graph


@pytest.mark.parametrize("value", [{"fn": ["builtins", "getattr"]}, {"object": 0}])
def test_an_attribute_of_such_a_pickle_is_as_harmless_as_an_argument(value):
    gm = lazy(lambda x: torch.sin(x))
    _, stored = document_of(gm)
    _, (cls, name, attributes, _) = gm.__reduce_ex__(4)[:2]
    head = json.dumps({"uses_tables": False, "values": {"forward": value}})
    bad = StoredGraph(stored.format, head, stored.size, stored.document, (scale,), None)
    with pytest.raises(GraphFormatError, match="forward"):
        restore_module(cls, name, {**attributes, "forward": None}, bad)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 99}, "format 99.*newer"),
        ({"size": 1 << 40}, "too large"),
        ({"size": -1}, "too large"),
        ({"size": "1"}, "too large"),
        ({"document": b"nonsense"}, "damaged"),
        ({"document": None}, "damaged"),
        ({"document": zlib.compress(b"[]"), "size": 2}, "graph is an object"),
        ({"document": zlib.compress(b"0" * 10**7), "size": 10}, "damaged"),
        ({"attributes": "[]"}, "attributes"),
        ({"attributes": "{"}, "attributes"),
        ({"attributes": '{"values": {"nothing": 1}}'}, "nothing"),
    ],
)
def test_damaged_fields_are_named(fields, message):
    gm = lazy(lambda x: torch.sin(x))
    _, (cls, name, attributes, stored) = gm.__reduce_ex__(4)[:2]
    names = ("format", "attributes", "size", "document", "objects", "unchecked")
    bad = StoredGraph(**{**{n: getattr(stored, n) for n in names}, **fields})
    with pytest.raises(GraphFormatError, match=message):
        _ = restore_module(cls, name, dict(attributes), bad).graph


def test_a_harmless_graph_carries_no_marker_and_any_other_does():
    assert document_of(lazy(lambda x: torch.sin(x)))[1].unchecked is None
    assert document_of(lazy(lambda x: scale(x)))[1].unchecked is Unchecked
