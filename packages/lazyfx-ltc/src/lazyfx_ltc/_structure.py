"""Nested arguments and results, taken apart into leaves and put together again.

torch's pytrees, and dataclasses that nobody registered with them: a model may take or return one,
and capture has to see the tensors in it. Registering it would change the whole process.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._torch_tracing import spec_children, tree_flatten, tree_paths, tree_unflatten

if TYPE_CHECKING:
    from torch.utils._pytree import TreeSpec


_CONTAINERS = (tuple, list, dict, OrderedDict, defaultdict, deque)
_TENSORS = frozenset({torch.Tensor, nn.Parameter})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An unregistered dataclass: its fields, and what else it holds, are leaves of ``inner``."""

    cls: type
    fields: tuple[str, ...]
    inner: Structure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """How leaves make up a value. Equal structures make equal values of equal leaves.

    Attributes:
        spec: What torch knows of it.
        records: The dataclasses among its leaves, with their positions.
        count: The number of leaves, those of dataclasses included.
    """

    spec: TreeSpec
    records: tuple[tuple[int, Record], ...] = ()
    count: int


@cache
def _structure_of_tensors(count: int) -> Structure:
    return flatten(((0,) * count, {}))[1]


def flatten_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Sequence[Any], Structure]:
    """``flatten((args, kwargs))``, quickly for what calls mostly are: tensors by place."""
    if kwargs or not _TENSORS.issuperset(map(type, args)):
        return flatten((args, kwargs))
    return args, _structure_of_tensors(len(args))


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves of a value and how they make it up."""
    tops, spec = tree_flatten(tree)
    if not any(map(_is_record, tops)):
        return tops, Structure(spec=spec, count=len(tops))
    leaves: list[Any] = []
    records: list[tuple[int, Record]] = []
    for position, top in enumerate(tops):
        if not _is_record(top):
            leaves.append(top)
            continue
        fields = [one.name for one in dataclasses.fields(top) if hasattr(top, one.name)]
        names = tuple(dict.fromkeys([*fields, *getattr(top, "__dict__", ())]))
        parts, inner = flatten([getattr(top, name) for name in names])
        leaves += parts
        records.append((position, Record(cls=type(top), fields=names, inner=inner)))
    return leaves, Structure(spec=spec, records=tuple(records), count=len(leaves))


def has_objects(structure: Structure) -> bool:
    """Whether it holds objects that may have methods of their own: all but plain containers."""
    waiting = [structure.spec]
    while waiting:
        spec = waiting.pop()
        kind = spec.type
        plain = kind in _CONTAINERS or kind is None or (kind is namedtuple)
        if not plain:
            return True
        waiting += spec_children(spec)
    return bool(structure.records)


def unflatten(leaves: Sequence[Any], structure: Structure) -> Any:
    """The inverse of :func:`flatten`. No constructor of a dataclass runs."""
    if structure.count == 1 and structure.spec.num_nodes == 1 and not structure.records:
        return leaves[0]
    if not structure.records:
        return tree_unflatten(list(leaves), structure.spec)
    remaining = iter(leaves)
    records = dict(structure.records)
    tops = [
        _made(records[position], remaining) if position in records else next(remaining)
        for position in range(structure.spec.num_leaves)
    ]
    return tree_unflatten(tops, structure.spec)


def assembler(structure: Structure) -> Callable[[Sequence[Any]], Any]:
    """:func:`unflatten` for one structure, quickly for a leaf, and for a flat tuple or list."""
    spec = structure.spec
    if structure.records:
        return lambda leaves: unflatten(leaves, structure)
    if spec.num_nodes == 1 and structure.count == 1:
        return lambda leaves: leaves[0]
    if spec.type in (tuple, list) and spec.num_nodes == structure.count + 1:
        kind: Any = spec.type
        return lambda leaves: kind(leaves)
    return lambda leaves: unflatten(leaves, structure)


def paths(structure: Structure) -> list[tuple[str, ...]]:
    """For each leaf where it stands, outermost first: ``("[0]", "['mask']", ".left")``."""
    records = dict(structure.records)
    found: list[tuple[str, ...]] = []
    for position, path in enumerate(tree_paths(structure.spec)):
        if position not in records:
            found.append(path)
            continue
        record = records[position]
        for inner in paths(record.inner):
            field = record.fields[int(inner[0][1:-1])]
            found.append((*path, f".{field}", *inner[1:]))
    return found


def _is_record(value: Any) -> bool:
    kind = type(value)
    return dataclasses.is_dataclass(kind) and kind.__new__ is object.__new__


def _made(record: Record, leaves: Any) -> Any:
    values = unflatten([next(leaves) for _ in range(record.inner.count)], record.inner)
    made: Any = object.__new__(record.cls)
    for name, value in zip(record.fields, values, strict=True):
        object.__setattr__(made, name, value)
    return made
