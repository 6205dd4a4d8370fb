"""A partition's two halves as one program by number, and the backward that a choice comes to.

Which values may be computed again in the backward, and from what:

* an input of the forward is there anyway, unless the graph or the caller's mutation writes to it;
* the result of an operator that draws random numbers is never computed again (another mask would
  make wrong gradients without a word), and neither is one that has effects, or that hides a graph;
* the result of a dropout is computed again from its mask, to the bit.

In the backward a value is computed just before its first use, so that it lives as short as may be.
Values may be *held*: they are borders of segments. They are computed first, from border to border,
and what is computed on the way is let go and computed once more when its segment is due.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from . import _liveness, _torch_partition, _torch_randomness
from ._liveness import Step, Storages

_FLOPS, _BYTES = 5e10, 1e10  # a second's worth; only the ratio counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """A partitioned joint graph.

    Attributes:
        forward: Returns its results, then what is saved: tensors, then sizes.
        backward: Takes sizes, saved tensors, gradients of the results.
        results: How many values the forward returns to its caller.
        written: Names of the forward's inputs that are written by the time the backward runs.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    results: int
    written: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Choice:
    """Which values are saved, which are computed again, and which of those are held; by number."""

    saved: dict[int, None]
    again: dict[int, None] = field(default_factory=dict)
    held: frozenset[int] = frozenset()


Run = tuple[int, tuple[int, ...]]
"""One step of a backward: the value that it makes, and the places of the earlier steps that made
what it reads."""


