"""The seam to torch's private tracing tools: fake tensors, dispatch modes, pytrees, storages.

Only thin, checked doors; the meaning is in the modules that use them. Fake tensors are imported
when the first capture needs them, not with the package: they pull in sympy.

=====================================================  =============================================
private name                                           used for
=====================================================  =============================================
``torch._subclasses.fake_tensor``                      shapes, dtypes and aliasing without data
``torch.utils._python_dispatch``                       seeing operators; leaving out the modes of
                                                       others
``torch._C._AutoDispatchBelowAutograd``                the same, below autograd
``torch.utils._device``                                functions that make a tensor of nothing
``torch.fx.experimental.proxy_tensor.make_fx``         taking functions apart
``torch._decomp``                                      the same
``torch._ops``                                         which target of a node is an operator
``OpOverload._schema``                                 an operator's arguments, and which it writes
``torch.nn.modules.module._global_forward_hooks``      refusing hooks for all modules
``torch.nn.modules.module._global_forward_pre_hooks``  the same
``Tensor._base``                                       questions that have another answer in a
                                                       replay
``Tensor._version``                                    the same
``Tensor._grad``                                       the same
``Tensor._is_view``                                    the same
``Graph._codegen``                                     the structure of nested arguments
``torch.utils._pytree``                                the same
``UntypedStorage._cdata``                              which tensors share storage, fake ones too
=====================================================  =============================================
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode as _UntypedDispatchMode

from lazyfx_core.errors import SeamError

if TYPE_CHECKING:
    from torch.utils._pytree import TreeSpec

__all__ = [
    "DeviceContext",
    "TorchDispatchMode",
    "below_autograd",
    "core_decompositions",
    "data_dependent_errors",
    "device_constructors",
    "fake_mode",
    "global_forward_hook_tables",
    "global_forward_hooks",
    "is_fake",
    "is_operator",
    "is_overload",
    "make_fx",
    "op_name",
    "pytree_input_spec",
    "questions_about_gradients",
    "schema_arguments",
    "schema_writes",
    "spec_children",
    "storage_key",
    "tensors_in",
    "tree_flatten",
    "tree_paths",
    "tree_unflatten",
    "without_modes",
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


def fake_mode(*, with_real: bool = False) -> Any:
    """A fresh fake-tensor mode: shapes, dtypes, strides and aliasing without data.

    ``with_real``: real tensors may take part, and count as fake ones.
    """
    module = _module("torch._subclasses.fake_tensor")
    return module.FakeTensorMode(allow_non_fake_inputs=with_real)


def global_forward_hook_tables() -> tuple[dict[int, Any], ...]:
    """The tables of hooks that are registered for all modules of the process."""
    module = nn.modules.module
    return module._global_forward_hooks, module._global_forward_pre_hooks


def global_forward_hooks() -> bool:
    """Whether hooks are registered for all modules of the process."""
    return any(global_forward_hook_tables())


def is_fake(value: Any) -> bool:
    """Whether a value is a fake tensor. Imports nothing."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(value, module.FakeTensor)


def below_autograd() -> Any:
    """A context in which operators go past the kernels that record for a backward."""
    return torch._C._AutoDispatchBelowAutograd()


def without_modes() -> Any:
    """A context in which no dispatch mode of the caller's (fake tensors, tracing) is active."""
    return _module("torch.utils._python_dispatch")._disable_current_modes()


def is_overload(target: Any) -> bool:
    """Whether something is one overload of an operator, as dispatch modes see them."""
    return isinstance(target, torch._ops.OpOverload)


def is_operator(target: Any) -> bool:
    """Whether a node's target is an operator of torch's registries."""
    ops = torch._ops
    return isinstance(target, (ops.OpOverload, ops.OpOverloadPacket, ops.HigherOrderOperator))


def make_fx(function: Callable[..., Any], table: Any) -> Callable[..., fx.GraphModule]:
    """Trace a function to operators on fake tensors of its arguments, taken apart by ``table``."""
    tracer: Callable[..., fx.GraphModule] = _module("torch.fx.experimental.proxy_tensor").make_fx(
        function, decomposition_table=table, tracing_mode="fake"
    )
    return tracer


def pytree_input_spec(graph: fx.Graph) -> TreeSpec | None:
    """The structure of the arguments, if the graph's code takes nested ones apart; else None."""
    info = getattr(graph._codegen, "pytree_info", None)
    return None if info is None else info.in_spec


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """What fake tensors raise when a value, or a size that depends on values, is asked for."""
    module = _module("torch._subclasses.fake_tensor")
    names = ("DataDependentOutputException", "DynamicOutputShapeException")
    found = tuple(getattr(module, name) for name in names if hasattr(module, name))
    if not found:
        raise SeamError(f"torch {torch.__version__}: fake tensors raise none of {names} any more")
    return found


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors that stand in nested containers."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def storage_key(tensor: torch.Tensor) -> int:
    """Equal for two tensors exactly if they share a storage; works on fake tensors too."""
    return int(tensor.untyped_storage()._cdata)


def op_name(func: Any) -> str:
    """``"aten::add.Tensor"`` of an operator overload; the default overload has no suffix."""
    schema = func._schema
    return f"{schema.name}.{schema.overload_name}" if schema.overload_name else str(schema.name)


@cache
def questions_about_gradients() -> frozenset[Any]:
    """What a torch function mode gets for ``x.grad_fn``, ``x.is_leaf`` and the like."""
    names = ("is_leaf", "grad_fn", "_base", "_version", "_grad", "grad", "output_nr")
    found = [getattr(getattr(torch.Tensor, name, None), "__get__", None) for name in names]
    methods = {torch.Tensor.is_inference, torch.Tensor._is_view}
    return frozenset(one for one in found if one is not None) | methods


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


def spec_children(spec: TreeSpec) -> list[TreeSpec]:
    """The specs in a spec; torch renamed the way to them."""
    children: Any = getattr(spec, "children", None)
    return list(spec.children_specs if children is None else children())


def tree_flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves and structure of nested tuples, lists, dicts, namedtuples and registered types."""
    # torch takes a torch.Size apart, and makes a tuple of it.
    return pytree.tree_flatten(tree, is_leaf=lambda value: type(value) is torch.Size)


def tree_unflatten(leaves: list[Any], spec: TreeSpec) -> Any:
    """The inverse of :func:`tree_flatten`."""
    return pytree.tree_unflatten(leaves, spec)


def tree_paths(spec: TreeSpec) -> list[tuple[str, ...]]:
    """For each leaf of a structure the keys that lead to it."""
    tree = pytree.tree_unflatten(range(spec.num_leaves), spec)
    found, _ = pytree.tree_flatten_with_path(tree)
    return [tuple(str(key) for key in path) for path, _ in found]


def core_decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's own decompositions, core set and the wider registry, newest copy."""
    module = _module("torch._decomp")
    merged = dict(module.decomposition_table)
    merged.update(module.core_aten_decompositions())
    return merged
