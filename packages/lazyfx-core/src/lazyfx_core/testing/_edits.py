"""Changes of a graph as small data: drawn once, applied alike to every copy of the graph.

An :class:`Edit` names no node. It says what to do and counts into the places where that can be
done, so it fits any graph, means the same on equal graphs, and shrinks to small numbers. The
edited graph is always valid (``Graph.lint`` passes). Made for the graphs of ``graph_cases``, which
then still run save for a few, such as a parameter that is now written to; compare what they raise.

An :class:`InvalidEdit` makes a graph invalid, and can be undone exactly. torch generates code from
such graphs without a word, and the code fails with a ``NameError`` at best. Each kind is one that
:func:`lazyfx_core.check_graph` names.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st
from torch import fx

from lazyfx_core._structure import describe
from lazyfx_core.errors import NotAGraphModuleError

from . import _builder

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


_UNARY = (*_builder.UNARY_FUNCTIONS, *_builder.UNARY_METHODS)
_BINARY = (*_builder.BINARY_FUNCTIONS, *_builder.BINARY_METHODS)
_INPLACE = (*_builder.INPLACE_OPERATORS, *_builder.INPLACE_METHODS)
_FAMILIES: tuple[tuple[Any, ...], ...] = (
    *(_builder.UNARY_FUNCTIONS, _builder.BINARY_FUNCTIONS, _builder.INPLACE_OPERATORS),
    *(_builder.UNARY_METHODS, _builder.BINARY_METHODS, _builder.INPLACE_METHODS),
)
_INSERTED = (torch.neg, torch.sin, torch.sigmoid, torch.abs)
_CONSTANTS = (0.25, 4, -1.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One valid change of a graph.

    Attributes:
        kind: ``retarget``, ``insert``, ``erase``, ``swap``, ``replace_uses``, ``rename``,
            ``constant`` or ``annotate``.
        place: Which of the nodes where this can be done, counted round.
        choice: Which of the things that can be put there, counted round.
    """

    kind: str
    place: int
    choice: int


def edits() -> st.SearchStrategy[Edit]:
    """Valid changes of a graph; see :func:`apply_edit`."""
    return st.builds(
        Edit,
        kind=st.sampled_from(tuple(_EDITS)),
        place=st.integers(0, 15),
        choice=st.integers(0, 15),
    )


def apply_edit(graph: fx.Graph, edit: Edit | InvalidEdit) -> str:
    """Change ``graph`` as ``edit`` says; equal graphs are changed alike.

    The module that owns the graph is not told: call its ``recompile()``.

    Args:
        graph: Changed in place.
        edit: What to do.

    Returns:
        What was done, naming the node; empty if there is no place for such an edit in this graph,
        which then did not change.

    Raises:
        NotAGraphModuleError: ``graph`` is not a ``torch.fx.Graph``.
        ValueError: ``edit`` is of a kind that does not exist.

    Example:
        >>> import torch
        >>> from torch import fx
        >>> graph = fx.symbolic_trace(lambda x: torch.sin(x)).graph
        >>> apply_edit(graph, Edit(kind="retarget", place=0, choice=1))
        "retarget 'sin': sin -> tanh"
    """
    if not isinstance(graph, fx.Graph):
        raise NotAGraphModuleError(
            f"apply_edit(graph=...) takes a torch.fx.Graph, got {describe(graph)}; "
            "pass gm.graph of a GraphModule"
        )
    if isinstance(edit, InvalidEdit):
        return make_invalid(graph, edit)[0]
    if edit.kind not in _EDITS:
        raise ValueError(
            f"apply_edit(edit=...) knows the kinds {', '.join(_EDITS)}, got {edit.kind!r}"
        )
    fits, change = _EDITS[edit.kind]
    places = [node for node in graph.nodes if fits(node)]
    if not places:
        return ""
    node = places[edit.place % len(places)]
    name = node.name
    return f"{edit.kind} {name!r}: {change(node, edit.choice)}"