class Joint:
    """Forward and backward of a partition; a value has one number in both, a name stands for it.

    Attributes:
        halves: Not changed.
        nodes: Of each value; the forward's in order, then those that only the backward has.
        own: The backward's node of a value, where it has one that is not an input.
        sources: Of each value those that it is computed from, where it is computed again.
        behind: Of each value the pieces of memory.
        storages: Their sizes.
        fixed: Of each value, whether it must be the one that the forward made.
        returned: What the forward returns to its caller.
        kept: What it saves.
        needed: What the backward takes from the forward.
        tangents: What it takes besides: gradients of the results.
        foreign: The memory of the forward's inputs.
        seconds: Of each value, about how long it takes.
    """

    def __init__(self, halves: Halves) -> None:
        self.halves = halves
        self.storages = Storages()
        forward, backward = halves.forward.graph, halves.backward.graph
        ours = [node for node in forward.nodes if node.op != "output"]
        numbers = {node.name: number for number, node in enumerate(ours)}
        self.own: dict[int, fx.Node] = {}
        theirs: list[fx.Node] = []
        for node in backward.nodes:
            name = node.name if node.op != "output" else " "  # no node has this name
            if name not in numbers:
                numbers[name] = len(ours) + len(theirs)
                theirs.append(node)
            if node.op != "placeholder":
                self.own[numbers[name]] = node
        self.nodes: list[fx.Node] = [*ours, *theirs]
        self.sources = [
            tuple(numbers[one.name] for one in sources_of(self.own.get(number, node)))
            for number, node in enumerate(self.nodes)
        ]
        self.behind = [
            self.storages.behind(node) if node.op != "output" else () for node in self.nodes
        ]
        self.fixed = [
            number < len(ours) and is_fixed(node, halves.written)
            for number, node in enumerate(self.nodes)
        ]
        self.count = len(ours)
        output: Any = next(iter(reversed(forward.nodes))).args[0]
        self.returned = list(output[: halves.results])
        saved = [node for node in output[halves.results :] if isinstance(node, fx.Node)]
        self.kept = [numbers[node.name] for node in saved]
        taken = [numbers[node.name] for node in _liveness.inputs(backward)]
        self.needed = [number for number in taken if number < self.count]
        self.tangents = [number for number in taken if number >= self.count]
        inputs = [node for node in ours if node.op == "placeholder"]
        self.foreign = {one for node in inputs for one in self.storages.behind(node)}
        self._reads = [[numbers[one.name] for one in node.all_input_nodes] for node in ours]
        self._acting = [number for number, node in enumerate(ours) if has_place(node)]
        self._results = [numbers[one.name] for one in self.returned if isinstance(one, fx.Node)]
        self._anchors = self._late(backward, numbers)
        self.seconds = [_seconds(self, value) for value in range(len(self.nodes))]
        self._bound = _torch_partition.symbols([self.nodes[value] for value in self.kept])

    def _late(self, backward: fx.Graph, numbers: Mapping[str, int]) -> list[int]:
        """What keeps its place in the backward: it follows from gradients, or does something."""
        late = set(self.tangents)
        found = []
        for node in backward.nodes:
            number = numbers[node.name if node.op != "output" else " "]
            if node.op == "placeholder":
                continue
            read = self.sources[number]
            if node.op == "output" or has_place(node) or not late.isdisjoint(read):
                late.add(number)
                found.append(number)
        return found

    def bytes_of(self, values: Iterable[int]) -> int:
        """The bytes of some values, those of the forward's inputs left out."""
        found = {one for value in values for one in self.behind[value]}
        return self.storages.total(found - self.foreign)

    def is_foreign(self, value: int) -> bool:
        """Whether all memory behind a value is that of inputs of the forward."""
        return self.foreign.issuperset(self.behind[value])

    def for_results(self) -> list[int]:
        """What the forward computes for its results, in order; the rest is for the backward."""
        return self._with_what_they_read(self._results)

    def _with_what_they_read(self, values: Iterable[int]) -> list[int]:
        """Some values of the forward and all that they follow from, in order."""
        wanted = set(values)
        for value in range(self.count - 1, -1, -1):
            if value in wanted:
                wanted.update(self._reads[value])
        return sorted(wanted)

    def recomputed(self) -> list[int]:
        """What the backward computes from saved values alone, as the graph stands."""
        late = {*self._anchors, *self.tangents}
        return [
            value
            for value, node in self.own.items()
            if node.op == "call_function" and value not in late
        ]

    # --- what may be dropped -------------------------------------------------------------------

    def reached(
        self, dropped: Sequence[int], saved: Collection[int], again: Collection[int]
    ) -> tuple[list[int], list[int]] | None:
        """What has to be computed again, and saved besides, once some values are not saved.

        None if something would be needed that cannot be had.
        """
        gone, seen = set(dropped), set[int]()
        computed: list[int] = []
        kept: list[int] = []
        waiting = [value for value in dropped if value in saved]
        while waiting:
            value = waiting.pop()
            if value in seen or value in again or (value in saved and value not in gone):
                continue
            seen.add(value)
            node = self.nodes[value]
            if (node.op == "get_attr" and not self.fixed[value]) or dropout_mask(node) is not None:
                computed.append(value)
                waiting += self.sources[value]
            elif node.op == "placeholder" or self.fixed[value] or self._hides_fixed(value, saved):
                unknown = bool(_torch_partition.symbols([node]) - self._bound)
                if node.op == "get_attr" or node.name in self.halves.written or unknown:
                    return None
                kept.append(value)
            else:
                computed.append(value)
                waiting += self.sources[value]
        return computed, kept

    def _hides_fixed(self, value: int, saved: Collection[int]) -> bool:
        """Whether it is less to save than what may not be computed again behind it."""
        hard = [
            one
            for one in self.sources[value]
            if one not in saved and self.fixed[one] and dropout_mask(self.nodes[one]) is None
        ]
        if not hard or not _liveness.is_tensor(self.nodes[value]):
            return False
        behind = self.storages.nbytes(self.nodes[one] for one in hard)
        return 0 < self.storages.nbytes([self.nodes[value]]) <= behind

    # --- what runs ---------------------------------------------------------------------------

    def forward_timeline(self, choice: Choice) -> list[int]:
        """Bytes in use at each step of the forward, its inputs left out."""
        ends = {*self._results, *choice.saved}
        wanted = self._with_what_they_read((*ends, *self._acting))
        where = {value: place for place, value in enumerate(wanted)}
        program: list[Step] = [
            (self.behind[value], tuple([where[one] for one in self._reads[value]]))
            for value in wanted
        ]
        program.append(((), tuple([where[value] for value in ends])))
        return _liveness.timeline(program, self.storages.sizes, self.foreign)

    def backward_timeline(self, choice: Choice, runs: Sequence[Run]) -> list[int]:
        """Bytes in use at each step of the backward, inputs of the forward left out.

        Args:
            choice: What is saved.
            runs: What :meth:`backward` gave for it.
        """
        program = [(self.behind[value], sources) for value, sources in runs]
        if choice.held:  # so that values may be made twice
            inputs = len(choice.saved) + len(self.tangents)
            program = _liveness.separated(program, inputs, self.storages, self.foreign)
        return _liveness.timeline(program, self.storages.sizes, self.foreign)

    def backward(self, choice: Choice) -> list[Run]:
        """What the backward runs, in order; its inputs come first."""
        runs: list[Run] = []
        where: dict[int, int] = {}
        for value in (*choice.saved, *self.tangents):
            where[value] = len(runs)
            runs.append((value, ()))
        for anchor in self._anchors:
            for source in self.sources[anchor]:
                if source not in where:
                    self._hold(source, choice.held, where, runs)
                    self._run(source, frozenset(), where, where, runs)
            where[anchor] = len(runs)
            runs.append((anchor, tuple([where[one] for one in self.sources[anchor]])))
        return runs

    def _hold(
        self, wanted: int, held: frozenset[int], where: dict[int, int], runs: list[Run]
    ) -> None:
        """Make the borders that a value follows from, and let go of all else."""
        if not held:
            return
        passing: dict[int, int] = {}
        seen = {wanted}
        waiting = [wanted]
        borders = []
        while waiting:
            value = waiting.pop()
            if value in held and value not in where:
                borders.append(value)
                continue
            fresh = [one for one in self.sources[value] if one not in where and one not in seen]
            seen.update(fresh)
            waiting += fresh
        for border in sorted(borders):
            self._run(border, held, where, passing, runs)

    def _run(
        self,
        wanted: int,
        held: frozenset[int],
        where: dict[int, int],
        into: dict[int, int],
        runs: list[Run],
    ) -> None:
        """Make a value and what it is made from; what is not held is noted in ``into``."""
        waiting = [(wanted, False)]
        while waiting:
            value, ready = waiting.pop()
            if value in where or value in into:
                continue
            sources = self.sources[value]
            if ready:
                made = tuple([where[one] if one in where else into[one] for one in sources])
                (where if value in held else into)[value] = len(runs)
                runs.append((value, made))
                continue
            waiting.append((value, True))
            for source in reversed(sources):
                if source not in where and source not in into:
                    waiting.append((source, False))


