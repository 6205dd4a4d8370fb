"""The seam to what torch knows of a call in C++: looks of its tensors, modes of its thread.

Dynamo's check of tensors compares, for each tensor, what it was built with: exact class, dispatch
keys (device type, layout, conjugate and negative views, inference tensors, and what the thread's
modes add to them: autocast, inference mode), dtype, device, whether it requires grad, sizes,
strides. Two arguments that are one object never pass. It keeps no tensor alive.

====================================================  ==============================================
private name                                          used for
====================================================  ==============================================
``torch._C._len_torch_function_stack``                whether calls pass through modes
``torch.overrides._get_current_function_mode_stack``  which modes these are
``torch._C._functorch.is_functorch_wrapped_tensor``   being inside of ``vmap``, ``grad`` and the
                                                      like
``torch.autograd.forward_ad._current_level``          whether tensors may carry tangents
``torch._C._dynamo.guards.TensorGuards``              looks of all tensors of a call at once
====================================================  ==============================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.autograd import forward_ad

function_modes_active: Callable[[], int] = torch._C._len_torch_function_stack
"""How many modes of the thread torch functions pass through: a default device, or a user's."""


def function_modes() -> list[object]:
    """The modes that torch functions pass through, the outermost first."""
    found: list[object] = list(torch.overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]
    return found


def inside_transform(tensor: torch.Tensor) -> bool:
    """Whether a tensor may be more than its values: in ``vmap``, ``grad``, forward mode."""
    return in_forward_mode() or bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def in_forward_mode() -> bool:
    """Whether tensors may carry tangents: ``torch.autograd.forward_ad`` is in use."""
    return forward_ad._current_level >= 0


def tensor_check(tensors: Sequence[torch.Tensor]) -> Callable[..., bool] | None:
    """A function that says whether as many tensors look like these; None if torch has none."""
    guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    made = getattr(guards, "TensorGuards", None)
    if made is None:
        return None
    check: Callable[..., bool] = made(
        *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
    ).check
    return check if check(*tensors) else None
