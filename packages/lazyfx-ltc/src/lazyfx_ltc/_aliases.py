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

from ._torch_tracing import storage_key


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
    """The groups of sources whose memory overlaps, where there is more than one in it.

    There is no flat tensor, and ``numel`` is -1, where views read the memory as another dtype, or
    storages of their own lie over one another (as those of NumPy arrays may).
    """
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + _extent(tensor) * tensor.element_size(), number)
        for number, tensor in enumerate(sources)
        if tensor.numel()
    )
    found: list[list[int]] = []
    stop = -1
    for first, last, number in spans:
        if first < stop:
            found[-1].append(number)
        else:
            found.append([number])
        stop = max(stop, last)
    groups = [sorted(members) for members in found if len(members) > 1]
    return tuple(_group(sources, members) for members in sorted(groups))


def _group(sources: Sequence[torch.Tensor], members: Sequence[int]) -> Group:
    tensors = [sources[number] for number in members]
    offsets = [int(one.storage_offset()) for one in tensors]
    start = min(offsets)
    stop = max(offset + _extent(one) for offset, one in zip(offsets, tensors, strict=True))
    same = len({(one.dtype, storage_key(one)) for one in tensors}) == 1
    return Group(
        members=tuple(members),
        offsets=tuple(offset - start for offset in offsets),
        numel=stop - start if same else -1,
    )


def _extent(tensor: torch.Tensor) -> int:
    """Elements of memory from the first that a tensor shows to the last."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return int(sum((size - 1) * step for size, step in pairs)) + 1


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
    """Whether a tensor may show an element of its memory twice: expanded ones do, and windows."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    reach = 0
    for step, size in sorted((step, size) for step, size in pairs if size > 1):
        if step <= reach:
            return True
        reach += (size - 1) * step
    return False
