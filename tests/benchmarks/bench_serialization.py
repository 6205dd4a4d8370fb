"""Storing graph modules: ours beside pickle of fx.GraphModule, GraphPickler and torch.export.save.

``--large`` adds graphs of 100,000 nodes (some minutes).
"""

from __future__ import annotations

import io
import pickle
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from interleave import medians as medians_of
from interleave import publish, show
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from lazyfx_core import LazyGraphModule, load_graph, save_graph

try:
    from torch.fx._graph_pickler import GraphPickler, Options
except ImportError:  # torch 2.6
    GraphPickler = None

medians = partial(medians_of, collector=True)

if TYPE_CHECKING:
    from collections.abc import Callable

ATEN = torch.ops.aten
TARGETS = (ATEN.add.Tensor, ATEN.relu.default, ATEN.view.default, ATEN.mul.Tensor)


def mixed(length: int, *, meta: str | None) -> fx.Graph:
    """A graph of ``length`` nodes as AOT makes them.

    Args:
        length: Placeholder and output included.
        meta: ``"static"`` or ``"symbolic"`` sizes of the fake tensors in ``node.meta``, beside
            what else tracing leaves there; None for no metadata.
    """
    graph = fx.Graph()
    mode = FakeTensorMode(shape_env=ShapeEnv())
    value = mode.from_tensor(torch.empty(32, 64), static_shapes=meta != "symbolic")
    x = node = graph.placeholder("x")
    nodes = [x]
    for index in range(length - 2):
        target = TARGETS[index % len(TARGETS)]
        arguments: tuple[Any, ...] = (node, x)
        if target is ATEN.relu.default:
            arguments = (node,)
        elif target is ATEN.view.default:
            arguments = (node, [32, 64])
        node = graph.call_function(target, arguments)
        nodes.append(node)
    graph.output((node,))
    tensor_meta = _extract_tensor_metadata(torch.empty(32, 64))
    for index, node in enumerate(nodes if meta else ()):
        layer = f"L['self'].layers.{index // 16}"
        node.meta = {
            "original_aten": node.target,
            "seq_nr": index,
            "stack_trace": f'  File "model.py", line {index // 8}, in forward\n    x = f(x) + x\n',
            "nn_module_stack": {layer: (layer, torch.nn.Linear)},
            "source_fn_stack": [(node.name, torch.nn.Linear)],
            "val": new_like(value, mode),
            "tensor_meta": tensor_meta,
        }
    return graph


