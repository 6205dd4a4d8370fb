"""Operators that are lowered at capture, since the backend has no kernel it survives.

``split``, ``chunk`` and ``unbind`` recurse in the backend until the process dies; ``copy`` (every
``x.copy_(y)`` and ``x[i] = y`` becomes one) and attention's softmax have no kernel. Each is written
with operators that have one, value for value. They see functionalized operators on inner tensors,
so views are ``*_copy`` operators here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ._batch_norm import functional_batch_norm
from ._torch_tracing import tree_flatten


def _split(tensor: torch.Tensor, size: int, dim: int = 0) -> list[torch.Tensor]:
    length = tensor.shape[dim]
    starts = range(0, length, size) if length else (0,)
    return [_slice(tensor, dim, start, min(start + size, length)) for start in starts]


def _split_sizes(tensor: torch.Tensor, sizes: Sequence[int], dim: int = 0) -> list[torch.Tensor]:
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [_slice(tensor, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _chunk(tensor: torch.Tensor, chunks: int, dim: int = 0) -> list[torch.Tensor]:
    return _split(tensor, max(1, -(-tensor.shape[dim] // chunks)), dim)


def _empty_strided(size: Sequence[int], stride: Sequence[int], **options: Any) -> torch.Tensor:
    made: torch.Tensor = torch.ops.aten.empty.memory_format(size, **options)
    return made


def _fill(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return _copy(tensor, value)


def _unbind(tensor: torch.Tensor, dim: int = 0) -> list[torch.Tensor]:
    select = torch.ops.aten.select_copy.int
    return [select(tensor, dim, index) for index in range(tensor.shape[dim])]


def _slice(tensor: torch.Tensor, dim: int, start: int, end: int) -> torch.Tensor:
    sliced: torch.Tensor = torch.ops.aten.slice_copy.Tensor(tensor, dim, start, end, 1)
    return sliced


def _copy(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if source.dtype != tensor.dtype:
        source = torch.ops.aten._to_copy.default(source, dtype=tensor.dtype)
    copied: torch.Tensor = torch.ops.aten.expand_copy.default(source, tensor.shape)
    return copied


def _safe_softmax(tensor: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Softmax with zeros for a row of nothing but minus infinity; as attention has it."""
    aten = torch.ops.aten
    if dtype is not None and dtype != tensor.dtype:
        tensor = aten._to_copy.default(tensor, dtype=dtype)
    masked = aten.sum.dim_IntList(aten.eq.Scalar(tensor, -math.inf), [dim], True)
    empty = aten.eq.Scalar(masked, tensor.shape[dim])
    soft = aten._softmax.default(tensor, dim, False)
    filled: torch.Tensor = aten.masked_fill.Scalar(soft, empty, 0.0)
    return filled


def _batch_norm_without_statistics(
    tensor: torch.Tensor, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> Any:
    return torch.ops.aten.native_batch_norm.default(
        tensor, weight, bias, None, None, training, momentum, eps
    )


def _batch_norm_in_eval_mode(
    tensor: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Any:
    return torch.ops.aten.native_batch_norm.default(
        tensor, weight, bias, mean, var, False, momentum, eps
    )


LOWERED_HERE: dict[str, Callable[..., Any]] = {
    "aten::split_copy.Tensor": _split,
    "aten::split_with_sizes_copy": _split_sizes,
    "aten::unsafe_split.Tensor": _split,
    "aten::unsafe_split_with_sizes": _split_sizes,
    "aten::unsafe_chunk": _chunk,
    "aten::unbind_copy.int": _unbind,
    "aten::fill.Tensor": _fill,
    "aten::empty_strided": _empty_strided,
    "aten::copy": _copy,
    "aten::_safe_softmax": _safe_softmax,
    "aten::_native_batch_norm_legit_functional": functional_batch_norm,
    "aten::_native_batch_norm_legit.no_stats": _batch_norm_without_statistics,
    "aten::_native_batch_norm_legit_no_training": _batch_norm_in_eval_mode,
}

_FILLED = frozenset(
    f"aten::{name}" for name in ("zeros", "ones", "full", "empty", "empty_strided", "scalar_tensor")
)


def is_table(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call makes a tensor of given numbers from no tensor: arange, eye, linspace.

    Such a table is computed at capture and becomes a constant: the backend would write it into
    memory that all calls share. Calls that fill with one number, or draw, are not meant.
    """
    takes_tensor = any(isinstance(leaf, torch.Tensor) for leaf in tree_flatten((args, kwargs))[0])
    return "device" in kwargs and not takes_tensor and name.split(".")[0] not in _FILLED
