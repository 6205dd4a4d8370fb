"""How much memory a graph holds while it runs: a walk over its nodes.

Storage is what counts, not tensors: a view holds what it is a view of. Tensors are described by the
fake ones that tracing left in ``node.meta["val"]``; a symbolic size stands for its hint. Memory
that the caller owns (parameters and other inputs of a forward) is not counted; that of inputs that
the graph is the last to hold (what a backward is handed) goes with their last use, as it does when
a graph is called boxed. Scratch memory inside of kernels is not known, and neither is that a code
generator may fuse operators and never make what one hands to the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from . import _torch_aot, _torch_partition

Step = tuple[tuple[int, ...], tuple[int, ...]]
"""What one step of a program makes and reads: the pieces of memory behind its value, and the places
of the earlier steps whose values it reads.

A plain tuple of numbers, since there are millions: the garbage collector soon leaves those alone.
"""


class Storages:
    """Numbers for the pieces of memory behind values of graphs, which must stay.

    Attributes:
        sizes: Bytes, by number.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._numbers: dict[int, int] = {}
        self._known: dict[fx.Node, tuple[int, ...]] = {}

    def behind(self, node: fx.Node) -> tuple[int, ...]:
        """The memory behind a node's value, each piece once."""
        known = self._known.get(node)
        if known is None:
            found = []
            for value in _torch_aot.tree_flatten(node.meta.get("val"))[0]:
                if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                    key, nbytes = _torch_partition.storage_of(value)
                    if key not in self._numbers:
                        self._numbers[key] = self._new(nbytes)
                    found.append(self._numbers[key])
            known = self._known[node] = tuple(dict.fromkeys(found))
        return known

    def another(self, number: int) -> int:
        """A piece of memory of the same size."""
        return self._new(self.sizes[number])

    def nbytes(self, nodes: Iterable[fx.Node]) -> int:
        """The bytes behind the values of some nodes, memory that they share once."""
        return self.total(number for node in nodes for number in self.behind(node))

    def total(self, numbers: Iterable[int]) -> int:
        """The bytes of some pieces of memory, each counted once."""
        return sum(self.sizes[number] for number in set(numbers))

    def steps(self, graph: fx.Graph) -> list[Step]:
        """The nodes of a graph, in order."""
        places: dict[fx.Node, int] = {}
        found: list[Step] = []
        for place, node in enumerate(graph.nodes):
            places[node] = place
            made = self.behind(node) if node.op != "output" else ()
            found.append((made, tuple([places[one] for one in node.all_input_nodes])))
        return found

    def _new(self, nbytes: int) -> int:
        self.sizes.append(nbytes)
        return len(self.sizes) - 1


def separated(
    program: Sequence[Step], inputs: int, storages: Storages, foreign: Collection[int]
) -> list[Step]:
    """A program in which a value that is made twice is in another piece of memory then.

    Nodes that compute the same value have the same description, and seem to share memory. Those
    that do are views, and read a value that has it.

    Args:
        program: Its inputs come first.
        inputs: How many they are.
        storages: Added to.
        foreign: Memory that is somebody else's.
    """
    origin: dict[int, int] = {}
    found = list(program[:inputs])
    taken = set(foreign).union(*(made for made, _ in found))
    for pieces, sources in program[inputs:]:
        have = {origin.get(one, one): one for source in sources for one in found[source][0]}
        made = []
        for one in pieces:
            piece = have.get(one, one)
            if one not in have and one in taken and one not in foreign:
                piece = storages.another(one)
                origin[piece] = one
            made.append(piece)
            taken.add(one)
        found.append((tuple(made), sources))
    return found


def timeline(program: Sequence[Step], sizes: Sequence[int], foreign: Collection[int]) -> list[int]:
    """Bytes in use while each step runs.

    Args:
        program: What runs, in order; the last step returns what it reads.
        sizes: Bytes of each piece of memory.
        foreign: Memory that is somebody else's, and is not counted.
    """
    last: dict[int, int] = {}
    for index, (made, sources) in enumerate(program):
        for number in made:
            last[number] = index
        for source in sources:
            for number in program[source][0]:
                last[number] = index
    ends: dict[int, list[int]] = {}
    for number, index in last.items():
        if number not in foreign:
            ends.setdefault(index, []).append(number)
    live: set[int] = set(foreign)
    total, found = 0, []
    for index, (made, _) in enumerate(program):
        for number in made:
            if number not in live:
                live.add(number)
                total += sizes[number]
        found.append(total)
        for number in ends.get(index, ()):
            total -= sizes[number]
    return found


def inputs(graph: fx.Graph) -> list[fx.Node]:
    """A graph's placeholders."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is one tensor."""
    value: Any = node.meta.get("val")
    return isinstance(value, torch.Tensor)
