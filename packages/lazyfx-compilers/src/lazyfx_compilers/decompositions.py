"""Which operators are taken apart before compiling, and why so few.

functorch's list dates from when TorchScript's fuser knew few operators: of its 22 entries none is
needed by TorchScript any more, and ``masked_fill`` is faster left whole. What remains are the
backward formulas of pointwise activations: taken apart they are pointwise operators that the
min-cut partitioner may recompute and a code generator may fuse, while the composite operators are
opaque to both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import _torch_aot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = (
    *("detach", "gelu_backward", "leaky_relu_backward", "sigmoid_backward"),
    *("threshold_backward", "hardtanh_backward", "hardsigmoid_backward", "hardswish_backward"),
    *("tanh_backward", "silu_backward", "elu_backward", "elu", "leaky_relu", "hardtanh"),
    *("hardswish", "hardsigmoid", "conj_physical", "is_same_size"),
)


class _Decompositions(dict[Any, "Callable[..., Any]"]):
    """A dictionary that is filled when first read, so that importing it loads no compiler.

    AOTAutograd wants a real ``dict``. Filling twice from two threads gives the same entries.
    """

    def _fill(self) -> None:
        if not dict.__len__(self):
            self.update(_torch_aot.get_decompositions([getattr(torch.ops.aten, n) for n in NAMES]))

    def __getitem__(self, key: Any) -> Callable[..., Any]:
        self._fill()
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._fill()
        return super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        self._fill()
        return super().__iter__()

    def __len__(self) -> int:
        self._fill()
        return super().__len__()

    def get(self, key: Any, default: Any = None) -> Any:
        self._fill()
        return super().get(key, default)

    def keys(self) -> Any:
        self._fill()
        return super().keys()

    def values(self) -> Any:
        self._fill()
        return super().values()

    def items(self) -> Any:
        self._fill()
        return super().items()

    def copy(self) -> dict[Any, Callable[..., Any]]:
        return dict(self.items())

    def __repr__(self) -> str:
        return f"<default decompositions of {len(self)} operators>"


default_decompositions: dict[Any, Callable[..., Any]] = _Decompositions()
"""Operator overload to decomposition: what ``memory_efficient_fusion`` takes apart by default.

A ``dict`` that AOTAutograd accepts; copy it before changing it.
"""
