"""What ``memory_report`` finds out, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

_ROWS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Memory that a training step has allocated and not freed yet, measured; its inputs left out.

    Attributes:
        milliseconds: When it allocated or freed something, since the start. Measured while a
            profiler runs, so not what the step takes without.
        nbytes: Bytes in use then.
        middle: How many of these moments belong to the forward.
    """

    milliseconds: tuple[float, ...]
    nbytes: tuple[int, ...]
    middle: int

    @property
    def live_after_forward(self) -> int:
        """Bytes in use between forward and backward: what is saved, and the loss."""
        return self.nbytes[self.middle - 1] if self.middle else 0

    @property
    def peak(self) -> int:
        """The most bytes in use at a time."""
        return max(self.nbytes, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """Memory that the two graphs would hold, were each node run by itself; their inputs left out.

    Attributes:
        forward: Bytes in use while each node of the forward runs.
        backward: Bytes in use while each node of the backward runs, what is saved included.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]

    @property
    def peak(self) -> int:
        """The most bytes in use at a time."""
        return max(*self.forward, *self.backward, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedValue:
    """What the forward keeps for the backward.

    Attributes:
        name: Of the node.
        target: The operator that made it, or ``"input"``.
        shape: Its sizes; the ones while tracing, where they are symbolic.
        dtype: Without ``torch.``.
        nbytes: The memory behind it. 0 if that is an input's, or another saved value's.
        why: The reason that it is saved.
        seconds: Estimated time to compute it again instead; None if that must not be.
        user_line: The line of the user's code it comes from, or None.
    """

    name: str
    target: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    why: str
    seconds: float | None
    user_line: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputedValue:
    """What the backward computes again instead.

    Attributes:
        name: Of the node in the backward.
        target: The operator.
        nbytes: The memory behind it.
        seconds: Estimated time.
        user_line: The line of the user's code it comes from, or None.
    """

    name: str
    target: str
    nbytes: int
    seconds: float
    user_line: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """What a training step keeps, why, and what it peaks at. ``str()`` of it is a text.

    Attributes:
        name: Of the function or module.
        settings: Codegen and budget, as text.
        eager: The step without compilation; None if it was not measured.
        compiled: The step as compiled; None if it was not measured.
        simulation: The two graphs, node by node.
        saved: What the forward keeps, largest first.
        recomputed: What the backward computes again, in its order.
    """

    name: str
    settings: str
    eager: Usage | None
    compiled: Usage | None
    simulation: Simulation
    saved: tuple[SavedValue, ...]
    recomputed: tuple[RecomputedValue, ...]

    @property
    def saved_bytes(self) -> int:
        """Bytes that the forward keeps for the backward, its inputs left out."""
        return sum(one.nbytes for one in self.saved)

    @property
    def recompute_seconds(self) -> float:
        """Estimated time of all that is computed again."""
        return sum(one.seconds for one in self.recomputed)

    def __str__(self) -> str:
        """Two tables: totals, and the largest saved values."""
        return "\n".join([*self._totals(), "", *self._largest(), *self._again(), ""])

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw memory over time, eager beside compiled, and node by node below.

        Args:
            path: Where to write; the suffix decides the format (``.svg``, ``.png``, ``.pdf``).

        Raises:
            MissingDependencyError: matplotlib is not installed (extra ``plot``).
        """
        from ._memory_plot import plot

        plot(self, path)

    def _totals(self) -> list[str]:
        rows = [["", "eager", "compiled", "simulated"]]
        usages = (self.eager, self.compiled)
        kept = [_size(one.live_after_forward) if one else "-" for one in usages]
        peak = [_size(one.peak) if one else "-" for one in usages]
        rows.append(["live after the forward", *kept, _size(self.saved_bytes)])
        rows.append(["peak", *peak, _size(self.simulation.peak)])
        return [f"{self.name}, forward and backward, {self.settings}", *_table(rows)]

    def _largest(self) -> list[str]:
        counted = [one for one in self.saved if one.nbytes]
        shown = counted[:_ROWS]
        rows = [["saved", "dtype, shape", "node", "why", "from"]]
        rows += [
            [
                _size(one.nbytes),
                f"{one.dtype}{list(one.shape)}",
                f"{one.name} = {one.target}",
                one.why,
                _short(one.user_line),
            ]
            for one in shown
        ]
        rest = len(counted) - len(shown)
        more = [f"and {rest} more; .saved has them all"] if rest else []
        return [*_table(rows), *more]

    def _again(self) -> list[str]:
        if not self.recomputed:
            return ["", "nothing is computed again in the backward"]
        return [
            "",
            f"computed again in the backward: {len(self.recomputed)} nodes, about"
            f" {self.recompute_seconds * 1e3:.3g} ms (estimate)",
        ]


def _size(nbytes: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} B"


def _short(line: str | None) -> str:
    """The file's name, the line and the code."""
    if line is None:
        return ""
    where, _, code = line.partition(": ")
    return f"{where.rpartition('/')[2].partition(' in ')[0]}: {code}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
