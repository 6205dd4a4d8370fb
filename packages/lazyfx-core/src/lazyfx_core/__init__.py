"""A ``torch.fx.GraphModule`` that generates code only when somebody looks.

Importing this package patches nothing. The first ``use_lazy_graph_module`` or
``force_skip_lazy_graph_module`` block installs one hook in ``torch.fx`` (:func:`remove_seam` takes
it out again).
"""

from ._factory import get_graph_module_cls, make_graph_module, remove_seam, seam_installed
from ._flags import force_skip_lazy_graph_module, use_lazy_graph_module
from ._graph_module import LazyGraphModule, require_graph_module
from ._structure import check_graph
from .errors import (
    CodeGenerationError,
    InvalidGraphError,
    LazyFxError,
    MissingDependencyError,
    NotAGraphModuleError,
    SeamError,
    SerializationError,
)

__version__ = "0.1.0"

__all__ = [
    "CodeGenerationError",
    "InvalidGraphError",
    "LazyFxError",
    "LazyGraphModule",
    "MissingDependencyError",
    "NotAGraphModuleError",
    "SeamError",
    "SerializationError",
    "__version__",
    "check_graph",
    "force_skip_lazy_graph_module",
    "get_graph_module_cls",
    "make_graph_module",
    "remove_seam",
    "require_graph_module",
    "seam_installed",
    "use_lazy_graph_module",
]
