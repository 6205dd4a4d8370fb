"""From the program's distinct results to what the caller gets.

:class:`ReturnValueHandler` restores duplicates: a graph computes each distinct tensor once, a
model may return it several times, and the caller may rely on both being one object.

:func:`place` restores memory: the captured program computes dense copies, while eager may return
a tensor with other strides, or several that share memory. Values are copied into exactly that
layout, so that writing to one output shows up in the other as it does in eager.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ._specs import Shared, TensorSpec
from .errors import GuardError


class ReturnValueHandler:
    """Maps the distinct tensors of a graph back to all the places that returned them.

    Args:
        lazy_out_list: What the model returned, duplicates included. Identity decides.

    Attributes:
        index: For each distinct tensor the positions at which it is returned.
        total_count: The number of positions.
    """

    def __init__(self, lazy_out_list: Sequence[Any]) -> None:
        self.index: list[list[int]] = []
        self.total_count = len(lazy_out_list)
        first: dict[int, int] = {}
        for position, value in enumerate(lazy_out_list):
            slot = first.setdefault(id(value), len(self.index))
            if slot == len(self.index):
                self.index.append([])
            self.index[slot].append(position)

    def duplicate_eager_tensors(self, eager_tensor_list: Sequence[Any]) -> list[Any]:
        """Put each distinct tensor at all its positions.

        Raises:
            GuardError: Not as many tensors as distinct outputs were given.
        """
        if len(eager_tensor_list) != len(self.index):
            raise GuardError(
                f"eager_tensor_list: expected {len(self.index)} tensors, one for each distinct"
                f" output, seen {len(eager_tensor_list)}"
            )
        result: list[Any] = [None] * self.total_count
        for positions, tensor in zip(self.index, eager_tensor_list, strict=True):
            for position in positions:
                result[position] = tensor
        return result


def _fill(view: torch.Tensor, value: torch.Tensor) -> None:
    """Copy, writing an element that an expanded view shows many times only once."""
    for dim, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
        if stride == 0 and size > 1:
            view, value = view.narrow(dim, 0, 1), value.narrow(dim, 0, 1)
    view.copy_(value)


def place(value: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """A tensor equal to ``value`` with the strides eager gives it; ``value`` itself if it fits."""
    if spec.same_layout(value.stride()):
        return value
    placed = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=value.device)
    _fill(placed, value)
    return placed


def place_shared(
    values: Sequence[torch.Tensor], specs: Sequence[TensorSpec], group: Shared
) -> list[torch.Tensor]:
    """Tensors equal to ``values`` that are views of one new storage, as they are in eager."""
    whole = values[0].new_empty(group.numel)
    placed = []
    for value, spec, offset in zip(values, specs, group.offsets, strict=True):
        view = whole.as_strided(spec.shape, spec.stride, offset)
        _fill(view, value)
        placed.append(view)
    return placed
