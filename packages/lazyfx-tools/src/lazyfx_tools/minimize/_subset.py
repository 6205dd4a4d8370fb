"""A smallest choice of things that still has a property, found by asking for few choices.

For a property that more things cannot take away, QuickXplain (Junker, AAAI 2004) finds a minimal
choice of ``k`` out of ``n`` things by asking ``O(k log(n / k))`` times. Faults of compilers are
nearly like that; where one is not, the answer does not have the property, and delta debugging
(Zeller and Hildebrandt, 2002) goes on from the smallest choice that was seen to have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


def smallest(things: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """A choice of ``things``, in their order, that holds and from which none can be left out.

    Args:
        things: Hold all together, which is not asked.
        holds: Asked for choices of things, in their order.
    """
    place = {id(thing): i for i, thing in enumerate(things)}
    best = list(things)

    def ask(choice: Sequence[T]) -> bool:
        nonlocal best
        ordered = sorted(choice, key=lambda thing: place[id(thing)])
        if len(ordered) == len(things):
            return True
        held = holds(ordered)
        if held and len(ordered) < len(best):
            best = ordered
        return held

    if not ask(_needed([], False, list(things), ask)):
        _by_chunks(best, ask)
    return without_single(best, ask)


def without_single(things: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """``things`` without those that can be left out one after the other, the last first."""
    left = list(things)
    again = True
    while again and len(left) > 1:
        again = False
        for thing in reversed(list(left)):
            rest = [one for one in left if one is not thing]
            if rest and holds(rest):
                left, again = rest, True
    return left


def _needed(
    base: list[T], grown: bool, things: list[T], holds: Callable[[Sequence[T]], bool]
) -> list[T]:
    """Those of ``things`` that are needed beside ``base``, which has just grown or has not."""
    if grown and holds(base):
        return []
    if len(things) == 1:
        return things
    half = len(things) // 2
    first, second = things[:half], things[half:]
    later = _needed([*base, *first], True, second, holds)
    earlier = _needed([*base, *later], bool(later), first, holds)
    return [*earlier, *later]


def _by_chunks(things: list[T], holds: Callable[[Sequence[T]], bool]) -> None:
    left = list(things)
    size = len(left) // 2
    while size:
        start = 0
        while start < len(left):
            rest = [*left[:start], *left[start + size :]]
            if rest and holds(rest):
                left = rest
            else:
                start += size
        size //= 2
