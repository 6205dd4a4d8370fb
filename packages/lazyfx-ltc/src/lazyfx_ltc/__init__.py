"""A graph captured once on torch's lazy device and replayed without retracing.

The same result as eager, or a clear error before anything ran. Importing this package does not
initialize the lazy backend; the first extraction does, or :func:`initialize`.
"""

from ._compile import Compiled, compile
from ._decompose import decompositions
from ._explanation import Explanation
from ._extract import extract_compiled_graph
from ._fallback import get_fallback_ops
from ._inputs import GraphInputMatcher
from ._outputs import ReturnValueHandler
from ._partition import PartitionedGraph
from ._replay import CompiledGraph
from ._rewrite import force_lazy_device
from ._session import initialize
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
    "force_lazy_device",
    "get_fallback_ops",
    "initialize",
]
