"""Save less for the backward: drop saved values, and compute them again where they are needed.

Torch's min-cut partition of the joint graph comes first; it saves what is needed to be as fast as
without a budget. From there two ways lead down:

* values are dropped one after the other, by bytes gained for a second of recomputation;
* the forward is cut into 1, 2, 3, ... segments of about equal activations, at places where little
  memory crosses, and only what crosses is kept: checkpoints.

What a dropped value is computed from is saved too if it has to be:

* an input of the forward is there anyway, unless the graph or the caller's mutation writes to it;
* the result of an operator that draws random numbers is never computed again (another mask would
  make wrong gradients without a word), and neither is one that has effects, or that hides a graph.
  Of what follows from it the smallest is saved: a mask of bools instead of the numbers behind it.

In the backward a value is computed just before its first use, so that it lives as short as may be.
For each place along the ways the peak of memory is simulated (``_liveness.py``). Of the places
within a budget, the one with the least recomputation is taken among those that peak no higher than
any place that saves more; so a smaller budget never has a higher peak, if that can be had.

Choosing the best set is a knapsack problem; torch offers dynamic programming and an integer program
for it. Sorting by the ratio of gain to cost, as here, is within one value of the best, and takes
n log n steps.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from . import _liveness, _torch_aot, _torch_randomness
from ._liveness import Step

_PLACES = 32  # along the first way
_SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a choice of saved values comes to, in bytes and (about) seconds.

    Attributes:
        saved: Bytes that are kept from forward to backward, inputs of the forward left out.
        peak: The simulated peak over both, inputs of the forward left out.
        recomputed: Estimated seconds of what the backward computes again.
    """

    saved: int
    peak: int
    recomputed: float


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which values are saved, and which are computed again."""

    saved: dict[fx.Node, None]
    again: dict[fx.Node, None] = field(default_factory=dict)


class Budget:
    """The ways from saving what is fastest to saving next to nothing, for one partition."""

    def __init__(self, halves: Halves) -> None:
        self._halves = halves
        self._sizes = _liveness.Sizes()
        self._seconds: dict[fx.Node, float] = {}
        forward = halves.forward.graph
        self._nodes: dict[str, fx.Node] = {
            node.name: node for node in forward.nodes if node.op != "output"
        }
        self._order = {node: index for index, node in enumerate(forward.nodes)}
        output = next(iter(reversed(forward.nodes)))
        returned: list[Any] = list(output.args[0])
        self._returned = returned[: halves.results]
        self._kept = [node for node in returned[halves.results :] if isinstance(node, fx.Node)]
        self._backward_inputs = _liveness.inputs(halves.backward.graph)
        self._fixed = {node: _is_fixed(node, halves.written) for node in self._nodes.values()}
        self._input_keys = {
            one.key
            for node in self._nodes.values()
            if node.op == "placeholder"
            for one in self._sizes.storages(node)
        }
        self._bound = _torch_aot.symbols(self._kept)
        self._ways = list(self._places())

    @property
    def places(self) -> list[Place]:
        """All places along the ways; the first is torch's."""
        return [place for place, _ in self._ways]

    def within(self, limit: int) -> tuple[Place, Halves]:
        """The best place that saves no more than ``limit`` bytes, or else the one saving least."""
        fits = [index for index, (place, _) in enumerate(self._ways) if place.saved <= limit]
        peaks = [place.peak for place, _ in self._ways if place.saved > limit]
        low = [index for index in fits if not peaks or self._ways[index][0].peak <= min(peaks)]
        if low:
            chosen = min(low, key=lambda index: self._ways[index][0].recomputed)
        elif fits:
            chosen = min(fits, key=lambda index: self._ways[index][0].peak)
        else:
            chosen = min(range(len(self._ways)), key=lambda index: self._ways[index][0].saved)
        place, choice = self._ways[chosen]
        return place, self._built(choice) if choice.again else self._halves

    # --- the ways ----------------------------------------------------------------------------

    def _places(self) -> Iterator[tuple[Place, _Choice]]:
        choice = _Choice(dict.fromkeys(self._kept))
        yield self._place(choice), choice
        groups = self._groups()
        step = max(1, -(-len(groups) // _PLACES))
        for start in range(0, len(groups), step):
            batch = [node for group in groups[start : start + step] for node in group]
            changed = self._without(choice, batch)
            if changed is not None:
                choice = changed
                yield self._place(choice), choice
        for one in self._checkpoints(groups):
            yield self._place(one), one

    def _checkpoints(self, groups: Sequence[Sequence[fx.Node]]) -> Iterator[_Choice]:
        """The forward in segments of which only the borders are kept."""
        nodes = [node for node in self._order if node.op == "call_function"]
        crossing = self._crossing(nodes)
        sizes = {group[-1]: self._sizes.nbytes(group) for group in groups}
        total = sum(sizes.values())
        if not total:
            return
        sums, so_far = [], 0
        for node in nodes:
            so_far += sizes.get(node, 0)
            sums.append(so_far)
        for count in _SEGMENTS:
            borders: dict[fx.Node, None] = {}
            for number in range(1, count):
                low, high = (total * (number + by) / count for by in (-0.4, 0.4))
                window = [index for index, one in enumerate(sums) if low <= one <= high]
                if window:
                    best = min(window, key=lambda index: self._sizes.nbytes(crossing[index]))
                    borders.update(dict.fromkeys(crossing[best]))
            choice = _Choice({**dict.fromkeys(self._kept), **borders})
            dropped = [node for group in groups for node in group if node not in borders]
            found = self._without(choice, dropped)
            if found is not None:
                yield found

    def _crossing(self, nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
        """After each node, the tensors that it or an earlier one made and a later one reads."""
        place = {node: index for index, node in enumerate(nodes)}
        last = {
            node: max((place.get(user, -1) for user in node.users), default=-1) for node in nodes
        }
        live: dict[fx.Node, None] = {}
        found = []
        for index, node in enumerate(nodes):
            if _liveness.is_tensor(node) and last[node] > index:
                live[node] = None
            for one in [*node.all_input_nodes]:
                if last.get(one, -1) <= index:
                    live.pop(one, None)
            found.append(list(live))
        return found

    def _groups(self) -> list[list[fx.Node]]:
        """Saved tensors by storage, those first that give most bytes for a second."""
        by_storage: dict[int, list[fx.Node]] = {}
        for node in self._kept:
            found = self._sizes.storages(node)
            if (
                len(found) == 1
                and node.op != "placeholder"
                and found[0].key not in self._input_keys
            ):
                by_storage.setdefault(found[0].key, []).append(node)
        kept, shared = set(self._kept), set[fx.Node]()
        rated = []
        # What several need is counted for the first, as if all were dropped: else this would take
        # as many steps as there are pairs of values.
        for group in sorted(by_storage.values(), key=lambda group: self._order[group[0]]):
            reached = self._reached(group, kept, shared)
            gain = self._sizes.nbytes(group)
            if reached is not None and self._bytes(dict.fromkeys(reached[1])) < gain:
                cost = sum(self._time(node) for node in reached[0])
                shared.update(reached[0])
                rated.append((gain / max(cost, 1e-12), group))
        rated.sort(key=lambda pair: -pair[0])
        return [group for _, group in rated]

    def _without(self, choice: _Choice, dropped: Sequence[fx.Node]) -> _Choice | None:
        """The choice without some values; None if that saves nothing."""
        reached = self._reached(dropped, choice.saved, choice.again)
        if reached is None:
            return None
        gone = set(dropped)
        saved = {node: None for node in choice.saved if node not in gone}
        saved.update(dict.fromkeys(reached[1]))
        again = {**choice.again, **dict.fromkeys(reached[0])}
        saved = self._without_unused(saved, again)
        if self._bytes(saved) >= self._bytes(choice.saved):
            return None
        return _Choice(saved, again)

    def _reached(
        self,
        dropped: Sequence[fx.Node],
        saved: Container[fx.Node],
        again: Container[fx.Node],
    ) -> tuple[list[fx.Node], list[fx.Node]] | None:
        """What has to be computed again, and saved besides, once some values are not saved.

        None if something would be needed that cannot be had.
        """
        gone, seen = set(dropped), set[fx.Node]()
        computed: list[fx.Node] = []
        kept: list[fx.Node] = []
        waiting = [node for node in dropped if node in saved]
        while waiting:
            node = waiting.pop()
            if node in seen or node in again or (node in saved and node not in gone):
                continue
            seen.add(node)
            if node.op == "get_attr" and not self._fixed[node]:
                computed.append(node)
            elif _dropout_mask(node) is not None:
                computed.append(node)
                waiting += _sources(node)
            elif node.op == "placeholder" or self._fixed[node] or self._hides_fixed(node, saved):
                unknown = bool(_torch_aot.symbols([node]) - self._bound)
                if node.op == "get_attr" or node.name in self._halves.written or unknown:
                    return None
                kept.append(node)
            else:
                computed.append(node)
                waiting += node.all_input_nodes
        return computed, kept

    def _hides_fixed(self, node: fx.Node, saved: Container[fx.Node]) -> bool:
        """Whether ``node`` itself is less to save than what may not be computed again behind it."""
        hard = [
            one
            for one in node.all_input_nodes
            if one not in saved and self._fixed[one] and _dropout_mask(one) is None
        ]
        if not hard or not _liveness.is_tensor(node):
            return False
        return 0 < self._sizes.nbytes([node]) <= self._sizes.nbytes(hard)

    def _time(self, node: fx.Node) -> float:
        """About the seconds a node takes: its products, and the memory it reads and writes."""
        known = self._seconds.get(node)
        if known is None:
            known = 0.0
            if node.op == "call_function" and node.target is not operator.getitem:
                touched = self._sizes.nbytes([node, *node.all_input_nodes])
                known = _torch_aot.flops(node) / _FLOPS + touched / _BYTES
            self._seconds[node] = known
        return known

    def _without_unused(
        self, saved: Mapping[fx.Node, None], again: dict[fx.Node, None]
    ) -> dict[fx.Node, None]:
        """Of what is saved, that which the backward or something computed again reads."""
        wanted = {name for name in self._backward_inputs if name in self._nodes}
        read = {one for node in again for one in _sources(node)}
        return {node: None for node in saved if node.name in wanted or node in read}

    def _bytes(self, saved: Mapping[fx.Node, None]) -> int:
        found = {one.key: one.nbytes for node in saved for one in self._sizes.storages(node)}
        return sum(size for key, size in found.items() if key not in self._input_keys)

    def _place(self, choice: _Choice) -> Place:
        forward, backward = self._programs(choice)
        names = _liveness.inputs(self._halves.forward.graph)
        peaks = [
            max(_liveness.timeline(forward, names), default=0),
            max(_liveness.timeline(backward, names), default=0),
        ]
        return Place(
            saved=self._bytes(choice.saved),
            peak=max(peaks),
            recomputed=sum(self._time(node) for node in choice.again),
        )

    # --- what runs ---------------------------------------------------------------------------

    def _programs(self, choice: _Choice) -> tuple[list[Step], list[Step]]:
        """Forward and backward as steps, without building them."""
        forward = self._sizes.steps(self._halves.forward.graph)
        last = forward[-1]
        used = [one.name for one in (*_nodes_in(self._returned), *choice.saved)]
        forward[-1] = Step(name=last.name, made=(), used=tuple(used))
        made = {node.name: self._sizes.storages(node) for node in choice.saved}
        inputs = self._halves.backward.graph.find_nodes(op="placeholder")
        made.update((one.name, self._sizes.storages(one)) for one in self._tangents(inputs))
        backward = [Step(name=name, made=found, used=()) for name, found in made.items()]
        for node in self._sequence(made):
            found = self._sizes.storages(node) if node.op != "output" else ()
            read = tuple(one.name for one in _sources(node))
            backward.append(Step(name=node.name, made=found, used=read))
        return forward, backward

    def _tangents(self, inputs: Iterable[fx.Node]) -> list[fx.Node]:
        """Those of the backward's inputs that the forward does not save."""
        return [node for node in inputs if node.name not in self._nodes]

    def _sequence(self, given: Container[str]) -> list[fx.Node]:
        """What the backward runs, in order, nodes of the forward among them.

        What follows from the gradients keeps its order; all else comes just before its first use.

        Args:
            given: The names of the backward's inputs.
        """
        graph = self._halves.backward.graph
        own = {node.name: node for node in graph.nodes if node.op != "placeholder"}
        late = set(self._tangents(graph.find_nodes(op="placeholder")))
        found: list[fx.Node] = []
        done: set[str] = set()
        for node in graph.nodes:
            if node.op == "placeholder":
                continue
            if late.intersection(node.all_input_nodes) or node.op == "output" or _has_place(node):
                late.add(node)
            else:
                continue
            waiting = [(node, False)]
            while waiting:
                one, ready = waiting.pop()
                if one.name in given or one.name in done:
                    continue
                if ready:
                    done.add(one.name)
                    found.append(one)
                    continue
                waiting.append((one, True))
                for source in reversed(_sources(one)):
                    waiting.append((own.get(source.name) or self._resolved(source), False))
        return found

    def _resolved(self, node: fx.Node) -> fx.Node:
        """The node of the forward by a name, for an input of the backward that is not saved."""
        return self._nodes.get(node.name, node)

    def _built(self, choice: _Choice) -> Halves:
        forward, backward = self._halves.forward, self._halves.backward
        places = {node: index for index, node in enumerate(self._kept)}
        saved = sorted(
            choice.saved,
            key=lambda node: (_goes_last(node), places.get(node, len(places)), self._order[node]),
        )
        tensors = [node for node in saved if _liveness.is_tensor(node)]
        sizes = [node for node in saved if not _liveness.is_tensor(node)]
        graph = fx.Graph()
        made: dict[str, fx.Node] = {}
        for node in forward.graph.nodes:
            if node.op != "output":
                made[node.name] = graph.node_copy(node, lambda one: made[one.name])
        output = next(iter(reversed(forward.graph.nodes)))
        results = [made[one.name] if isinstance(one, fx.Node) else one for one in self._returned]
        kept = [made[one.name] for one in (*tensors, *sizes)]
        graph.output((*results, *kept)).meta.update(
            _torch_aot.output_meta(output, len(results), tensors, sizes)
        )
        return Halves(
            forward=_torch_aot.graph_module((forward,), graph),
            backward=self._built_backward(choice, tensors, sizes, backward),
            results=self._halves.results,
            written=self._halves.written,
        )

    def _built_backward(
        self,
        choice: _Choice,
        tensors: Sequence[fx.Node],
        sizes: Sequence[fx.Node],
        backward: fx.GraphModule,
    ) -> fx.GraphModule:
        graph = fx.Graph()
        made: dict[str, fx.Node] = {}
        own = {node.name: node for node in backward.graph.nodes}
        for node in (*sizes, *tensors):
            taken = graph.placeholder(node.name)
            taken.meta.update((own.get(node.name) or node).meta)
            made[node.name] = taken
        for node in self._tangents(backward.graph.find_nodes(op="placeholder")):
            made[node.name] = graph.node_copy(node)
        for node in self._sequence(set(made)):
            made[node.name] = _copied(graph, node, made)
        for node in graph.nodes:
            if node.op in ("call_function", "get_attr"):
                node.meta["autograd_backward"] = True
        graph.eliminate_dead_code()
        return _torch_aot.graph_module((backward, self._halves.forward), graph)


def _goes_last(node: fx.Node) -> bool:
    """Whether torch wants a saved tensor behind the others."""
    return bool(node.meta.get("saved_tensor_with_no_vc_check", False))


def _is_fixed(node: fx.Node, written: frozenset[str]) -> bool:
    """Whether a value must be the one of the forward: computed again it might be another."""
    if node.op == "placeholder":
        return node.name in written or any(
            user.target is torch.ops.aten.copy_.default and user.args[0] is node
            for user in node.users
        )
    if node.op == "get_attr":
        return not isinstance(node.meta.get("val"), torch.Tensor)
    if node.target is operator.getitem:
        return _is_fixed(node.args[0], written)  # type: ignore[arg-type]
    return (
        not _torch_aot.is_pure(node.target)
        or _torch_randomness.draws(node)
        or "must_be_in_forward" in node.meta.get("partitioner_tag", "")
    )


def _has_place(node: fx.Node) -> bool:
    """Whether a node does more than compute, so that it stays where it is."""
    return node.op == "call_function" and (
        not _torch_aot.is_pure(node.target) or _torch_randomness.draws(node)
    )


def _dropout_mask(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
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


def _sources(node: fx.Node) -> list[fx.Node]:
    """What a node is computed from, where it is computed again."""
    pair = _dropout_mask(node)
    return list(pair) if pair is not None else node.all_input_nodes


def _copied(graph: fx.Graph, node: fx.Node, made: Mapping[str, fx.Node]) -> fx.Node:
    pair = _dropout_mask(node)
    if pair is None:
        return graph.node_copy(node, lambda one: made[one.name])
    mask, source = (made[one.name] for one in pair)
    probability = node.args[0].args[1]  # type: ignore[union-attr]
    scale = 0.0 if probability == 1 else 1.0 / (1.0 - probability)  # type: ignore[operator]
    chosen = graph.call_function(torch.ops.aten.mul.Tensor, (source, mask))
    scaled = graph.call_function(torch.ops.aten.mul.Tensor, (chosen, scale))
    for one in (chosen, scaled):
        one.meta.update(node.meta)
    return scaled


def _nodes_in(values: Sequence[Any]) -> list[fx.Node]:
    return [one for one in values if isinstance(one, fx.Node)]
