"""Metadata: what is kept, what stays shared, what is left out and how that is said."""

from __future__ import annotations

import collections
import enum
import io
import operator
import pickle
import sys
import threading
import types
import warnings
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.shape_prop import ShapeProp, _extract_tensor_metadata

from lazyfx_core import (
    DroppedMetadataWarning,
    LazyGraphModule,
    SerializationError,
    load_graph,
    save_graph,
    serialization_options,
)

TENSOR_META = _extract_tensor_metadata(torch.ones(2, 3))


def three_nodes() -> LazyGraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.sin, (x,)))
    return LazyGraphModule({}, graph)


def nodes(gm: fx.GraphModule) -> list[fx.Node]:
    return list(gm.graph.nodes)


def symbolic() -> LazyGraphModule:
    gm = make_fx(lambda x: (x @ x.t()).view(-1) * x.shape[0], tracing_mode="symbolic")(
        torch.ones(3, 4)
    )
    return LazyGraphModule.from_graphmodule(gm)


def test_containers_that_nodes_share_are_shared_again(door):
    gm = three_nodes()
    shared = {"count": [0]}
    for node in gm.graph.nodes:
        node.meta["shared"] = shared
        node.meta["own"] = {"count": [0]}
    x, sin, out = nodes(door(gm))
    assert x.meta["shared"] is sin.meta["shared"] is out.meta["shared"]
    assert x.meta["own"] is not sin.meta["own"]
    x.meta["shared"]["count"].append(1)
    assert out.meta["shared"] == {"count": [0, 1]}
    assert shared == {"count": [0]}


def test_equal_entries_come_back_equal_and_each_on_its_own(door):
    gm = three_nodes()
    for node in gm.graph.nodes:
        node.meta["nn_module_stack"] = {"L__self__": ("", nn.Linear), "a.b": ("a.b", "Text")}
        node.meta["tensor_meta"] = _extract_tensor_metadata(torch.ones(2, 3))
    first = next(iter(gm.graph.nodes)).meta["tensor_meta"]
    back = nodes(door(gm))
    for node in back:
        stack, tensor_meta = node.meta["nn_module_stack"], node.meta["tensor_meta"]
        assert stack == {"L__self__": ("", nn.Linear), "a.b": ("a.b", "Text")}
        assert tensor_meta == first
        assert [*map(type, tensor_meta)] == [*map(type, first)]
    one, other = back[0].meta, back[1].meta
    one["nn_module_stack"]["more"] = ("more", nn.ReLU)
    one["tensor_meta"].qparams["scale"] = 1.0
    assert "more" not in other["nn_module_stack"]
    assert other["tensor_meta"].qparams == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"nn_module_stack": {"a": (1, nn.Linear)}}, {"nn_module_stack": {"a": (True, nn.Linear)}}),
        ({"nn_module_stack": {1: ("a", "b")}}, {"nn_module_stack": {1.0: ("a", "b")}}),
        ({"nn_module_stack": {"a": ("b", "c")}}, {"nn_module_stack": {"a": ["b", "c"]}}),
        (
            {"nn_module_stack": {"a": ("b", "c"), "d": ("e", "f")}},
            {"nn_module_stack": {"d": ("e", "f"), "a": ("b", "c")}},
        ),
        ({"tensor_meta": TENSOR_META}, {"tensor_meta": TENSOR_META._replace(requires_grad=0)}),
        ({"tensor_meta": TENSOR_META}, {"tensor_meta": TENSOR_META._replace(stride=[3, 1])}),
        ({"tensor_meta": TENSOR_META}, {"tensor_meta": TENSOR_META._replace(qparams={"a": 1})}),
        ({"tensor_meta": TENSOR_META}, {"tensor_meta": TENSOR_META._replace(is_quantized=True)}),
    ],
)
def test_entries_that_are_equal_to_python_but_differ_stay_apart(door, one, other):
    gm = three_nodes()
    x, sin, _ = nodes(gm)
    x.meta.update(one)
    sin.meta.update(other)
    seen = [repr(node.meta) for node in nodes(door(gm))[:2]]
    assert seen == [repr(x.meta), repr(sin.meta)]


