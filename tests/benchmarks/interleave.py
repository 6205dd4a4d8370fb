"""Ratios that hold on a noisy machine: contenders take turns, medians are compared."""

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def medians(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int = 15
) -> dict[str, float]:
    """Median seconds of one call of each contender, measured in turns after a warm-up."""
    repeats = {}
    for name, function in contenders.items():
        function()
        start = time.perf_counter()
        function()
        once = time.perf_counter() - start
        repeats[name] = max(1, int(0.002 / max(once, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, function in contenders.items():
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    function()
                samples[name].append((time.perf_counter() - start) / repeats[name])
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in samples.items()}


def show(title: str, rows: Mapping[str, Mapping[str, float]], *, baseline: str) -> None:
    """Print one table: microseconds of ``baseline``, and every contender as a ratio to it."""
    table = Table(title=title)
    names = list(next(iter(rows.values())))
    table.add_column("case")
    table.add_column(f"{baseline} [µs]", justify="right")
    for name in names:
        if name != baseline:
            table.add_column(f"{name} ÷ {baseline}", justify="right")
    for case, values in rows.items():
        base = values[baseline]
        cells = [f"{values[name] / base:.3f}" for name in names if name != baseline]
        table.add_row(case, f"{base * 1e6:.2f}", *cells)
    Console(width=120).print(table)
