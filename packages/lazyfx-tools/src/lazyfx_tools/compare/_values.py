"""When two values agree, and by how much they do not.

Two rules. ``"eager"``: the tolerances of :func:`torch.testing.assert_close` by dtype.
``"float64"``: the error against a computation in float64 may be a small multiple of the error that
eager itself makes there, plus a few units in the last place; so nobody has to choose a tolerance.
Held against each other are the largest errors, and the typical ones relative to the size of each
number. What the first rule refuses at its default tolerances is held against the second one, since
rounding adds up along a graph, and says nothing about a compiler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lazyfx_compilers import _torch_aot

What = Literal[
    "values",
    "nan",
    "dtype",
    "size",
    "strides",
    "device",
    "layout",
    "aliasing",
    "mutation",
    "kind",
    "raised",
]

_TOLERANCES = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
    torch.complex32: (1e-3, 1e-5),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex128: (1e-7, 1e-7),
}
_MULTIPLE = 10.0
_ULPS = 4.0
_SAMPLE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """What differs, and both sides of it: tensors where values do."""

    what: What
    expected: Any
    seen: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSizes:
    """How far two tensors of one size are apart.

    Attributes:
        differing: Elements that are outside the tolerance.
        elements: All of them.
        max_abs: The largest absolute difference; infinite if one side is not finite.
        max_rel: The largest difference relative to what was expected.
        ulps: The largest distance in representable numbers; None for integers.
        position: The worst element.
        expected: What was expected there.
        seen: What there is.
        reference_error: The largest error of the reference itself, against float64; None if that
            could not be told.
    """

    differing: int
    elements: int
    max_abs: float
    max_rel: float
    ulps: int | None
    position: tuple[int, ...]
    expected: Any
    seen: Any
    reference_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Tells whether values agree.

    Attributes:
        reference: Which rule.
        rtol: Relative tolerance of the first rule; None: by dtype.
        atol: Absolute tolerance of the first rule; None: by dtype.
    """

    reference: Literal["eager", "float64"]
    rtol: float | None = None
    atol: float | None = None

    @property
    def arbitrated(self) -> bool:
        """Whether what the first rule refuses is held against float64."""
        return self.reference == "eager" and self.rtol is None and self.atol is None

    def check(
        self, expected: Any, seen: Any, *, exact: Any = None, recorded: Any = None
    ) -> Mismatch | None:
        """The first difference, or None.

        Args:
            expected: The reference's.
            seen: What is judged.
            exact: The same in float64, for the second rule; None: the first rule.
            recorded: The description of the value that tracing left: its strides are as good.
        """
        if not isinstance(expected, torch.Tensor) or not isinstance(seen, torch.Tensor):
            return _compare_others(expected, seen)
        if _class(expected) is not _class(seen):
            return Mismatch(what="kind", expected=_kind(expected), seen=_kind(seen))
        found = _compare_descriptions(expected, seen, recorded)
        if found is not None:
            return found
        if bool(self.close(expected, seen, exact).all()):
            return None
        one, other = _plain(expected), _plain(seen)
        bad_one, bad_other = ~torch.isfinite(one), ~torch.isfinite(other)
        what: What = "nan" if bool((bad_one != bad_other).any()) else "values"
        return Mismatch(what=what, expected=expected, seen=seen)

    def close(self, expected: torch.Tensor, seen: torch.Tensor, exact: Any = None) -> torch.Tensor:
        """Which elements agree."""
        expected, seen = _plain(expected), _plain(seen)
        if not (expected.is_floating_point() or expected.is_complex()):
            return expected == seen
        if isinstance(exact, torch.Tensor):
            return _close_to_exact(expected, seen, _plain(exact))
        rtol, atol = _TOLERANCES.get(expected.dtype, (1e-3, 1e-5))
        rtol = rtol if self.rtol is None else self.rtol
        atol = atol if self.atol is None else self.atol
        return torch.isclose(seen, expected, rtol=rtol, atol=atol, equal_nan=True)


