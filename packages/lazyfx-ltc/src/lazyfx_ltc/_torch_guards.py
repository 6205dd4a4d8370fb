"""The seam to the checks of tensors that Dynamo has in C++: one call for all tensors of a call.

They compare, for each tensor, what it was built with: exact class, dispatch keys (device type,
layout, conjugate and negative views, inference tensors, and what the thread's modes add to them:
autocast, inference mode), dtype, device, whether it requires grad, sizes, strides. Two arguments
that are one object never pass. They keep no tensor alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


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
