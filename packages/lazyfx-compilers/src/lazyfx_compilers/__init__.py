"""Compilers for AOTAutograd and ``torch.compile``, and a graph dumper.

Every compiler has one signature, ``(fx.GraphModule, example_inputs) -> callable``, and works in
``functorch.compile.aot_function`` and ``aot_module``, as ``torch.compile(backend=compiler)`` and by
name, ``torch.compile(backend="lazyfx_nop")``. Importing this package loads no compile stack.
"""

from typing import TYPE_CHECKING

from lazyfx_core._lazy_names import lazy_names

from ._types import FxCompiler
from .errors import (
    BudgetError,
    BudgetWarning,
    CodegenError,
    CompilerError,
    DumpFormatError,
    FallbackWarning,
    InvalidGraphError,
    MetadataMismatchError,
    MissingDependencyError,
    NotCompilableError,
    NoTensorOutputError,
    ReproError,
    SeamError,
    TorchScriptUnsupportedError,
    UnknownOptionError,
    UnsafeRecomputationError,
)

if TYPE_CHECKING:
    from ._nop import nop
    from .debug import CHECKS, DEFAULT_CHECKS, DebugInterpreter, debug_compile, debug_nop
    from .decompositions import default_decompositions
    from .draw import draw_graph_compile
    from .dump import (
        Dump,
        DumpedGraph,
        GraphDumper,
        Replay,
        dump_graphs,
        find_dumps,
        get_inputs,
        graph_dumper_aot,
        load_dump,
    )
    from .fusion import memory_efficient_fusion
    from .memory import MemoryReport, memory_report
    from .partition import budget_partitioner
    from .printing import print_compile
    from .torchscript import nnc_jit, simple_ts_compile, ts_compile

__version__ = "0.1.0"

__all__ = [
    "CHECKS",
    "DEFAULT_CHECKS",
    "BudgetError",
    "BudgetWarning",
    "CodegenError",
    "CompilerError",
    "DebugInterpreter",
    "Dump",
    "DumpFormatError",
    "DumpedGraph",
    "FallbackWarning",
    "FxCompiler",
    "GraphDumper",
    "InvalidGraphError",
    "MemoryReport",
    "MetadataMismatchError",
    "MissingDependencyError",
    "NoTensorOutputError",
    "NotCompilableError",
    "Replay",
    "ReproError",
    "SeamError",
    "TorchScriptUnsupportedError",
    "UnknownOptionError",
    "UnsafeRecomputationError",
    "__version__",
    "budget_partitioner",
    "debug_compile",
    "debug_nop",
    "default_decompositions",
    "draw_graph_compile",
    "dump_graphs",
    "find_dumps",
    "get_inputs",
    "graph_dumper_aot",
    "load_dump",
    "memory_efficient_fusion",
    "memory_report",
    "nnc_jit",
    "nop",
    "print_compile",
    "simple_ts_compile",
    "ts_compile",
]

# What stands where, and is imported when it is first asked for.
_MODULES: dict[str, tuple[str, ...]] = {
    "debug": ("CHECKS", "DEFAULT_CHECKS", "DebugInterpreter", "debug_compile", "debug_nop"),
    "decompositions": ("default_decompositions",),
    "draw": ("draw_graph_compile",),
    "dump": (
        "Dump",
        "DumpedGraph",
        "GraphDumper",
        "Replay",
        "dump_graphs",
        "find_dumps",
        "get_inputs",
        "graph_dumper_aot",
        "load_dump",
    ),
    "fusion": ("memory_efficient_fusion",),
    "memory": ("MemoryReport", "memory_report"),
    "_nop": ("nop",),
    "partition": ("budget_partitioner",),
    "printing": ("print_compile",),
    "torchscript": ("nnc_jit", "simple_ts_compile", "ts_compile"),
}
if not TYPE_CHECKING:  # for which any name would be there
    __getattr__, __dir__ = lazy_names(globals(), _MODULES)
