"""What a node may do to its arguments, and which of them its results share memory with.

Two witnesses are heard: the schema of an operator, and the fake tensors that tracing recorded,
which share memory as the real ones do. Neither is believed alone where it is known to err:

- operators that are made of others have schemas that nobody checks, and may be made of others yet
  while tracing (``dropout`` in evaluation returns its argument, but a copy to whom traces it): they
  may share;
- a pass that takes two equal nodes for one leaves a view with the description of a view of the node
  that is gone, so that two descriptions do not share memory says nothing where the schema lets
  them share it;
- a pass that inserts a copy may give it the description of the original, the very object, so one
  and the same object says nothing.

Dynamo records the very tensor it traces with, which counts its writes: where it was never written
while tracing, no node may write it. What AOTAutograd records are snapshots, which count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from lazyfx_compilers import _torch_aot, _torch_debug

from . import _metadata, _torch_checks


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A tensor that a node takes.

    Attributes:
        node: Whose result it is.
        shares: For each leaf of the node's result, whether it must share memory with this tensor
            (``True``), must not (``False``), or may.
        may_write: Whether the node may write to it.
        said_by: Who says so.
    """

    node: fx.Node
    shares: tuple[bool | None, ...]
    may_write: bool
    said_by: str


def recorded(node: fx.Node) -> Any:
    """What tracing recorded about a node."""
    return node.meta["val"] if "val" in node.meta else node.meta.get("example_value")


def wraps_tensors(graph: fx.Graph) -> bool:
    """Whether a graph begins a ``vmap`` or ``grad``: its tensors wrap others then."""
    return any(_torch_checks.is_functorch(node.target) for node in graph.nodes)


def is_traceable(graph: fx.Graph) -> bool:
    """Whether the memory of tensors in a graph can be followed: none is given other memory."""
    names = (_torch_checks.base_name(node.target) for node in graph.nodes)
    return not wraps_tensors(graph) and "set_" not in names


def sources(node: fx.Node, leaves: int) -> tuple[Source, ...]:
    """The tensors that a node takes, and what is known of them; none where that is nothing.

    Args:
        node: Of a graph that :func:`is_traceable`.
        leaves: How many leaves its result has.
    """
    if node.op not in ("call_function", "call_method", "call_module"):
        return ()
    if _torch_checks.is_higher_order(node.target):
        return ()
    declared = _torch_checks.declared(node)
    results = _metadata.leaves(recorded(node)) if leaves else []
    found = []
    for source in dict.fromkeys(node.all_input_nodes):
        value = recorded(source)
        if not isinstance(value, torch.Tensor):
            continue
        shares: tuple[bool | None, ...] = tuple(
            _must_share(node, declared, source, place, results) for place in range(len(results))
        )
        if declared is not None:
            may_write = _holds(declared.written, source)
        else:
            may_write = (
                _torch_checks.is_operator(node.target)
                or _torch_checks.writes_uncounted(node.target)
                or not _never_written(source)
            )
        if not may_write or any(each is not None for each in shares):
            by_schema = declared is not None and (False in shares or True not in shares)
            found.append(
                Source(
                    node=source,
                    shares=shares,
                    may_write=may_write,
                    said_by="its schema says" if by_schema else "tracing recorded",
                )
            )
    return tuple(found)


def results_are_apart(node: fx.Node, leaves: int) -> bool:
    """Whether no two leaves of a node's result may share memory."""
    declared = _torch_checks.declared(node) if leaves > 1 else None
    if declared is None or any(result is None or result for result in declared.results):
        return False
    keys = [_storage(leaf) for leaf in _metadata.leaves(recorded(node))]
    return None not in keys and len(set(keys)) == len(keys)


def origins(node: fx.Node, leaves: int) -> tuple[fx.Node | None, ...] | None:
    """For each leaf of a node's result, a node whose memory it was recorded to be in.

    ``None`` for a leaf: in memory of its own. ``None`` for all: that cannot be told.
    """
    if node.op not in ("call_function", "call_method") or _torch_checks.is_higher_order(
        node.target
    ):
        return None
    if _torch_checks.has_any_offset(node.target):
        return None
    inputs = node.all_input_nodes
    if not all(isinstance(recorded(one), (torch.Tensor, torch.SymInt, int)) for one in inputs):
        return None
    values = _metadata.leaves(recorded(node))
    if len(values) != leaves:
        return None
    tensors = [one for one in inputs if isinstance(recorded(one), torch.Tensor)]
    if any(_storage(recorded(one)) is None for one in tensors):
        return None
    return tuple(
        next((one for one in tensors if _share(value, recorded(one)) is not False), None)
        for value in values
    )


def _must_share(
    node: fx.Node,
    declared: _torch_checks.Declared | None,
    source: fx.Node,
    place: int,
    results: Sequence[Any],
) -> bool | None:
    result, value = results[place], recorded(source)
    if result is value or not isinstance(result, torch.Tensor):
        return None
    known = _share(result, value)
    allowed = None if declared is None else _allows(declared, source, place, len(results))
    if known:
        return None if declared is None and _unbacked(result) else True
    return False if allowed is False else None


def _allows(
    declared: _torch_checks.Declared, source: fx.Node, place: int, leaves: int
) -> bool | None:
    results = declared.results
    if len(results) != 1 and len(results) != leaves:
        return None
    allowed = results[0] if len(results) == 1 else results[place]
    return None if allowed is None else _holds(allowed, source)


def _never_written(source: fx.Node) -> bool:
    value = source.meta.get("example_value")
    if "val" in source.meta or not isinstance(value, torch.Tensor) or _storage(value) is None:
        return False
    return _torch_checks.version(value) == 0


def _holds(values: Iterable[Any], source: fx.Node) -> bool:
    return any(one is source for value in values for one in _nodes(value))


def _nodes(value: Any) -> Iterator[fx.Node]:
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _nodes(each)


def _storage(value: Any) -> int | None:
    """What a recorded tensor has in common with all that share its memory, if that is known."""
    if not isinstance(value, torch.Tensor) or value.is_nested:
        return None
    if not (_torch_aot.is_fake(value) or _torch_checks.is_plain(value)):
        return None
    if value.layout is not torch.strided:
        return None
    return _torch_debug.storage_key(value)


def _share(one: Any, other: Any) -> bool | None:
    mine, theirs = _storage(one), _storage(other)
    return None if mine is None or theirs is None else mine == theirs


def _unbacked(value: Any) -> bool:
    return value.layout is torch.strided and _torch_checks.has_unbacked(value)
