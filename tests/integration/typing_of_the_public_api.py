"""Only type-checked, never run: what a user's type checker sees."""

from pathlib import Path
from typing import Any, assert_type

import torch
from torch import fx
from torch.fx.graph import PythonCode

from lazyfx_compilers import FxCompiler, debug_nop, get_inputs, nop, ts_compile
from lazyfx_core import (
    LazyGraphModule,
    RecompileSnapshot,
    allow_in_weights_only_load,
    get_graph_module_cls,
    graph_hash,
    load_graph,
    make_graph_module,
    recompile_stats,
    save_graph,
    serialization_options,
    use_lazy_graph_module,
    verify_graphs,
)
from lazyfx_core.testing import GraphCase, graph_diff
from lazyfx_ltc import CompiledGraph, extract_compiled_graph


class Mine(LazyGraphModule):
    """A user's subclass keeps its type through the alternative constructors."""


def core(gm: fx.GraphModule, graph: fx.Graph) -> None:
    assert_type(LazyGraphModule.from_graphmodule(gm), LazyGraphModule)
    assert_type(Mine.from_graphmodule(gm), Mine)
    assert_type(make_graph_module({}, graph), fx.GraphModule)
    assert_type(get_graph_module_cls(), type[fx.GraphModule])
    lazy = LazyGraphModule({}, graph)
    assert_type(lazy.needs_recompile, bool)
    assert_type(lazy.recompile(), PythonCode)
    assert_type(lazy.code, str)
    assert_type(LazyGraphModule({}, graph, verify=True).needs_recompile, bool)


def core_around(gm: fx.GraphModule, case: GraphCase) -> None:
    with recompile_stats() as stats, verify_graphs(gm), use_lazy_graph_module(everywhere=True):
        gm.recompile()
    assert_type(stats.snapshot(), RecompileSnapshot)
    assert_type(stats.snapshot().avoided, int)
    assert_type(stats.report(), str)
    assert_type(graph_diff(gm, case.graph), str)
    assert_type(case.lazy(), LazyGraphModule)


def core_stored(gm: fx.GraphModule, path: Path) -> None:
    with serialization_options(strict=True, meta=False):
        save_graph(gm, path)
    assert_type(load_graph(path, allow=[core], map_location="cpu"), fx.GraphModule)
    assert_type(graph_hash(gm, names=True), str)
    allow_in_weights_only_load(torch.nn.Linear)


def ltc(gm: fx.GraphModule, x: torch.Tensor) -> None:
    assert_type(extract_compiled_graph(gm, (x,)), CompiledGraph)


def compilers(folder: str) -> None:
    each: list[FxCompiler] = [nop, ts_compile, debug_nop]
    assert_type(each[0], FxCompiler)
    assert_type(get_inputs(folder, seed=0), list[Any])
