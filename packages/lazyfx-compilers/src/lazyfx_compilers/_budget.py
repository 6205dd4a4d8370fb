"""Save less for the backward: drop saved values, and compute them again where they are needed.

Torch's min-cut partition of the joint graph comes first; it saves what is needed to be as fast as
without a budget. From there three ways lead down:

* values are dropped one after the other, by bytes gained for a second of recomputation;
* the forward is cut into 1, 2, 3, ... segments of about equal activations, at places where little
  memory crosses, and only what crosses is kept: checkpoints;
* only some of those borders are kept. The backward makes the others first, and holds them: the
  forward runs twice more, and neither saves nor holds much at any time.

What may be computed again, and from what, is said in ``_recompute.py``. Where something may not,
the smallest that follows from it is saved: a mask of bools instead of the numbers behind it.

For each place along the ways the peak of memory is simulated (``_liveness.py``). From the place
that saves most downwards, each bound on what is saved takes the place with the least recomputation
among those that peak no higher than the place that the bound above it took; so a smaller budget
never has a higher peak, if that can be had.

Choosing the best set is a knapsack problem; torch offers dynamic programming and an integer program
for it. Sorting by the ratio of gain to cost, as here, is within one value of the best and takes
n log n steps; simulating takes n steps for each of at most some sixty places.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from . import _liveness
from ._rebuild import rebuilt
from ._recompute import Choice, Halves, Joint

_PLACES = 32  # along the first way
_SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


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


class Budget:
    """The ways from saving what is fastest to saving next to nothing, for one partition.

    Attributes:
        ways: All places along the ways and how to get there; the first is torch's.
        places: The places alone.
        least: The bytes that have to be saved.
    """

    def __init__(self, halves: Halves) -> None:
        self._joint = Joint(halves)
        self.ways = list(self._places())
        self.places = [place for place, _ in self.ways]
        self.least = min(place.saved for place in self.places)

    def within(self, limit: int) -> tuple[Place, Halves]:
        """The best place that saves no more than ``limit`` bytes, or else the one saving least."""
        reach = max(limit, self.least)
        chosen = 0
        for bound in sorted({place.saved for place in self.places}, reverse=True):
            if bound < self.places[chosen].saved:
                chosen = self._next(chosen, max(bound, reach))
            if bound <= reach:
                break
        place, choice = self.ways[chosen]
        return place, rebuilt(self._joint, choice) if choice.again else self._joint.halves

    def _next(self, chosen: int, bound: int) -> int:
        """The quickest place within a bound that peaks no higher than the one chosen so far."""
        places = self.places
        fits = [index for index, place in enumerate(places) if place.saved <= bound]
        low = [index for index in fits if places[index].peak <= places[chosen].peak]
        if low:
            return min(low, key=lambda index: places[index].recomputed)
        return min(fits, key=lambda index: places[index].peak)

    # --- the ways ----------------------------------------------------------------------------

    def _places(self) -> Iterator[tuple[Place, Choice]]:
        choice = Choice(dict.fromkeys(self._joint.kept))
        yield self._place(choice), choice
        groups = self._groups()
        step = max(1, -(-len(groups) // _PLACES))
        for start in range(0, len(groups), step):
            batch = [value for group in groups[start : start + step] for value in group]
            changed = self._without(choice, batch)
            if changed is not None:
                choice = changed
                yield self._place(choice), choice
        for one in self._checkpoints(groups):
            yield self._place(one), one

    def _checkpoints(self, groups: Sequence[Sequence[int]]) -> Iterator[Choice]:
        """The forward in segments of which all borders, some or none are kept."""
        for cuts in self._borders(groups):
            every = [value for cut in cuts for value in cut]
            found = self._with_borders(groups, every)
            if found is None:
                continue
            yield found
            apart = round(len(cuts) ** 0.5)
            outer = (
                [value for cut in cuts[apart - 1 :: apart] for value in cut] if apart > 1 else []
            )
            for kept in ([], *([outer] if outer else [])) if len(cuts) > 1 else ():
                part = self._with_borders(groups, kept)
                if part is not None:
                    held = frozenset(every) & part.again.keys()
                    yield Choice(part.saved, part.again, held)

    def _with_borders(
        self, groups: Sequence[Sequence[int]], kept: Collection[int]
    ) -> Choice | None:
        choice = Choice({**dict.fromkeys(self._joint.kept), **dict.fromkeys(kept)})
        gone = set(kept)
        dropped = [value for group in groups for value in group if value not in gone]
        return self._without(choice, dropped)

    def _borders(self, groups: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        """For each number of segments, what crosses from each one to the next."""
        joint = self._joint
        # what is computed for the backward alone crosses nothing
        nodes = [v for v in joint.for_results() if joint.nodes[v].op == "call_function"]
        dropped = {one for group in groups for one in joint.behind[group[0]]}
        total = joint.storages.total(dropped)
        if not total:
            return []
        last = dict.fromkeys(nodes, -1)
        for value in nodes:
            for source in joint.sources[value]:
                if source in last:
                    last[source] = value
        crossing = self._crossing_bytes(nodes, last)
        sums, so_far = [], 0
        for value in nodes:
            fresh = dropped.intersection(joint.behind[value])
            dropped -= fresh
            so_far += joint.storages.total(fresh)
            sums.append(so_far)
        found = []
        for count in _SEGMENTS:
            cuts: dict[int, list[int]] = {}
            for number in range(1, count):
                # borders may move by less than half a segment, so that they stay in order
                low, high = (total * (number + by) / count for by in (-0.4, 0.4))
                window = [index for index, one in enumerate(sums) if low <= one <= high]
                if window:
                    best = min(window, key=crossing.__getitem__)
                    cuts[best] = [
                        value
                        for value in nodes[: best + 1]
                        if last[value] > nodes[best] and _liveness.is_tensor(joint.nodes[value])
                    ]
            found.append([cuts[place] for place in sorted(cuts)])
        return found

    def _crossing_bytes(self, nodes: Sequence[int], last: dict[int, int]) -> list[int]:
        """After each node, the bytes that it or an earlier one made and a later one reads."""
        joint = self._joint
        holders: dict[int, int] = {}
        ending: dict[int, list[int]] = {}
        total, found = 0, []
        for value in nodes:
            if last[value] > value:
                ending.setdefault(last[value], []).append(value)
                for one in joint.behind[value]:
                    holders[one] = holders.get(one, 0) + 1
                    if holders[one] == 1 and one not in joint.foreign:
                        total += joint.storages.sizes[one]
            for source in ending.pop(value, ()):
                for one in joint.behind[source]:
                    holders[one] -= 1
                    if not holders[one] and one not in joint.foreign:
                        total -= joint.storages.sizes[one]
            found.append(total)
        return found

    def _groups(self) -> list[list[int]]:
        """Saved tensors by storage, those first that give most bytes for a second."""
        joint = self._joint
        by_storage: dict[int, list[int]] = {}
        for value in joint.kept:
            found = joint.behind[value]
            if (
                len(found) == 1
                and joint.nodes[value].op != "placeholder"
                and found[0] not in joint.foreign
            ):
                by_storage.setdefault(found[0], []).append(value)
        kept, shared = set(joint.kept), set[int]()
        rated = []
        # What several need is counted for the first, as if all were dropped: else this would take
        # as many steps as there are pairs of values.
        for group in sorted(by_storage.values(), key=operator.itemgetter(0)):
            reached = joint.reached(group, kept, shared)
            gain = joint.bytes_of(group)
            if reached is not None and joint.bytes_of(reached[1]) < gain:
                cost = sum(joint.seconds[value] for value in reached[0])
                shared.update(reached[0])
                rated.append((gain / max(cost, 1e-12), group))
        rated.sort(key=lambda pair: -pair[0])
        return [group for _, group in rated]

    def _without(self, choice: Choice, dropped: Sequence[int]) -> Choice | None:
        """The choice without some values; None if that saves nothing."""
        reached = self._joint.reached(dropped, choice.saved, choice.again)
        if reached is None:
            return None
        joint, gone = self._joint, set(dropped)
        again = {**choice.again, **dict.fromkeys(reached[0])}
        # of what is saved, that which the backward or something computed again reads
        read = {*joint.needed, *(one for value in again for one in joint.sources[value])}
        saved = {value: None for value in (*choice.saved, *reached[1]) if value in read}
        for value in gone.difference(reached[1]):
            saved.pop(value, None)
        if joint.bytes_of(saved) >= joint.bytes_of(choice.saved):
            return None
        return Choice(saved, again)

    def _place(self, choice: Choice) -> Place:
        joint = self._joint
        runs = joint.backward(choice)
        forward = joint.forward_timeline(choice)
        backward = joint.backward_timeline(choice, runs)
        return Place(
            saved=joint.bytes_of(choice.saved),
            peak=max(*forward, *backward, 0),
            recomputed=sum(joint.seconds[value] for value, _ in runs if value in choice.again),
        )
