"""What lazyfx-ltc raises on purpose, besides what it passes on from lazyfx-core.

::

    LazyFxError                                 (lazyfx_core.errors)
    └── LtcError                                base of this package
        ├── SessionError (RuntimeError)         torch's lazy backend cannot be had as asked for
        ├── OptionError (ValueError)            an option or mode of the backend is unknown
        ├── InputError (TypeError, ValueError)  an example input is not what capture can take
        ├── CaptureError (RuntimeError)         the model cannot be captured faithfully
        │   ├── FallbackError                   some operators can be no part of a program
        │   ├── ProgramError                    an operator of a program failed while it ran
        │   └── HostReadError                   the model reads a tensor's value while it runs
        └── GuardError (TypeError, ValueError)  a call does not fit what was captured
            ├── FrozenError                     a frozen weight has changed
            └── GradientError                   the call would need gradients

The law they serve: a call gives the same result as eager, or one of these before anything ran.
An argument that is no ``GraphModule`` and a graph that cannot run are reported with
``lazyfx_core.errors.NotAGraphModuleError`` and ``InvalidGraphError``, as everywhere in lazyfx.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lazyfx_core.errors import LazyFxError

__all__ = [
    "CaptureError",
    "FallbackError",
    "FrozenError",
    "GradientError",
    "GuardError",
    "HostReadError",
    "InputError",
    "LtcError",
    "OptionError",
    "ProgramError",
    "SessionError",
]


class LtcError(LazyFxError):
    """Base of every error of lazyfx-ltc.

    Attributes:
        nodes: The names of the graph nodes that it is about, as far as that is known.
    """

    nodes: tuple[str, ...] = ()


class SessionError(LtcError, RuntimeError):
    """The lazy backend is absent, is bound to the other device type, or does not work here."""


class OptionError(LtcError, ValueError):
    """A mode or option of a backend is unknown, or has an unknown value."""


class InputError(LtcError, TypeError, ValueError):
    """An example input cannot be captured; the message names its index and what was expected."""


class CaptureError(LtcError, RuntimeError):
    """The model cannot be captured so that a replay is sure to equal eager."""


class FallbackError(CaptureError):
    """Some operators can be no part of a captured program.

    They return no tensors, write, or return views that torch does not describe.

    Args:
        ops: Operators in the order in which they were met, each ``"aten::name.overload"``.
        where: For each operator the places that call it (names of graph nodes).
    """

    def __init__(self, ops: Sequence[str], where: Sequence[str]) -> None:
        listed = ", ".join(f"{op} (at {place})" for op, place in zip(ops, where, strict=True))
        super().__init__(
            f"{len(ops)} operator(s) of the model can be no part of a captured program: {listed}."
            " Expected: operators with a lazy kernel, or functional ones from tensors, numbers and"
            " names to tensors. Rewrite them in terms of such"
        )
        self.ops = tuple(ops)
        self.where = tuple(where)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ops, self.where), {"nodes": self.nodes}


class ProgramError(CaptureError):
    """An operator of a captured program failed while it ran; what it would write is not written."""


class HostReadError(CaptureError):
    """The model reads a value out of a tensor (``item``, ``tolist``, ``bool``) while it runs.

    The value of this one run would be baked into the graph, so that later calls were wrong.
    """


class GuardError(LtcError, TypeError, ValueError):
    """A call differs from the capture in something the captured graph depends on."""


class FrozenError(GuardError):
    """A tensor of a model that was captured with ``freeze=True`` has changed since."""


class GradientError(GuardError):
    """A call under grad mode whose result would have to carry gradients."""
