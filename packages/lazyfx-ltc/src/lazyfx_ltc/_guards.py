"""Whether a call is one that a capture was made for.

A capture holds for one structure of arguments, with tensors of one look and python values of one
value; for model tensors of one look; for one set of modes; and, where the model writes, for one way
in which its sources share memory. Everything else that could make the model do something else is
part of the model, which is read at every call (``_state.py``).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._aliases import Group, groups_of, shows_an_element_twice, written_groups
from ._freeze import Frozen
from ._specs import TensorSpec
from ._state import State
from ._structure import Structure
from ._torch_guards import function_modes, function_modes_active, inside_transform
from ._torch_tracing import DeviceContext, tree_unflatten
from .errors import GuardError

_VALUES = (
    *(bool, int, float, complex, str, bytes, type(None), type(...)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, range, slice),
)


def is_value(leaf: Any) -> bool:
    """Whether an argument that is no tensor may become part of a capture: it cannot change."""
    return type(leaf) in _VALUES or (isinstance(leaf, enum.Enum) and is_value(leaf.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Modes:
    """What a thread's state adds to a call.

    Attributes:
        grad: Whether operations are recorded for a backward pass; None: it makes no difference. A
            capture has no backward, but the model's python code may ask.
        inference: Whether inference mode is on; None: it makes no difference.
        autocast: The dtype that autocast computes in, None if it is off.
        default_dtype: What factories make.
    """

    grad: bool | None
    autocast: torch.dtype | None
    inference: bool | None
    default_dtype: torch.dtype

    @classmethod
    def now(cls, device: str) -> Modes:
        """Those of the current thread."""
        return cls(
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            autocast=torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else None,
            default_dtype=torch.get_default_dtype(),
        )

    def why_not(self, now: Modes) -> str | None:
        """What differs, in words; None if nothing does that matters."""
        if self == now:
            return None
        if self.autocast is not now.autocast:
            was, seen = (mode.autocast or "off" for mode in (self, now))
            return f"autocast: expected {was}, as at capture, seen {seen}"
        if self.grad is not None and self.grad is not now.grad:
            was, seen = ("on" if mode.grad else "off" for mode in (self, now))
            return f"grad mode: expected {was}, as at capture, seen {seen}"
        if self.inference is not None and self.inference is not now.inference:
            was, seen = ("on" if mode.inference else "off" for mode in (self, now))
            return f"inference mode: expected {was}, as at capture, seen {seen}"
        if self.default_dtype is not now.default_dtype:
            return (
                f"the default dtype: expected {self.default_dtype}, as at capture, seen"
                f" {now.default_dtype}"
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What a call must be like. Immutable, thread-safe.

    Attributes:
        structure: How the leaves make up ``(args, kwargs)``.
        leaves: For each leaf its look, or its value.
        names: Of the leaves, then of the model's tensors, then of memory that sources share.
        state: Where the model's tensors live.
        state_specs: What they look like.
        modes: The thread's state.
        written: Numbers of the sources that are written; groups of sources count as one.
        groups: Sources that share memory which is written.
        asked: For each source :func:`what_may_be_asked`, where the model has python code of the
            user's own; else None.
        frozen: Tensors of the model that must not change.
    """

    structure: Structure
    leaves: tuple[Any, ...]
    names: tuple[str, ...]
    state: State
    state_specs: tuple[TensorSpec, ...]
    modes: Modes
    written: tuple[int, ...]
    groups: tuple[Group, ...]
    asked: tuple[tuple[type, bool, int], ...] | None
    frozen: tuple[Frozen, ...]

    def match(
        self, leaves: Sequence[Any], structure: Structure, modes: Modes
    ) -> list[torch.Tensor] | str:
        """The sources of a call that fits, else what differs, in words.

        Raises:
            FrozenError: A frozen tensor has changed.
        """
        if structure is not self.structure and structure != self.structure:
            return (
                f"arguments: expected {_shape(self.structure)}, as at capture, seen"
                f" {_shape(structure)}"
            )
        inputs: list[torch.Tensor] = []
        for name, leaf, expected in zip(self.names, leaves, self.leaves, strict=False):
            if isinstance(expected, TensorSpec):
                reason = _why_no_fit(name, leaf, expected)
                if reason is not None:
                    return reason
                inputs.append(leaf)
            elif not same_value(leaf, expected):
                return f"{name}: expected {expected!r:.80}, as at capture, seen {leaf!r:.80}"
        for one in self.frozen:
            one.check()
        try:
            own = self.state.read()
        except GuardError as error:
            return str(error)
        for name, tensor, spec in zip(
            self.names[len(leaves) :], own, self.state_specs, strict=False
        ):
            reason = _why_no_fit(name, tensor, spec)
            if reason is not None:
                return reason
        different = self.modes.why_not(modes)
        if different is not None:
            return different
        sources = [*inputs, *own]
        different = None if self.asked is None else self._why_not_asked(sources)
        if different is not None:
            return different
        return (self.why_not_memory(sources) if self.written else None) or sources

    def _why_not_asked(self, sources: Sequence[torch.Tensor]) -> str | None:
        """What python code of the user's own might see differ; None if nothing does."""
        asked, names = what_may_be_asked(sources), self.source_names
        for number, (expected, seen) in enumerate(zip(self.asked or (), asked, strict=True)):
            if expected != seen:
                kinds = [
                    f"{kind.__name__}, requires_grad={grad}, the same object as {names[first]}"
                    for kind, grad, first in (expected, seen)
                ]
                return f"{names[number]}: expected {kinds[0]}, as at capture, seen {kinds[1]}"
        return None

    def why_not_memory(self, sources: Sequence[torch.Tensor]) -> str | None:
        """Why the program's writes would not show everywhere; None if they would."""
        members = {number for group in self.groups for number in group.members}
        written = members.union(number for number in self.written if number < len(sources))
        seen = written_groups(groups_of(sources), written)
        if seen == self.groups:
            return None
        names = self.source_names
        for group in seen:
            if group not in self.groups:
                first, second = (names[number] for number in group.members[:2])
                return (
                    f"{second} shares memory with {first} otherwise than at capture, and the"
                    " model writes to one of them"
                )
        group = next(group for group in self.groups if group not in seen)
        first, second = (names[number] for number in group.members[:2])
        return f"{second} no longer shares memory with {first} as at capture"

    @property
    def source_names(self) -> tuple[str, ...]:
        """The names of all sources, by number."""
        tensors = [isinstance(one, TensorSpec) for one in self.leaves]
        tensors += [True] * (len(self.names) - len(tensors))
        return tuple(name for name, is_one in zip(self.names, tensors, strict=True) if is_one)

    def describe(self) -> tuple[str, ...]:
        """What is checked at a call, a line each."""
        lines = [f"arguments: {_shape(self.structure)}"]
        for name, expected in zip(self.names, self.leaves, strict=False):
            same = "" if isinstance(expected, TensorSpec) else "the value "
            shown = str(expected) if isinstance(expected, TensorSpec) else repr(expected)
            lines.append(f"{name}: {same}{shown}")
        split = len(self.leaves)
        for name, spec in zip(self.names[split:], self.state_specs, strict=False):
            lines.append(f"{name}: {spec}")
        lines += self.state.describe()
        lines += [f"model tensor {one.binding.name!r}: unchanged (frozen)" for one in self.frozen]
        modes = self.modes
        if modes.grad is not None:
            lines.append(f"grad mode: {'on' if modes.grad else 'off'}")
        lines.append(f"autocast: {modes.autocast or 'off'}")
        lines.append(f"the default dtype: {modes.default_dtype}")
        if self.written:
            names = self.source_names
            shared = [" and ".join(names[one] for one in group.members) for group in self.groups]
            lines.append(f"memory that is written and shared: {'; '.join(shared) or 'none'}")
        return tuple(lines)