def is_fixed(node: fx.Node, written: frozenset[str]) -> bool:
    """Whether a value must be the one of the forward: computed again it might be another."""
    if node.op == "placeholder":
        return node.name in written or any(
            user.target is torch.ops.aten.copy_.default and user.args[0] is node
            for user in node.users
        )
    if node.op == "get_attr":
        return not isinstance(node.meta.get("val"), torch.Tensor)
    if node.target is operator.getitem:
        return is_fixed(node.args[0], written)  # type: ignore[arg-type]
    return (
        not _torch_partition.is_pure(node.target)
        or _torch_randomness.draws(node)
        or "must_be_in_forward" in node.meta.get("partitioner_tag", "")
    )


def dropout_mask(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """For the result of a dropout its mask and its input: they make it again, to the bit."""
    if node.target is not operator.getitem or node.args[1] != 0:
        return None
    drawn = node.args[0]
    assert isinstance(drawn, fx.Node)
    if drawn.target is not torch.ops.aten.native_dropout.default or drawn.args[2] is False:
        return None
    masks = [user for user in drawn.users if user.args[1] == 1]
    source = drawn.args[0]
    return (masks[0], source) if masks and isinstance(source, fx.Node) else None


def sources_of(node: fx.Node) -> list[fx.Node]:
    """What a node is computed from, where it is computed again."""
    pair = dropout_mask(node)
    return list(pair) if pair is not None else node.all_input_nodes


def has_place(node: fx.Node) -> bool:
    """Whether a node does more than compute, so that it stays where it is."""
    return node.op == "call_function" and (
        not _torch_partition.is_pure(node.target) or _torch_randomness.draws(node)
    )


def _seconds(joint: Joint, value: int) -> float:
    """About the seconds a value takes: its products, and the memory it reads and writes."""
    node = joint.nodes[value]
    if node.op != "call_function" or node.target is operator.getitem:
        return 0.0
    touched = [one for each in (value, *joint.sources[value]) for one in joint.behind[each]]
    return _torch_partition.flops(node) / _FLOPS + joint.storages.total(touched) / _BYTES