def _compare_others(expected: Any, seen: Any) -> Mismatch | None:
    if isinstance(expected, torch.Tensor) or isinstance(seen, torch.Tensor):
        return Mismatch(what="kind", expected=_kind(expected), seen=_kind(seen))
    if expected is seen or expected == seen:
        return None
    if isinstance(expected, float) and isinstance(seen, (int, float)):
        if math.isclose(expected, seen) or (math.isnan(expected) and math.isnan(seen)):
            return None
    elif not isinstance(expected, (bool, int, float)) and expected is not None and seen is not None:
        return None  # an object that torch passes through
    return Mismatch(what="kind", expected=_kind(expected), seen=_kind(seen))


def _class(tensor: torch.Tensor) -> type[torch.Tensor]:
    """A graph may give a parameter back as a tensor; any other class means something."""
    return torch.Tensor if type(tensor) is torch.nn.Parameter else type(tensor)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        kind = _class(value)
        name = "tensor" if kind is torch.Tensor else f"{kind.__module__}.{kind.__qualname__}"
        return f"a {name} of {value.dtype} and size {tuple(value.shape)}"
    return repr(value) if isinstance(value, (bool, int, float, type(None))) else repr(type(value))


def _compare_descriptions(
    expected: torch.Tensor, seen: torch.Tensor, recorded: Any
) -> Mismatch | None:
    if expected.dtype is not seen.dtype:
        return Mismatch(what="dtype", expected=expected.dtype, seen=seen.dtype)
    if expected.shape != seen.shape:
        return Mismatch(what="size", expected=tuple(expected.shape), seen=tuple(seen.shape))
    if expected.device != seen.device:
        return Mismatch(what="device", expected=expected.device, seen=seen.device)
    if expected.layout is not seen.layout:
        return Mismatch(what="layout", expected=expected.layout, seen=seen.layout)
    if expected.layout is not torch.strided or expected.numel() == 0:
        return None
    strides = [expected.stride()]
    if isinstance(recorded, torch.Tensor) and recorded.dim() == expected.dim():
        strides.append(tuple(_torch_aot.hint(step) for step in recorded.stride()))
    if any(_same_steps(expected.shape, one, seen.stride()) for one in strides):
        return None
    return Mismatch(what="strides", expected=expected.stride(), seen=seen.stride())


