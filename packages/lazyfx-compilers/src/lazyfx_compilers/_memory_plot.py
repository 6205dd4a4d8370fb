"""A memory report as a picture: memory over time, measured and simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import MissingDependencyError

if TYPE_CHECKING:
    import os

    from ._memory_data import MemoryReport, Usage

_EAGER, _COMPILED, _FORWARD = "#94a3b8", "#2563eb", "#e2e8f0"


def plot(report: MemoryReport, path: str | os.PathLike[str]) -> None:
    """Write the picture; see :meth:`MemoryReport.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib",
            needed_for="MemoryReport.plot",
            command="python -m pip install 'lazyfx-compilers[plot]'",
        ) from error
    measured = [
        (name, usage, color)
        for name, usage, color in (
            ("eager", report.eager, _EAGER),
            ("compiled", report.compiled, _COMPILED),
        )
        if usage is not None
    ]
    figure = Figure(figsize=(9, 6 if measured else 3.2), layout="constrained")
    axes: list[Any] = list(figure.subplots(2 if measured else 1, squeeze=False)[:, 0])
    if measured:
        for name, usage, color in measured:
            _draw_usage(axes[0], name, usage, color)
        axes[0].set(xlabel="ms, while a profiler runs", ylabel="MB in use", ylim=(0, None))
        axes[0].set_title(f"{report.name}: measured", loc="left", fontsize=10)
        axes[0].legend(frameon=False, loc="upper left", fontsize=8)
    _draw_simulation(axes[-1], report)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.margins(x=0.01)
    figure.savefig(path)


def _draw_usage(axes: Any, name: str, usage: Usage, color: str) -> None:
    sizes = [one / 1e6 for one in usage.nbytes]
    label = f"{name}: peak {usage.peak / 1e6:.1f} MB"
    axes.step(usage.milliseconds, sizes, where="post", color=color, label=label)
    if usage.middle:
        middle = usage.milliseconds[usage.middle - 1]
        axes.axvline(middle, color=color, linewidth=0.8, linestyle=":")


def _draw_simulation(axes: Any, report: MemoryReport) -> None:
    forward = [one / 1e6 for one in report.simulation.forward]
    backward = [one / 1e6 for one in report.simulation.backward]
    axes.axvspan(0, max(len(forward) - 1, 0), color=_FORWARD, linewidth=0, label="forward")
    axes.step(
        range(len(forward) + len(backward)), forward + backward, where="post", color=_COMPILED
    )
    axes.set(xlabel="node, forward then backward", ylabel="MB in use", ylim=(0, None))
    peak = f"peak {report.simulation.peak / 1e6:.1f} MB"
    title = f"{report.settings}: simulated node by node, {peak}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
