"""Compilers for AOTAutograd and ``torch.compile``, and a graph dumper.

Every compiler has one signature, ``(fx.GraphModule, example_inputs) -> callable``, and works in
``functorch.compile.aot_function`` and ``aot_module``, as ``torch.compile(backend=compiler)`` and by
name, ``torch.compile(backend="lazyfx_nop")``. Importing this package loads no compile stack.
"""

from ._types import FxCompiler
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
from .fusion import memory_efficient_fusion
from .memory import MemoryReport, memory_report
from .nop import nop
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
