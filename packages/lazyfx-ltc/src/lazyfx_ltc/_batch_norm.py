"""Batch normalization in train mode, with its running statistics.

The operator writes the statistics behind its schema's back, so that neither functionalization nor
the lazy backend sees it. Here it is called without them, and they are updated in so many words. The
formula is torch's: ``running = (1 - momentum) * running + momentum * statistic``, with the unbiased
variance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

_ATEN = torch.ops.aten


def _new_statistics(
    tensor: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    over = [dim for dim in range(tensor.dim()) if dim != 1]
    wide = tensor.to(mean.dtype) if tensor.dtype != mean.dtype else tensor
    deviation = _ATEN.std.correction(wide, over, correction=1)
    return (
        mean * (1 - momentum) + wide.mean(over) * momentum,
        var * (1 - momentum) + deviation * deviation * momentum,
    )


def functional_batch_norm(
    tensor: torch.Tensor,
    weight: Any,
    bias: Any,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """``aten::_native_batch_norm_legit_functional``: returns the new statistics as well."""
    if not training:
        results = _ATEN.native_batch_norm.default(
            tensor, weight, bias, running_mean, running_var, False, momentum, eps
        )
        return (*results, running_mean, running_var)
    results = _ATEN.native_batch_norm.default(tensor, weight, bias, None, None, True, momentum, eps)
    return (*results, *_new_statistics(tensor, running_mean, running_var, momentum))


def _written(
    kernel: Callable[..., Any],
    input: torch.Tensor,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    if not training or running_mean is None or running_var is None:
        return NotImplemented
    mean, var = _new_statistics(input, running_mean, running_var, momentum)
    results = kernel(input, weight, bias, None, None, True, momentum, eps)
    running_mean.copy_(mean)
    running_var.copy_(var)
    return results


_native = functools.partial(_written, _ATEN.native_batch_norm.default)
# What make_fx records on a GPU; its backward wants what cuDNN itself has saved.
_cudnn = functools.partial(_written, _ATEN.cudnn_batch_norm.default)


def _function(
    input: torch.Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    results = _native(input, weight, bias, running_mean, running_var, training, momentum, eps)
    return results if results is NotImplemented else results[0]


def _torch_function(
    input: torch.Tensor,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    results = _native(input, weight, bias, running_mean, running_var, training, momentum, eps)
    return results if results is NotImplemented else results[0]


BATCH_NORMS: dict[Any, Callable[..., Any]] = {
    F.batch_norm: _function,
    torch.batch_norm: _torch_function,
    torch.native_batch_norm: _native,
    _ATEN.native_batch_norm.default: _native,
    _ATEN._native_batch_norm_legit.default: _native,
    _ATEN.cudnn_batch_norm.default: _cudnn,
}
"""What is called instead, by function; ``NotImplemented`` means that the function itself will do.

``F.batch_norm`` has checked its arguments when it was observed.
"""
