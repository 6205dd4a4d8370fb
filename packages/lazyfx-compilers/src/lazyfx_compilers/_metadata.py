"""What tracing recorded about a value, as plain facts, and how a real value is held against them.

Facts are read off fake tensors once, when a graph is compiled, and never change: several threads
may compare with them at a time. Sizes and strides are numbers or expressions over symbols. Symbols
get their numbers from the inputs; a symbol that only data decides (the length of a ``nonzero``)
gets its number where it is first seen and is held to it from then on. A size that cannot be worked
out because a symbol in it never got a number is not compared.

Strides count only where they decide an address: in dimensions longer than one of a tensor that has
elements. Storage offsets are not compared, since neither Dynamo nor AOTAutograd guards on those of
the inputs, nor is ``requires_grad``, which a recorded value has lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import _torch_aot, _torch_debug

if TYPE_CHECKING:
    from collections.abc import Sequence

Bindings = dict[Any, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """A tensor: ``size`` and ``stride`` hold ints and sympy expressions."""

    dtype: torch.dtype
    device: torch.device
    layout: torch.layout
    size: tuple[Any, ...] | None
    stride: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFacts:
    """A number or truth value: known, or an expression."""

    value: Any
    symbolic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NotATensor:
    """Anything but a tensor."""


Facts = TensorFacts | NumberFacts | NotATensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What was compared, and what came out."""

    checked: str
    expected: Any
    seen: Any


def record(value: Any, *, with_geometry: bool = True) -> tuple[Facts, ...]:
    """The facts about every leaf of a recorded value; ``None`` where nothing is known.

    Args:
        value: A fake tensor, a symbolic or plain number, or containers of them.
        with_geometry: With ``False`` sizes and strides are left out.
    """
    if isinstance(value, torch.Tensor):
        return (_tensor_facts(value, with_geometry),)
    leaves, _ = _torch_aot.tree_flatten(value)
    return tuple(_facts(leaf, with_geometry) for leaf in leaves)


def _facts(value: Any, with_geometry: bool) -> Facts:
    if isinstance(value, torch.Tensor):
        return _tensor_facts(value, with_geometry)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        expr = _torch_debug.expression(value)
        return None if expr is None else NumberFacts(value=expr, symbolic=True)
    if isinstance(value, (bool, int, float)):
        return NumberFacts(value=value, symbolic=False)
    return NotATensor() if value is None else None


def _tensor_facts(tensor: torch.Tensor, with_geometry: bool) -> TensorFacts:
    size = stride = None
    if with_geometry and not tensor.is_nested:
        size = tuple(_extent(each) for each in tensor.shape)
        if tensor.layout is torch.strided:
            stride = tuple(_extent(each) for each in tensor.stride())
    return TensorFacts(
        dtype=tensor.dtype, device=tensor.device, layout=tensor.layout, size=size, stride=stride
    )


def _extent(value: Any) -> Any:
    return value if type(value) is int else _torch_debug.expression(value)


def bind_inputs(facts: Sequence[tuple[Facts, ...] | None], inputs: Sequence[Any]) -> Bindings:
    """The numbers of all symbols that stand alone in some input or in one of its dimensions."""
    bindings: Bindings = {}
    for expected, value in zip(facts, inputs, strict=False):
        fact = expected[0] if expected else None
        if isinstance(fact, TensorFacts) and isinstance(value, torch.Tensor):
            if fact.size is None or len(fact.size) != value.dim():
                continue
            pairs = [*zip(fact.size, value.shape, strict=True)]
            if fact.stride is not None and value.layout is torch.strided:
                pairs += zip(fact.stride, value.stride(), strict=True)
            for extent, seen in pairs:
                if _torch_debug.is_symbol(extent):
                    bindings.setdefault(extent, seen)
        elif (
            isinstance(fact, NumberFacts)
            and type(value) is int
            and _torch_debug.is_symbol(fact.value)
        ):
            bindings[fact.value] = value
    return bindings


