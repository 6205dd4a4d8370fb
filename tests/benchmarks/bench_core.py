"""lazyfx-core beside fx.GraphModule and torch's private lazy class."""

from __future__ import annotations

import copy

import torch
from interleave import medians, show
from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule

from lazyfx_core import LazyGraphModule

CLASSES = {
    "fx.GraphModule": fx.GraphModule,
    "torch lazy": _LazyGraphModule,
    "ours": LazyGraphModule,
}


def chain(length: int) -> fx.Graph:
    graph = fx.Graph()
    node = graph.placeholder("x")
    for _ in range(length):
        node = graph.call_function(torch.sin, (node,))
    graph.output(node)
    return graph


def recompile(gm: fx.GraphModule) -> object:
    # torch's lazy class marks through a classmethod; on the instance it marks its own class
    return gm.recompile()


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for size in (5, 100, 1_000):
        graphs = {name: chain(size) for name in CLASSES}
        modules = {name: cls({}, graphs[name]) for name, cls in CLASSES.items()}
        rows[f"construct, {size} nodes"] = medians(
            {n: (lambda c=c, g=graphs[n]: c({}, g)) for n, c in CLASSES.items()}
        )
        rows[f"recompile, {size} nodes"] = medians(
            {n: (lambda m=m: recompile(m)) for n, m in modules.items()}
        )
        rows[f"deepcopy, {size} nodes"] = medians(
            {n: (lambda m=m: copy.deepcopy(m)) for n, m in modules.items()}
        )
    one = torch.zeros(1)
    fresh = {name: cls({}, chain(5)) for name, cls in CLASSES.items()}
    for gm in fresh.values():
        gm(one)
    rows["call a fresh module, 5 nodes"] = medians(
        {n: (lambda m=m: m(one)) for n, m in fresh.items()}
    )
    show("lazyfx-core", rows, baseline="fx.GraphModule")


if __name__ == "__main__":
    main()
