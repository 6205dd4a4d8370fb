"""lazyfx-core beside fx.GraphModule and torch's private lazy class.

``--large`` adds graphs of 100,000 nodes (some minutes).
"""

from __future__ import annotations

import copy
import gc
import sys
import tracemalloc
from typing import TYPE_CHECKING

import torch
from interleave import medians, publish, save_folder, show
from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule

from lazyfx_core import LazyGraphModule

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = {
    "fx.GraphModule": fx.GraphModule,
    "torch lazy": _LazyGraphModule,
    "ours": LazyGraphModule,
}
OURS_TO_THEIRS = ("ours", "torch lazy")


def chain(length: int) -> fx.Graph:
    """A graph of ``length`` nodes, placeholder and output included."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    for _ in range(length - 2):
        node = graph.call_function(torch.sin, (node,))
    graph.output(node)
    return graph


def edit(gm: fx.GraphModule) -> None:
    """Change one node, as a pass would."""
    node = gm.graph.output_node().all_input_nodes[0]
    cycle = (torch.sin, torch.cos, torch.tan)
    node.target = cycle[(cycle.index(node.target) + 1) % 3]


def recompile_and_look(gm: fx.GraphModule) -> None:
    gm.recompile()
    gm.forward  # looking is the point
    if isinstance(gm, _LazyGraphModule):
        gm.real_recompile()


def edit_recompile_and_look(gm: fx.GraphModule) -> None:
    edit(gm)
    recompile_and_look(gm)


def pipeline(gm: fx.GraphModule, x: torch.Tensor) -> None:
    """Fifty passes that each end with recompile(), then one call."""
    for _ in range(50):
        edit(gm)
        gm.recompile()
    gm(x)


def by_size(sizes: tuple[int, ...]) -> dict[str, dict[str, float]]:
    rows = {}
    for size in sizes:
        rounds = 15 if size <= 1_000 else 3
        graphs = {name: chain(size) for name in CLASSES}
        modules = {name: cls({}, graphs[name]) for name, cls in CLASSES.items()}
        label = f"{size:,} nodes"
        rows[f"construct, {label}"] = medians(
            {n: (lambda c=c, g=graphs[n]: c({}, g)) for n, c in CLASSES.items()}, rounds=rounds
        )
        rows[f"recompile, {label}"] = medians(
            {n: m.recompile for n, m in modules.items()}, rounds=rounds
        )
        rows[f"deepcopy, {label}"] = medians(
            {n: (lambda m=m: copy.deepcopy(m)) for n, m in modules.items()}, rounds=rounds
        )
    return rows


def looks() -> dict[str, dict[str, float]]:
    one = torch.zeros(1)
    small = {name: cls({}, chain(7)) for name, cls in CLASSES.items()}
    large = {name: cls({}, chain(1_000)) for name, cls in CLASSES.items()}
    medium = {name: cls({}, chain(200)) for name, cls in CLASSES.items()}
    for gm in (*small.values(), *large.values()):
        recompile_and_look(gm)
        gm(torch.zeros(1))
    return {
        "call a fresh module, 7 nodes": medians(
            {n: (lambda m=m: m(one)) for n, m in small.items()}, rounds=41
        ),
        "recompile + look, changed, 1,000 nodes": medians(
            {n: (lambda m=m: edit_recompile_and_look(m)) for n, m in large.items()}
        ),
        "recompile + look, unchanged, 1,000 nodes": medians(
            {n: (lambda m=m: recompile_and_look(m)) for n, m in large.items()}
        ),
        "50 passes and a call, 200 nodes": medians(
            {n: (lambda m=m: pipeline(m, one)) for n, m in medium.items()}, rounds=5
        ),
    }


def memory() -> None:
    """Bytes that stay after 1,000 recompiles of a graph of 200 nodes, each looked at."""
    kept = {}
    for name, cls in CLASSES.items():
        gm = cls({}, chain(200))
        for _ in range(5):
            edit_recompile_and_look(gm)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1_000):
            edit_recompile_and_look(gm)
        gc.collect()
        kept[name] = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    publish(
        "core-memory",
        ["kept after", *(f"{name} [MB]" for name in kept)],
        [["1,000 recompiles, 200 nodes", *(f"{size / 1e6:.3f}" for size in kept.values())]],
        kept,
    )


def plot(sizes: tuple[int, ...], rows: dict[str, dict[str, float]], path: Path) -> None:
    """Seconds by graph size, one panel for each of the three things that cost."""
    from matplotlib.figure import Figure

    colors = {"fx.GraphModule": "#8a8f98", "torch lazy": "#d98324", "ours": "#1b6ca8"}
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, what in zip(panels, ("construct", "recompile", "deepcopy"), strict=True):
        for name in CLASSES:
            seconds = [rows[f"{what}, {size:,} nodes"][name] for size in sizes]
            panel.loglog(sizes, [s * 1e6 for s in seconds], "o-", label=name, color=colors[name])
        panel.set_title(what)
        panel.set_xlabel("nodes in the graph")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("µs")
    panels[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    torch.set_num_threads(1)
    sizes = (6, 100, 1_000, 10_000, *((100_000,) if "--large" in sys.argv else ()))
    rows = by_size(sizes)
    show("core-size", rows, baseline="fx.GraphModule", versus=OURS_TO_THEIRS)
    folder = save_folder()
    if folder is not None:
        plot(sizes, rows, folder / "core-size.svg")
    show("core-looks", looks(), baseline="fx.GraphModule", versus=OURS_TO_THEIRS)
    memory()


if __name__ == "__main__":
    main()
