"""Every kind of target, argument, annotation and signature, each by name, through every door."""

from __future__ import annotations

import collections
import collections.abc
import math
import operator
import pickle
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.torch_version import TorchVersion
from torch.utils import _pytree as pytree

from lazyfx_core import LazyGraphModule, SerializationError, save_graph

aten = torch.ops.aten


class Pair(NamedTuple):
    left: Any
    right: Any = 0


class Box:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


pytree.register_pytree_node(
    Box,
    lambda box: ([box.inner], "label"),
    lambda items, _: Box(items[0]),
    serialized_type_name="lazyfx_tests.Box",
)
# torch 2.6 flattens by another registry; an empty path is enough for what it is asked here
fx._pytree.register_pytree_flatten_spec(Box, lambda box, _: [box.inner])


@fx.wrap
def wrapped(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return x * factor if bool((x > 0).all()) else x


def with_defaults(x: torch.Tensor, *, scale: int = 3, name: str = "n") -> torch.Tensor:
    return x * scale


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


def through_autograd_function(x: torch.Tensor) -> torch.Tensor:
    return Doubled.apply(x)


class OwnTracer(fx.Tracer):
    pass


class OwnCodeGen(fx.graph.CodeGen):
    """What a subclass changes does not matter here: its class has to come back."""


ALLOW = [
    collections.abc.Sequence,
    collections.abc.Callable,
    Pair,
    Box,
    wrapped,
    with_defaults,
    through_autograd_function,
    OwnTracer,
    Doubled,
]


def graph_of(*values: Any, type_expr: Any = None) -> LazyGraphModule:
    """A graph whose one call has the values as arguments; it is stored, never run."""
    graph = fx.Graph()
    x = graph.placeholder("x", type_expr=type_expr)
    first = graph.call_function(torch.stack, (x, *values), {"last": values[-1]} if values else {})
    graph.output(first)
    return LazyGraphModule({}, graph)


def call(function: Any, *args: Any, inputs: int = 1, **kwargs: Any) -> LazyGraphModule:
    """A graph that calls ``function`` on its inputs and ``args``, and returns both."""
    graph = fx.Graph()
    given = [graph.placeholder(f"x{index}") for index in range(inputs)]
    result = graph.call_function(function, (*given, *args), kwargs)
    graph.output((result, given))
    return LazyGraphModule({}, graph)


@pytest.fixture(scope="session")
def same(door: Any, assert_same: Any, assert_runs_the_same: Any) -> Callable[..., Any]:
    """Sends a module through the door, compares, and runs it if there are inputs."""

    def same(gm: fx.GraphModule, inputs: Any = None) -> Any:
        back = door(gm, ALLOW)
        assert back.needs_recompile
        assert_same(gm, back)
        if inputs is not None:
            assert_runs_the_same(gm, back, inputs)
        return back

    return same


INPLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")
INPLACE_BITS = ("iand", "ior", "ixor", "ilshift", "irshift")


@pytest.mark.parametrize("name", [*INPLACE, *INPLACE_BITS, "imatmul"])
def test_the_thirteen_in_place_operators_still_write_to_their_input(same, name):
    matrix = torch.tensor([[5.0, 3.0], [2.0, 7.0]])
    left = matrix.to(torch.int32) if name in INPLACE_BITS else matrix
    right = left.flip(0)
    back = same(call(getattr(operator, name), inputs=2), (left, right))
    assert back.graph.find_nodes(op="call_function", target=getattr(operator, name))
    given = left.clone()
    back(given, right)
    if name != "imatmul":  # tensors have no in-place form of it
        assert not torch.equal(given, left)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        *((operator.is_, (None,)), (operator.is_not, (None,)), (operator.not_, ())),
        *((operator.contains, (1,)), (operator.truth, ()), (operator.index, ())),
        *((math.sqrt, ()), (len, ()), (getattr, ("shape",)), (isinstance, (int,)), (float, ())),
        *((max, (1,)), (operator.eq, (1,)), (operator.getitem, (0,)), (hasattr, ("dtype",))),
    ],
)
def test_functions_that_tracing_loses_are_kept(door, assert_same, function, args):
    gm = call(function, *args)
    assert_same(gm, door(gm, [isinstance, hasattr, operator.index, max]))


