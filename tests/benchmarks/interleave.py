"""Ratios that hold on a noisy machine: contenders take turns, medians are compared."""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def medians(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int = 15, collector: bool = False
) -> dict[str, float]:
    """Median seconds of one call of each contender, measured in turns after a warm-up.

    Args:
        contenders: What is compared, by name.
        rounds: How often each is measured.
        collector: Leave the garbage collector on, as it is in use: for what makes many objects.
    """
    repeats = {}
    for name, function in contenders.items():
        function()
        start = time.perf_counter()
        function()
        once = time.perf_counter() - start
        repeats[name] = max(1, int(0.002 / max(once, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    if not collector:
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


def show(
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    *,
    baseline: str,
    versus: tuple[str, str] | None = None,
) -> None:
    """Print one table: microseconds of ``baseline``, and every contender as a ratio to it.

    Args:
        title: Heads the table; with ``--save DIR`` it is also written to ``DIR/<title>.md``, and
            the rows to ``DIR/<title>.json``.
        rows: Seconds by case and contender, from :func:`medians`.
        baseline: The contender that everything is divided by.
        versus: Two contenders whose ratio gets a column of its own.
    """
    names = list(next(iter(rows.values())))
    head = ["case", f"{baseline} [µs]", *(f"{n} ÷ {baseline}" for n in names if n != baseline)]
    if versus:
        head.append(f"{versus[0]} ÷ {versus[1]}")
    body = []
    for case, values in rows.items():
        base = values[baseline]
        cells = [f"{values[name] / base:.3g}" for name in names if name != baseline]
        if versus:
            cells.append(f"{values[versus[0]] / values[versus[1]]:.3g}")
        body.append([case, f"{base * 1e6:.2f}", *cells])
    publish(title, head, body, rows)


def publish(title: str, head: list[str], body: list[list[str]], data: object) -> None:
    """Print a table of ready cells, and save it as Markdown and JSON where ``--save`` says."""
    table = Table(title=title)
    for position, name in enumerate(head):
        table.add_column(name, justify="left" if position == 0 else "right")
    for cells in body:
        table.add_row(*cells)
    Console(width=120).print(table)
    folder = save_folder()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        lines = [head, ["---", *("---:" for _ in head[1:])], *body]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        (folder / f"{title}.md").write_text(text + "\n")
        (folder / f"{title}.json").write_text(json.dumps(data, indent=1) + "\n")


def save_folder() -> Path | None:
    """The folder named after ``--save`` on the command line, if any."""
    words = sys.argv[1:]
    return Path(words[words.index("--save") + 1]) if "--save" in words else None
