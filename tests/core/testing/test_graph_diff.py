"""Structural equality: what counts as different, what does not, and how it reads."""

import collections
import copy
import dataclasses
import datetime
import functools
import operator
import pathlib
import threading

import numpy
import pytest
import sympy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_structure

from lazyfx_core import LazyGraphModule, NotAGraphModuleError
from lazyfx_core.testing import apply_edit, assert_graphs_equal, edits, graph_cases, graph_diff

fixed = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    content: object


class Holder:
    """Has no ``__eq__``, and remembers what it worked out."""

    def __init__(self, held):
        self.held = held

    def get(self):
        return self.held

    @functools.cached_property
    def text(self):
        return str(self.held)


class Meters(int):
    pass


class Tagged(list):
    def __init__(self, items, tag=None):
        super().__init__(items)
        self.tag = tag


class Marked(torch.Tensor):
    """A subclass that says nothing about what it consists of."""

    def __new__(cls, value, mark=None):
        tensor = torch.full((2, 2), value).as_subclass(cls)
        tensor.mark = mark
        return tensor


class Dispatching(torch.Tensor):
    """A subclass on which no operator can be called."""

    def __new__(cls, value):
        return torch.Tensor._make_subclass(cls, torch.full((2,), value))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} was called")


class Hiding(torch.Tensor):
    """A wrapper: it has no storage, and keeps its tensor in an attribute."""

    def __new__(cls, inner):
        tensor = torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype)
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} was called")


class Wrapping(Hiding):
    """A wrapper that says what it wraps."""

    def __tensor_flatten__(self):
        return ["inner"], None


def graph_with(*arguments, target=torch.add, **kwargs):
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(target, (x, *arguments), kwargs))
    return graph


def changed(function):
    graph = graph_with(1)
    function(graph, *graph.nodes)
    return graph


def set_output(value):
    return lambda graph, x, add, output: setattr(output, "args", (value(x, add),))


def insert(graph, x, add, output):
    with graph.inserting_before(add):
        graph.call_function(torch.sin, (x,))


def pytree(graph, x, add, output):
    graph.set_codegen(
        fx.graph._PyTreeCodeGen(
            fx.graph._PyTreeInfo(["x"], torch.utils._pytree.tree_flatten((1,))[1], None)
        )
    )