INDICES = (
    *(0, -1, None, ..., True, slice(None), slice(1, None, 2), slice(None, -1)),
    *((0, slice(None)), (..., 0), (None, slice(0, 1)), [0, 1], ([0, 1], 0), ((0, 1),)),
)


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_items_are_read_and_written_by_every_kind_of_index(same, index):
    graph = fx.Graph()
    x = graph.placeholder("x")
    item = graph.call_function(operator.getitem, (x, index))
    total = graph.call_method("sum", (item,))
    graph.call_function(operator.setitem, (x, index, total))
    graph.output(total)
    same(LazyGraphModule({}, graph), (torch.arange(6.0).reshape(2, 3),))


def test_items_are_read_by_nodes_and_slices_of_nodes(same):
    graph = fx.Graph()
    x, n = graph.placeholder("x"), graph.placeholder("n")
    part = graph.call_function(operator.getitem, (x, (slice(0, n), slice(n, None, n))))
    graph.call_function(operator.setitem, (x, (n, slice(None, n)), 7.0))
    graph.output([part, graph.call_function(operator.getitem, (x, [n, 0]))])
    same(LazyGraphModule({}, graph), (torch.arange(12.0).reshape(3, 4), 1))


VALUES = {
    "None": None,
    "bools": (True, False, 1, 0, 1.0, 0.0),
    "signed zero": (-0.0, 0.0, complex(-0.0, 0.0)),
    "not numbers": (float("nan"), float("inf"), float("-inf"), complex(float("nan"), math.inf)),
    "tiny and huge": (5e-324, 1.7976931348623157e308, 0.1 + 0.2),
    "huge ints": (1 << 62, 1 << 63, -(1 << 63), -(1 << 63) - 1, 1 << 4000),
    "texts": ("", "ü\u2028", "\x00", "\ud800", '{"node": 0}', "x" * 1000),
    "bytes": (b"", b"\x00\xff" * 50),
    "ellipsis": (..., NotImplemented),
    "empty": ([], (), {}, [[]], ({},), slice(None)),
    "nested": {"a": [{"b": ({"c": [1, (2, {"d": None})]},)}], "": 0, "node": 1},
    "ranges": (range(3), range(10, -2, -3), slice(1, range(2), None)),
    "dtypes": tuple(sorted({v for v in vars(torch).values() if type(v) is torch.dtype}, key=str)),
    "devices": (torch.device("cpu"), torch.device("cuda", 1), torch.device("meta")),
    "layouts": (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.jagged),
    "memory formats": (torch.channels_last, torch.contiguous_format, torch.preserve_format),
    "sizes": (torch.Size([]), torch.Size([1, 2])),
    "functions": (torch.sin, len, functional.relu, operator.add, aten.sin.default, aten.add),
    "types": (int, torch.Tensor, nn.Linear, type(None)),
    "named tuple": (Pair(1, (2.0,)), Pair([], Pair(None))),
    "return types": (torch.return_types.max((1, 2)), torch.return_types.topk([3, None])),
}


@pytest.mark.parametrize("name", VALUES)
def test_arguments_come_back_with_type_and_value(same, name):
    same(graph_of(VALUES[name], [VALUES[name]]))


def test_named_tuples_and_dictionaries_hold_nodes(same):
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    graph.output({"deep": ({"y": (y, None)}, [1, x]), "plain": x})
    same(LazyGraphModule({}, graph), (torch.ones(2), torch.zeros(2)))
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    graph.output(Pair(x, [y, Pair(1, y)]))
    same(LazyGraphModule({}, graph))  # torch cannot generate code for a named tuple in a list


class Kind(typing.Protocol):
    pass


ANNOTATIONS = {
    "tensor": torch.Tensor,
    "number": int,
    "None": type(None),
    "list": list[torch.Tensor],
    "typing list": typing.List[torch.Tensor],  # noqa: UP006
    "bare typing list": typing.List,  # noqa: UP006
    "optional": typing.Optional[torch.Tensor],  # noqa: UP045
    "union": typing.Union[int, float, None],  # noqa: UP007
    "new union": int | None,
    "new union of tensors": torch.Tensor | list[int] | None,
    "tuple": tuple[int, ...],
    "empty tuple": tuple[()],
    "typing tuple": typing.Tuple[int, torch.Tensor],  # noqa: UP006
    "typing empty tuple": typing.Tuple[()],  # noqa: UP006
    "dict": dict[str, list[torch.Tensor]],
    "typing dict": typing.Dict[str, typing.List[int]],  # noqa: UP006
    "callable": typing.Callable[[int, str], torch.Tensor],
    "callable of anything": typing.Callable[..., int],
    "callable without arguments": typing.Callable[[], int],
    "new callable": Callable[[int], str],
    "new callable of anything": Callable[..., str],
    "any": typing.Any,
    "text": "torch.Tensor",
    "user class": Pair,
    "list of user class": list[Pair],
    "optional user class": Pair | None,
    "sequence": typing.Sequence[int],
    "abstract sequence": collections.abc.Sequence[int],
    "ordered": collections.OrderedDict[str, int],
}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations_come_back(same, name):
    back = same(graph_of(type_expr=ANNOTATIONS[name]))
    (node,) = back.graph.find_nodes(op="placeholder")
    assert node.type == ANNOTATIONS[name]
    assert type(node.type) is type(ANNOTATIONS[name])


