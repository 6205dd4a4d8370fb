"""Whether two operators draw from the same distribution, where the numbers are not the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ._reference import Reference, duplicate
from ._trial import any_value
from ._values import Mismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._graphs import Problem
    from ._reference import RandomState
    from ._trial import Trials

_ENOUGH = 50_000
_FEWEST, _MOST = 8, 200
_SIGMAS = 8.0


def same_distribution(
    problem: Problem, trials: Trials, state: RandomState | None
) -> Mismatch | None:
    """Compare one random operator by what it draws on average.

    Args:
        problem: The operator by itself.
        trials: Compiles and runs it.
        state: The random state to begin with.

    Returns:
        None if the compiled operator draws what eager draws, or from the same distribution as far
        as mean, mean square and the share of zeros tell (eight standard errors).
    """
    outcome = trials.run(problem, state=state)
    if outcome.ok or outcome.raised is not None:
        return None  # right by itself: then only the order of the draws is another
    wrong = outcome.first
    if wrong.what not in ("values", "nan"):
        return wrong
    values = [problem.values[name] for name in problem.inputs]
    compiled = trials.compiling.compiled(problem)
    (state or trials.state).restore()
    expected, seen = _Draws(), _Draws()
    shown = [
        place
        for place, node in enumerate(problem.shown)
        if node is not None and not any_value(node)
    ]
    while expected.rounds < _MOST and (expected.rounds < _FEWEST or expected.least < _ENOUGH):
        outputs = Reference(problem.gm).start(duplicate(values)).outputs
        expected.add([outputs[place] for place in shown])
        others = compiled(duplicate(values))
        seen.add([others[place] for place in shown])
    return None if expected.agrees(seen) else wrong


class _Draws:
    """Sums over what was drawn."""

    def __init__(self) -> None:
        self.rounds = 0
        self._sums: list[list[float]] = []

    @property
    def least(self) -> float:
        """The number of elements drawn, of the output that has the fewest."""
        return min((one[0] for one in self._sums), default=math.inf)

    def add(self, outputs: Sequence[object]) -> None:
        """Count one round."""
        tensors = [one for one in outputs if isinstance(one, torch.Tensor)]
        if not self._sums:
            self._sums = [[0.0] * 5 for _ in tensors]
        for sums, tensor in zip(self._sums, tensors, strict=True):
            plain = tensor.abs() if tensor.is_complex() else tensor
            numbers = plain.to(torch.float64)
            squares = numbers.square()
            for place, total in enumerate(
                (
                    numbers.numel(),
                    numbers.sum(),
                    squares.sum(),
                    squares.square().sum(),
                    (numbers == 0).sum(),
                )
            ):
                sums[place] += float(total)  # type: ignore[arg-type]
        self.rounds += 1

    def agrees(self, other: _Draws) -> bool:
        """Whether the means are as close as chance allows."""
        return all(
            _same_mean(one[0], one[place], one[square], two[place], two[square])
            for one, two in zip(self._sums, other._sums, strict=True)
            for place, square in ((1, 2), (2, 3), (4, 4))
            if one[0]
        )


def _same_mean(count: float, sum1: float, square1: float, sum2: float, square2: float) -> bool:
    if not math.isfinite(sum1 + square1 + sum2 + square2):
        return math.isfinite(sum1 + square1) == math.isfinite(sum2 + square2)
    mean1, mean2 = sum1 / count, sum2 / count
    spread = max(square1 / count - mean1**2, 0.0) + max(square2 / count - mean2**2, 0.0)
    rounding = 1e-6 * (abs(mean1) + abs(mean2))
    return abs(mean1 - mean2) <= _SIGMAS * math.sqrt(spread / count) + rounding