def new_like(value: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A fake tensor of the same size that shares nothing with ``value``."""
    with mode:
        return torch.empty_like(value)


class Doors:
    """Ways to store a graph module: each gives bytes, and reads them again."""

    def __init__(self, graph: fx.Graph, folder: Path) -> None:
        self.plain = fx.GraphModule({}, graph)
        self.lazy = LazyGraphModule({}, graph)
        self.path = folder / "graph.safetensors"
        self.mode = FakeTensorMode(shape_env=ShapeEnv())

    def dumps(self, *, meta: str | None) -> dict[str, Callable[[], Any]]:
        doors: dict[str, Callable[[], Any]] = {
            "ours, pickle": lambda: pickle.dumps(self.lazy),
            "ours, archive": lambda: save_graph(self.lazy, self.path),
        }
        if not meta:
            doors = {"pickle of fx.GraphModule": lambda: pickle.dumps(self.plain), **doors}
        if GraphPickler is not None:
            keep_all = Options(node_metadata_key_filter=None, ops_filter=None)
            doors["GraphPickler"] = lambda: GraphPickler.dumps(self.plain, keep_all)
        return doors

    def loads(self, stored: dict[str, bytes]) -> dict[str, Callable[[], Any]]:
        return {
            name: {
                "ours, archive": lambda data=data: load_graph(self.path),
                "GraphPickler": lambda data=data: GraphPickler.loads(data, self.mode),
            }.get(name, lambda data=data: pickle.loads(data))
            for name, data in stored.items()
        }


def with_graph(load: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: load().graph


def by_size(sizes: tuple[int, ...], *, meta: str | None) -> None:
    """Time and size of every door, for each size of graph."""
    timed: dict[str, dict[str, float]] = {}
    table, raw = [], {}
    label = f"with-{meta}-metadata" if meta else "without-metadata"
    for size in sizes:
        rounds = 9 if size <= 1_000 else 3
        with tempfile.TemporaryDirectory() as folder:
            doors = Doors(mixed(size, meta=meta), Path(folder))
            dumps = doors.dumps(meta=meta)
            stored = {name: dump() for name, dump in dumps.items()}
            stored["ours, archive"] = doors.path.read_bytes()
            loads = doors.loads(stored)
            timed[f"dumps, {size:,} nodes"] = medians(dumps, rounds=rounds)
            timed[f"loads, {size:,} nodes"] = medians(loads, rounds=rounds)
            timed[f"loads and graph, {size:,} nodes"] = medians(
                {name: with_graph(load) for name, load in loads.items()}, rounds=rounds
            )
        raw[size] = {name: len(data) for name, data in stored.items()}
        table.append([f"{size:,} nodes", *(f"{len(data) / 1e3:,.1f}" for data in stored.values())])
    baseline = "GraphPickler" if meta else "pickle of fx.GraphModule"
    show(f"serialization-{label}", timed, baseline=baseline)
    publish(
        f"serialization-size-{label}",
        ["graph", *(f"{name} [kB]" for name in stored)],
        table,
        raw,
    )


def growth(sizes: tuple[int, ...]) -> None:
    """Time per node of our own doors, with and without metadata: the same at every size."""
    table, raw = [], {}
    for meta in (None, "static", "symbolic"):
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                doors = Doors(mixed(size, meta=meta), Path(folder))
                data = pickle.dumps(doors.lazy)
                save_graph(doors.lazy, doors.path)
                seconds = medians(
                    {
                        "pickle, dumps": lambda d=doors: pickle.dumps(d.lazy),
                        "pickle, loads and graph": lambda x=data: pickle.loads(x).graph,
                        "archive, save": lambda d=doors: save_graph(d.lazy, d.path),
                        "archive, load": lambda d=doors: load_graph(d.path).graph,
                    },
                    rounds=3,
                )
            case = f"{meta or 'no'} metadata, {size:,} nodes"
            raw[case] = seconds
            table.append([case, *(f"{took / size * 1e6:.1f}" for took in seconds.values())])
    columns = ["case", *(f"{name} [µs per node]" for name in seconds)]
    publish("serialization-growth", columns, table, raw)


class Chain(torch.nn.Module):
    """What ``torch.export`` gets: as many operators as asked for."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for index in range(self.length):
            y = y + x if index % 2 else y.relu()
        return y


def beside_export(sizes: tuple[int, ...]) -> None:
    """An exported program: all of it by ``torch.export.save``, its graph module by ours."""
    timed: dict[str, dict[str, float]] = {}
    for size in sizes:
        program = torch.export.export(Chain(size), (torch.ones(32, 64),))
        lazy = LazyGraphModule.from_graphmodule(program.graph_module)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.safetensors"
            exported, pickled = io.BytesIO(), pickle.dumps(lazy)
            torch.export.save(program, exported)
            save_graph(lazy, path)
            timed[f"save, {size:,} nodes"] = medians(
                {
                    "torch.export": lambda p=program: torch.export.save(p, io.BytesIO()),
                    "ours, pickle": lambda m=lazy: pickle.dumps(m),
                    "ours, archive": lambda m=lazy, to=path: save_graph(m, to),
                },
                rounds=3,
            )
            timed[f"load and graph, {size:,} nodes"] = medians(
                {
                    "torch.export": lambda e=exported: (
                        torch.export.load(io.BytesIO(e.getvalue())).graph
                    ),
                    "ours, pickle": lambda data=pickled: pickle.loads(data).graph,
                    "ours, archive": lambda file=path: load_graph(file).graph,
                },
                rounds=3,
            )
    show("serialization-beside-export", timed, baseline="torch.export")


def main() -> None:
    warnings.simplefilter("ignore")
    sizes = (100, 1_000, 5_000, 10_000)
    large = (100_000,) if "--large" in sys.argv else ()
    by_size((*sizes, *large), meta=None)
    for meta in ("static", "symbolic"):
        by_size(sizes, meta=meta)  # GraphPickler takes the better part of an hour for 100,000
    growth((1_000, 10_000, *large))
    beside_export((100, 1_000))


if __name__ == "__main__":
    main()
