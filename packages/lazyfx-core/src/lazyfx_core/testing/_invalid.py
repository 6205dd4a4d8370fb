"""Changes that make a graph invalid, and their exact repair.

torch generates code from such graphs without a word, and the code fails with a ``NameError`` at
best. Each kind here is one that :func:`lazyfx_core.check_graph` names.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from torch import fx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Broken = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidEdit:
    """One change that makes a graph invalid.

    Attributes:
        kind: ``foreign_argument``, ``erased_argument``, ``use_before_definition``,
            ``unknown_target`` or ``unknown_op``.
        place: Which of the nodes where this can be done, counted round.
    """

    kind: str
    place: int


def invalid_edits() -> st.SearchStrategy[InvalidEdit]:
    """Changes that make a graph invalid; apply with ``apply_edit`` or :func:`broken`."""
    return st.builds(InvalidEdit, kind=st.sampled_from(tuple(_KINDS)), place=st.integers(0, 15))


@contextmanager
def broken(graph: fx.Graph, edit: InvalidEdit) -> Iterator[str]:
    """Make ``graph`` invalid inside the block and mend it exactly at its end.

    Args:
        graph: Changed in place; at the end it has the same nodes, in the same order, with the
            same arguments. The module that owns it is not told, either time.
        edit: What to do.

    Yields:
        What was done, naming the node.

    Raises:
        ValueError: ``edit`` is of a kind that does not exist.
    """
    description, repair = make_invalid(graph, edit)
    try:
        yield description
    finally:
        repair()


def make_invalid(graph: fx.Graph, edit: InvalidEdit) -> Broken:
    """Apply ``edit``. Returns what was done and the function that undoes it."""
    if edit.kind not in _KINDS:
        raise ValueError(
            f"an InvalidEdit has one of the kinds {', '.join(_KINDS)}, got {edit.kind!r}"
        )
    return _KINDS[edit.kind](graph, edit.place)


def _foreign_argument(graph: fx.Graph, place: int) -> Broken:
    return _replace_an_argument(
        graph, place, lambda user: fx.Graph().placeholder("foreign"), "a node of another graph"
    )


def _erased_argument(graph: fx.Graph, place: int) -> Broken:
    def erased(user: fx.Node) -> fx.Node:
        with graph.inserting_before(user):
            node = graph.create_node("get_attr", "erased", name="erased")
        graph.erase_node(node)
        return node

    return _replace_an_argument(graph, place, erased, "an erased node")


def _replace_an_argument(
    graph: fx.Graph, place: int, make: Callable[[fx.Node], fx.Node], what: str
) -> Broken:
    edges = [(user, argument) for user in graph.nodes for argument in user.all_input_nodes]
    if not edges:
        return _unknown_op(graph, place)
    user, old = edges[place % len(edges)]
    new = make(user)
    user.replace_input_with(old, new)

    def repair() -> None:
        user.replace_input_with(new, old)

    return f"{user.name!r} uses {what} instead of {old.name!r}", repair


def _use_before_definition(graph: fx.Graph, place: int) -> Broken:
    edges = [
        (user, argument)
        for user in graph.nodes
        for argument in user.all_input_nodes
        if argument.op != "placeholder"
    ]
    if not edges:
        return _erased_argument(graph, place)
    user, argument = edges[place % len(edges)]
    before = argument.prev
    user.append(argument)

    def repair() -> None:
        before.append(argument)

    return f"{argument.name!r} stands after its user {user.name!r}", repair


def _unknown_target(graph: fx.Graph, place: int) -> Broken:
    nodes = list(graph.nodes)
    node = nodes[place % len(nodes)]
    old = node.target
    node.target = "not callable" if node.op == "call_function" else 7

    def repair() -> None:
        node.target = old

    return f"{node.op} node {node.name!r} has the target {node.target!r}", repair


def _unknown_op(graph: fx.Graph, place: int) -> Broken:
    nodes = list(graph.nodes)
    node = nodes[place % len(nodes)]
    old = node.op
    node.op = "call_nothing"

    def repair() -> None:
        node.op = old

    return f"node {node.name!r} was a {old}, is a call_nothing", repair


_KINDS: dict[str, Callable[[fx.Graph, int], Broken]] = {
    "foreign_argument": _foreign_argument,
    "erased_argument": _erased_argument,
    "use_before_definition": _use_before_definition,
    "unknown_target": _unknown_target,
    "unknown_op": _unknown_op,
}