def what_may_be_asked(sources: Sequence[torch.Tensor]) -> tuple[tuple[type, bool, int], ...]:
    """For each source its class, whether it requires grad, and the first that is the same one."""
    first: dict[int, int] = {}
    return tuple(
        (type(one), one.requires_grad, first.setdefault(id(one), number))
        for number, one in enumerate(sources)
    )


def same_value(one: Any, other: Any) -> bool:
    """Whether two python values are the same: of one type, ``-0.0`` is not ``0.0``, nan is nan."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (float, complex, slice)):
        return repr(one) == repr(other)
    return bool(one == other)


def why_not_writable(
    sources: Sequence[torch.Tensor], written: Sequence[int], names: Sequence[str]
) -> str | None:
    """Why the model cannot write to its sources, as eager could not; None if it can."""
    for number in written:
        if shows_an_element_twice(sources[number]):
            return (
                f"{names[number]} shows an element of its memory more than once (an expanded"
                " tensor, say), and the model writes to it: expected"
                " memory of its own for each element; pass a clone()"
            )
    return None


def check_surroundings(device: str) -> None:
    """Raise :class:`GuardError` where torch functions pass through a mode that a replay would not.

    A default device is one; that of the session changes nothing.
    """
    if not function_modes_active():
        return
    for mode in function_modes():
        placed = getattr(mode, "device", None)
        if type(mode) is DeviceContext and placed is not None and placed.type == device:
            continue
        raise GuardError(
            f"a mode for torch functions is active ({type(mode).__name__}, a default device or"
            " one of yours): expected none, since a replay calls no functions that would pass"
            " through it; leave it for the call"
        )


class _Shown:
    """Prints as a text, inside of containers too."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _shape(structure: Structure) -> str:
    records = {position: record.cls.__name__ for position, record in structure.records}
    tops = [
        _Shown(f"{records[position]}(...)" if position in records else "*")
        for position in range(structure.spec.num_leaves)
    ]
    try:
        args, kwargs = tree_unflatten(tops, structure.spec)
        inside = [f"{value!r:.300}" for value in args]
        inside += [f"{name}={value!r:.300}" for name, value in kwargs.items()]
    except Exception:  # a container of the user's, which prints or is made in its own way
        return f"{structure.count} values"
    return f"({', '.join(inside)})"


def _why_no_fit(name: str, value: Any, spec: TensorSpec) -> str | None:
    if type(value) is not torch.Tensor and type(value) is not nn.Parameter:
        return f"{name}: expected a torch.Tensor, as at capture, seen {type(value).__name__}"
    if inside_transform(value):
        return (
            f"{name}: expected {spec}, as at capture, seen a tensor inside of a transform (vmap,"
            " grad, forward mode); a replay computes with whole tensors: transform the model, then"
            " capture"
        )
    if value.is_nested:
        return f"{name}: expected {spec}, as at capture, seen a nested tensor"
    if (
        value.shape == spec.shape
        and value.dtype is spec.dtype
        and value.layout is torch.strided
        and value.device == spec.device
        and value.stride() == spec.stride
        and not value.is_conj()
        and not value.is_neg()
    ):
        return None
    if value.layout is not torch.strided or value.is_conj() or value.is_neg():
        seen = f"a tensor of layout {value.layout}"
        seen = "a lazy conjugate or negative view" if value.layout is torch.strided else seen
        return f"{name}: expected {spec}, as at capture, seen {seen}"
    return f"{name}: expected {spec}, as at capture, seen {TensorSpec.of(value)}"
