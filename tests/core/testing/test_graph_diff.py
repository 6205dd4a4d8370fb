"""Structural equality: what counts as different, what does not, and how it reads."""

import collections
import copy
import operator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx

from lazyfx_core import LazyGraphModule, NotAGraphModuleError
from lazyfx_core.testing import apply_edit, assert_graphs_equal, edits, graph_cases, graph_diff

fixed = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
Point = collections.namedtuple("Point", "x y")


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
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_values_that_differ(what):
    left, right = (graph_with(1) for _ in range(2))
    for graph, value in zip((left, right), DIFFERENT[what], strict=True):
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
    for gm, value in ((one, child), (other, other.child)):
        next(iter(gm.graph.nodes)).meta["v"] = [value]
    difference = graph_diff(one, other, meta=True)
    assert "submodule 'child'" in difference
    assert "meta['v'][0]" in difference
    next(iter(other.graph.nodes)).meta["v"] = [child, other.child]
    assert "length" in graph_diff(one, other, meta=True)
    for gm in (one, other, child, other.child):
        assert gm.needs_recompile


def test_a_long_diff_is_cut():
    left = graph_with(*range(50))
    right = graph_with(*range(1, 51))
    difference = graph_diff(left, right)
    assert difference.endswith("... and 42 more differences")
    text = graph_with("x" * 1000)
    assert max(map(len, graph_diff(left, text).splitlines())) < 150


def test_values_that_cannot_be_compared_are_reported_as_different():
    class Odd:
        def __eq__(self, other):
            raise TypeError("odd")

        __hash__ = None

    left, right = graph_with(1), graph_with(1)
    next(iter(left.nodes)).meta["v"] = Odd()
    next(iter(right.nodes)).meta["v"] = Odd()
    assert "comparing them raised TypeError: odd" in graph_diff(left, right, meta=True)


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