def test_metadata_refers_to_nodes_earlier_later_and_itself(door):
    gm = three_nodes()
    x, sin, out = nodes(gm)
    x.meta["later"] = [out, {"deep": (sin,)}]
    sin.meta["self"] = sin
    out.meta["earlier"] = {"x": x}
    x, sin, out = nodes(door(gm))
    assert x.meta["later"][0] is out
    assert x.meta["later"][1]["deep"][0] is sin
    assert sin.meta["self"] is sin
    assert out.meta["earlier"]["x"] is x


def test_fake_tensors_come_back_in_one_usable_mode(door, assert_same):
    gm = symbolic()
    back = door(gm)
    assert_same(gm, back)
    values = [n.meta["val"] for n in back.graph.nodes if isinstance(n.meta.get("val"), FakeTensor)]
    assert len(values) > 2
    assert len({id(value.fake_mode) for value in values}) == 1
    mode = values[0].fake_mode
    assert isinstance(mode.shape_env, ShapeEnv)
    with mode:
        out = values[0] @ values[0].t()
    assert str(out.shape[0]) == str(values[0].shape[0])
    assert out.shape[0].node.shape_env is mode.shape_env


def test_one_fake_tensor_in_two_places_stays_one(door):
    gm = three_nodes()
    with FakeTensorMode():
        fake, view = torch.empty(2), torch.empty(2)
    x, sin, _ = nodes(gm)
    x.meta.update(val=fake, example_value=(fake, view))
    sin.meta["val"] = fake
    x, sin, _ = nodes(door(gm))
    assert x.meta["val"] is sin.meta["val"] is x.meta["example_value"][0]
    assert x.meta["val"] is not x.meta["example_value"][1]
    assert x.meta["val"].fake_mode is x.meta["example_value"][1].fake_mode


def test_tensor_metadata_of_shape_propagation_comes_back(door, assert_same):
    gm = three_nodes()
    ShapeProp(gm).propagate(torch.ones(2, 3).t())
    back = door(gm)
    assert_same(gm, back)
    assert nodes(back)[1].meta["tensor_meta"] == nodes(gm)[1].meta["tensor_meta"]


def test_node_sources_come_back(door, assert_same):
    source = pytest.importorskip("torch.fx.traceback").NodeSource
    gm = three_nodes()
    x, sin, _ = nodes(gm)
    sin.meta["from_node"] = [source(x, "a pass")]
    back = door(gm)
    assert_same(gm, back)
    (one,) = nodes(back)[1].meta["from_node"]
    (other,) = sin.meta["from_node"]
    assert one.to_dict() == other.to_dict()
    assert str(one) == str(other)


def test_the_modules_own_metadata_and_shape_environment_come_back(door):
    gm = symbolic()
    fake = next(n.meta["val"] for n in gm.graph.nodes if n.op == "placeholder")
    gm.meta.update(plain={"a": (1, 2.5, None)}, function=operator.add, val=fake)
    gm.shape_env = fake.fake_mode.shape_env
    back = door(gm)
    assert back.meta["plain"] == {"a": (1, 2.5, None)}
    assert back.meta["function"] is operator.add
    assert isinstance(back.shape_env, ShapeEnv)
    placeholder = next(n for n in back.graph.nodes if n.op == "placeholder")
    assert placeholder.meta["val"] is back.meta["val"]
    assert placeholder.meta["val"].fake_mode.shape_env is back.shape_env


@pytest.fixture
def module_for_a_while() -> Any:
    module = types.ModuleType("lazyfx_gone")
    module.Layer = type("Layer", (nn.Module,), {"__module__": "lazyfx_gone"})
    sys.modules["lazyfx_gone"] = module
    yield module
    sys.modules.pop("lazyfx_gone", None)


@pytest.mark.parametrize("key", ["nn_module_stack", "source_fn_stack"])
def test_classes_of_modules_come_back_and_as_text_if_nobody_has_loaded_them(
    key, module_for_a_while, tmp_path
):
    gm = three_nodes()
    layer = module_for_a_while.Layer
    stacks = {
        "nn_module_stack": {"a": ("a", layer), "b": ("b", nn.Linear)},
        "source_fn_stack": [("a", layer), ("b", nn.Linear)],
    }
    nodes(gm)[1].meta[key] = stacks[key]
    data = pickle.dumps(gm)
    save_graph(gm, tmp_path / "graph")
    assert nodes(pickle.loads(data))[1].meta[key] == stacks[key]
    assert nodes(load_graph(tmp_path / "graph"))[1].meta[key] == stacks[key]
    del sys.modules["lazyfx_gone"]
    for back in (pickle.loads(data), load_graph(tmp_path / "graph")):
        assert "lazyfx_gone.Layer" in repr(nodes(back)[1].meta[key])
        assert nn.Linear in list(dict(nodes(back)[1].meta[key]).values()) or "Linear" in repr(
            nodes(back)[1].meta[key]
        )
    assert "lazyfx_gone" not in sys.modules


