"""A graph captured once on torch's lazy device and replayed without retracing.

The same result as eager, or a clear error before anything ran. Importing this package does not
initialize the lazy backend; the first extraction does, or :func:`initialize`.
"""

from typing import TYPE_CHECKING

from lazyfx_core._lazy_names import lazy_names

from .errors import (
    CaptureError,
    FallbackError,
    FrozenError,
    GradientError,
    GuardError,
    HostReadError,
    InputError,
    LtcError,
    OptionError,
    ProgramError,
    SessionError,
)

if TYPE_CHECKING:
    from ._compile import Compiled, compile
    from ._decompose import decompositions
    from ._explanation import Explanation
    from ._extract import extract_compiled_graph
    from ._fallback import fallback_counts, get_fallback_ops
    from ._inputs import GraphInputMatcher
    from ._outputs import ReturnValueHandler
    from ._partition import PartitionedGraph
    from ._replay import CompiledGraph
    from ._rewrite import force_lazy_device
    from ._session import initialize

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "Compiled",
    "CompiledGraph",
    "Explanation",
    "FallbackError",
    "FrozenError",
    "GradientError",
    "GraphInputMatcher",
    "GuardError",
    "HostReadError",
    "InputError",
    "LtcError",
    "OptionError",
    "PartitionedGraph",
    "ProgramError",
    "ReturnValueHandler",
    "SessionError",
    "__version__",
    "compile",
    "decompositions",
    "extract_compiled_graph",
    "fallback_counts",
    "force_lazy_device",
    "get_fallback_ops",
    "initialize",
]

# What stands where, and is imported when it is first asked for.
_MODULES: dict[str, tuple[str, ...]] = {
    "_compile": ("Compiled", "compile"),
    "_decompose": ("decompositions",),
    "_explanation": ("Explanation",),
    "_extract": ("extract_compiled_graph",),
    "_fallback": ("fallback_counts", "get_fallback_ops"),
    "_inputs": ("GraphInputMatcher",),
    "_outputs": ("ReturnValueHandler",),
    "_partition": ("PartitionedGraph",),
    "_replay": ("CompiledGraph",),
    "_rewrite": ("force_lazy_device",),
    "_session": ("initialize",),
}
if not TYPE_CHECKING:  # for which any name would be there
    __getattr__, __dir__ = lazy_names(globals(), _MODULES)