def test_annotations_that_json_cannot_say_go_into_a_pickle_by_value(assert_same):
    for annotation in (typing.Literal["a", 1], typing.Annotated[int, "x"], typing.Deque[int]):  # noqa: UP006
        gm = graph_of(type_expr=annotation)
        assert_same(gm, pickle.loads(pickle.dumps(gm)))


# --- higher-order operators, user functions, signatures ---------------------------------------


def traced(function: Any, *inputs: Any, **options: Any) -> LazyGraphModule:
    return LazyGraphModule.from_graphmodule(make_fx(function, **options)(*inputs))


def test_cond_keeps_its_branches(same):
    def function(x):
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    x = torch.ones(2, 3)
    same(traced(function, x, tracing_mode="symbolic"), (x,))
    same(traced(function, x), (-x,))


def test_while_loop_keeps_its_condition_and_body(same):
    from torch._higher_order_ops.while_loop import while_loop

    def function(x, n):
        return while_loop(lambda x, n: n < 3, lambda x, n: (x * 2, n + 1), (x, n))

    inputs = (torch.ones(2), torch.tensor(0))
    gm = traced(function, *inputs)
    assert gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.while_loop)
    same(gm, inputs)


def plain_child_that_writes() -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(operator.iadd, (x, 1))
    graph.call_function(operator.is_, (x, None))
    graph.output((x,))
    return fx.GraphModule({}, graph)


