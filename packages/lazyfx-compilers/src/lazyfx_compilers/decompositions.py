"""Which operators are taken apart before compiling, and why so few.

functorch's list dates from when TorchScript's fuser knew few operators: of its 22 entries none is
needed by TorchScript any more, and ``masked_fill`` is faster left whole. What remains are the
backward formulas of pointwise activations: taken apart they are pointwise operators that the
min-cut partitioner may recompute and a code generator may fuse, while the composite operators are
opaque to both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from . import _torch_aot

NAMES = (
    *("detach", "gelu_backward", "leaky_relu_backward", "sigmoid_backward"),
    *("threshold_backward", "hardtanh_backward", "hardsigmoid_backward", "hardswish_backward"),
    *("tanh_backward", "silu_backward", "elu_backward", "elu", "leaky_relu", "hardtanh"),
    *("hardswish", "hardsigmoid", "conj_physical", "is_same_size"),
)


class _Decompositions(Mapping[Any, Callable[..., Any]]):
    """A mapping that is looked up when first read, so that importing it loads no compiler."""

    @functools.cached_property
    def _table(self) -> dict[Any, Callable[..., Any]]:
        return _torch_aot.get_decompositions([getattr(torch.ops.aten, name) for name in NAMES])

    def __getitem__(self, operator: Any) -> Callable[..., Any]:
        return self._table[operator]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return f"<default decompositions of {len(self)} operators>"


default_decompositions: Mapping[Any, Callable[..., Any]] = _Decompositions()
"""Operator overload to decomposition: what ``memory_efficient_fusion`` takes apart.

With any ``codegen`` but ``"inductor"``, which brings a table of its own.

Read-only, and accepted by ``aot_function``. ``dict(default_decompositions)`` is a copy to change.
"""