def _in(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and any(node.target is t for t in targets)


def _family(node: fx.Node) -> tuple[Any, ...] | None:
    """The targets that take what ``node`` takes."""
    if node.op not in ("call_function", "call_method") or node.kwargs.keys() - {"other"}:
        return None
    return next((f for f in _FAMILIES if any(node.target is target for target in f)), None)


def _retarget(node: fx.Node, choice: int) -> str:
    family = _family(node) or ()
    others = [target for target in family if target is not node.target]
    old, node.target = node.target, others[choice % len(others)]
    return f"{_name(old)} -> {_name(node.target)}"


def _insert(node: fx.Node, choice: int) -> str:
    function = _INSERTED[choice % len(_INSERTED)]
    used = choice < 8
    with node.graph.inserting_after(node):
        new = node.graph.call_function(function, (node,))
    if used:
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return f"{new.name!r} after it, {'in its place' if used else 'unused'}"


def _erase(node: fx.Node, choice: int) -> str:
    node.graph.erase_node(node)
    return "it was unused"


def _swap(node: fx.Node, choice: int) -> str:
    first, second = node.args
    node.args = (second, first)
    return f"{first}, {second} -> {second}, {first}"


def _replace_uses(node: fx.Node, choice: int) -> str:
    argument = node.all_input_nodes[0]
    node.replace_all_uses_with(argument)
    if choice % 2 == 0:
        node.graph.erase_node(node)
    return f"by {argument.name!r}{', and erased' if choice % 2 == 0 else ''}"


def _rename(node: fx.Node, choice: int) -> str:
    taken = {other.name for other in node.graph.nodes}
    name = f"renamed_{choice}"
    while name in taken:
        name += "_again"
    node.name = name
    return f"to {name!r}"


def _constant(node: fx.Node, choice: int) -> str:
    old = node.kwargs["other"] if "other" in node.kwargs else node.args[1]
    options = [c for c in _CONSTANTS if (type(c), c) != (type(old), old)]
    new = options[choice % len(options)]
    if "other" in node.kwargs:
        node.update_kwarg("other", new)
    else:
        node.update_arg(1, new)
    return f"{old} -> {new}"


def _annotate(node: fx.Node, choice: int) -> str:
    node.type = torch.Tensor if node.type is None else None
    return f"type {node.type}"


def _has_constant(node: fx.Node) -> bool:
    if not _in(node, (*_BINARY, *_INPLACE)) or node.kwargs.keys() - {"other"}:
        return False
    value = node.kwargs["other"] if "other" in node.kwargs else (*node.args, None, None)[1]
    return type(value) in (int, float)


def _is_unused(node: fx.Node) -> bool:
    return not node.users and node.op not in ("placeholder", "output")


def _is_swappable(node: fx.Node) -> bool:
    return (
        (_in(node, _builder.BINARY_FUNCTIONS) or _in(node, _builder.BINARY_METHODS))
        and len(node.args) == 2
        and all(isinstance(argument, fx.Node) for argument in node.args)
        and node.args[0] is not node.args[1]
    )


def _is_bypassable(node: fx.Node) -> bool:
    return (
        _in(node, _UNARY)
        and bool(node.users)
        and not any(_in(user, _INPLACE) for user in node.users)
    )


def _name(target: object) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))


_Kind = tuple["Callable[[fx.Node], bool]", "Callable[[fx.Node, int], str]"]
_EDITS: dict[str, _Kind] = {
    "retarget": (lambda node: _family(node) is not None, _retarget),
    "insert": (lambda node: _in(node, (*_UNARY, *_BINARY)), _insert),
    "erase": (_is_unused, _erase),
    "swap": (_is_swappable, _swap),
    "replace_uses": (_is_bypassable, _replace_uses),
    "rename": (lambda node: node.op != "output", _rename),
    "constant": (_has_constant, _constant),
    "annotate": (lambda node: _in(node, (*_UNARY, *_BINARY, *_INPLACE)), _annotate),
}
