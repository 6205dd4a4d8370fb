"""What tracing recorded about a value, as plain facts, and how a real value is held against them.

Facts are read off fake tensors once, when a graph is compiled, and never change: several threads
may compare with them at a time. Sizes, strides and offsets are numbers or expressions over symbols.
Symbols get their numbers from the inputs; a symbol that only data decides (the length of a
``nonzero``) gets its number where it is first seen and is held to it from then on. What cannot be
worked out because a symbol in it never got a number is not compared.

Strides count only where they decide an address: in dimensions longer than one of a tensor that has
elements.

There are two ways to compare. :func:`accept` is quick and says yes where everything is exactly as
recorded, which is nearly always. Where it does not, :func:`differences` decides.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lazyfx_compilers import _torch_aot, _torch_debug

from ._formula import Bindings, Formula


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """A tensor.

    Attributes:
        dtype: Of its elements.
        device: Where it is; may lack the index. ``None`` if nobody can tell while tracing.
        layout: Strided, or one of the sparse ones.
        geometry: Its size, its strides (``None`` if it has none) and its storage offset; ``None``
            if nothing is known.
        requires_grad: ``None`` if that was not recorded.
    """

    dtype: torch.dtype
    device: torch.device | None
    layout: torch.layout
    geometry: Formula | None
    requires_grad: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFacts:
    """A number or truth value: known, or an expression."""

    value: Formula


@dataclass(frozen=True, slots=True, kw_only=True)
class NotATensor:
    """Anything but a tensor."""


Facts = TensorFacts | NumberFacts | NotATensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What was compared, and what came out.

    Attributes:
        check: The name of the check.
        checked: The same for a reader.
        expected: What was recorded or declared.
        seen: What there is.
        said_by: Who says what is expected.
    """

    check: str
    checked: str
    expected: Any
    seen: Any
    said_by: str = "tracing recorded"


def record(
    value: Any, *, with_geometry: bool = True, with_autograd: bool = False
) -> tuple[Facts, ...]:
    """The facts about every leaf of a recorded value; ``None`` where nothing is known.

    Args:
        value: A fake tensor, a symbolic or plain number, or containers of them.
        with_geometry: With ``False`` sizes, strides and offsets are left out.
        with_autograd: With ``False`` it does not count whether a recorded tensor needs a gradient.
    """
    if isinstance(value, torch.Tensor):
        return (_tensor_facts(value, with_geometry, with_autograd),)
    leaves, _ = _torch_aot.tree_flatten(value)
    return tuple(_facts(leaf, with_geometry, with_autograd) for leaf in leaves)


def _facts(value: Any, with_geometry: bool, with_autograd: bool) -> Facts:
    if isinstance(value, torch.Tensor):
        return _tensor_facts(value, with_geometry, with_autograd)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        expr = _torch_debug.expression(value)
        return None if expr is None else NumberFacts(value=Formula(expr))
    if isinstance(value, (bool, int, float)):
        return NumberFacts(value=Formula(value))
    return NotATensor() if value is None else None


def _tensor_facts(tensor: torch.Tensor, with_geometry: bool, with_autograd: bool) -> TensorFacts:
    geometry = None
    if with_geometry and not tensor.is_nested:
        size = tuple(_extent(each) for each in tensor.shape)
        stride = offset = None
        if tensor.layout is torch.strided:
            stride = tuple(_extent(each) for each in tensor.stride())
            with contextlib.suppress(NotImplementedError):  # a tensor that wraps another
                offset = _extent(tensor.storage_offset())
        geometry = Formula((size, stride, offset))
    return TensorFacts(
        dtype=tensor.dtype,
        device=tensor.device,
        layout=tensor.layout,
        geometry=geometry,
        requires_grad=tensor.requires_grad if with_autograd else None,
    )


def _extent(value: Any) -> Any:
    return value if type(value) is int else _torch_debug.expression(value)


def bind_inputs(facts: Sequence[tuple[int, Facts]], inputs: Sequence[Any]) -> Bindings:
    """The numbers of all symbols that stand alone in some input or in one of its dimensions.

    Args:
        facts: What was recorded about some of the inputs, with their places.
        inputs: All of them.
    """
    bindings: Bindings = {}
    for place, fact in facts:
        value = inputs[place] if place < len(inputs) else None
        if isinstance(fact, TensorFacts) and isinstance(value, torch.Tensor):
            if fact.geometry is None or len(fact.geometry.recorded[0]) != value.dim():
                continue
            size, stride, offset = fact.geometry.recorded
            pairs: list[tuple[Any, Any]] = [*zip(size, value.shape, strict=True)]
            if stride is not None and value.layout is torch.strided:
                pairs += zip(stride, value.stride(), strict=True)
                pairs.append((offset, value.storage_offset()))
            for extent, seen in pairs:
                if _torch_debug.is_symbol(extent):
                    bindings.setdefault(extent, seen)
        elif isinstance(fact, NumberFacts) and type(value) is int:
            symbol = fact.value.recorded
            if _torch_debug.is_symbol(symbol):
                bindings[symbol] = value
    return bindings


def has_symbols(fact: Facts) -> bool:
    """Whether a fact about an input can give a symbol its number."""
    if isinstance(fact, TensorFacts):
        return fact.geometry is not None and not fact.geometry.is_known
    return isinstance(fact, NumberFacts) and not fact.value.is_known


