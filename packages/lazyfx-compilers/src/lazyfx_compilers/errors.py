"""Everything lazyfx_compilers raises on purpose.

::

    lazyfx_core.LazyFxError
    └── CompilerError
        ├── NotCompilableError (TypeError)              an argument is not what a compiler takes
        ├── InvalidGraphError (ValueError)              the graph does not lint; names the node
        ├── UnknownOptionError (ValueError)             an option, mode or codegen is unknown
        ├── TorchScriptUnsupportedError (RuntimeError)  TorchScript cannot take a node
        ├── UnsafeRecomputationError (RuntimeError)     would draw other random numbers
        ├── NoTensorOutputError (ValueError)            there is nothing to differentiate
        ├── MetadataMismatchError (AssertionError)      a node's result is not what was recorded
        ├── DumpFormatError (ValueError)                a dump cannot be read; names file and field
        ├── SeamError (RuntimeError)                    a torch release moved something
        └── MissingDependencyError (ImportError)        an optional package or program is absent

Each class also derives from the builtin a caller would expect and, where lazyfx-core has an error
of the same meaning, from that one too.
"""

from __future__ import annotations

import lazyfx_core

__all__ = [
    "CompilerError",
    "DumpFormatError",
    "InvalidGraphError",
    "MetadataMismatchError",
    "MissingDependencyError",
    "NoTensorOutputError",
    "NotCompilableError",
    "SeamError",
    "TorchScriptUnsupportedError",
    "UnknownOptionError",
    "UnsafeRecomputationError",
]


class CompilerError(lazyfx_core.LazyFxError):
    """Base of every error that lazyfx_compilers raises on purpose."""


class NotCompilableError(CompilerError, lazyfx_core.NotAGraphModuleError):
    """An argument is not a ``torch.fx.GraphModule`` (or not a function or module to compile)."""


class InvalidGraphError(CompilerError, lazyfx_core.InvalidGraphError):
    """The graph cannot be run as it is; the message names the node."""


class UnknownOptionError(CompilerError, ValueError):
    """A keyword, option, mode, codegen or file type is unknown; lists those that are known."""


class TorchScriptUnsupportedError(CompilerError, RuntimeError):
    """TorchScript cannot compile a node; names it. The original exception is the ``__cause__``."""


class UnsafeRecomputationError(CompilerError, RuntimeError):
    """The partition would recompute a random operator and draw other numbers in the backward."""


class NoTensorOutputError(CompilerError, ValueError):
    """The compiled function returned no tensor."""


class MetadataMismatchError(CompilerError, AssertionError):
    """A node's result differs from what tracing recorded; names node, property and user's line."""


class DumpFormatError(CompilerError, ValueError):
    """A dumped file is unreadable, foreign, newer or altered; names the file and the field."""


class SeamError(CompilerError, lazyfx_core.SeamError):
    """A private name of torch that lazyfx_compilers relies on is gone or changed."""


class MissingDependencyError(CompilerError, lazyfx_core.MissingDependencyError):
    """An optional package or program is needed and absent; the message holds the command."""
