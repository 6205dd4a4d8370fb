"""A graph's identity at one moment: enough to tell that it did not change, or what did.

Generated code depends on op, target, arguments, name and type of every node, on their order, and
on the code generator. fx replaces these objects when a graph is edited and never changes them in
place (arguments are immutable containers), so comparing identities is enough: the same objects in
the same order make the same code. It costs about a fortieth of generating. Who reaches around fx
(``dict.__setitem__`` on an immutable container, a function that is renamed) is not noticed.

The snapshot is kept by the graph, see :class:`~lazyfx_core._instance_class.Generated`.

The converse does not hold, ``node.args = tuple(node.args)`` makes new objects of equal value.
:func:`describe_change` compares values and names the node.

Not every argument prints the same for ever: the text of a ``SymInt`` changes when its symbol is
specialized. A snapshot of a graph that holds anything but plain constants is not *exact*, and
code is generated again. So is code that depends on what is outside the graph (a code generator of
the user's own, profiling metadata).
"""

from __future__ import annotations

import enum
import operator
import types
import weakref
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ._torch_graph import codegen_fingerprint, generator_parts, node_count, operator_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._instance_class import Generated

_KEPT = "__lazyfx_snapshots__"
_FIELDS = ("op", "target", "args", "kwargs", "name", "type", "_repr_fn")
_row = operator.attrgetter("op", "target", "_args", "_kwargs", "name", "type", "_repr_fn")
_users = operator.attrgetter("users")
_CONSTANTS = frozenset(
    (
        *(fx.Node, int, float, bool, complex, str, bytes, type(None), type(Ellipsis), range),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a graph was made of. Holds the arguments (hence nodes), not copies of them."""

    nodes: int
    rows: list[object]
    codegen: tuple[object, ...]
    generator: tuple[object, ...]
    exact: bool


def take_snapshot(graph: fx.Graph) -> Snapshot:
    """Remember ``graph`` as it is now. Reads only; one pass."""
    codegen = codegen_fingerprint(graph)
    nodes, rows = node_count(graph), _rows(graph)
    return Snapshot(
        nodes=nodes,
        rows=rows,
        codegen=codegen or (),
        generator=generator_parts(graph),
        exact=codegen is not None and _prints_the_same_for_ever(rows, nodes),
    )


class _Kept(weakref.WeakKeyDictionary[Any, Snapshot]):
    """The snapshots that a graph holds for what was generated from it. Copies start empty."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Kept, ())

    def __copy__(self) -> _Kept:
        return _Kept()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept()


def keep_snapshot(graph: fx.Graph, made: Generated, snapshot: Snapshot) -> None:
    """Let ``graph`` hold ``snapshot`` for as long as ``made`` lives."""
    kept = vars(graph).get(_KEPT)
    if kept is None:
        kept = vars(graph)[_KEPT] = _Kept()
    kept[made] = snapshot


def kept_snapshot(graph: fx.Graph, made: Generated) -> Snapshot | None:
    """The snapshot that ``made`` was generated from, if it was generated from ``graph``."""
    kept = vars(graph).get(_KEPT)
    return None if kept is None else kept.get(made)


def is_unchanged(snapshot: Snapshot, graph: fx.Graph) -> bool:
    """Whether ``graph`` still makes the very code it made when ``snapshot`` was taken.

    False only means that it may not.
    """
    if not snapshot.exact:
        return False
    codegen = codegen_fingerprint(graph)
    return (
        codegen is not None
        and _same_objects(snapshot.codegen, codegen)
        and node_count(graph) == snapshot.nodes
        and _same_objects(snapshot.rows, _rows(graph))
    )


def describe_change(snapshot: Snapshot, graph: fx.Graph) -> str | None:
    """What is different in ``graph`` since ``snapshot``, for a person; None if nothing is.

    Returns:
        A clause that names the first node that differs, its field, and both values.
    """
    now = _rows(graph)
    before = snapshot.rows
    users = snapshot.nodes  # nodes of other graphs may use these: that is no edit of this one
    if len(now) == len(before) and _same_objects(before[:-users], now[:-users]):
        return _codegen_change(snapshot, graph)
    old_end, end = snapshot.nodes * _WIDTH, node_count(graph) * _WIDTH
    old_names, new_names = before[_NAME:old_end:_WIDTH], now[_NAME:end:_WIDTH]
    were, are = set(old_names), set(new_names)
    if len(old_names) != len(new_names) or were != are:
        added = [name for name in new_names if name not in were]
        removed = [name for name in old_names if name not in are]
        parts = [
            f"{verb} {', '.join(repr(name) for name in names[:3])}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for verb, names in (("added", added), ("erased", removed))
            if names
        ]
        return f"nodes were {' and '.join(parts)}" if parts else "nodes were added or erased"
    if old_names != new_names:
        moved = next(n for o, n in zip(old_names, new_names, strict=True) if o != n)
        return f"the order of the nodes changed at {moved!r}"
    for start in range(0, end, _WIDTH):
        stop = start + _WIDTH
        for field, old, new in zip(_FIELDS, before[start:stop], now[start:stop], strict=True):
            if field != "_repr_fn" and not _equal(old, new):  # that one torch sets to print
                name = now[start + _NAME]
                return f"node {name!r} ({now[start]}): {field} was {_show(old)}, is {_show(new)}"
    wrapped = slice(end, end + users)
    for name, old, new in zip(new_names, before[wrapped], now[wrapped], strict=True):
        if old is not new:
            return f"node {name!r}: meta['is_wrapped'] was {old!r}, is {new!r}"
    return _codegen_change(snapshot, graph)


_WIDTH = len(_FIELDS)
_ARGS, _KWARGS, _NAME, _TYPE = map(_FIELDS.index, ("args", "kwargs", "name", "type"))


def _rows(graph: fx.Graph) -> list[object]:
    """All that makes code, flat: ``_WIDTH`` objects for each node, then one more for each."""
    nodes = list(graph.nodes)
    rows: list[object] = list(chain.from_iterable(map(_row, nodes)))
    rows += [node.meta.get("is_wrapped") for node in nodes]
    rows += map(operator.not_, map(_users, nodes))  # who is used last is said in the code
    return rows


def _same_objects(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(map(operator.is_, left, right))


def _codegen_change(snapshot: Snapshot, graph: fx.Graph) -> str | None:
    if _same_objects(snapshot.generator, generator_parts(graph)):
        return None
    return "its code generator was replaced or changed"


def _prints_the_same_for_ever(rows: list[Any], nodes: int) -> bool:
    end = nodes * _WIDTH
    values = list(chain.from_iterable(rows[_ARGS:end:_WIDTH]))
    values += chain.from_iterable(map(dict.values, rows[_KWARGS:end:_WIDTH]))
    if not all(map(_is_plain_annotation, rows[_TYPE:end:_WIDTH])):
        return False
    return _CONSTANTS.issuperset(map(type, values)) or all(map(_is_constant, values))


def _is_plain_annotation(value: Any) -> bool:
    """Whether an annotation prints the same for ever: not an object of somebody's own."""
    return (
        value is None
        or isinstance(value, (type, str, types.GenericAlias, types.UnionType))
        or type(value).__module__ == "typing"
    )


def _is_constant(value: Any) -> bool:
    if type(value) in _CONSTANTS:
        return True
    if isinstance(value, (tuple, list)):
        return all(map(_is_constant, value))
    if isinstance(value, dict):
        return all(map(_is_constant, value.values())) and all(map(_is_constant, value))
    if isinstance(value, (type, enum.Enum)):
        return True
    if isinstance(value, slice):
        return all(map(_is_constant, (value.start, value.stop, value.step)))
    return operator_name(value) is not None


def _equal(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if type(left) is not type(right) or isinstance(left, fx.Node):
        return False
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict):
        return _equal(list(left), list(right)) and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, slice):
        return all(map(_equal, _ends(left), _ends(right)))
    if type(left) in (float, complex):
        return repr(left) == repr(right)  # -0.0 is not 0.0, nan is nan
    if type(left) in _CONSTANTS:
        return bool(left == right) or (left != left and right != right)
    return False


def _ends(value: slice) -> Iterator[Any]:
    return iter((value.start, value.stop, value.step))


def _show(value: object) -> str:
    if callable(value) and not isinstance(value, type):
        return getattr(value, "__name__", None) or repr(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
