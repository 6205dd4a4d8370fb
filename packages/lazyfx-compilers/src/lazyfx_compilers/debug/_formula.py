"""Numbers that tracing knew only as expressions over symbols, worked out once for each call's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lazyfx_compilers import _torch_debug

Bindings = dict[Any, int]

_KEPT = 64  # answers for so many different shapes; then all are forgotten


class Formula:
    """Numbers, expressions and nested tuples of both, as numbers.

    What was worked out is remembered: sympy takes some ten microseconds for an expression, a graph
    has several for each node, and most calls have the shapes of the one before. Several threads may
    use one at a time.
    """

    __slots__ = ("_known", "_symbols", "_value", "recorded")

    def __init__(self, recorded: Any) -> None:
        self.recorded = recorded
        self._symbols = tuple(sorted(_symbols(recorded), key=str))
        self._value = None if self._symbols else recorded
        self._known: dict[tuple[int | None, ...], Any] = {}

    @property
    def is_known(self) -> bool:
        """Whether there are no symbols in it."""
        return not self._symbols

    def resolve(self, bindings: Mapping[Any, int]) -> Any:
        """The numbers; ``None`` for each that a symbol without a number decides."""
        if not self._symbols:
            return self._value
        key = tuple([bindings.get(symbol) for symbol in self._symbols])
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            pairs = zip(self._symbols, key, strict=True)
            given = {symbol: number for symbol, number in pairs if number is not None}
            found = self._known[key] = _work_out(self.recorded, given)
        return found


def _symbols(part: Any) -> set[Any]:
    if isinstance(part, tuple):
        return set().union(*map(_symbols, part))
    return _torch_debug.free_symbols(part)


def _work_out(part: Any, given: Bindings) -> Any:
    if isinstance(part, tuple):
        return tuple([_work_out(each, given) for each in part])
    if part is None or type(part) in (int, float, bool):
        return part
    return _torch_debug.evaluate(part, given)
