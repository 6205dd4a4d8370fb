"""What a comparison of graphs finds, as plain data, and as text and JSON.

The words, which are those of the guide too:

- *matched*: a node of the old graph and one of the new that stand for each other. Names and the
  order of independent nodes play no part in it.
- *removed*, *added*: a node that stands for none.
- *changed*: a matched pair that differs by itself: in what it runs, in an argument that is not a
  node, in the result that was recorded for it, in the value of a tensor that the graph holds.
- *inherited*: a matched pair of which only the recorded result differs, and one of its inputs is
  changed, inherited or rewired: a consequence.
- *rewired*: a matched pair that takes other nodes than each other's counterparts.
- *moved*: a matched pair whose place in the order counts (an input, a draw of random numbers, a
  write, a read of what is written) and is another.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_ROWS = 20
_WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSummary:
    """A node that is in one of the graphs only.

    Attributes:
        name: The node's name.
        op: The kind of node, ``"call_function"`` and the like.
        target: What it runs.
        text: The node as one line of code.
        result: What was recorded about its result, or ``""``.
        user_line: The line of the user's code it comes from, or ``None``.
    """

    name: str
    op: str
    target: str
    text: str
    result: str
    user_line: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One thing that differs.

    Attributes:
        field: ``"target"``, ``"args[1]"``, ``"kwargs['dim']"``, ``"dtype"``, ``"shape"``,
            ``"stride"``, ``"device"``, ``"layout"``, ``"value"``, ``"module"``, ``"results"``, ...
        old: What it was, as text.
        new: What it is.
    """

    field: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChange:
    """A matched pair that differs, and in what.

    Attributes:
        old: The node's name in the old graph.
        new: Its name in the new one.
        target: What the old one runs.
        fields: What differs; at least one.
        user_line: The line of the user's code the new one comes from, or ``None``.
    """

    old: str
    new: str
    target: str
    fields: tuple[FieldChange, ...]
    user_line: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewiring:
    """A matched pair that takes different nodes in one place.

    Attributes:
        old: The node's name in the old graph.
        new: Its name in the new one.
        argument: Which argument: ``"args[0]"``, ``"kwargs['other']"``.
        old_input: The node it took.
        new_input: The node it takes, which does not stand for that one.
    """

    old: str
    new: str
    argument: str
    old_input: str
    new_input: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCount:
    """How often something is run, where the two graphs differ in that."""

    target: str
    old: int
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubgraphDiff:
    """Two graphs inside the two graphs that stand for each other, and how they differ.

    Attributes:
        old: The attribute that holds the old one.
        new: The attribute that holds the new one.
        diff: What differs in them.
    """

    old: str
    new: str
    diff: GraphDiff


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphDiff:
    """How a new graph differs from an old one. ``str()`` of it is a short text.

    The words are explained at the head of the module, and in the guide. Names are those of nodes;
    a changed node may be rewired and moved as well.

    Attributes:
        old_nodes: Number of nodes of the old graph.
        new_nodes: Number of nodes of the new graph.
        matched: Names of the nodes that stand for each other, old and new, in the new order.
        added: Nodes of the new graph that stand for none, in its order.
        removed: Nodes of the old graph that stand for none, in its order.
        changed: Pairs that differ by themselves.
        inherited: Pairs of which only the recorded result differs, as does that of an input.
        rewired: Pairs that take other values.
        moved: Pairs whose place in an order that counts is another.
        ops: What is run more or less often.
        signature: How inputs and results are nested, where that differs.
        inside: Graphs inside that differ.
    """

    old_nodes: int
    new_nodes: int
    matched: tuple[tuple[str, str], ...]
    added: tuple[NodeSummary, ...] = ()
    removed: tuple[NodeSummary, ...] = ()
    changed: tuple[NodeChange, ...] = ()
    inherited: tuple[NodeChange, ...] = ()
    rewired: tuple[Rewiring, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    ops: tuple[OpCount, ...] = ()
    signature: tuple[FieldChange, ...] = ()
    inside: tuple[SubgraphDiff, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether nothing differs but names and the order of independent nodes."""
        return not (
            self.added
            or self.removed
            or self.changed
            or self.inherited
            or self.rewired
            or self.moved
            or self.signature
            or self.inside
        )

    @property
    def renamed(self) -> tuple[tuple[str, str], ...]:
        """Matched pairs with different names, which is no difference."""
        return tuple((old, new) for old, new in self.matched if old != new)

    def to_data(self) -> dict[str, Any]:
        """The fields and ``identical`` as dictionaries, lists, strings and numbers."""
        return plain_data(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """:meth:`to_data` as strict JSON."""
        return json.dumps(self.to_data(), allow_nan=False)

    def summary(self) -> str:
        """One line: how much of what."""
        if self.identical:
            return f"identical ({self.new_nodes} nodes)"
        counts = {
            "added": len(self.added),
            "removed": len(self.removed),
            "changed": len(self.changed),
            "inherited": len(self.inherited),
            "rewired": len({each.new for each in self.rewired}),
            "moved": len(self.moved),
        }
        parts = [f"{count} {word}" for word, count in counts.items() if count]
        if self.signature:
            parts.append("another signature")
        if self.inside:
            parts.append(f"{_count(len(self.inside), 'graph')} inside that differ")
        return f"{self.old_nodes} -> {self.new_nodes} nodes: {', '.join(parts)}"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, rows: int = _ROWS) -> Iterator[str]:
        """The text, line by line.

        Args:
            rows: How many nodes of each kind are named.
        """
        yield self.summary()
        for each in self.signature:
            yield from _field_lines(each, "  signature: ")
        yield from _some((f"  - {_shown(each)}" for each in self.removed), rows, len(self.removed))
        yield from _some((f"  + {_shown(each)}" for each in self.added), rows, len(self.added))
        for change in self.changed[:rows]:
            line = f"  {_from(change.user_line)}" if change.user_line else ""
            yield f"  ~ {_names(change.old, change.new)} ({change.target}){line}"
            for each in change.fields:
                yield from _field_lines(each, "      ")
        yield from _rest(len(self.changed) - rows)
        yield from _some(map(_rewired_line, self.rewired), rows, len(self.rewired))
        yield from _some(
            (f"  ^ {_names(*pair)} moved" for pair in self.moved), rows, len(self.moved)
        )
        if self.inherited:
            first = self.inherited[0]
            field = first.fields[0]
            yield _cut(
                f"  = {_count(len(self.inherited), 'result')} differ as a consequence, first "
                f"{_names(first.old, first.new)}: {field.field} {field.old} -> {field.new}"
            )
        if self.ops:
            counts = (f"{each.target} {each.old} -> {each.new}" for each in self.ops[:rows])
            yield f"  counts: {', '.join(counts)}{', ...' if len(self.ops) > rows else ''}"
        for sub in self.inside:
            below = sub.diff.lines(rows)
            yield f"  inside {_names(sub.old, sub.new)}: {next(below)}"
            yield from (f"  {line}" for line in below)


def op_counts(old: Iterable[str], new: Iterable[str]) -> tuple[OpCount, ...]:
    """What is run more or less often, the largest difference first."""
    before, after = Counter(old), Counter(new)
    differing = [each for each in {**before, **after} if before[each] != after[each]]
    differing.sort(key=lambda each: (-abs(before[each] - after[each]), each))
    return tuple(OpCount(target=each, old=before[each], new=after[each]) for each in differing)


def plain_data(value: Any) -> Any:
    """Dataclasses as dictionaries with their verdict, tuples as lists, down to what JSON has."""
    if isinstance(value, tuple):
        return [plain_data(each) for each in value]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        verdict = {"identical": value.identical} if hasattr(value, "identical") else {}
        return verdict | {name: plain_data(getattr(value, name)) for name in names}
    return value


# --- text --------------------------------------------------------------------------------------


def _names(old: str, new: str) -> str:
    return old if old == new else f"{old} -> {new}"


def _shown(node: NodeSummary) -> str:
    result = f"  {node.result}" if node.result else ""
    line = f"  {_from(node.user_line)}" if node.user_line else ""
    return f"{_cut(node.text)}{result}{line}"


def _from(user_line: str) -> str:
    file, _, rest = user_line.partition(":")
    return f"# {_cut(file.rpartition('/')[2] + ':' + rest, 60)}"


def _rewired_line(each: Rewiring) -> str:
    return (
        f"  > {_names(each.old, each.new)} {each.argument} takes {each.new_input} "
        f"instead of {each.old_input}"
    )


def _field_lines(each: FieldChange, indent: str) -> Iterator[str]:
    yield f"{indent}{each.field}: {_cut(each.old)} -> {_cut(each.new)}"


def _some(lines: Iterable[str], rows: int, total: int) -> Iterator[str]:
    for _, line in zip(range(rows), lines, strict=False):
        yield line
    yield from _rest(total - rows)


def _rest(more: int) -> Sequence[str]:
    return [f"    ... and {more} more"] if more > 0 else []


def _cut(text: str, width: int = _WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
