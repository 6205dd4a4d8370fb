"""Edits mean the same on equal graphs, keep a graph valid, or make it invalid when they should."""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx

from lazyfx_core import InvalidGraphError, NotAGraphModuleError, check_graph
from lazyfx_core.testing import (
    Edit,
    InvalidEdit,
    apply_edit,
    assert_graphs_equal,
    broken,
    edits,
    graph_cases,
    invalid_edits,
)

fixed = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
KINDS = {"retarget", "insert", "erase", "swap", "replace_uses", "rename", "constant", "annotate"}
INVALID_KINDS = {
    *("foreign_argument", "erased_argument", "use_before_definition"),
    *("unknown_target", "unknown_op"),
}


def test_edits_keep_graphs_valid_and_do_the_same_to_equal_graphs():
    done = Counter()

    @settings(fixed, max_examples=300)
    @given(graph_cases(), st.lists(edits(), min_size=1, max_size=6))
    def draw(case, several):
        one, other = case.plain(), case.lazy()
        for edit in several:
            before = str(one.graph), [(n.name, n.type) for n in one.graph.nodes]
            description = apply_edit(one.graph, edit)
            assert apply_edit(other.graph, edit) == description
            after = str(one.graph), [(n.name, n.type) for n in one.graph.nodes]
            assert bool(description) == (before != after)
            done[edit.kind] += bool(description)
            one.graph.lint()
            check_graph(one.graph)
        assert_graphs_equal(one, other)
        assert other.needs_recompile

    draw()
    assert {kind for kind, count in done.items() if count} == KINDS


def test_every_invalid_edit_is_named_by_check_graph_and_mended_exactly():
    done = Counter()

    @settings(fixed, max_examples=200)
    @given(graph_cases(), invalid_edits())
    def draw(case, edit):
        graph, untouched = case.plain().graph, case.plain().graph
        with broken(graph, edit) as what:
            assert what
            done[edit.kind] += 1
            with pytest.raises(InvalidGraphError):
                check_graph(graph)
        check_graph(graph)
        graph.lint()
        assert_graphs_equal(graph, untouched)
        users = [[user.name for user in node.users] for node in graph.nodes]
        for mine, theirs in zip(users, untouched.nodes, strict=True):
            assert sorted(mine) == sorted(user.name for user in theirs.users)

    draw()
    assert set(done) == INVALID_KINDS


@pytest.mark.parametrize("kind", sorted(INVALID_KINDS))
def test_apply_edit_takes_invalid_edits_too(kind):
    graph = fx.symbolic_trace(lambda x: torch.sin(x).cos()).graph
    assert apply_edit(graph, InvalidEdit(kind=kind, place=1))
    with pytest.raises(InvalidGraphError):
        check_graph(graph)


@pytest.mark.parametrize("kind", sorted(INVALID_KINDS))
def test_a_graph_without_any_edge_can_be_made_invalid(kind):
    graph = fx.Graph()
    graph.output(None)
    with broken(graph, InvalidEdit(kind=kind, place=3)), pytest.raises(InvalidGraphError):
        check_graph(graph)
    check_graph(graph)


def test_a_broken_graph_is_mended_when_the_block_raises():
    graph = fx.symbolic_trace(lambda x: torch.sin(x)).graph
    with pytest.raises(KeyError), broken(graph, InvalidEdit(kind="unknown_op", place=0)):
        raise KeyError
    check_graph(graph)


def test_an_edit_without_a_place_changes_nothing_and_says_so():
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    for kind in KINDS - {"rename"}:
        assert apply_edit(graph, Edit(kind=kind, place=2, choice=3)) == ""
    assert [node.op for node in graph.nodes] == ["placeholder", "output"]


def test_an_unknown_kind_and_a_wrong_graph_are_named():
    graph = fx.symbolic_trace(lambda x: x + 1).graph
    with pytest.raises(ValueError, match="retarget.*got 'nothing'"):
        apply_edit(graph, Edit(kind="nothing", place=0, choice=0))
    with pytest.raises(ValueError, match="foreign_argument.*got 'nothing'"):
        apply_edit(graph, InvalidEdit(kind="nothing", place=0))
    with pytest.raises(NotAGraphModuleError, match=r"pass gm\.graph"):
        apply_edit(fx.symbolic_trace(lambda x: x), Edit(kind="rename", place=0, choice=0))