def compare(facts: Facts, value: Any, bindings: Bindings) -> Difference | None:
    """The first difference between what was recorded and ``value``.

    Args:
        facts: What was recorded.
        value: What there is.
        bindings: Numbers of symbols; symbols seen for the first time are added.
    """
    if facts is None:
        return None
    is_tensor = isinstance(value, torch.Tensor)
    if isinstance(facts, TensorFacts):
        if not is_tensor:
            return Difference(checked="kind", expected="a tensor", seen=_kind(value))
        return _compare_tensor(facts, value, bindings)
    if is_tensor:
        expected = "None" if isinstance(facts, NotATensor) else f"the number {facts.value}"
        return Difference(checked="kind", expected=expected, seen="a tensor")
    if isinstance(facts, NumberFacts):
        return _compare_number(facts, value, bindings)
    return None


def _compare_tensor(
    facts: TensorFacts, tensor: torch.Tensor, bindings: Bindings
) -> Difference | None:
    if tensor.dtype is not facts.dtype:
        return Difference(checked="dtype", expected=facts.dtype, seen=tensor.dtype)
    if not _same_device(facts.device, tensor.device):
        return Difference(checked="device", expected=facts.device, seen=tensor.device)
    if tensor.layout is not facts.layout:
        return Difference(checked="layout", expected=facts.layout, seen=tensor.layout)
    if facts.size is None:
        return None
    size = tuple(tensor.shape)
    if size != facts.size:
        resolved = _resolve(facts.size, size, bindings)
        if resolved != size:
            return Difference(checked="size", expected=_show(facts.size, resolved), seen=size)
    if facts.stride is None:
        return None
    stride = tensor.stride()
    if stride == facts.stride or tensor.numel() == 0:
        return None
    steps = _resolve(facts.stride, stride, bindings)
    for length, expected, seen in zip(size, steps, stride, strict=True):
        if length > 1 and expected != seen:
            return Difference(checked="strides", expected=_show(facts.stride, steps), seen=stride)
    return None


def _same_device(expected: torch.device, seen: torch.device) -> bool:
    # a fake tensor may say "cuda" where the real one says "cuda:0"
    if expected.type != seen.type:
        return False
    return expected.index == seen.index or expected.index is None or seen.index is None


def _resolve(
    extents: tuple[Any, ...], seen: tuple[int, ...], bindings: Bindings
) -> tuple[int, ...]:
    if len(extents) != len(seen):
        unknown = (each if type(each) is int else bindings.get(each, -1) for each in extents)
        return tuple(unknown)
    return tuple(_number(e, s, bindings) for e, s in zip(extents, seen, strict=True))


def _number(extent: Any, seen: int, bindings: Bindings) -> int:
    if type(extent) is int or extent is None:
        return seen if extent is None else extent
    if _torch_debug.is_symbol(extent):
        return bindings.setdefault(extent, seen)
    value = _torch_debug.evaluate(extent, bindings)
    return seen if value is None else int(value)


def _compare_number(facts: NumberFacts, value: Any, bindings: Bindings) -> Difference | None:
    expected = facts.value
    if facts.symbolic and type(value) in (int, bool, float):
        if _torch_debug.is_symbol(expected) and type(value) is int:
            expected = bindings.setdefault(expected, value)
        else:
            expected = _torch_debug.evaluate(expected, bindings)
    if type(value) not in (int, bool, float):
        return None  # an opaque object, or a symbolic number of an outer trace
    if expected is None or expected == value:
        return None
    if isinstance(expected, float) and math.isnan(expected) and math.isnan(value):
        return None
    if facts.symbolic and isinstance(value, float) and math.isclose(expected, value):
        return None  # sympy and the machine may round differently
    return Difference(checked="value", expected=expected, seen=value)


def _show(recorded: tuple[Any, ...], resolved: tuple[int, ...]) -> Any:
    if all(type(each) is int for each in recorded):
        return recorded
    return f"{resolved} (recorded as {recorded})"


def _kind(value: Any) -> str:
    return "None" if value is None else f"an instance of {type(value).__qualname__}"


def leaves(value: Any) -> list[Any]:
    """The leaves of nested containers."""
    return _torch_aot.tree_flatten(value)[0]