def with_child(operator_: Any, *args: Any) -> LazyGraphModule:
    """A plain graph module given as an argument to a higher-order operator."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    body = graph.get_attr("body")
    graph.output(graph.call_function(operator_, (body, *args, x)))
    return LazyGraphModule({"body": plain_child_that_writes()}, graph)


def test_checkpoint_keeps_a_plain_child_that_writes_in_place(same):
    import torch._higher_order_ops.wrap

    gm = with_child(torch.ops.higher_order.tag_activation_checkpoint)
    back = same(gm, (torch.zeros(2),))
    assert type(back.body).__bases__[0] is fx.GraphModule
    x = torch.zeros(2)
    back.body(x)
    assert x.tolist() == [1, 1]


def test_invoke_subgraph_keeps_its_child(same):
    same(with_child(torch.ops.higher_order.invoke_subgraph, "name"))


def test_flex_attention_keeps_its_score_function(same):
    from torch.nn.attention.flex_attention import flex_attention

    def function(q, k, v):
        return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + (i - j))

    q = torch.randn(1, 1, 16, 8)
    if TorchVersion(torch.__version__) < (2, 7):
        pytest.skip("flex_attention of torch 2.6 cannot be traced with make_fx")
    seen = []

    def backend(gm, inputs):
        seen.append((gm, inputs))
        return gm.forward

    torch.compile(function, backend=backend)(q, q, q)
    torch.compiler.reset()
    gm, inputs = seen[0]
    assert any("flex" in str(node.target) for node in gm.graph.nodes)
    for child in gm.modules():
        for node in child.graph.nodes:
            node.meta.pop("example_value", None)  # tensors of vmap, which exist while it runs
    lazy = LazyGraphModule.from_graphmodule(gm)
    lazy.meta.clear()  # objects of Dynamo's own classes, which an archive leaves out
    for module in lazy.modules():
        for name in ("compile_subgraph_reason", "_param_name_to_source", "__name__"):
            vars(module).pop(name, None)
    same(lazy, inputs)


def test_children_that_several_modules_share_are_shared_again(door):
    shared = plain_child_that_writes()
    holders = [nn.Sequential(shared) for _ in range(2)]
    graph = fx.Graph()
    x = graph.placeholder("x")
    inner = fx.GraphModule({"child": shared}, _calls("child"))
    lazy = LazyGraphModule({"child": shared, "holder": holders[0]}, _calls("child", "holder"))
    names = ("shared", "inner", "lazy", "one", "other")
    for name in names:
        graph.call_module(name, (x,))
    graph.output(x)
    held = dict(zip(names, (shared, inner, lazy, *holders), strict=True))
    back = door(LazyGraphModule(held, graph))
    assert type(back.shared).__bases__[0] is fx.GraphModule
    assert back.inner.child is back.shared
    assert back.lazy.child is back.shared
    assert back.one[0] is back.shared
    assert back.other[0] is back.shared
    assert back.lazy.holder is back.one


def _calls(*names: str) -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for name in names:
        graph.call_module(name, (x,))
    graph.output(x)
    return graph


@pytest.mark.parametrize("function", [wrapped, with_defaults, through_autograd_function])
def test_functions_of_the_user_come_back_by_name(same, function):
    back = same(call(function), (torch.ones(2),))
    assert back.graph.find_nodes(op="call_function", target=function)


def test_a_wrapped_function_survives_tracing_and_storing(same):
    same(LazyGraphModule.from_graphmodule(fx.symbolic_trace(_uses_wrapped)), (torch.ones(2),))


def _uses_wrapped(x):  # torch 2.6 cannot generate code for the text of an annotation
    return wrapped(x, factor=4.0) + 1


def test_placeholders_keep_defaults_stars_and_annotations(same):
    graph = fx.Graph()
    x = graph.placeholder("x", type_expr=torch.Tensor)
    scale = graph.placeholder("scale", default_value=2.5, type_expr=float)
    none = graph.placeholder("none", default_value=None)
    rest, more = graph.placeholder("*rest"), graph.placeholder("**more")
    graph.output([graph.call_function(operator.mul, (x, scale)), none, rest, more])
    back = same(LazyGraphModule({}, graph), (torch.ones(2),))
    out = back(torch.ones(1), 3.0, 4, 5, key=6)
    assert out[1:] == [4, (5,), {"key": 6}]


def nested(pair: Any, box: Box, *, named: Pair) -> Any:
    return {"sum": pair[0] + pair[1]["k"] + box.inner, "named": Pair(named.left, [named.right])}


def test_a_pytree_signature_with_registered_classes_survives(same, assert_runs_the_same):
    x = torch.ones(2)
    inputs = ((x, {"k": x * 2}), Box(x * 3), Pair(x * 4, x * 5))
    graph = fx.Tracer().trace(
        nested,
        {
            "pair": (fx.PH, {"k": fx.PH}),
            "box": Box(fx.PH),
            "named": Pair(fx.PH, fx.PH),
        },
    )
    gm = LazyGraphModule({}, graph)
    back = same(gm)
    assert back._in_spec == gm._in_spec
    assert back._out_spec == gm._out_spec
    out = back(*inputs[:2], named=inputs[2])
    assert out["sum"].tolist() == [6, 6]
    assert type(out["named"]) is Pair


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 10), reason="_BoxedCodeGen came after torch 2.9"
)
def test_boxed_code_survives(same):
    gm = call(torch.sin)
    gm.graph.set_codegen(fx.graph._BoxedCodeGen())
    gm.recompile()
    back = same(gm)
    inputs = [torch.ones(1)]
    assert torch.equal(back(inputs)[0], torch.ones(1).sin())
    assert inputs == []


def transform(body: list[str]) -> list[str]:
    return [line.replace("sin", "cos") for line in body]


def test_a_code_transformer_survives_in_a_pickle(assert_same):
    gm = call(torch.sin)
    gm.graph._codegen._body_transformer = transform
    gm.recompile()
    back = pickle.loads(pickle.dumps(gm))
    assert back.graph._codegen._body_transformer is transform
    assert "cos(" in back.code


def test_a_code_generator_and_a_tracer_of_the_user_survive_in_a_pickle(assert_same):
    graph = fx.Graph(tracer_cls=OwnTracer, tracer_extras={"depth": 3})
    graph.output(graph.call_function(torch.sin, (graph.placeholder("x"),)))
    graph.set_codegen(OwnCodeGen())
    gm = LazyGraphModule({}, graph)
    back = pickle.loads(pickle.dumps(gm))
    assert type(back.graph._codegen) is OwnCodeGen
    assert back.graph._tracer_cls is OwnTracer
    assert back.graph._tracer_extras == {"depth": 3}
    assert back(torch.ones(2)).tolist() == torch.ones(2).sin().tolist()


NAMES = ("len", "torch", "self", "x_1_1", "_", "__x", "ünï", "print", "device", "inf", "L_x_")


@pytest.mark.parametrize("name", NAMES)
def test_names_given_by_hand_survive(door, assert_same, name):
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.sin, (x,))
    node._rename(name) if name.isascii() else setattr(node, "name", name)
    node.name = name
    graph.output(node)
    gm = LazyGraphModule({}, graph)
    if door.__name__ == "_archive" and (not name.isascii() or name == "self"):
        reason = "that of the module" if name == "self" else "not a Python identifier"
        with pytest.raises(SerializationError, match=f"{name}.*{reason}.*rename it"):
            door(gm)
        return
    back = door(gm)
    assert [node.name for node in back.graph.nodes][1] == name
    assert_same(gm, back)


def test_new_nodes_do_not_take_names_that_are_there(door):
    gm = call(torch.sin)
    back = door(gm)
    (node,) = back.graph.find_nodes(op="call_function", target=torch.sin)
    with back.graph.inserting_after(node):
        new = back.graph.call_function(torch.sin, (node,))
    assert new.name not in {n.name for n in gm.graph.nodes}
    back.graph.lint()


def test_empty_graphs_and_graphs_without_output_survive(door, assert_same):
    for build in (lambda graph: None, lambda graph: graph.placeholder("x")):
        graph = fx.Graph()
        build(graph)
        gm = LazyGraphModule({}, graph)
        assert_same(gm, door(gm))
    graph = fx.Graph()
    graph.output(None)
    gm = LazyGraphModule({}, graph)
    assert door(gm)() is None


@pytest.mark.filterwarnings("ignore:Raw SymInt value")  # torch 2.13 advises against them
def test_symbolic_sizes_as_arguments_come_back_in_one_environment(door, assert_same):
    def function(x, y):
        return x.reshape(x.shape[0] * x.shape[1]), y.expand(x.shape[0], y.shape[0]), x.numel() / 2

    gm = traced(function, torch.ones(3, 4), torch.ones(5), tracing_mode="symbolic")
    free = [n for n in gm.graph.nodes if "val" in n.meta]
    node = gm.graph.find_nodes(op="output")[0]
    size = next(n.meta["val"].shape[0] for n in free if n.op == "placeholder")
    with gm.graph.inserting_before(node):
        gm.graph.call_function(
            torch.zeros, ([size, size + 1],), {"half": size / 2, "flag": size > 7}
        )
    gm.recompile()
    back = door(gm)
    assert_same(gm, back)
    (new,) = back.graph.find_nodes(op="call_function", target=torch.zeros)
    one, two = new.args[0]
    assert type(one) is torch.SymInt
    assert one.node.shape_env is two.node.shape_env
    kept = next(n for n in back.graph.nodes if n.op == "placeholder").meta["val"]
    assert kept.shape[0].node.shape_env is one.node.shape_env


# --- what cannot be stored ----------------------------------------------------------------------


def nested_lists(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def save(gm: Any, tmp_path: Any) -> None:
    save_graph(gm, tmp_path / "graph.safetensors")


def wraps_nothing() -> Any:
    def inner(x):
        return x

    return inner


WRITERS = {"pickle": lambda gm, _: pickle.dumps(gm), "archive": save}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_arguments_nested_too_deep_name_the_node(tmp_path, write):
    gm = call(torch.sin)
    (node,) = gm.graph.find_nodes(op="call_function", target=torch.sin)
    # fx itself gives up earlier when it looks for nodes in arguments
    object.__setattr__(node, "_args", (nested_lists(20_000),))
    assert node.args is node._args
    with pytest.raises(SerializationError, match="'sin'.*nested too deep"):
        write(gm, tmp_path)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_node_that_refers_to_a_later_one_is_named(tmp_path, write):
    graph = fx.Graph()
    x = graph.placeholder("x")
    sin, cos = graph.call_function(torch.sin, (x,)), graph.call_function(torch.cos, (x,))
    graph.output(cos)
    gm = LazyGraphModule({}, graph)
    for args in ((cos,), ([cos],)):
        sin.args = args
        with pytest.raises(SerializationError, match="'sin', args.*'?cos'?, which is not a node"):
            write(gm, tmp_path)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("function", [lambda x: x, wraps_nothing()])
def test_functions_without_a_name_are_refused_by_name(tmp_path, write, function):
    gm = call(function)
    node = list(gm.graph.nodes)[1]
    with pytest.raises(SerializationError, match=rf"{node.name!r}, target"):
        write(gm, tmp_path)


@pytest.mark.slow
def test_a_hundred_thousand_nodes_survive(door, assert_same):
    graph = fx.Graph()
    node = graph.placeholder("x")
    for index in range(100_000):
        node = graph.call_function(operator.add, (node, index))
        node.meta["index"] = index
    graph.output(node)
    gm = LazyGraphModule({}, graph)
    assert_same(gm, door(gm))
