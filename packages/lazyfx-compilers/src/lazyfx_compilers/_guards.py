"""What a compiled graph depends on, as a key: another key means compile anew.

``aot_function`` traces once and replays that graph for ever, whatever it is called with. The key
built here covers everything the trace may have depended on and that can be read cheaply: the
structure of the arguments, each tensor's shape, strides, dtype, device and ``requires_grad``, which
arguments are the same tensor or share storage, Python values, gradient and autocast modes, and for
modules the training flags, plain attributes, hooks and identity of every submodule and the
description of every parameter and buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import _torch_aot
from .errors import NotCompilableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

_BY_VALUE = (bool, int, str, bytes, complex, type(None), torch.dtype, torch.device, torch.layout)
_PLAIN = (bool, int, float, str, type(None))
_DEVICE_TYPES = ("cpu", "cuda")


def call_key(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The part of the key that the arguments and the global modes make.

    Raises:
        NotCompilableError: An argument can change without the key changing; names its type.
    """
    leaves, structure = _torch_aot.tree_flatten((args, dict(kwargs)))
    return (structure, _leaves_key(leaves), _modes_key())


def module_key(module: nn.Module) -> tuple[Any, ...]:
    """The part of the key that the module itself makes."""
    return (
        tuple(_submodule_key(name, each) for name, each in module.named_modules()),
        tuple((n, _tensor_key(p)) for n, p in module.named_parameters(remove_duplicate=False)),
        tuple((n, _tensor_key(b)) for n, b in module.named_buffers(remove_duplicate=False)),
    )


def _submodule_key(name: str, module: nn.Module) -> tuple[Any, ...]:
    attributes = vars(module)
    plain = tuple(
        (key, _value_key(value))
        for key, value in attributes.items()
        if isinstance(value, _PLAIN) or _is_plain_tuple(value)
    )
    hooks = tuple(
        len(attributes.get(kind) or ())
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks")
    )
    return (name, id(module), plain, hooks)


def _is_plain_tuple(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, _PLAIN) for each in value)


def _leaves_key(leaves: Iterable[Any]) -> tuple[Any, ...]:
    key: list[Any] = []
    seen: dict[int, int] = {}
    storages: dict[int, int] = {}
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            first = seen.setdefault(id(leaf), position)
            storage = storages.setdefault(_storage(leaf), position)
            key.append((first, storage, *_tensor_key(leaf)))
        elif isinstance(leaf, (*_BY_VALUE, float)):
            key.append(_value_key(leaf))
        else:
            raise NotCompilableError(
                f"memory_efficient_fusion: argument {position} (counting nested ones) is a "
                f"{type(leaf).__module__}.{type(leaf).__qualname__}, which can change without "
                "being noticed; pass tensors, numbers, strings and containers of them, or "
                "guard=False if it never changes"
            )
    return tuple(key)


def _value_key(value: Any) -> tuple[Any, ...]:
    # 1, 1.0 and True are equal, 0.0 and -0.0 too, and NaN is not equal to itself
    return (type(value), repr(value) if isinstance(value, (float, complex, tuple)) else value)


def _tensor_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (
        type(tensor),
        tensor.shape,
        tensor.stride() if tensor.layout is torch.strided else None,
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
    )


def _storage(tensor: torch.Tensor) -> int:
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return -id(tensor)
    return tensor.untyped_storage().data_ptr()


def _modes_key() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        *(
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in _DEVICE_TYPES
        ),
    )
