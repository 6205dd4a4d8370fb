"""Stored and read back: the same graph, the same class, still lazy."""

import copy
import io
import json
import operator
import pickle
import zlib

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.package import PackageExporter, PackageImporter

from lazyfx_core import (
    GraphFormatError,
    LazyGraphModule,
    SerializationError,
    use_lazy_graph_module,
)

IN_PLACE = [
    operator.iadd, operator.iand, operator.ifloordiv, operator.ilshift, operator.imod,
    operator.imul, operator.imatmul, operator.ior, operator.ipow, operator.irshift,
    operator.isub, operator.itruediv, operator.ixor,
]  # fmt: skip


class Mine(LazyGraphModule):
    """A subclass somebody wrote."""

    greeting = "hello"


def nodes_of(gm):
    return [(n.op, n.target, n.name, n.type, str(n.args), str(n.kwargs)) for n in gm.graph.nodes]


def through_pickle(gm):
    return pickle.loads(pickle.dumps(gm))


def through_torch_save(gm):
    buffer = io.BytesIO()
    torch.save(gm, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_package(gm):
    buffer = io.BytesIO()
    with PackageExporter(buffer) as exporter:
        exporter.extern("test_pickling")
        exporter.save_pickle("model", "model.pkl", gm)
    buffer.seek(0)
    return PackageImporter(buffer).load_pickle("model", "model.pkl")


DOORS = [through_pickle, through_torch_save, through_package]
# torch.package reads tensors through TypedStorage, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_stored_module_comes_back_lazy_and_equal(lazy, model, x, door, fresh):
    if fresh:
        lazy.real_recompile()
    with use_lazy_graph_module(False):
        back = door(lazy)
    assert isinstance(back, LazyGraphModule)
    assert back.needs_recompile
    assert type(back).__name__ == "Model"
    assert nodes_of(back) == nodes_of(lazy)
    assert back.training == lazy.training
    assert torch.equal(back(x), model(x))
    assert back.code == lazy.code
    assert lazy.needs_recompile is False or not fresh


@pytest.mark.parametrize("door", DOORS)
def test_storing_a_stale_module_generates_nothing(lazy, door):
    door(lazy)
    assert lazy.needs_recompile


@pytest.mark.parametrize("door", DOORS)
def test_in_place_operators_names_types_and_unused_nodes_survive(mutating, door):
    back = door(mutating)
    assert nodes_of(back) == nodes_of(mutating)
    x = torch.zeros(2)
    assert back(x) is x
    assert x.tolist() == [1, 1]


@pytest.mark.parametrize("op", IN_PLACE, ids=lambda op: op.__name__)
def test_every_in_place_operator_survives(op):
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    graph.output(graph.call_function(op, (a, b)))
    back = through_pickle(LazyGraphModule({}, graph))
    assert [n.target for n in back.graph.nodes if n.op == "call_function"] == [op]


def test_operators_of_torch_and_higher_order_operators_survive():
    def f(x):
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    x = torch.randn(3)
    gm = LazyGraphModule.from_graphmodule(make_fx(f, tracing_mode="fake")(x))
    back = through_pickle(gm)
    assert nodes_of(back) == nodes_of(gm)
    targets = {n.target for n in back.graph.nodes}
    assert torch.ops.higher_order.cond in targets
    assert torch.ops.aten.gt.Scalar in targets
    for value in (x.abs(), -x.abs()):
        torch.testing.assert_close(back(value), f(value))


def test_an_operator_inside_arguments_survives():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.ops.aten.sin.default, (x,)), [slice(0, 2), None]))
    graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)[0].kwargs = {}
    holder = graph.placeholder("packet", default_value=torch.ops.aten.sin)
    assert holder.args == (torch.ops.aten.sin,)
    back = through_pickle(LazyGraphModule({}, graph))
    assert nodes_of(back) == nodes_of(LazyGraphModule({}, graph))