# --- what cannot be stored ----------------------------------------------------------------------


def test_what_cannot_be_stored_is_left_out_with_one_warning(door):
    gm = three_nodes()
    for node in gm.graph.nodes:
        node.meta.update(lock=threading.Lock(), kept=1)
    nodes(gm)[1].meta["local"] = lambda: None
    with pytest.warns(DroppedMetadataWarning) as caught:
        back = door(gm)
    (warning,) = [w for w in caught if w.category is DroppedMetadataWarning]
    text = str(warning.message)
    assert "'lock' (node 'x'" in text
    assert "'local' (node 'sin'" in text
    assert [node.meta for node in back.graph.nodes] == [{"kept": 1}] * 3


@pytest.mark.parametrize("writer", ["pickle", "archive"])
def test_the_warning_points_at_the_callers_line(writer, tmp_path):
    gm = three_nodes()
    gm.meta["lock"] = threading.Lock()
    with pytest.warns(DroppedMetadataWarning, match="'lock' \\(the module") as caught:
        pickle.dumps(gm) if writer == "pickle" else save_graph(gm, tmp_path / "graph")
    assert caught[0].filename == __file__


def test_strict_raises_and_names_key_and_node(tmp_path):
    gm = three_nodes()
    nodes(gm)[1].meta["lock"] = threading.Lock()
    with (
        serialization_options(strict=True),
        pytest.raises(SerializationError, match="node 'sin': metadata 'lock' cannot be stored"),
    ):
        pickle.dumps(gm)
    with pytest.raises(SerializationError, match="node 'sin': metadata 'lock' cannot be stored"):
        save_graph(gm, tmp_path / "graph", strict=True)
    assert not list(tmp_path.iterdir())


def test_metadata_can_be_left_out_silently(tmp_path):
    gm = three_nodes()
    gm.meta["lock"] = threading.Lock()
    nodes(gm)[1].meta["kept"] = 1
    with serialization_options(meta=False):
        data = pickle.dumps(gm)
    save_graph(gm, tmp_path / "graph", meta=False)
    for back in (pickle.loads(data), load_graph(tmp_path / "graph")):
        assert back.meta == {}
        assert all(node.meta == {} for node in back.graph.nodes)


def test_a_key_that_is_no_text_is_named(door):
    gm = three_nodes()
    nodes(gm)[0].meta[7] = 1
    nodes(gm)[0].meta["kept"] = 2
    with pytest.warns(DroppedMetadataWarning, match="'7' \\(node 'x': the key is not text"):
        back = door(gm)
    assert nodes(back)[0].meta == {"kept": 2}


def test_metadata_that_contains_itself_is_named(door):
    gm = three_nodes()
    loop: list[Any] = []
    loop.append(loop)
    nodes(gm)[0].meta.update(loop=loop, kept=2)
    with pytest.warns(DroppedMetadataWarning, match="'loop' \\(node 'x': it contains itself"):
        back = door(gm)
    assert nodes(back)[0].meta == {"kept": 2}


class Counted:
    pickled = 0

    def __reduce__(self) -> Any:
        Counted.pickled += 1
        return Counted, ()


class Refuses:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


class LoadsWrong:
    def __reduce__(self) -> Any:
        return operator.truediv, (1, 0)


def test_objects_of_unknown_classes_are_kept_in_a_pickle_and_stay_one():
    gm = three_nodes()
    value = Counted()
    for node in gm.graph.nodes:
        node.meta["object"] = value
    x, sin, _ = nodes(pickle.loads(pickle.dumps(gm)))
    assert type(x.meta["object"]) is Counted
    assert x.meta["object"] is sin.meta["object"]


@pytest.mark.parametrize("wrong", [Refuses, LoadsWrong])
def test_metadata_that_fails_to_pickle_does_not_fail_the_module(wrong):
    gm = three_nodes()
    nodes(gm)[1].meta["wrong"] = wrong()
    with pytest.warns(DroppedMetadataWarning, match=f"{wrong.__name__} does not pickle"):
        back = pickle.loads(pickle.dumps(gm))
    assert nodes(back)[1].meta == {}


