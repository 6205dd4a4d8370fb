"""The seam to what a tensor is made of: private names that storing tensors cannot do without.

===================================================  ===============================================
private name                                         used for
===================================================  ===============================================
``torch._C._DisableTorchDispatch``                   copying bytes and mapping files for real while
                                                     a fake, tracing, default-device or functorch
                                                     mode would have them pretended
``torch._C.DisableTorchFunction``                    the same
``pyfunctorch.temporarily_clear_interpreter_stack``  the same
``UntypedStorage._cdata``                            telling storages without memory apart
``_utils.set_tensor_metadata``                       the conjugate and negative bits
===================================================  ===============================================

Nothing is patched here.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._utils import set_tensor_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Operations inside act on real memory and make ordinary tensors, whatever modes are active.

    Without it, storing a module under a ``FakeTensorMode`` would write zeros instead of weights.
    Concerns the calling thread only; nests.
    """
    with (
        temporarily_clear_interpreter_stack(),
        torch._C._DisableTorchDispatch(),
        torch._C.DisableTorchFunction(),
        torch.inference_mode(mode=False),
        torch.no_grad(),
    ):
        yield


def storage_number(storage: torch.UntypedStorage) -> int:
    """A number that no other living storage has, with or without memory behind it."""
    return int(storage._cdata)


def set_bits(tensor: torch.Tensor, *, conj: bool, neg: bool) -> None:
    """Set the conjugate and negative bits of ``tensor``, in place and without making a view."""
    # A bit counts as set when it is named, whatever the value is.
    bits = {name: True for name, is_set in (("conj", conj), ("neg", neg)) if is_set}
    set_tensor_metadata(tensor, bits)  # type: ignore[no-untyped-call]
