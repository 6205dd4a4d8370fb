"""Sequences side by side: longest common and longest increasing subsequences.

The common subsequence is Myers' ("An O(ND) difference algorithm", 1986): its time goes with the
length times the number of differences. Past :data:`_MOST_DIFFERENCES` of them only what occurs once
on both sides is aligned, so that two sequences with nothing in common cost no square.
"""

from __future__ import annotations

import bisect
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

_MOST_DIFFERENCES = 600


def align(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pairs of positions with equal keys, increasing on both sides; of equal ones the first."""
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    stop = 0
    while stop < min(len(old), len(new)) - start and old[-1 - stop] == new[-1 - stop]:
        stop += 1
    pairs = [(i, i) for i in range(start)]
    middle = _myers(old[start : len(old) - stop], new[start : len(new) - stop])
    pairs += [(start + i, start + j) for i, j in middle]
    pairs += [(len(old) - k, len(new) - k) for k in range(stop, 0, -1)]
    return pairs


def _myers(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[int, int]]:
    n, m = len(old), len(new)
    if not n or not m:
        return []
    furthest = {1: 0}
    trace: list[dict[int, int]] = []
    for d in range(min(n + m, _MOST_DIFFERENCES) + 1):
        trace.append(dict(furthest) if d else {1: 0})
        for k in range(-d, d + 1, 2):
            down = k == -d or (k != d and furthest[k - 1] < furthest[k + 1])
            x = furthest[k + 1] if down else furthest[k - 1] + 1
            y = x - k
            while x < n and y < m and old[x] == new[y]:
                x, y = x + 1, y + 1
            furthest[k] = x
            if x >= n and y >= m:
                return _walk_back(trace, n, m)
    return _once_each(old, new)


def _walk_back(trace: list[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    pairs = []
    for d in range(len(trace) - 1, -1, -1):
        furthest = trace[d]
        k = x - y
        down = k == -d or (k != d and furthest[k - 1] < furthest[k + 1])
        before = k + 1 if down else k - 1
        start_x = furthest[before] if d else 0
        start_y = start_x - before if d else 0
        while x > start_x and y > start_y:
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = start_x, start_y
    return pairs[::-1]


def _once_each(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[int, int]]:
    counts = Counter(old), Counter(new)
    places = {key: j for j, key in enumerate(new) if counts[1][key] == 1}
    pairs = [(i, places[key]) for i, key in enumerate(old) if counts[0][key] == 1 and key in places]
    kept = increasing([j for _, j in pairs])
    return [pairs[k] for k in kept]


def increasing(values: Sequence[int]) -> list[int]:
    """Positions of a longest increasing subsequence."""
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for position, value in enumerate(values):
        length = bisect.bisect_left(tails, value)
        before.append(ends[length - 1] if length else -1)
        if length == len(tails):
            tails.append(value)
            ends.append(position)
        else:
            tails[length], ends[length] = value, position
    found, at = [], ends[-1] if ends else -1
    while at >= 0:
        found.append(at)
        at = before[at]
    return found[::-1]
