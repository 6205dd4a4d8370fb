"""What a tensor looks like from outside, and what a model's call promises: the contract.

A :class:`Contract` is what eager would do for inputs of these shapes, learnt without running
anything on data (``_contract.py``). The captured program is checked against it before it is
handed out, and the replay follows it: which outputs are the caller's own tensors, which are views
of them, what memory layout the fresh ones have, and which inputs are written.

*Sources* are numbered: first the positional arguments, then the model's tensors (``_state.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ._structure import Structure


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Shape, strides (in elements), dtype and device of a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """Describe a tensor, real or fake."""
        return cls(
            shape=tensor.shape, stride=tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )

    def same_layout(self, stride: tuple[int, ...]) -> bool:
        """Whether strides address the elements alike; those of sizes 0 and 1 do not count."""
        if stride == self.stride or 0 in self.shape:
            return True
        pairs = zip(self.shape, self.stride, stride, strict=True)
        return all(size == 1 or ours == theirs for size, ours, theirs in pairs)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}{list(self.shape)} with strides {list(self.stride)} on {self.device}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """An output leaf that is no tensor: None, a number or a string fixed by the shapes."""

    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Itself:
    """An output that is the source: the caller gets the very same tensor object back."""

    source: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOf:
    """An output that is a view of a source; ``offset`` counts elements from the source's own.

    ``detached``: no gradient flows back through it, even if the source requires one.
    """

    source: int
    detached: bool
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """An output the program computes; ``slot`` numbers the distinct ones."""

    slot: int


def picker(numbers: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A function that picks what stands at some numbers of a sequence."""
    if len(numbers) == 1:
        (only,) = numbers
        return lambda values: (values[only],)
    return itemgetter(*numbers) if numbers else lambda values: ()


Leaf = Constant | Itself | ViewOf | Fresh


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Fresh outputs that are views of one storage of ``numel`` elements, each at its offset."""

    slots: tuple[int, ...]
    offsets: tuple[int, ...]
    numel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What a call of the model does, apart from the numbers.

    Attributes:
        structure: How the leaves make up the returned value.
        leaves: The returned leaves in order.
        same: For each leaf the place of the first that is the same object.
        fresh: Description of each computed output, by slot.
        shared: Groups of fresh outputs that share memory with each other.
        written: Numbers of the sources that the call writes to, ascending.
        trace: The operators that one call runs, in order.
        dense: For each operator and each call of it which of its tensors are contiguous.
        answers: What it asked of its tensors (``_queries.py``).
        sharing: Which results share memory with operands where it matters (``_queries.py``).
        in_autocast: Whether it switches autocast on or off itself.
        touched: Numbers of the sources whose values went into something that is no view of them.
        looked_at: Numbers of the sources that an operator or a question got.
        modes_asked: The functions by which its python code asked for the thread's modes, and where.
    """

    structure: Structure
    leaves: tuple[Leaf, ...]
    same: tuple[int, ...]
    fresh: tuple[TensorSpec, ...]
    shared: tuple[Shared, ...] = field(default=())
    written: tuple[int, ...] = field(default=())
    trace: tuple[str, ...]
    dense: dict[str, list[tuple[bool, ...]]] = field(compare=False, repr=False)
    answers: tuple[tuple[Any, Any], ...] = field(compare=False, repr=False)
    sharing: Mapping[Any, Sequence[tuple[bool, ...] | None]] = field(compare=False, repr=False)
    modes_asked: dict[str, str] = field(default_factory=dict, compare=False)
    in_autocast: bool = False
    touched: tuple[int, ...] = ()
    looked_at: tuple[int, ...] = ()
