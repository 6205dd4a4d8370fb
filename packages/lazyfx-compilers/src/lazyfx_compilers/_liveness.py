"""How much memory a graph holds while it runs: a walk over its nodes.

Storage is what counts, not tensors: a view holds what it is a view of. Tensors are described by the
fake ones that tracing left in ``node.meta["val"]``; a symbolic size stands for its hint. Memory
that the caller owns (parameters and other inputs of a forward) is not counted; that of inputs that
the graph is the last to hold (what a backward is handed) goes with their last use, as it does when
a graph is called boxed. Scratch memory inside of kernels is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from . import _torch_aot


@dataclass(frozen=True, slots=True)
class Storage:
    """A piece of memory: something that tells it from others, and its size in bytes."""

    key: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step of a program makes and uses.

    Attributes:
        name: Of the node, and of its value.
        made: The storages that it makes or looks at anew.
        used: The names of the values that it reads.
    """

    name: str
    made: tuple[Storage, ...]
    used: tuple[str, ...]


class Sizes:
    """The memory behind values of graphs; remembers what it was asked, so graphs must stay."""

    def __init__(self) -> None:
        self._known: dict[fx.Node, tuple[Storage, ...]] = {}

    def storages(self, node: fx.Node) -> tuple[Storage, ...]:
        """The memory behind a node's value, each piece once."""
        known = self._known.get(node)
        if known is None:
            found: dict[int, Storage] = {}
            for value in _torch_aot.tree_flatten(node.meta.get("val"))[0]:
                if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                    one = _torch_aot.storage_of(value)
                    found[one[0]] = Storage(*one)
            known = self._known[node] = tuple(found.values())
        return known

    def nbytes(self, nodes: Iterable[fx.Node]) -> int:
        """The bytes behind the values of some nodes, memory that they share once."""
        return sum({one.key: one.nbytes for node in nodes for one in self.storages(node)}.values())

    def steps(self, graph: fx.Graph) -> list[Step]:
        """The nodes of a graph, in order."""
        return [
            Step(
                name=node.name,
                made=self.storages(node) if node.op != "output" else (),
                used=tuple(one.name for one in node.all_input_nodes),
            )
            for node in graph.nodes
        ]


def timeline(program: Sequence[Step], held: Iterable[str]) -> list[int]:
    """Bytes in use while each step runs.

    Args:
        program: What runs, in order; the last step returns what it uses.
        held: The names of values whose memory is somebody else's, and is not counted.
    """
    others = frozenset(held)
    foreign = {one.key for step in program if step.name in others for one in step.made}
    behind = {step.name: tuple(one.key for one in step.made) for step in program}
    last: dict[int, int] = {}
    for index, step in enumerate(program):
        for key in behind[step.name]:
            last[key] = max(last.get(key, 0), index)
        for name in step.used:
            for key in behind.get(name, ()):
                last[key] = index
    ends: dict[int, list[int]] = {}
    for key, index in last.items():
        ends.setdefault(index, []).append(key)
    live: dict[int, int] = {}
    total, found = 0, []
    for index, step in enumerate(program):
        for one in step.made:
            if one.key not in live and one.key not in foreign:
                live[one.key] = one.nbytes
                total += one.nbytes
        found.append(total)
        for key in ends.get(index, ()):
            total -= live.pop(key, 0)
    return found


def inputs(graph: fx.Graph) -> list[str]:
    """The names of a graph's placeholders."""
    return [node.name for node in graph.nodes if node.op == "placeholder"]


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is one tensor."""
    value: Any = node.meta.get("val")
    return isinstance(value, torch.Tensor)
