"""How two graphs of a page differ, as the page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lazyfx_compilers.errors import InvalidGraphError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lazyfx_tools.diff._data import FieldChange, GraphDiff

    from ._view import GraphView


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a page shows of the difference of two graphs; nodes are given by name.

    Attributes:
        old: The name of one graph on the page.
        new: The name of the other.
        pairs: Nodes of the old graph that are in the new one, with their names there.
        added: Nodes that only the new graph has.
        removed: Nodes that only the old graph has.
        changed: By old name, the pairs that differ by themselves: what differs, a text each.
        rewired: By old name, the pairs that take other values: which, a text each.
        inherited: By old name, the pairs of which only the recorded result differs, as an input's.
        moved: Pairs that stand at another place, by old name.
        notes: What else differs.
    """

    old: str
    new: str
    pairs: Sequence[tuple[str, str]]
    added: Sequence[str] = ()
    removed: Sequence[str] = ()
    changed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rewired: Mapping[str, Sequence[str]] = field(default_factory=dict)
    inherited: Mapping[str, Sequence[str]] = field(default_factory=dict)
    moved: Sequence[str] = ()
    notes: Sequence[str] = ()


def difference_view(diff: GraphDiff, *, old: str, new: str) -> Difference:
    """What ``diff_graphs`` found, for a page.

    Args:
        diff: How the graphs differ.
        old: The name of the old graph on the page.
        new: The name of the new one.
    """
    rewired: dict[str, list[str]] = {}
    for one in diff.rewired:
        text = f"{one.argument}: {one.old_input} → {one.new_input}"
        rewired.setdefault(one.old, []).append(text)
    inside = [f"graph inside, {one.old} → {one.new}: {one.diff.summary()}" for one in diff.inside]
    return Difference(
        old=old,
        new=new,
        pairs=diff.matched,
        added=[one.name for one in diff.added],
        removed=[one.name for one in diff.removed],
        changed={one.old: [_text(each) for each in one.fields] for one in diff.changed},
        rewired=rewired,
        inherited={one.old: [_text(each) for each in one.fields] for one in diff.inherited},
        moved=[first for first, _ in diff.moved],
        notes=[*(_text(each) for each in diff.signature), *inside],
    )


def _text(change: FieldChange) -> str:
    return f"{change.field}: {change.old} → {change.new}"


def difference_columns(one: Difference, graphs: Sequence[GraphView]) -> dict[str, Any]:
    """What ``viewer/data.js`` reads: numbers for graphs and nodes.

    Raises:
        InvalidGraphError: It names a graph or a node that is not there.
    """
    number = {graph.name: i for i, graph in enumerate(graphs)}
    for name in (one.old, one.new):
        if name not in number:
            raise InvalidGraphError(
                f"render_html(differences): no graph is named {name[:80]!r}; expected one of the "
                "graphs on the page"
            )
    old = _places(graphs[number[one.old]])
    new = _places(graphs[number[one.new]])
    return {
        "old": number[one.old],
        "new": number[one.new],
        "pairs": [[old(first), new(second)] for first, second in one.pairs],
        "added": [new(name) for name in one.added],
        "removed": [old(name) for name in one.removed],
        "changed": [[old(name), list(texts)] for name, texts in one.changed.items()],
        "rewired": [[old(name), list(texts)] for name, texts in one.rewired.items()],
        "inherited": [[old(name), list(texts)] for name, texts in one.inherited.items()],
        "moved": [old(name) for name in one.moved],
        "notes": list(one.notes),
    }


def _places(graph: GraphView) -> Callable[[str], int]:
    places = {name: place for place, name in enumerate(graph.names)}

    def place(name: str) -> int:
        if name not in places:
            raise InvalidGraphError(
                f"render_html(differences): graph {graph.name[:80]!r} has no node {name[:80]!r}; "
                "expected the names of its nodes"
            )
        return places[name]

    return place
