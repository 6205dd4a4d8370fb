"""A ``torch.fx.GraphModule`` that generates code only when somebody looks.

Importing this package patches nothing. The first ``use_lazy_graph_module`` or
``force_skip_lazy_graph_module`` block installs one hook in ``torch.fx`` (:func:`remove_seam` takes
it out again).
"""

from ._archive import load_graph, save_graph
from ._codegen_stats import (
    RecompileCount,
    RecompileSnapshot,
    RecompileStats,
    assert_max_recompiles,
    recompile_stats,
)
from ._flags import (
    force_skip_lazy_graph_module,
    get_graph_module_cls,
    make_graph_module,
    remove_seam,
    seam_installed,
    use_lazy_graph_module,
)
from ._graph_hash import graph_hash
from ._graph_module import LazyGraphModule, require_graph_module
from ._meta import serialization_options
from ._pickle import allow_in_weights_only_load
from ._structure import check_graph
from ._verify import verify_graphs
from .errors import (
    CodeGenerationError,
    DroppedMetadataWarning,
    GraphFormatError,
    InvalidGraphError,
    LazyFxError,
    MissingDependencyError,
    MissingTargetError,
    NotAGraphModuleError,
    NotInThisTorchError,
    SeamError,
    SerializationError,
    StaleGraphError,
    TooManyRecompilesError,
)

__version__ = "0.1.0"

__all__ = [
    "CodeGenerationError",
    "DroppedMetadataWarning",
    "GraphFormatError",
    "InvalidGraphError",
    "LazyFxError",
    "LazyGraphModule",
    "MissingDependencyError",
    "MissingTargetError",
    "NotAGraphModuleError",
    "NotInThisTorchError",
    "RecompileCount",
    "RecompileSnapshot",
    "RecompileStats",
    "SeamError",
    "SerializationError",
    "StaleGraphError",
    "TooManyRecompilesError",
    "__version__",
    "allow_in_weights_only_load",
    "assert_max_recompiles",
    "check_graph",
    "force_skip_lazy_graph_module",
    "get_graph_module_cls",
    "graph_hash",
    "load_graph",
    "make_graph_module",
    "recompile_stats",
    "remove_seam",
    "require_graph_module",
    "save_graph",
    "seam_installed",
    "serialization_options",
    "use_lazy_graph_module",
    "verify_graphs",
]
