"""What a dump costs: written, read, compared and shown, for graphs of up to 10,000 nodes.

Beside it what people look at a graph with now: ``print_readable`` and ``to_folder``.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from interleave import medians, publish, show
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import (
    dump_graphs,
    graph_dumper_aot,
    load_dump,
)
from lazyfx_tools import diff_graphs, graph_view, write_html

if TYPE_CHECKING:
    from torch import fx

SIZES = (100, 1_000, 10_000)


def graph_of(nodes: int, first: float = 0.0) -> fx.GraphModule:
    """An ATen graph with metadata and the user's lines, about this many nodes long."""

    def f(x: torch.Tensor) -> torch.Tensor:
        x = x + first
        for i in range(nodes // 3):
            x = (x.sin() + i).relu()
        return x

    return make_fx(f, tracing_mode="fake", record_stack_traces=True)(torch.randn(64))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    numbers = itertools.count()
    times: dict[str, dict[str, float]] = {}
    sizes = []
    for nodes in SIZES:
        gm, other, x = graph_of(nodes), graph_of(nodes, 1.0), torch.randn(64)
        dumper = graph_dumper_aot("kept", folder)
        dumper(gm, [x])
        graph = load_dump(dumper.path or folder).graphs[0]
        page = folder / "page.html"

        def dump(gm: fx.GraphModule = gm, x: torch.Tensor = x) -> None:
            graph_dumper_aot(f"again{next(numbers)}", folder)(gm, [x])

        def html(gm: fx.GraphModule = gm, page: Path = page, code: str = graph.code) -> None:
            write_html(page, [graph_view(gm, name="graph", code=code)], title="graph")

        times[f"{nodes} nodes"] = medians(
            {
                "print_readable": lambda gm=gm: gm.print_readable(print_output=False),  # type: ignore[misc]
                "to_folder": lambda gm=gm: gm.to_folder(folder / f"torch{next(numbers)}"),  # type: ignore[misc]
                "graph_dumper_aot": dump,
                "load": graph.module,
                "diff_graphs": lambda gm=gm, other=other: diff_graphs(gm, other),  # type: ignore[misc]
                "write_html": html,
            },
            rounds=5,
            collector=True,
        )
        files = {file.name: file.stat().st_size for file in graph.folder.iterdir()}
        in_kilobytes = (
            files["graph.safetensors"],
            files["graph.py"],
            page.stat().st_size,
        )
        sizes.append([f"{nodes} nodes", *(f"{size / 1000:.1f}" for size in in_kilobytes)])

    def off() -> None:
        with dump_graphs("off", folder, enabled=False):
            pass

    show("dump-time", times, baseline="print_readable")
    head = ["case", "graph.safetensors (kB)", "graph.py (kB)", "page (kB)"]
    publish("dump-size", head, sizes, sizes)
    print(f"a block that is off: {medians({'off': off})['off'] * 1e6:.2f} µs")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
