"""From when to when each piece of memory of a graph is in use."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from lazyfx_compilers import _liveness


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory over the nodes of a graph, each run by itself.

    Attributes:
        live: Bytes in use while each node runs.
        sizes: Bytes of each piece of memory.
        first: From which node on each piece is there.
        last: The place of its last use.
        counted: Whether a piece is in ``live``; what belongs to the caller is not.
        behind: The pieces behind each node's value.
    """

    live: tuple[int, ...]
    sizes: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    counted: tuple[bool, ...]
    behind: tuple[tuple[int, ...], ...]


def memory_of(graph: fx.Graph, phase: str) -> Memory | None:
    """Memory over the nodes of ``graph``; None if none of them says what tensors there are.

    Inputs are the caller's and do not count. A backward is handed what was saved for it: that
    counts, from the start and until its last use. Those of its inputs that are inputs of the
    forward, too (``primals``), are the caller's.
    """
    storages = _liveness.Storages()
    program = storages.steps(graph)
    if not storages.sizes:
        return None
    inputs = _liveness.inputs(graph)
    callers = [node for node in inputs if phase != "backward" or node.name.startswith("primals")]
    foreign = {number for node in callers for number in storages.behind(node)}
    program = _liveness.separated(program, len(inputs), storages, foreign)
    behind = tuple([made for made, _ in program])
    handed = [number for node in inputs for number in storages.behind(node)]
    # a step before all others makes the inputs, which are there from the start
    shifted = [(made, tuple([one + 1 for one in sources])) for made, sources in program]
    program = [(tuple(dict.fromkeys(handed)), ()), *shifted]
    first, last = _spans(program, len(storages.sizes))
    return Memory(
        live=tuple(_liveness.timeline(program, storages.sizes, foreign)[1:]),
        sizes=tuple(storages.sizes),
        first=tuple([max(one - 1, 0) for one in first]),
        last=tuple([max(one - 1, 0) for one in last]),
        counted=tuple([number not in foreign for number in range(len(storages.sizes))]),
        behind=behind,
    )


def _spans(program: list[_liveness.Step], pieces: int) -> tuple[list[int], list[int]]:
    first, last = [-1] * pieces, [-1] * pieces
    for place, (made, sources) in enumerate(program):
        for number in made:
            last[number] = place
            if first[number] < 0:
                first[number] = place
        for source in sources:
            for number in program[source][0]:
                last[number] = place
    return first, last
