"""What lazyfx_tools raises on purpose, besides what lazyfx_compilers raises.

::

    lazyfx_compilers.errors.CompilerError
    ├── DivergenceError (AssertionError)    a compiler gets a node wrong; names it
    └── ReproError (ValueError)             a graph cannot be written as a script
        └── FaultNotFoundError              there is no fault to make smaller
"""

from __future__ import annotations

from typing import Any

from lazyfx_compilers.errors import CompilerError, ReproError

__all__ = ["DivergenceError", "FaultNotFoundError"]


class DivergenceError(CompilerError, AssertionError):
    """A compiled graph is not what its reference is; the message names the node.

    Attributes:
        comparison: The whole report, a :class:`~lazyfx_tools.compare.Comparison`.
    """

    comparison: Any = None


class FaultNotFoundError(ReproError):
    """What is to be minimized does not show the fault: the predicate does not hold for it."""