def _same_steps(shape: torch.Size, expected: tuple[int, ...], seen: tuple[int, ...]) -> bool:
    return all(
        one == other
        for length, one, other in zip(shape, expected, seen, strict=True)
        if length > 1  # others decide no address
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's values in a type that can be calculated with."""
    if type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        tensor = tensor.as_subclass(torch.Tensor)  # a subclass that adds nothing to the values
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        return tensor.resolve_conj()
    if tensor.is_floating_point() and tensor.dtype not in _TOLERANCES:
        return tensor.to(torch.float32)  # eight bits
    return tensor.resolve_neg()


def _close_to_exact(
    expected: torch.Tensor, seen: torch.Tensor, exact: torch.Tensor
) -> torch.Tensor:
    if expected.numel() == 0:
        return torch.ones_like(expected, dtype=torch.bool)
    limits = torch.finfo(expected.dtype)
    wide = torch.complex128 if expected.is_complex() else torch.float64
    exact = exact.to(wide)
    own, error = (expected.to(wide) - exact).abs(), (seen.to(wide) - exact).abs()
    finite = torch.isfinite(own)
    magnitude = torch.where(torch.isfinite(exact), exact, 0).abs()
    scale = torch.maximum(magnitude, magnitude.square().mean().sqrt())
    smallest = limits.tiny * (limits.eps if expected.dtype is torch.float16 else 1.0)
    largest = torch.where(finite, own, 0.0).max()
    bound = _MULTIPLE * largest + _ULPS * (limits.eps * scale + smallest)
    same = (seen == expected) | (seen.isnan() & expected.isnan())
    rounded = exact.to(expected.dtype)  # may be infinite where float64 is not
    same |= (seen == rounded) | (seen.isnan() & rounded.isnan())
    rtol, atol = _TOLERANCES[expected.dtype]
    near = torch.isclose(seen, expected, rtol=rtol, atol=atol, equal_nan=True)
    near |= _relatively_close(exact, own, error, limits.eps)
    return same | ((error <= bound) & near)


def _relatively_close(
    exact: torch.Tensor, own: torch.Tensor, error: torch.Tensor, eps: float
) -> torch.Tensor:
    """Which elements are close in relation to their own size, judged by typical errors.

    Among numbers of very different sizes the largest error says nothing about the small ones.
    Relative errors are large where numbers cancel out, but not for most elements of a tensor.
    Those of approximations (inductor's ``erf``) are large near zero, so errors that assert_close
    allows do not count.
    """
    counts = torch.isfinite(exact) & (exact != 0) & torch.isfinite(own) & torch.isfinite(error)
    size = exact[counts].abs()
    step = size.numel() // _SAMPLE + 1
    if step > size.numel():
        return torch.ones_like(counts)
    sizes = size[::step]
    # of few numbers the largest is a matter of luck
    places = torch.tensor([0.5, 0.75, 0.9] if sizes.numel() >= 32 else [0.5], dtype=torch.float64)
    mine = (own[counts][::step] / sizes).quantile(places.to(sizes.device))
    seen = (error[counts][::step] / sizes).quantile(places.to(sizes.device))
    limits = _MULTIPLE * mine + _ULPS * eps
    if bool((seen <= limits).all()):
        return torch.ones_like(counts)
    return ~counts | (error <= limits[seen > limits].min() * exact.abs())


def identical(one: Any, other: Any) -> bool:
    """Whether two values are the same to the bit; all NaNs are one."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return one is other or bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if _class(one) is not _class(other):
        return False
    if one.device.type == "meta":  # there are no bits
        return True
    one, other = _plain(one), _plain(other)
    return bool(((one == other) | ((one != one) & (other != other))).all())


def error_sizes(judge: Judge, mismatch: Mismatch, exact: Any = None) -> ErrorSizes | None:
    """How large a difference of values is; None for one of another kind."""
    expected, seen = mismatch.expected, mismatch.seen
    if not isinstance(expected, torch.Tensor) or not isinstance(seen, torch.Tensor):
        return None
    close = judge.close(expected, seen, exact if judge.reference == "float64" else None)
    one, other = _plain(expected), _plain(seen)
    wide = torch.complex128 if one.is_complex() else torch.float64
    distance = (other.to(wide) - one.to(wide)).abs()
    same = (one == other) | (one.isnan() & other.isnan())
    distance = torch.where(same, 0.0, distance.nan_to_num(nan=math.inf, posinf=math.inf))
    relative = torch.where(same, 0.0, distance / one.to(wide).abs())
    # a finite and small difference may be the one that counts, so only elements that differ do
    place = int(torch.where(close, -1.0, distance).argmax())
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), one.shape))
    own = None
    if isinstance(exact, torch.Tensor) and (one.is_floating_point() or one.is_complex()):
        own = float((one.to(wide) - _plain(exact).to(wide)).abs().max())
    return ErrorSizes(
        differing=int((~close).sum()),
        elements=one.numel(),
        max_abs=float(distance.max()),
        max_rel=float(relative.nan_to_num(nan=math.inf).max()),
        ulps=_ulps(one, other),
        position=position,
        expected=one[position].item(),
        seen=other[position].item(),
        reference_error=own,
    )


def _ulps(one: torch.Tensor, other: torch.Tensor) -> int | None:
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    if not one.is_floating_point():
        return None
    finite = torch.isfinite(one) & torch.isfinite(other)
    if not bool(finite.any()):
        return None
    first, second = _ordinals(one[finite]), _ordinals(other[finite])
    # in float64 the difference of two int64 may overflow
    place = int((first.double() - second.double()).abs().argmax())
    return abs(int(first[place]) - int(second[place]))


def _ordinals(values: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the representable numbers, neighbors one apart."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = values.contiguous().view(kinds[values.dtype.itemsize]).to(torch.int64)
    lowest = -(1 << (8 * values.dtype.itemsize - 1))
    return torch.where(bits < 0, lowest - bits, bits)
