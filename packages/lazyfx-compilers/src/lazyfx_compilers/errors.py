"""Everything lazyfx_compilers raises on purpose.

::

    lazyfx_core.LazyFxError
    └── CompilerError
        ├── NotCompilableError (TypeError)              an argument is not what a compiler takes
        ├── InvalidGraphError (ValueError)              the graph does not lint; names the node
        ├── BudgetError (ValueError)                    a budget is neither a fraction nor bytes
        ├── UnknownOptionError (ValueError)             an option, mode or codegen is unknown
        ├── TorchScriptUnsupportedError (RuntimeError)  TorchScript cannot take a node
        ├── CodegenError (RuntimeError)                 inductor cannot compile the graph; says why
        ├── UnsafeRecomputationError (RuntimeError)     would draw other random numbers
        ├── NoTensorOutputError (ValueError)            there is nothing to differentiate
        ├── MetadataMismatchError (AssertionError)      a node's result is not what was recorded
        ├── ReproError (ValueError)                     a graph cannot be written as a script
        ├── DumpFormatError (ValueError)                a dump cannot be read; names file and field
        ├── SeamError (RuntimeError)                    a torch release moved something
        └── MissingDependencyError (ImportError)        an optional package or program is absent

Besides, two warnings (UserWarning): :class:`BudgetWarning`, more has to be saved than a budget
allows, and :class:`FallbackWarning`, a graph runs eagerly since its compiler cannot take it.

Each class also derives from the builtin a caller would expect and, where lazyfx-core has an error
of the same meaning, from that one too.
"""

from __future__ import annotations

from typing import Any

import lazyfx_core

__all__ = [
    "BudgetError",
    "BudgetWarning",
    "CodegenError",
    "CompilerError",
    "DumpFormatError",
    "FallbackWarning",
    "InvalidGraphError",
    "MetadataMismatchError",
    "MissingDependencyError",
    "NoTensorOutputError",
    "NotCompilableError",
    "ReproError",
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


class BudgetError(CompilerError, ValueError):
    """A budget for saved activations is neither a fraction nor a number of bytes."""


class BudgetWarning(UserWarning):
    """More has to be saved for the backward than a budget allows; says how much."""


class FallbackWarning(UserWarning):
    """A compiler cannot take a graph, which runs eagerly instead, as was asked for; says why."""


class UnknownOptionError(CompilerError, ValueError):
    """A keyword, option, mode, codegen or file type is unknown; lists those that are known."""


class TorchScriptUnsupportedError(CompilerError, RuntimeError):
    """TorchScript cannot compile a node; names it. The original exception is the ``__cause__``."""


class CodegenError(CompilerError, RuntimeError):
    """Inductor cannot compile a graph. The original exception is the ``__cause__``."""


class UnsafeRecomputationError(CompilerError, RuntimeError):
    """The partition would recompute a random operator and draw other numbers in the backward."""


class NoTensorOutputError(CompilerError, ValueError):
    """The compiled function returned no tensor."""


class MetadataMismatchError(CompilerError, AssertionError):
    """A node's result, or an input, is not what was recorded when the graph was traced.

    Attributes:
        node: The node's name.
        target: What the node runs, as text.
        check: The name of the check, to leave it out (``checks=``, ``ignore=``).
        checked: What was compared: ``"dtype"``, ``"number of outputs"``, ...
        expected: What tracing recorded.
        seen: What there is.
        user_line: The line of the user's code the node comes from, or ``None``.
    """

    node: str = ""
    target: str = ""
    check: str = ""
    checked: str = ""
    expected: Any = None
    seen: Any = None
    user_line: str | None = None


class ReproError(CompilerError, ValueError):
    """A graph cannot be written as a script that runs by itself; names the node or the folder."""


class DumpFormatError(CompilerError, ValueError):
    """A file of a dump is unreadable, foreign, damaged or too new; names the file and the field."""


class SeamError(CompilerError, lazyfx_core.SeamError):
    """A private name of torch that lazyfx_compilers relies on is gone or changed."""


class MissingDependencyError(CompilerError, lazyfx_core.MissingDependencyError):
    """An optional package or program is needed and absent; the message holds the command."""