# --- comparing -----------------------------------------------------------------------------------


def accept(facts: Facts, value: Any, bindings: Bindings) -> bool:
    """Whether a value is exactly as recorded; ``False`` may mean that it takes a closer look."""
    if facts is None:
        return True
    if type(facts) is TensorFacts:
        if (
            not isinstance(value, torch.Tensor)
            or value.dtype is not facts.dtype
            or (facts.device is not None and value.device != facts.device)
            or value.layout is not facts.layout
            or (facts.requires_grad is not None and value.requires_grad is not facts.requires_grad)
        ):
            return False
        if facts.geometry is None:
            return True
        size, stride, _ = facts.geometry.resolve(bindings)
        return bool(value.shape == size and (stride is None or value.stride() == stride))
    if type(facts) is NumberFacts:
        return type(value) in (int, bool) and bool(facts.value.resolve(bindings) == value)
    return value is None


def differences(facts: Facts, value: Any, bindings: Bindings) -> Iterator[Difference]:
    """The differences between what was recorded and ``value``, but for the storage offset.

    Args:
        facts: What was recorded.
        value: What there is.
        bindings: Numbers of symbols; symbols seen for the first time are added.
    """
    if facts is None:
        return
    is_tensor = isinstance(value, torch.Tensor)
    if isinstance(facts, TensorFacts):
        if is_tensor:
            yield from _tensor_differences(facts, value, bindings)
        else:
            yield Difference(check="kind", checked="kind", expected="a tensor", seen=_kind(value))
    elif is_tensor:
        known = isinstance(facts, NumberFacts)
        expected = f"the number {facts.value.recorded}" if known else "None"  # type: ignore[union-attr]
        yield Difference(check="kind", checked="kind", expected=expected, seen="a tensor")
    elif isinstance(facts, NumberFacts):
        yield from _number_differences(facts.value, value, bindings)


def _tensor_differences(
    facts: TensorFacts, tensor: torch.Tensor, bindings: Bindings
) -> Iterator[Difference]:
    if tensor.dtype is not facts.dtype:
        yield _differs("dtype", facts.dtype, tensor.dtype)
    if facts.device is not None and not _same_device(facts.device, tensor.device):
        yield _differs("device", facts.device, tensor.device)
    if tensor.layout is not facts.layout:
        yield _differs("layout", facts.layout, tensor.layout)
    if facts.requires_grad is not None and tensor.requires_grad is not facts.requires_grad:
        yield _differs("requires_grad", facts.requires_grad, tensor.requires_grad)
    if facts.geometry is None:
        return
    recorded_size, recorded_stride, _ = facts.geometry.recorded
    size = tuple(tensor.shape)
    if len(size) == len(recorded_size):
        for extent, seen in zip(recorded_size, size, strict=True):
            if _torch_debug.is_symbol(extent):
                bindings.setdefault(extent, seen)
    expected = facts.geometry.resolve(bindings)[0]
    if not _all_equal(expected, size):
        yield _differs("size", _show(recorded_size, expected), size)
        return  # other sizes have other strides
    if recorded_stride is None or tensor.layout is not torch.strided or tensor.numel() == 0:
        return
    stride = tensor.stride()
    for extent, length, seen in zip(recorded_stride, size, stride, strict=True):
        if length > 1 and _torch_debug.is_symbol(extent):
            bindings.setdefault(extent, seen)
    expected = facts.geometry.resolve(bindings)[1]
    for length, step, seen in zip(size, expected, stride, strict=True):
        if length > 1 and step is not None and step != seen:
            yield _differs("strides", _show(recorded_stride, expected), stride)
            return


def _differs(check: str, expected: Any, seen: Any) -> Difference:
    return Difference(check=check, checked=check, expected=expected, seen=seen)


def _same_device(expected: torch.device, seen: torch.device) -> bool:
    # a fake tensor may say "cuda" where the real one says "cuda:0"
    if expected.type != seen.type:
        return False
    return expected.index == seen.index or expected.index is None or seen.index is None


def _all_equal(expected: tuple[int | None, ...], seen: tuple[int, ...]) -> bool:
    return len(expected) == len(seen) and all(
        one is None or one == other for one, other in zip(expected, seen, strict=True)
    )


def _number_differences(formula: Formula, value: Any, bindings: Bindings) -> Iterator[Difference]:
    if type(value) not in (int, bool, float):
        return  # an opaque object, or a symbolic number of an outer trace
    if _torch_debug.is_symbol(formula.recorded) and type(value) is int:
        bindings.setdefault(formula.recorded, value)
    expected = formula.resolve(bindings)
    if expected is None or expected == value:
        return
    if isinstance(expected, float) and math.isnan(expected) and math.isnan(value):
        return
    if not formula.is_known and isinstance(value, float) and math.isclose(expected, value):
        return  # sympy and the machine may round differently
    yield _differs("value", expected, value)


def _show(recorded: tuple[Any, ...], resolved: tuple[int | None, ...]) -> Any:
    if all(type(each) is int for each in recorded):
        return recorded
    return f"{resolved} (recorded as {recorded})"


def _kind(value: Any) -> str:
    return "None" if value is None else f"an instance of {type(value).__qualname__}"


def leaves(value: Any) -> list[Any]:
    """The leaves of nested containers."""
    return _torch_aot.tree_flatten(value)[0]