def test_huge_metadata_comes_back(door):
    gm = three_nodes()
    nodes(gm)[1].meta.update(text="ab" * 500_000, many=list(range(100_000)), data=b"x" * 1_000_000)
    meta = nodes(door(gm))[1].meta
    assert meta == nodes(gm)[1].meta


def test_storing_changes_no_metadata_and_adds_no_guard(door, fingerprint):
    gm = symbolic()
    env = next(n.meta["val"] for n in gm.graph.nodes if n.op == "placeholder").fake_mode.shape_env
    before, guards = fingerprint(gm), len(env.guards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        door(gm)
    assert fingerprint(gm) == before
    assert len(env.guards) == guards


def test_keys_keep_their_order(door):
    gm = three_nodes()
    names = [f"key_{index * 7 % 11}" for index in range(11)]
    nodes(gm)[0].meta.update(dict.fromkeys(names, 1))
    nodes(gm)[1].meta["ordered"] = collections.OrderedDict.fromkeys(names)
    back = door(gm)
    assert list(nodes(back)[0].meta) == names
    assert list(nodes(back)[1].meta["ordered"]) == names


@pytest.mark.parametrize("value", [(), (1, 2), [1], {"a": 1}])
def test_what_the_module_and_a_node_share_is_stored(door, value):
    gm = three_nodes()
    gm.meta["held"] = value
    next(iter(gm.graph.nodes)).meta["held"] = value
    back = door(gm)
    assert back.meta["held"] == nodes(back)[0].meta["held"] == value


class Color(enum.Flag):
    RED = 1
    BLUE = 2


def test_combinations_of_flags_come_back_or_are_left_out(door):
    gm = three_nodes()
    x, sin, _ = nodes(gm)
    x.meta["flags"] = Color.RED | Color.BLUE
    sin.meta["flags"] = Color(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        back = door(gm)
    left_out = any(item.category is DroppedMetadataWarning for item in caught)
    seen = [node.meta.get("flags") for node in nodes(back)[:2]]
    assert seen == ([None, None] if left_out else [Color.RED | Color.BLUE, Color(0)])


@pytest.mark.parametrize("what", ["node", "graph", "module", "method", "a list of the module"])
def test_objects_that_hold_the_graph_are_left_out(door, what):
    """In a copy of the object they would be those of another graph."""
    gm = three_nodes()
    x = nodes(gm)[0]
    held = {
        "node": lambda: collections.defaultdict(list, {"a": [x]}),
        "graph": lambda: gm.graph,
        "module": lambda: types.SimpleNamespace(gm=gm),
        "method": lambda: gm.graph.lint,
        "a list of the module": lambda: [gm],
    }[what]()
    x.meta["held"] = held
    with pytest.warns(DroppedMetadataWarning, match="held"):
        back = door(gm)
    assert "held" not in nodes(back)[0].meta


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")

    def __reduce__(self):
        raise RuntimeError("no")


def test_an_object_that_raises_whatever_one_asks_is_left_out(door):
    gm = three_nodes()
    nodes(gm)[0].meta["held"] = Unprintable()
    nodes(gm)[1].meta["held"] = [Unprintable()]
    with pytest.warns(DroppedMetadataWarning, match="held"):
        back = door(gm)
    assert all("held" not in node.meta for node in nodes(back))


def test_immutable_containers_of_torch_come_back_as_such(door):
    gm = three_nodes()
    x = nodes(gm)[0]
    x.meta["list"] = fx.immutable_collections.immutable_list([1, (2,)])
    x.meta["dict"] = fx.immutable_collections.immutable_dict({"a": [1]})
    meta = nodes(door(gm))[0].meta
    assert meta["list"] == [1, (2,)]
    assert [type(meta["list"]), type(meta["dict"])] == [type(x.meta["list"]), type(x.meta["dict"])]


def test_a_child_that_changed_is_stored_as_it_is_now():
    gm = three_nodes()
    gm.box = nn.Module()
    gm.box.inside = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: x + 1))
    gm.box.plain = fx.symbolic_trace(lambda x: x + 1)
    with io.BytesIO() as file:
        pickler = pickle.Pickler(file)
        pickler.dump(gm)
        gm.box.note = "new"
        gm.eval()
        back = pickle.loads(pickle.dumps(gm))
    assert (back.box.note, back.box.training) == ("new", False)
    assert pickler is not None
