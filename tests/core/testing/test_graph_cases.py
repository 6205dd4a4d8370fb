"""The strategy draws graphs that run, of every kind of node, and copies share nothing."""

import copy
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx

from lazyfx_core import LazyGraphModule, check_graph
from lazyfx_core.testing import GraphCase, assert_graphs_equal, graph_cases

fixed = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def features(case: GraphCase) -> set[str]:
    """What there is in a drawn graph, in words."""
    found = set()
    for node in case.graph.nodes:
        found.add(node.op)
        name = node.target if isinstance(node.target, str) else node.target.__name__
        found.add(name)
        if node.name.startswith("by_hand"):
            found.add("name by hand")
        if node.op == "placeholder":
            found |= {"default"} if node.args else set()
            found |= {"annotated placeholder"} if node.type else set()
        elif node.type is not None:
            found.add("annotated node")
        if node.op not in ("placeholder", "output") and not node.users:
            found.add("unused node")
        if node.op == "get_attr" and node.target.count(".") == 2:
            found.add("nested attribute")
        if node.op == "call_module" and isinstance(
            case.root.get_submodule(node.target), fx.GraphModule
        ):
            found.add("graph module")
        if isinstance(node.target, torch._ops.OpOverload):
            found.add("operator overload")
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            found.add("higher order")
        for value in [*node.args, *node.kwargs.values()]:
            if node.op != "output":
                found.add(f"argument {type(value).__name__}")
            else:
                found.add(f"output {type(value).__name__}")
    if type(case.graph._codegen) is not fx.graph.CodeGen:
        found.add("pytree")
    if len(case.inputs) < len(case.graph.find_nodes(op="placeholder")):
        found.add("default left out")
    return found


EXPECTED = {
    *("placeholder", "get_attr", "call_function", "call_method", "call_module", "output"),
    *("name by hand", "default", "default left out", "annotated placeholder", "annotated node"),
    *("unused node", "nested attribute", "graph module", "operator overload", "higher order"),
    *("pytree", "iadd", "isub", "imul", "add_", "mul_", "setitem", "getitem", "weight", "table"),
    *("argument Node", "argument immutable_list", "argument tuple", "argument slice"),
    *("argument int", "argument float", "argument bool", "argument NoneType", "argument str"),
    *("argument dtype", "argument device", "argument layout"),
    *("output Node", "output tuple", "output immutable_list", "output immutable_dict"),
    *("norm", "drop", "dropout", "block.inner.weight", "not_saved"),
}


def test_every_kind_of_node_is_drawn():
    seen = Counter()

    @settings(fixed, max_examples=400)
    @given(graph_cases())
    def draw(case):
        seen.update(features(case))

    draw()
    assert EXPECTED - seen.keys() == set()


@settings(fixed, max_examples=150)
@given(graph_cases())
def test_every_drawn_graph_is_valid_and_runs_on_plain_and_lazy_modules(case):
    case.graph.lint()
    check_graph(case.graph)
    plain, lazy = case.plain(), case.lazy()
    assert isinstance(lazy, LazyGraphModule)
    assert lazy.needs_recompile
    for _ in range(2):  # a graph may move its buffers
        torch.manual_seed(0)
        expected = plain(*case.fresh_inputs())
        torch.manual_seed(0)
        seen = lazy(*case.fresh_inputs())
        torch.testing.assert_close(flat(seen), flat(expected), equal_nan=True)


def flat(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if torch.is_tensor(leaf)]


@settings(fixed, max_examples=100)
@given(graph_cases())
def test_built_modules_share_no_tensor_graph_or_submodule(case):
    one, other = case.lazy(), case.lazy()
    assert one.graph is not other.graph
    assert_graphs_equal(one, other)
    mine = {t.data_ptr() for t in [*one.parameters(), *one.buffers()] if t.numel()}
    assert not mine & {t.data_ptr() for t in [*other.parameters(), *other.buffers()]}
    for name, module in one.named_modules():
        if isinstance(module, fx.GraphModule):
            assert isinstance(module, LazyGraphModule), name
            assert module.graph.owning_module is module


@settings(fixed, max_examples=60)
@given(graph_cases())
def test_running_leaves_the_case_as_it_was(case):
    before = copy.deepcopy((case.inputs, dict(case.root.state_dict())))
    text = str(case.graph)
    case.plain()(*case.fresh_inputs())
    after = (case.inputs, dict(case.root.state_dict()))
    for old, new in zip(flat(before), flat(after), strict=True):
        assert torch.equal(old, new)
    assert str(case.graph) == text


@pytest.mark.parametrize(
    ("flag", "absent"),
    [
        ("mutation", {"iadd", "isub", "imul", "add_", "mul_", "sub_", "setitem", "norm"}),
        ("submodules", {"call_module", "graph module", "norm"}),
        ("higher_order", {"higher order", "cond"}),
        ("pytree", {"pytree"}),
        ("randomness", {"dropout", "drop"}),
    ],
)
def test_a_feature_that_is_switched_off_is_not_drawn(flag, absent):
    @settings(fixed, max_examples=60)
    @given(graph_cases(**{flag: False}))
    def draw(case):
        assert not features(case) & absent

    draw()


def test_max_nodes_bounds_the_size():
    @settings(fixed, max_examples=60)
    @given(graph_cases(max_nodes=1))
    def draw(case):
        assert len(case.graph.find_nodes(op="placeholder")) <= 4
        assert len(case.graph.nodes) <= 4 + 6 + 1

    draw()


def test_without_mutation_neither_inputs_nor_buffers_change():
    @settings(fixed, max_examples=60)
    @given(graph_cases(mutation=False))
    def draw(case):
        gm, inputs = case.plain(), case.fresh_inputs()
        before = copy.deepcopy([*gm.buffers()])
        gm(*inputs)
        assert all(map(torch.equal, flat(inputs), flat(case.inputs)))
        assert all(map(torch.equal, before, gm.buffers()))

    draw()


def test_a_case_prints_its_nodes():
    @settings(fixed, max_examples=5)
    @given(graph_cases(max_nodes=2))
    def draw(case):
        assert "placeholder" in repr(case)
        assert "Tensor[2, 3]" in repr(case)

    draw()


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "3", None])
def test_a_wrong_size_is_named(wrong):
    with pytest.raises(ValueError, match=r"graph_cases\(max_nodes=...\) takes a positive int"):
        graph_cases(max_nodes=wrong)


@settings(fixed, max_examples=30)
@given(st.data())
def test_two_draws_of_one_strategy_do_not_share_their_roots(data):
    one, other = data.draw(graph_cases()), data.draw(graph_cases())
    assert one.root is not other.root
    assert one.root.weight is not other.root.weight
