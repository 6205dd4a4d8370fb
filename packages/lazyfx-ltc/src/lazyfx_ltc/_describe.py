"""Put a fake result into words: which outputs are inputs, views of them, or computed.

Memory decides: an output on the storage of a source is a view of that source; computed outputs on
one storage stay together, at the offsets eager gives them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ._specs import Constant, Fresh, Itself, Leaf, Shared, TensorSpec, ViewOf
from ._torch_tracing import storage_key
from .errors import CaptureError

_PLAIN = (int, float, complex, bool, str, type(None), torch.dtype, torch.Size)


def describe(
    leaves: Sequence[Any], fakes: Sequence[torch.Tensor]
) -> tuple[tuple[Leaf, ...], tuple[TensorSpec, ...], tuple[Shared, ...]]:
    """Describe each leaf, each distinct computed tensor, and the groups that share memory.

    Raises:
        CaptureError: An output is of a kind a replay could not make.
    """
    sources = {id(fake): number for number, fake in enumerate(fakes)}
    storages = {storage_key(fake): number for number, fake in enumerate(fakes)}
    slots: dict[int, int] = {}
    computed: list[torch.Tensor] = []
    described: list[Leaf] = []
    for position, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            if not isinstance(leaf, _PLAIN):
                raise CaptureError(
                    f"output {position} is a {type(leaf).__name__}: expected tensors, numbers,"
                    " strings and None, in tuples, lists and dicts; return its tensors instead"
                )
            described.append(Constant(value=leaf))
        elif id(leaf) in sources:
            described.append(Itself(source=sources[id(leaf)]))
        elif storage_key(leaf) in storages:
            number = storages[storage_key(leaf)]
            described.append(_view(leaf, fakes[number], number, position))
        elif leaf.requires_grad:
            raise CaptureError(
                f"output {position} requires grad although nothing was recorded for it (the model"
                " calls requires_grad_ on it): expected tensors without gradients; call"
                " requires_grad_ on the result"
            )
        else:
            slot = slots.setdefault(id(leaf), len(slots))
            if slot == len(computed):
                computed.append(leaf)
            described.append(Fresh(slot=slot))
    return tuple(described), tuple(TensorSpec.of(one) for one in computed), _group(computed)


def _view(leaf: torch.Tensor, base: torch.Tensor, number: int, position: int) -> ViewOf:
    if leaf.dtype != base.dtype or leaf.is_conj() or leaf.is_neg():
        raise CaptureError(
            f"output {position} is a view of an input that reinterprets its memory (dtype"
            f" {leaf.dtype} on {base.dtype}, or a conjugate): expected plain views; return a"
            " clone() of it"
        )
    return ViewOf(
        source=number,
        detached=base.requires_grad and not leaf.requires_grad,
        size=leaf.shape,
        stride=leaf.stride(),
        offset=int(leaf.storage_offset()),
    )


def _group(computed: Sequence[torch.Tensor]) -> tuple[Shared, ...]:
    by_storage: dict[int, list[int]] = {}
    for slot, tensor in enumerate(computed):
        if tensor.is_conj() or tensor.is_neg():
            raise CaptureError(
                "an output is a lazy conjugate or negative view: expected plain tensors; return"
                " its resolve_conj() or resolve_neg()"
            )
        by_storage.setdefault(storage_key(tensor), []).append(slot)
    groups = []
    for slots in by_storage.values():
        if len(slots) == 1:
            continue
        members = [computed[slot] for slot in slots]
        if len({member.dtype for member in members}) > 1:
            raise CaptureError(
                "two outputs are views of one memory with different dtypes: expected one dtype;"
                " return a clone() of one of them"
            )
        nbytes = members[0].untyped_storage().nbytes()
        groups.append(
            Shared(
                slots=tuple(slots),
                offsets=tuple(int(member.storage_offset()) for member in members),
                numel=math.ceil(nbytes / members[0].element_size()),
            )
        )
    return tuple(groups)