# torch 2.13 warns about its own LeafSpec whenever one is unpickled, by plain modules too.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_a_pytree_signature_survives():
    class Nested(torch.nn.Module):
        def forward(self, pair):
            return {"sum": pair[0] + pair[1]}

    tracer = fx.Tracer()
    graph = tracer.trace(Nested(), concrete_args={"pair": (fx.PH, fx.PH)})
    back = through_pickle(LazyGraphModule(tracer.root, graph))
    one = torch.ones(1)
    assert torch.equal(back((one, one))["sum"], one + one)


def test_a_user_subclass_and_laziness_survive_pickle_copy_and_deepcopy(plain, model, x):
    gm = Mine(plain, plain.graph, "Named")
    for back in (through_pickle(gm), copy.copy(gm), copy.deepcopy(gm)):
        assert isinstance(back, Mine)
        assert back.greeting == "hello"
        assert back.needs_recompile
        assert type(back).__name__ == "Named"
        assert torch.equal(back(x), model(x))


def test_copies_do_not_share_code(lazy, x):
    twin = copy.deepcopy(lazy)
    before = lazy(x)
    for node in twin.graph.nodes:
        if node.target is torch.sin:
            node.target = torch.cos
    twin.recompile()
    assert not torch.equal(twin(x), before)
    assert torch.equal(lazy(x), before)


def test_nested_lazy_modules_survive(x):
    child = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x)))
    graph = fx.Graph()
    graph.output(graph.call_module("child", (graph.placeholder("x"),)))
    back = through_pickle(LazyGraphModule({"child": child}, graph))
    assert isinstance(back.child, LazyGraphModule)
    assert torch.equal(back(x), x.sin())


def test_a_function_without_a_name_is_refused_and_its_node_named():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.create_node("call_function", lambda x: x + 1, (x,), name="plus"))
    with pytest.raises(SerializationError, match="node 'plus'.*top level"):
        pickle.dumps(LazyGraphModule({}, graph))


def stored_with(gm, **changes):
    """The reduction of ``gm``, its stored document changed."""
    from lazyfx_core import _pickle

    cls, name, attributes, stored = _pickle.module_state(gm)
    document = json.loads(zlib.decompress(stored.document))
    for key, change in changes.items():
        change(document[key])
    text = json.dumps(document).encode()
    stored.size, stored.document = len(text), zlib.compress(text)
    return cls, name, attributes, stored


def test_an_operator_this_torch_lacks_is_named_on_load(lazy):
    from lazyfx_core import _pickle

    def rename(targets):
        targets[0] = {"op": ["overload", "nowhere.nothing.default"]}

    gm = _pickle.restore_module(*stored_with(lazy, targets=rename))
    with pytest.raises(GraphFormatError, match=r"node 'sin'.*nowhere\.nothing\.default"):
        gm.graph
    with pytest.raises(GraphFormatError, match=r"node 'sin'"):
        gm(torch.ones(4))


def test_a_graph_of_a_newer_format_is_refused(lazy):
    from lazyfx_core import _pickle

    cls, name, attributes, graph = _pickle.module_state(lazy)
    graph.format = 99
    with pytest.raises(SerializationError, match="format 99"):
        _pickle.restore_module(cls, name, attributes, graph)


def test_torchs_reduction_keeps_its_shape_for_torchs_caches(lazy, plain):
    function, (body, imports) = lazy.__reduce__()
    expected_function, (expected_body, expected_imports) = plain.__reduce__()
    assert function is expected_function
    assert imports == expected_imports
    assert body.keys() == expected_body.keys()
    assert body["_code"] == expected_body["_code"]


def test_a_subclass_may_bring_its_own_reduction(plain):
    class Own(LazyGraphModule):
        def __reduce__(self):
            return (str, ("mine",))

    assert pickle.loads(pickle.dumps(Own(plain, plain.graph))) == "mine"


def test_old_pickles_of_plain_modules_load_through_torch(plain, model, x):
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x), model(x))
