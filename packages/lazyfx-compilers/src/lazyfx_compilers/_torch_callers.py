"""The seam to who calls: tracers and transforms that a compiled graph would hide from.

They see the operators that PyTorch's dispatcher sees. Generated code calls few of them or none, so
that a tracer would keep the result of one call as a constant, and a tangent would be dropped.

=====================================================  ===========================================
private name                                           used for
=====================================================  ===========================================
``torch._C._len_torch_dispatch_stack``                 whether operators pass through modes
``_python_dispatch._get_current_dispatch_mode_stack``  which modes these are
``FakeTensorMode._mode_key``                           telling torch's own modes (proxies, fake and
                                                       functional tensors) from a user's
``torch._ops.mode_stack_state_for_pre_dispatch``       the same for traces above autograd
``torch.autograd.forward_ad._current_level``           whether tensors may carry tangents
=====================================================  ===========================================
"""

from __future__ import annotations

import torch
from torch import nn
from torch._ops import mode_stack_state_for_pre_dispatch
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

_modes_active = torch._C._len_torch_dispatch_stack
_PLAIN = (torch.Tensor, nn.Parameter)


def called_while_tracing() -> bool:
    """Whether the caller records operators: ``make_fx``, ``torch.export``, ``torch.jit.trace``.

    Also in a ``FakeTensorMode``, where operators compute shapes only.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    if mode_stack_state_for_pre_dispatch().count():  # type: ignore[no-untyped-call]
        return True
    if not _modes_active():
        return False
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    return any(getattr(mode, "_mode_key", None) is not None for mode in modes)


def why_not_compiled(tensor: torch.Tensor) -> str | None:
    """What a compiled graph would ignore of this tensor, to read after its name; else None."""
    kind = type(tensor)
    if kind not in _PLAIN and not hasattr(kind, "__tensor_flatten__"):
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            return f"is a {name}, whose operators are Python code that a compiled graph skips"
        if kind.__torch_function__ is not nn.Parameter.__torch_function__:
            return (
                f"is a {name}, whose functions return that type or run its __torch_function__; a "
                "compiled graph does neither. Give it tensor.as_subclass(torch.Tensor)"
            )
    if forward_ad._current_level >= 0:
        _, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
        if tangent is not None:
            return (
                "carries a tangent of a forward-mode transform, which a compiled graph drops; fuse "
                "what the transform returns"
            )
    return None
