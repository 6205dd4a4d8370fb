"""Sources that share memory, one of which the model writes.

A captured program computes each input on its own: a write to one would not show in another that is
a view of the same memory. So where a group of sources shares memory and one of them is written, the
program gets the memory itself, one flat tensor that covers all of them, and each is a view of that.
The flat tensor is a further source, numbered after the others; it is what is written back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Sources in one memory.

    Attributes:
        members: Their numbers, ascending.
        offsets: Where each begins, in elements from the first element any of them uses.
        numel: The number of elements from there to the last one that is used.
    """

    members: tuple[int, ...]
    offsets: tuple[int, ...]
    numel: int


def groups_of(sources: Sequence[torch.Tensor]) -> tuple[Group, ...]:
    """The groups of sources that share memory, where there is more than one in it.

    Views that read the memory as another dtype have a group with ``numel`` -1: there is no flat
    tensor for it.
    """
    sharing: dict[int, list[int]] = {}
    for number, tensor in enumerate(sources):
        if tensor.numel():
            sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(number)
    return tuple(_group(sources, members) for members in sharing.values() if len(members) > 1)


def _group(sources: Sequence[torch.Tensor], members: Sequence[int]) -> Group:
    tensors = [sources[number] for number in members]
    offsets = [int(one.storage_offset()) for one in tensors]
    start = min(offsets)
    stop = max(_stop(one) for one in tensors)
    same = len({one.dtype for one in tensors}) == 1
    return Group(
        members=tuple(members),
        offsets=tuple(offset - start for offset in offsets),
        numel=stop - start if same else -1,
    )


def _stop(tensor: torch.Tensor) -> int:
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset()) + sum((size - 1) * step for size, step in pairs) + 1


def written_groups(groups: Iterable[Group], written: Iterable[int]) -> tuple[Group, ...]:
    """Those of ``groups`` that matter when these sources are written."""
    numbers = set(written)
    return tuple(group for group in groups if not numbers.isdisjoint(group.members))


def flat(sources: Sequence[torch.Tensor], group: Group) -> torch.Tensor:
    """The memory of a group as one tensor: a view, nothing is copied."""
    first = sources[group.members[0]]
    start = first.storage_offset() - group.offsets[0]
    return first.detach().as_strided((group.numel,), (1,), start)


def shows_an_element_twice(tensor: torch.Tensor) -> bool:
    """Whether a tensor is expanded: eager refuses to write to it."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in pairs)
