"""What a compiled graph depends on, as a key: another key means compile anew.

``aot_function`` traces once and replays that graph for ever, whatever it is called with. The key
built here covers what the trace may have depended on and can be read cheaply:

- the structure of the arguments and every Python value in them;
- of each tensor, parameter and buffer the shape, strides, dtype, device and ``requires_grad``, and
  which of them are one tensor or share storage;
- gradient, inference, autocast and deterministic modes, the default dtype and device, and which
  kernels of attention are allowed (tracing chooses one of them);
- of a module and each submodule its class, its ``forward`` and all its attributes: numbers, strings
  and containers of them (up to 1,000 items, eight deep) by value, everything else (functions,
  hooks, configuration objects) by identity;
- of a function its defaults, what its closure holds and the globals it names, in the same way; of
  a method or a callable object also its attributes, of a decorated function what it wraps.

Not noticed: a change *inside* an object that is compared by identity, and globals of the functions
that the compiled one calls.

Identity is a weak reference: an ``id`` may be taken over by another object once the first is gone,
and a key must not keep a replaced object alive.
"""

from __future__ import annotations

import enum
import functools
import types
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import _torch_aot, _torch_callers
from .errors import NotCompilableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

_AS_IT_IS = frozenset({bool, int, str, bytes, type(None)})
_BY_VALUE = (bool, int, str, bytes, torch.dtype, torch.device, torch.layout)
_BY_TEXT = (float, complex)
_CONTAINERS = (tuple, list, dict, set, frozenset)
_DICTS = (dict, OrderedDict)
_MAX_DEPTH, _MAX_ITEMS = 8, 1000
_DEVICE_TYPES = ("cpu", "cuda")
_ATTENTION_KERNELS: tuple[Callable[[], bool], ...] = (  # of the CPU as well
    torch.backends.cuda.flash_sdp_enabled,
    torch.backends.cuda.mem_efficient_sdp_enabled,
    torch.backends.cuda.cudnn_sdp_enabled,
    torch.backends.cuda.math_sdp_enabled,
)
_LOOKED_AT_ELSEWHERE = frozenset(
    {
        *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
        *("_state_dict_hooks", "_state_dict_pre_hooks"),
        *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
        *("_code", "_lineno_map", "_prologue_start"),  # a graph module's: its forward tells
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleState:
    """What a module is, read in one walk.

    Attributes:
        key: All of it but the tensors' descriptions.
        parameters: By name, a tied one under its first name.
        buffers: By name, likewise.
        held: All parameters and buffers in order, a tied one as often as it occurs.
    """

    key: tuple[Any, ...]
    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    held: list[torch.Tensor]


def call_key(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], held: Iterable[torch.Tensor] = ()
) -> tuple[Any, ...]:
    """The part of the key that the arguments, the tensors and the global modes make.

    Args:
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        held: Parameters and buffers; they are arguments of the compiled graph too.

    Raises:
        NotCompilableError: An argument of a type that cannot be traced, or a tensor that is more
            than its values: a subclass's, inside of a transform, with a tangent.
    """
    leaves, structure = _torch_aot.tree_flatten((args, dict(kwargs)))
    return (_torch_aot.structure_key(structure), _leaves_key(leaves, held), _modes_key())


def module_state(module: nn.Module) -> ModuleState:
    """The part of the key that the module makes, and its tensors."""
    state = ModuleState(key=(), parameters={}, buffers={}, held=[])
    key: list[Any] = []
    _walk(module, "", key, state, set())
    return ModuleState(
        key=tuple(key), parameters=state.parameters, buffers=state.buffers, held=state.held
    )


def _walk(
    module: nn.Module, prefix: str, key: list[Any], state: ModuleState, seen: set[int]
) -> None:
    kind = type(module)
    key += (kind, kind.forward)
    for name, value in vars(module).items():
        value_type = type(value)
        if value_type in _AS_IT_IS:
            key += (name, value_type, value)
        elif value_type in _DICTS and not value:
            continue  # most of a module's twenty attributes
        elif name not in _LOOKED_AT_ELSEWHERE:
            key += (name, _value_key(value))
    for named, found in (
        (module._parameters, state.parameters),
        (module._buffers, state.buffers),
    ):
        for name, tensor in named.items():
            key += (name, tensor is None)
            if tensor is None:
                continue
            state.held.append(tensor)
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[prefix + name] = tensor
    for name, child in module._modules.items():
        key.append(name)
        if child is not None:
            _walk(child, f"{prefix}{name}.", key, state, seen)
    key.append("end")


def function_key(function: Callable[..., Any]) -> tuple[Any, ...]:
    """The part of the key that a function makes: what it reads besides its arguments."""
    key: list[Any] = []
    if isinstance(function, functools.partial):
        fixed = _value_key((function.args, function.keywords))
        return ("arguments", fixed, *function_key(function.func))
    if isinstance(function, types.MethodType):
        owner = function.__self__
        key += ("self", _value_key(vars(owner)) if hasattr(owner, "__dict__") else _Identity(owner))
        function = function.__func__
    if isinstance(function, types.FunctionType):
        key += ("defaults", _value_key((function.__defaults__, function.__kwdefaults__)))
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            key += (name, _cell_key(cell))
        for name in function.__code__.co_names:
            if name in function.__globals__:
                key += (name, _value_key(function.__globals__[name]))
        wrapped = getattr(function, "__wrapped__", None)  # a decorated function
        if callable(wrapped):
            key += function_key(wrapped)
    elif hasattr(function, "__dict__"):  # an object that can be called
        key += ("self", _value_key(vars(function)), type(function).__call__)
    return tuple(key)


def first_change(before: tuple[Any, ...], after: tuple[Any, ...]) -> str | None:
    """The name of what two keys of one module or function first differ in; None if they agree."""
    for index, (old, new) in enumerate(zip((*before, None), (*after, None), strict=False)):
        if old != new:
            start = index - 1 if index and after[index - 1] is str else index
            names = [each for each in after[: start + 1] if isinstance(each, str)]
            return names[-1] if names else "its class"
    return None


def _cell_key(cell: types.CellType) -> Any:
    try:
        return _value_key(cell.cell_contents)
    except ValueError:  # a variable of the enclosing function that has no value yet
        return "empty"


def _named(position: int, leaves: Sequence[Any]) -> str:
    if position < len(leaves):
        return f"argument {position} (counting nested ones)"
    return f"parameter or buffer {position - len(leaves)}"


def _leaves_key(leaves: Sequence[Any], held: Iterable[torch.Tensor]) -> tuple[Any, ...]:
    key: list[Any] = []
    seen: dict[int, int] = {}
    storages: dict[int, int] = {}
    for position, leaf in enumerate((*leaves, *held)):
        if isinstance(leaf, torch.Tensor):
            why = _torch_callers.why_not_compiled(leaf)
            if why is not None:
                raise NotCompilableError(
                    f"memory_efficient_fusion: {_named(position, leaves)} {why}"
                )
            strided = leaf.layout is torch.strided
            own = strided
            if strided and hasattr(leaf, "__tensor_flatten__"):  # a DTensor has no storage
                own = False
                key.append(_torch_aot.structure_key(leaf.__tensor_flatten__()[1]))
            try:
                address = leaf.untyped_storage().data_ptr() if own else 0
            except (NotImplementedError, RuntimeError) as error:
                raise NotCompilableError(
                    f"memory_efficient_fusion: {_named(position, leaves)} has no memory of its "
                    f"own, by which a call could be told from others: {error}"
                ) from error
            key += (
                seen.setdefault(id(leaf), position),
                storages.setdefault(address or -id(leaf), position),
                type(leaf),
                leaf.shape,
                leaf.stride() if strided else None,
                leaf.dtype,
                leaf.device,
                leaf.requires_grad,
            )
        elif leaf is None or isinstance(leaf, (*_BY_VALUE, *_BY_TEXT, slice, enum.Enum)):
            key.append(_value_key(leaf))
        else:
            raise NotCompilableError(
                f"memory_efficient_fusion: {_named(position, leaves)} is a "
                f"{type(leaf).__module__}.{type(leaf).__qualname__}; expected tensors, numbers, "
                "strings, slices, dtypes, devices, None and containers of them. Fix such an "
                "argument with functools.partial"
            )
    return tuple(key)


def _value_key(value: Any, depth: int = 0) -> Any:
    # The type is part of it: 1, 1.0 and True are equal. So is the text of a float: 0.0 and -0.0
    # are equal too, and NaN is not equal to itself.
    kind = type(value)
    if value is None or isinstance(value, _BY_VALUE):
        return (kind, value)
    if isinstance(value, _BY_TEXT):
        return (kind, repr(value))
    if isinstance(value, slice):
        return (kind, *(_value_key(each, depth) for each in (value.start, value.stop, value.step)))
    if not isinstance(value, _CONTAINERS) or depth >= _MAX_DEPTH or len(value) > _MAX_ITEMS:
        return _Identity(value)
    if isinstance(value, dict):
        return (
            kind,
            *((_value_key(k, depth + 1), _value_key(v, depth + 1)) for k, v in value.items()),
        )
    parts = [_value_key(each, depth + 1) for each in value]
    return (kind, tuple(parts) if isinstance(value, (tuple, list)) else frozenset(parts))


class _Identity:
    """Equal to another one while both stand for the same object, and that object lives."""

    __slots__ = ("_get", "_hash")

    def __init__(self, value: object) -> None:
        self._hash = id(value)
        try:
            self._get: Callable[[], object] = weakref.ref(value)
        except TypeError:  # cannot be referred to weakly: kept alive
            self._get = lambda: value

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Identity):
            return NotImplemented
        value = self._get()
        return value is not None and value is other._get()


def _modes_key() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        *(allowed() for allowed in _ATTENTION_KERNELS),
        *(
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in _DEVICE_TYPES
        ),
    )
