"""The arguments of a call, and which of them a capture can be made for.

They are taken apart into leaves (``_structure.py``). Fake tensors and symbolic numbers, which
AOTAutograd gives for examples, are replaced; what is neither a dense tensor on the session's device
nor a value that cannot change is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._guards import is_value
from ._structure import Structure, flatten_call
from ._torch_guards import inside_transform
from ._torch_tracing import is_fake, without_modes
from .errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of a call, taken apart; no fake tensor and no symbolic number is left."""

    leaves: tuple[Any, ...]
    structure: Structure


def request(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Request:
    """Take the arguments of a call apart.

    Raises:
        InputError: They are nested too deep, or a symbolic number has no value.
    """
    try:
        leaves, structure = flatten_call(args, dict(kwargs))
    except RecursionError as error:
        raise endless(error) from error
    return Request(leaves=tuple(_plain(leaf) for leaf in leaves), structure=structure)


def endless(error: RecursionError) -> InputError:
    """The error for arguments that contain themselves."""
    return InputError(f"arguments: expected nested values, seen some without end ({error})")


def _plain(leaf: Any) -> Any:
    """A leaf without symbols: a real tensor for a fake one, the hint for a symbolic number."""
    if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return _hint(leaf)
    if not is_fake(leaf):
        return leaf
    size = [_hint(length) for length in leaf.shape]
    stride = [_hint(length) for length in leaf.stride()]
    with without_modes(), torch.inference_mode(False):
        made = torch.empty_strided(size, stride, dtype=leaf.dtype, device=leaf.device)
        return made.requires_grad_(leaf.requires_grad)


def _hint(value: Any) -> Any:
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value
    hint = value.node.hint
    if hint is None:
        raise InputError(
            f"the symbolic number {value} has no value yet: expected one with a hint; a capture is"
            " for fixed shapes"
        )
    return hint


def check_leaf(name: str, leaf: Any, device: str) -> None:
    """Raise :class:`InputError` for an argument that cannot be captured."""
    if isinstance(leaf, torch.Tensor):
        check_tensor(name, leaf, device)
    elif not is_value(leaf):
        raise InputError(
            f"{name}: expected a tensor, number, string or None, or a nest of them, seen"
            f" {type(leaf).__name__}; fix other values when tracing (concrete_args, or a closure)"
        )


def check_tensor(name: str, value: torch.Tensor, device: str) -> None:
    """Raise :class:`InputError` for a tensor that cannot be captured."""
    if type(value) is not torch.Tensor and type(value) is not nn.Parameter:
        raise InputError(
            f"{name}: expected a plain torch.Tensor, seen the subclass {type(value).__name__};"
            " convert it first"
        )
    if inside_transform(value):
        raise InputError(
            f"{name}: expected a plain tensor, seen one inside of a transform (vmap, grad,"
            " forward mode); transform the model, then capture"
        )
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout)
        kind = "quantized" if value.is_quantized else kind
        raise InputError(f"{name}: expected a dense strided tensor, seen {kind}; use to_dense()")
    if value.device.type != device:
        raise InputError(
            f"{name}: expected a tensor on {device}, the device of this process's lazy session,"
            f" seen {value.device}; move it with .to({device!r})"
        )
    if value.is_conj() or value.is_neg():
        raise InputError(
            f"{name}: expected a plain tensor, seen a lazy conjugate or negative view; call"
            " resolve_conj() or resolve_neg()"
        )
