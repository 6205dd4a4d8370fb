"""The seam to torch's private tracing tools: fake tensors, dispatch modes, pytrees, storages.

Only thin, checked doors; the meaning is in the modules that use them. Fake tensors are imported
when the first capture needs them, not with the package: they pull in sympy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode as _UntypedDispatchMode

from lazyfx_core.errors import SeamError

if TYPE_CHECKING:
    from torch.utils._pytree import TreeSpec

__all__ = [
    "TorchDispatchMode",
    "core_decompositions",
    "data_dependent_errors",
    "device_constructors",
    "fake_mode",
    "op_name",
    "schema_arguments",
    "schema_writes",
    "storage_key",
    "tree_flatten",
    "tree_unflatten",
]


class TorchDispatchMode(_UntypedDispatchMode):
    """torch's dispatch mode, with a typed constructor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SeamError(
            f"torch {torch.__version__} has no {name}, which lazyfx-ltc relies on"
        ) from error


@cache
def device_constructors() -> frozenset[Any]:
    """Torch's functions that create a tensor from no tensor, on a device or the default one."""
    found = getattr(_module("torch.utils._device"), "_device_constructors", None)
    if found is None:
        raise SeamError(
            f"torch {torch.__version__} has no torch.utils._device._device_constructors, which"
            " lazyfx-ltc relies on"
        )
    return frozenset(found())


def fake_mode() -> Any:
    """A fresh fake-tensor mode: shapes, dtypes, strides and aliasing without data."""
    return _module("torch._subclasses.fake_tensor").FakeTensorMode(allow_non_fake_inputs=False)


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """What fake tensors raise when a value, or a size that depends on values, is asked for."""
    module = _module("torch._subclasses.fake_tensor")
    names = ("DataDependentOutputException", "DynamicOutputShapeException")
    found = tuple(getattr(module, name) for name in names if hasattr(module, name))
    if not found:
        raise SeamError(f"torch {torch.__version__}: fake tensors raise none of {names} any more")
    return found


def storage_key(tensor: torch.Tensor) -> int:
    """Equal for two tensors exactly if they share a storage; works on fake tensors too."""
    return int(tensor.untyped_storage()._cdata)


def op_name(func: Any) -> str:
    """``"aten::add.Tensor"`` of an operator overload; the default overload has no suffix."""
    schema = func._schema
    return f"{schema.name}.{schema.overload_name}" if schema.overload_name else str(schema.name)


def schema_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, defaults included."""
    schema = func._schema.arguments
    defaults = {one.name: one.default_value for one in schema if one.has_default_value()}
    names = [argument.name for argument in schema]
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def schema_writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a call that the operator's schema declares written."""
    written = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        if index < len(args):
            written.append(args[index])
        elif argument.name in kwargs:
            written.append(kwargs[argument.name])
    return written


def tree_flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves and structure of nested tuples, lists, dicts, namedtuples and registered types."""
    return pytree.tree_flatten(tree)


def tree_unflatten(leaves: list[Any], spec: TreeSpec) -> Any:
    """The inverse of :func:`tree_flatten`."""
    return pytree.tree_unflatten(leaves, spec)


def core_decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's own decompositions, core set and the wider registry, newest copy."""
    module = _module("torch._decomp")
    merged = dict(module.decomposition_table)
    merged.update(module.core_aten_decompositions())
    return merged