# What is changed in x + 1, and what the diff must say: field, expected, seen.
CHANGES = {
    "function": (
        lambda g, x, a, o: setattr(a, "target", torch.sub),
        ["node 1 'add' (call_function): target", "add", "sub"],
    ),
    "op": (
        lambda g, x, a, o: (setattr(a, "op", "call_method"), setattr(a, "target", "add")),
        ["node 1 'add' (call_function): op", "call_function", "call_method"],
    ),
    "constant": (lambda g, x, a, o: a.update_arg(1, 2), ["args[1]", "- 1", "+ 2"]),
    "type of a constant": (
        lambda g, x, a, o: a.update_arg(1, 1.0),
        ["args[1]", "1 (int)", "1.0 (float)"],
    ),
    "bool for int": (
        lambda g, x, a, o: a.update_arg(1, True),
        ["args[1]", "1 (int)", "True (bool)"],
    ),
    "node for constant": (
        lambda g, x, a, o: a.update_arg(1, x),
        ["args[1]", "1 (int)", "x (torch.fx.node.Node)"],
    ),
    "another node": (set_output(lambda x, a: x), ["(output): args[0]", "node 1 'add'", "node 0"]),
    "more arguments": (
        lambda g, x, a, o: setattr(a, "args", (x, 1, 2)),
        ["args: length", "2: (x, 1)", "3: (x, 1, 2)"],
    ),
    "keyword": (lambda g, x, a, o: a.update_kwarg("alpha", 2), ["kwargs: keys", "[]", "['alpha']"]),
    "name": (lambda g, x, a, o: setattr(a, "name", "b"), ["name", "- 'add'", "+ 'b'"]),
    "annotation": (
        lambda g, x, a, o: setattr(a, "type", torch.Tensor),
        ["type", "- None", "torch.Tensor"],
    ),
    "default": (lambda g, x, a, o: setattr(x, "args", (5,)), ["'x' (placeholder): default", "5"]),
    "placeholder": (
        lambda g, x, a, o: setattr(x, "target", "y"),
        ["'x' (placeholder): target", "- 'x'", "+ 'y'"],
    ),
    "new node": (insert, ["nodes from 1", "+ 'sin' (call_function torch.sin)"]),
    "erased node": (
        lambda g, x, a, o: (a.replace_all_uses_with(x), g.erase_node(a)),
        ["nodes from 1", "- 'add' (call_function torch.add)"],
    ),
    "order": (
        lambda g, x, a, o: (g.erase_node(g.call_function(torch.sin, (x,))), a.append(x)),
        ["node 0 'x' (placeholder): op"],
    ),
    "tuple for node": (
        set_output(lambda x, a: (a,)),
        ["args[0]", "torch.fx.node.Node", "(add,) (tuple)"],
    ),
    "code generator": (pytree, ["code generator", "_PyTreeCodeGen"]),
    "foreign node": (
        lambda g, x, a, o: a.update_arg(0, fx.Graph().placeholder("x")),
        ["args[0]", "- node 0 'x'", "+ 'x', not in its graph"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_kind_of_difference_is_found_and_named(change):
    function, texts = CHANGES[change]
    left, right = graph_with(1), changed(function)
    difference = graph_diff(left, right)
    assert difference.startswith("--- left\n+++ right\n@@ ")
    for text in texts:
        assert text in difference, difference
    assert graph_diff(right, left)
    assert graph_diff(right, right) == ""


DIFFERENT = {
    "list and tuple": ([1, 2], (1, 2)),
    "tuple and named tuple": ((1, 2), Point(1, 2)),
    "two named tuples": (Point(1, 2), collections.namedtuple("Other", "x y")(1, 2)),
    "size and tuple": (torch.Size([1, 2]), (1, 2)),
    "deep inside": ([{"a": (1, [2])}], [{"a": (1, [3])}]),
    "lengths": ([1], [1, 1]),
    "keys": ({"a": 1}, {"b": 1}),
    "order of keys": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "start of a slice": (slice(0, 2), slice(1, 2)),
    "step of a slice": (slice(0, 2, None), slice(0, 2, 1)),
    "zeros of two signs": (0.0, -0.0),
    "nan and none": (float("nan"), None),
    "dtypes": (torch.float32, torch.float64),
    "devices": (torch.device("cpu"), torch.device("meta")),
    "layouts": (torch.strided, torch.sparse_coo),
    "memory formats": (torch.contiguous_format, torch.channels_last),
    "strings": ("a", "b"),
    "none and false": (None, False),
    "ellipsis": (Ellipsis, None),
    "complex": (1j, 2j),
    "ranges": (range(2), range(3)),
    "functions": (torch.sin, torch.cos),
    "operators": (torch.ops.aten.sin.default, torch.ops.aten.sin.out),
    "packet": (torch.ops.aten.sin, torch.ops.aten.cos),
    "tensors": (torch.tensor([1, 2]), torch.tensor([1, 3])),
    "dtypes of tensors": (torch.tensor([1]), torch.tensor([1.0])),
    "shapes of tensors": (torch.zeros(1), torch.zeros(1, 1)),
    "strides of tensors": (torch.zeros(2, 2), torch.zeros(2, 2).t()),
    "gradients of tensors": (torch.zeros(1), torch.zeros(1, requires_grad=True)),
    "tensor and number": (torch.tensor(1), 1),
    "keys 1 and True": ({1: "x"}, {True: "x"}),
    "keys 1 and 1.0": ({1: "x"}, {1.0: "x"}),
    "keys 0.0 and -0.0": ({0.0: "x"}, {-0.0: "x"}),
    "keys deep inside": ({(1, frozenset({2})): "x"}, {(1, frozenset({2.0})): "x"}),
    "elements 1 and True": (frozenset({1}), frozenset({True})),
    "elements of a set": ({1, "a"}, {1.0, "a"}),
    "elements deep inside": ({(1, 2), "a"}, {(True, 2), "a"}),
    "zeros of a tensor": (torch.tensor([1.0, -0.0]), torch.tensor([1.0, 0.0])),
    "zeros of a small tensor": (
        torch.tensor(-0.0, dtype=torch.bfloat16),
        torch.tensor(0.0, dtype=torch.bfloat16),
    ),
    "real zeros of a tensor": (torch.tensor(complex(-0.0, 1)), torch.tensor(complex(0.0, 1))),
    "imaginary zeros of a tensor": (torch.tensor(complex(1, -0.0)), torch.tensor(complex(1, 0.0))),
    "float8 tensors": tuple(torch.tensor(x).to(torch.float8_e5m2) for x in (1.0, 2.0)),
    "sparse tensors": (torch.eye(2).to_sparse(), torch.eye(2).mul(2).to_sparse()),
    "indices of sparse tensors": (torch.eye(2).to_sparse(), torch.eye(2).flip(0).to_sparse()),
    "layouts of tensors": (torch.eye(2).to_sparse(), torch.eye(2)),
    "parameter and tensor": (torch.nn.Parameter(torch.zeros(1), False), torch.zeros(1)),
    "meta tensors": (torch.empty(1, device="meta"), torch.empty(2, device="meta")),
    "numpy scalars": (numpy.int64(1), numpy.int64(2)),
    "numpy and python": (numpy.int64(1), 1),
    "numpy types": (numpy.int64(1), numpy.int32(1)),
    "numpy zeros": (numpy.float32(0.0), numpy.float32(-0.0)),
    "arrays": (numpy.array([1, 2]), numpy.array([1, 3])),
    "zeros in arrays": (numpy.array([0j]), numpy.array([-0j])),
    "types of arrays": (numpy.array([1]), numpy.array([1.0])),
    "objects in arrays": (numpy.array([1], dtype=object), numpy.array([True], dtype=object)),
    "expressions": (sympy.Symbol("s0") + 1, sympy.Symbol("s0") + 2),
    "data classes": (Box(content=1), Box(content=True)),
    "objects": (Holder([1, 2]), Holder([1, 2.0])),
    "classes": (Box, Holder),
    "default factories": (collections.defaultdict(list), collections.defaultdict(set)),
    "partial functions": (functools.partial(max, 1), functools.partial(max, True)),
    "methods": ([].append, [].pop),
    "methods of equal objects": (Holder(1).get, Holder(2).get),
    "queues": (collections.deque([1], 2), collections.deque([1], 3)),
    "dates": (datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)),
    "numbers of a subclass": (Meters(1), Meters(2)),
    "attributes of a subclass": (Tagged([1], "a"), Tagged([1], "b")),
    "annotations": (list[int], list[float]),
    "graphs": (graph_with(1), graph_with(2)),
}
# deepcopy refuses them, or warns.
DIFFERENT_BUT_NOT_COPIED = {
    "tree specs": (tree_structure({1: 2}), tree_structure({True: 2})),
    "tensor subclasses": (Marked(1.0), Marked(2.0)),
    "attributes of tensor subclasses": (Marked(1.0, "a"), Marked(1.0, "b")),
    "tensor subclasses that dispatch": (Dispatching(1.0), Dispatching(2.0)),
    "wrapper subclasses": (Wrapping(torch.zeros(1)), Wrapping(torch.ones(1))),
    "wrapper subclasses without flatten": (Hiding(torch.zeros(1)), Hiding(torch.ones(1))),
}


@pytest.mark.parametrize("what", [*DIFFERENT, *DIFFERENT_BUT_NOT_COPIED])
def test_values_that_differ(what):
    left, right = (graph_with(1) for _ in range(2))
    for graph, value in zip(
        (left, right), (DIFFERENT | DIFFERENT_BUT_NOT_COPIED)[what], strict=True
    ):
        node = graph.find_nodes(op="call_function", target=torch.add)[0]
        # Set past fx's check, which refuses some of these as arguments.
        node.meta["value"] = value
    difference = graph_diff(left, right, meta=True)
    assert "node 1 'add' (call_function): meta['value']" in difference
    assert graph_diff(left, right) == ""
    assert graph_diff(left, left, meta=True) == ""


@pytest.mark.parametrize("what", DIFFERENT)
def test_values_equal_their_copies(what):
    for value in DIFFERENT[what]:
        left, right = graph_with(1), graph_with(1)
        next(iter(left.nodes)).meta["value"] = value
        next(iter(right.nodes)).meta["value"] = copy.deepcopy(value)
        assert graph_diff(left, right, meta=True) == ""


def test_nan_is_nan_in_numbers_and_in_tensors():
    values = [float("nan"), complex("nan"), torch.tensor([1.0, float("nan")]), [float("nan")]]
    left = graph_with(*copy.deepcopy(values[:2]), [float("nan")])
    right = graph_with(*copy.deepcopy(values[:2]), [float("nan")])
    assert graph_diff(left, right) == ""
    for graph in (left, right):
        next(iter(graph.nodes)).meta["t"] = torch.tensor([1.0, float("nan")])
    assert graph_diff(left, right, meta=True) == ""


def test_fx_containers_count_as_lists_and_dicts():
    left, right = graph_with([1, {"a": 2}]), graph_with(1)
    node = right.find_nodes(op="call_function", target=torch.add)[0]
    node.args = (node.args[0], [1, {"a": 2}])
    assert graph_diff(left, right) == ""
    one, other = graph_with(1), graph_with(1)
    next(iter(one.nodes)).meta["v"] = fx.immutable_collections.immutable_list([1])
    next(iter(other.nodes)).meta["v"] = [1]
    assert graph_diff(one, other, meta=True) == ""


def test_names_can_be_left_out():
    left, right = graph_with(1), graph_with(1)
    for node in right.nodes:
        node.name += "_other"
    next(iter(right.nodes)).target = "other"
    assert "name" in graph_diff(left, right)
    assert graph_diff(left, right, names=False) == ""


def test_graph_modules_inside_are_compared_too():
    def nested(constant):
        graph = fx.Graph()
        graph.output(graph.call_module("block.child", (graph.placeholder("x"),)))
        child = fx.GraphModule({}, graph_with(constant))
        return LazyGraphModule({"block.child": child}, graph)

    assert graph_diff(nested(1), nested(1)) == ""
    difference = graph_diff(nested(1), nested(2))
    assert "submodule 'block.child', node 1 'add' (call_function): args[1]" in difference
    assert graph_diff(nested(1).graph, nested(2).graph) == ""
    without = LazyGraphModule({"block.child": torch.nn.Identity()}, nested(1).graph)
    assert "graph modules inside" in graph_diff(nested(1), without)


def test_comparing_generates_no_code_for_modules_anywhere():
    child = LazyGraphModule({}, graph_with(1))
    graph = fx.Graph()
    x = graph.placeholder("x")
    branch = graph.get_attr("child")
    graph.output(graph.call_function(operator.getitem, (x, branch)))
    one = LazyGraphModule({"child": child}, graph)
    other = LazyGraphModule({"child": LazyGraphModule({}, graph_with(2))}, copy.deepcopy(graph))
    for gm, constant in ((one, 3), (other, 4)):
        next(iter(gm.graph.nodes)).meta["v"] = [LazyGraphModule({}, graph_with(constant))]
    difference = graph_diff(one, other, meta=True)
    assert "submodule 'child', node 1 'add' (call_function): args[1] @@\n- 1\n+ 2" in difference
    assert "meta['v'][0], node 1 'add' (call_function): args[1] @@\n- 3\n+ 4" in difference
    next(iter(other.graph.nodes)).meta["v"] = [child, other.child]
    assert "length" in graph_diff(one, other, meta=True)
    holders = [Holder(Box(content=LazyGraphModule({}, graph_with(n)))) for n in (3, 4)]
    for gm, holder in zip((one, other), holders, strict=True):
        next(iter(gm.graph.nodes)).meta["v"] = {"held": holder, "more": type(gm)}
        assert holder.held.content.needs_recompile
    difference = graph_diff(one, other, meta=True)
    assert "meta['v']['held'].held.content, node 1 'add' (call_function): args[1]" in difference
    assert all(holder.held.content.needs_recompile for holder in holders)
    for gm in (one, other, child, other.child):
        assert gm.needs_recompile


def test_a_long_diff_is_cut():
    left = graph_with(*range(50))
    right = graph_with(*range(1, 51))
    difference = graph_diff(left, right)
    assert difference.endswith("... and 42 more differences")
    text = graph_with("x" * 1000)
    assert max(map(len, graph_diff(left, text).splitlines())) < 150


def with_meta(*values):
    """Graphs, each with one of ``values`` in its metadata."""
    for value in values:
        graph = graph_with(1)
        next(iter(graph.nodes)).meta["v"] = value
        yield graph


def test_values_that_cannot_be_compared_are_reported_as_different():
    class Odd:
        def __eq__(self, other):
            raise TypeError("odd")

        __hash__ = None

        def __reduce__(self):
            raise TypeError("not to be stored")

    difference = graph_diff(*with_meta(Odd(), Odd()), meta=True)
    assert "comparing them raised TypeError: odd" in difference
    assert graph_diff(*with_meta(threading.Lock(), threading.Lock()), meta=True)
    assert "another one" in graph_diff(*with_meta(lambda: 0, lambda: 0), meta=True)


EQUAL = {
    "numpy scalars": lambda: numpy.int64(1),
    "numpy nan": lambda: [numpy.float32("nan"), numpy.array([1j, complex("nan")])],
    "arrays": lambda: [numpy.arange(6).reshape(2, 3), numpy.array(["a", None, [1]], dtype=object)],
    "records": lambda: numpy.zeros(2, dtype=[("a", "u1"), ("b", "f8")]),
    "sparse tensors": lambda: torch.eye(2).to_sparse(),
    "float8 tensors": lambda: torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn),
    "complex tensors": lambda: torch.tensor([1j, complex(0, float("nan"))]).conj(),
    "expanded tensors": lambda: torch.tensor([1.0]).expand(1 << 40),
    "unsigned tensors": lambda: torch.tensor([1, 2], dtype=torch.uint16),
    "empty tensors": lambda: torch.empty(0, 3),
    "tensor subclasses": lambda: [Marked(1.0, "a"), Dispatching(1.0), Hiding(torch.ones(1))],
    "functional tensors": lambda: torch._to_functional_tensor(torch.ones(2)),
    "expressions": lambda: sympy.Symbol("s0", integer=True) * 2,
    "tree specs": lambda: tree_structure(({"a": (1, [2])}, None)),
    "objects": lambda: Holder(Box(content=[torch.ones(1), Holder(None)])),
    "objects in keys": lambda: {Box(content=(1, 2)): Box(content=3)},
    "objects in sets": lambda: {Box(content=1), Box(content=2), (1, "a"), "b"},
    "modules": lambda: torch.nn.Linear(1, 1, device="meta"),
    "graph modules": lambda: [
        LazyGraphModule({}, graph_with(1)),
        fx.GraphModule({}, graph_with(2)),
    ],
    "graphs": lambda: graph_with(1),
    "partial functions": lambda: functools.partial(max, 1, key=len),
    "methods": lambda: Holder([1]).get,
    "queues": lambda: collections.deque([1, {2: 3}], 4),
    "errors": lambda: ValueError("a", 1),
    "annotations": lambda: [list[int], int | None, dict[str, "torch.Tensor"]],
    "operators": lambda: [
        torch.ops.aten.sin.default,
        torch.ops.aten.sin,
        torch.ops.higher_order.cond,
    ],
    "subclasses": lambda: [Meters(1), Tagged([1], "a"), collections.Counter("aab")],
}


@pytest.mark.parametrize("what", EQUAL)
def test_values_that_are_equal_although_they_are_two(what):
    assert graph_diff(*with_meta(EQUAL[what](), EQUAL[what]()), meta=True) == ""


def test_what_an_object_remembers_is_no_difference():
    left, right = Holder(1), Holder(1)
    assert left.text == "1"
    paths = pathlib.PurePath("a/b"), pathlib.PurePath("a/b")
    assert str(paths[0])
    assert graph_diff(*with_meta((left, paths[0]), (right, paths[1])), meta=True) == ""


@pytest.mark.filterwarnings("ignore:Sparse .*:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_compressed_and_nested_tensors_are_compared_by_their_parts():
    def compressed(tensor):
        return tensor.to_sparse_csr(), tensor.to_sparse_csc(), tensor.to_sparse_bsr((1, 1))

    def nested(number):
        return torch._nested_tensor_from_tensor_list([torch.ones(2), torch.full((3,), number)])

    eye = torch.eye(2)
    assert graph_diff(*with_meta(compressed(eye), compressed(eye)), meta=True) == ""
    assert graph_diff(*with_meta(nested(1.0), nested(1.0)), meta=True) == ""
    assert ".parts[1]" in graph_diff(*with_meta(nested(1.0), nested(2.0)), meta=True)
    for other, where in ((eye * 2, ".values"), (eye.flip(0), "_indices")):
        for left, right in zip(compressed(eye), compressed(other), strict=True):
            assert where in graph_diff(*with_meta(left, right), meta=True)


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
def test_quantized_tensors_are_compared_with_their_scales():
    def quantized(scale, number=1):
        numbers = torch.tensor([number, 2], dtype=torch.uint8)
        return torch._make_per_tensor_quantized_tensor(numbers, scale, 0)

    assert graph_diff(*with_meta(quantized(0.5), quantized(0.5)), meta=True) == ""
    assert graph_diff(*with_meta(quantized(0.5), quantized(1.0)), meta=True)
    assert graph_diff(*with_meta(quantized(0.5), quantized(0.5, 3)), meta=True)


def test_where_nodes_come_from_is_compared_by_content():
    def source(name):
        graph = fx.Graph()
        return fx.traceback.NodeSource(graph.placeholder(name), "a pass")

    sources = [source("x") for _ in range(2)]
    for one in sources:
        one.node_info.graph_id = 0  # torch takes the address
    sources[0].print_readable()
    sources[0].to_dict()
    assert graph_diff(*with_meta(*sources), meta=True) == ""
    sources[1].node_info.name = "y"
    assert "meta['v'].node_info.name" in graph_diff(*with_meta(*sources), meta=True)


def fake_tensor(kind=lambda tensor: tensor, *, stride=(4, 1), **options):
    with FakeTensorMode():
        return kind(torch.empty_strided((3, 4), stride, **options))


def test_fake_tensors_are_compared_by_what_they_say():
    plain = fake_tensor()
    assert graph_diff(*with_meta(plain, fake_tensor()), meta=True) == ""
    others = {
        "dtype": fake_tensor(dtype=torch.float64),
        "stride": fake_tensor(stride=(1, 3)),
        "device": fake_tensor(device="cuda") if torch.cuda.is_available() else None,
        "requires_grad": fake_tensor(requires_grad=True),
        "storage_offset": fake_tensor(lambda t: t.new_empty(24)[12:].view(3, 4)),
        "parameter": fake_tensor(lambda t: torch.nn.Parameter(t, requires_grad=False)),
        "size": fake_tensor(lambda t: t[1:]),
    }
    for fact, other in others.items():
        if other is not None:
            assert f", {fact} " in graph_diff(*with_meta(plain, other), meta=True)
    assert "(torch.Tensor)" in graph_diff(*with_meta(plain, torch.empty(3, 4)), meta=True)


def test_symbolic_sizes_are_compared_as_text_and_add_no_guards():
    def symbolic(size):
        env = ShapeEnv()
        mode = FakeTensorMode(shape_env=env)
        context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 2)
        return env, mode.from_tensor(torch.empty(size), symbolic_context=context)

    (env, left), (other_env, right) = symbolic((5, 7)), symbolic((5, 7))
    values = [
        {"val": t, "size": t.size(), "sum": t.size(0) + 1, "is": t.size(0) == t.size(1)}
        for t in (left, right)
    ]
    for value in values:
        value["expression"] = value["sum"].node.expr
    guards = [len(e.guards) for e in (env, other_env)]
    assert graph_diff(*with_meta(*values), meta=True) == ""
    values[1]["sum"] = right.size(0) + 2
    assert "meta['v']['sum']" in graph_diff(*with_meta(*values), meta=True)
    values[1] = values[0] | {"val": right.t()}
    assert "meta['v']['val']" in graph_diff(*with_meta(*values), meta=True)
    assert [len(e.guards) for e in (env, other_env)] == guards


def test_real_tensors_are_compared_inside_a_fake_mode_too():
    graphs = list(with_meta(torch.ones(2), torch.zeros(2)))
    with FakeTensorMode():
        assert "[1.0, 1.0]" in graph_diff(*graphs, meta=True)
        assert graph_diff(*with_meta(graphs[0], graphs[0]), meta=True) == ""


def test_nodes_in_metadata_are_compared_by_place():
    def linked(place, function=lambda node: node):
        graph = graph_with(1)
        nodes = list(graph.nodes)
        nodes[1].meta["v"] = function(nodes[place])
        return graph

    wrappings = [
        lambda n: n,
        lambda n: [{"a": (n,)}],
        lambda n: {n: 1},
        lambda n: {n, "a"},
        Holder,
        lambda n: slice(n),
    ]
    for wrap in wrappings:
        assert graph_diff(linked(0, wrap), linked(0, wrap), meta=True) == ""
        assert "meta['v']" in graph_diff(linked(0, wrap), linked(2, wrap), meta=True)
        assert graph_diff(linked(0, wrap), linked(2, wrap)) == ""
    shared = linked(0, lambda n: [n])
    # torch copies metadata shallowly: the copy refers to a node of the original.
    assert "not in its graph" in graph_diff(shared, copy.deepcopy(shared), meta=True)
    one, other = copy.deepcopy(linked(0)), copy.deepcopy(linked(0))
    assert graph_diff(one, other, meta=True) == ""
    assert graph_diff(one, copy.deepcopy(linked(2)), meta=True)


def test_values_that_contain_themselves_are_compared():
    def endless(constant):
        items = [constant]
        items.append(items)
        holder = Holder({"items": items})
        holder.held["holder"] = holder
        key = Holder(None)
        key.held = {key: constant}
        return [items, holder, key]

    assert graph_diff(*with_meta(endless(1), endless(1)), meta=True) == ""
    for index in range(3):
        left, right = ([value[index]] for value in (endless(1), endless(2)))
        assert "- 1\n+ 2" in graph_diff(*with_meta(left, right), meta=True)

    def itself(constant):
        gm = fx.GraphModule({}, graph_with(constant))
        next(iter(gm.graph.nodes)).meta["module"] = {"gm": gm, "graph": gm.graph}
        gm.meta["module"] = gm
        gm.again = gm
        return gm

    assert graph_diff(itself(1), itself(1), meta=True) == ""
    assert "- 1\n+ 2" in graph_diff(itself(1), itself(2), meta=True)


def test_values_that_are_nested_deeper_than_the_stack_are_compared():
    def deep(value, depth=20_000):
        for _ in range(depth):
            value = [value]
        return value

    assert graph_diff(*with_meta(deep(1), deep(1)), meta=True) == ""
    difference = graph_diff(*with_meta(deep(1), deep(True)), meta=True)
    assert "- 1 (int)\n+ True (bool)" in difference
    assert max(map(len, difference.splitlines())) < 300
    assert "length" in graph_diff(*with_meta([deep(1)], [deep(1), 2]), meta=True)
    wide = [[]]
    for _ in range(60):  # 2 to the power of 60 paths, 60 lists
        wide = [wide, wide]
    assert graph_diff(*with_meta(wide, copy.deepcopy(wide)), meta=True) == ""


def test_metadata_of_graph_modules_is_compared():
    def module(value):
        graph = fx.Graph()
        graph.output(graph.call_module("child", (graph.placeholder("x"),)))
        gm = fx.GraphModule({"child": LazyGraphModule({}, graph_with(1))}, graph)
        gm.child.meta["v"] = value
        return gm

    assert graph_diff(module(1), module(1), meta=True) == ""
    difference = graph_diff(module(1), module(2), meta=True)
    assert "@@ submodule 'child', meta['v'] @@\n- 1\n+ 2" in difference
    assert graph_diff(module(1), module(2)) == ""


def test_how_many_arguments_a_placeholder_takes_is_no_matter_of_names():
    def taking(target):
        graph = fx.Graph()
        graph.output(graph.placeholder(target))
        return graph

    for one, other in [("*args", "args"), ("**k", "k"), ("**k", "*k")]:
        difference = graph_diff(taking(one), taking(other), names=False)
        assert f"(placeholder): target @@\n- {one!r}\n+ {other!r}" in difference
    assert graph_diff(taking("*args"), taking("*others"), names=False) == ""


def test_code_generators_are_compared_with_their_attributes():
    class Commenting(fx.graph.CodeGen):
        def __init__(self, comment):
            super().__init__()
            self.comment = comment

    def commented(comment):
        graph = graph_with(1)
        graph.set_codegen(Commenting(comment))
        return graph

    assert graph_diff(commented("a"), commented("a")) == ""
    difference = graph_diff(commented("a"), commented("b"))
    assert "code generator['comment'] @@\n- 'a'\n+ 'b'" in difference

    def transformed(transformer):
        graph = graph_with(1)
        graph.on_generate_code(lambda previous: transformer)
        return graph

    def one(body):
        return body

    def other(body):
        return [*body, "# other"]

    assert graph_diff(transformed(one), transformed(one)) == ""
    assert "body transformer" in graph_diff(transformed(one), transformed(other))
    assert "body transformer" in graph_diff(transformed(one), graph_with(1))


def test_options_hold_for_graph_modules_that_are_arguments_too():
    def passing(name, meta):
        graph = graph_with(1)
        node = graph.find_nodes(op="call_function", target=torch.add)[0]
        inner = graph_with(1)
        for inside in inner.nodes:
            inside.name += name
            inside.meta["v"] = meta
        child = fx.GraphModule({}, inner)
        node.update_arg(1, child)
        return graph

    assert graph_diff(passing("", 1), passing("", 1), meta=True) == ""
    assert "name" in graph_diff(passing("", 1), passing("_b", 1))
    assert graph_diff(passing("", 1), passing("_b", 1), names=False) == ""
    assert graph_diff(passing("", 1), passing("", 2)) == ""
    assert "meta['v']" in graph_diff(passing("", 1), passing("", 2), meta=True)


def test_one_shared_submodule_equals_two_equal_ones():
    def sharing(*children):
        graph = fx.Graph()
        x = graph.placeholder("x")
        for index in range(len(children)):
            x = graph.call_module(f"child_{index}", (x,))
        graph.output(x)
        return fx.GraphModule({f"child_{i}": m for i, m in enumerate(children)}, graph)

    def child(constant=1):
        return fx.GraphModule({}, graph_with(constant))

    shared = child()
    assert graph_diff(sharing(shared, shared), sharing(child(), child())) == ""
    assert graph_diff(sharing(child(), child()), sharing(shared, shared)) == ""
    difference = graph_diff(sharing(shared, shared), sharing(child(), child(2)))
    assert "submodule 'child_1', node 1 'add'" in difference
    assert "submodule 'child_0'" not in difference
    without = sharing(shared, torch.nn.Identity())
    assert "graph modules inside @@\n- ['child_1']\n+ []" in graph_diff(
        sharing(shared, shared), without
    )
    assert "graph modules inside @@\n- []\n+ ['child_1']" in graph_diff(
        without, sharing(shared, shared)
    )


def test_assert_graphs_equal_raises_with_the_diff():
    assert_graphs_equal(graph_with(1), graph_with(1))
    with pytest.raises(AssertionError, match=r"(?s)the graphs differ:\n--- left.*- 1\n\+ 2"):
        assert_graphs_equal(graph_with(1), graph_with(2))


@pytest.mark.parametrize("wrong", [None, 3, torch.nn.Linear(1, 1), "graph"])
def test_what_is_no_graph_is_refused_and_named(wrong):
    with pytest.raises(NotAGraphModuleError, match=r"graph_diff\(left=...\) takes"):
        graph_diff(wrong, graph_with(1))
    with pytest.raises(NotAGraphModuleError, match=r"graph_diff\(right=...\) takes"):
        assert_graphs_equal(graph_with(1), wrong)


@settings(fixed, max_examples=150)
@given(graph_cases(), st.lists(edits(), min_size=1, max_size=4))
def test_a_graph_equals_its_copies_and_differs_after_an_edit(case, several):
    one, other = case.lazy(), case.plain()
    assert graph_diff(one, other, meta=True) == ""
    assert graph_diff(one.graph, case.graph) == ""
    for edit in several:
        if apply_edit(one.graph, edit):
            assert graph_diff(one, other)
            apply_edit(other.graph, edit)
        assert graph_diff(one, other) == ""
    assert one.needs_recompile
