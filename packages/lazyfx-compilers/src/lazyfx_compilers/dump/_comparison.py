"""Holding the results of one run against those of another, bit by bit or closely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ._specs import OpaqueSpec, ScalarSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from ._specs import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Values that can be compared: inputs after a run, then outputs."""

    specs: tuple[InputSpec, ...]
    values: list[Any]


class Comparison:
    """What is found while one result after the other is compared.

    Args:
        exact: Results have to be the same bits; otherwise ``torch.testing.assert_close`` decides.
    """

    def __init__(self, *, exact: bool) -> None:
        self.exact = exact
        self.compared = 0
        self.skipped: list[str] = []
        self.bit_equal = True
        self.max_abs_error = 0.0
        self.differences: list[str] = []

    def compare(
        self,
        expected: Results,
        seen: Results,
        *,
        saved: Container[int] = (),
        overwritten: Container[int] = (),
    ) -> None:
        """Compare all values; differences are added to :attr:`differences`.

        Args:
            expected: What was recorded.
            seen: What came out.
            saved: Positions of values whose strides and sharing do not count.
            overwritten: Positions of values that are skipped.
        """
        if len(expected.specs) != len(seen.specs):
            self._differs(f"{len(seen.specs)} inputs and outputs instead of {len(expected.specs)}")
            return
        pairs = zip(expected.specs, expected.values, seen.specs, seen.values, strict=True)
        owners = _owners(expected.specs), _owners(seen.specs)
        for position, (want, expected_value, got, value) in enumerate(pairs):
            if isinstance(want, OpaqueSpec) or position in overwritten:
                self.skipped.append(want.name)
                continue
            self.compared += 1
            if isinstance(want, ScalarSpec):
                if not isinstance(got, ScalarSpec) or not _same_number(want.value, got.value):
                    self._differs(f"{want.name}: {value!r} instead of {expected_value!r}")
            elif not isinstance(got, TensorSpec):
                self._differs(f"{want.name}: {type(value).__qualname__} instead of a tensor")
            elif self._have_one_form(want, got):
                if position not in saved:
                    self._compare_places(want, got, *(each[position] for each in owners))
                self._compare_tensors(want, expected_value, value)

    def _have_one_form(self, want: TensorSpec, got: TensorSpec) -> bool:
        for what in ("dtype", "shape"):
            if getattr(want, what) != getattr(got, what):
                self._differs(
                    f"{want.name}: {what} {getattr(got, what)} instead of {getattr(want, what)}"
                )
                return False
        return True

    def _compare_places(
        self, want: TensorSpec, got: TensorSpec, owner: int, other_owner: int
    ) -> None:
        if _steps(want) != _steps(got):
            self._differs(f"{want.name}: strides {got.stride} instead of {want.stride}")
        if owner != other_owner:
            self._differs(f"{want.name}: shares its storage with other tensors than recorded")

    def _compare_tensors(
        self, want: TensorSpec, expected: torch.Tensor, value: torch.Tensor
    ) -> None:
        expected, value = _plain(expected), _plain(value)
        if same_bits(expected, value):
            return
        self.bit_equal = False
        try:
            error = _largest_error(expected, value)
            self.max_abs_error = max(self.max_abs_error, error)
            torch.testing.assert_close(value, expected, equal_nan=True)
        except AssertionError as mismatch:
            text = " ".join(str(mismatch).split())
            self._differs(f"{want.name}: {text}")
        except RuntimeError:  # torch does not calculate with packed formats: other bits differ
            self._differs(f"{want.name}: not bit-equal, and {want.dtype} cannot be close")
        else:
            if self.exact:
                self._differs(f"{want.name}: not bit-equal, largest difference {error:.3g}")

    def _differs(self, text: str) -> None:
        self.bit_equal = False
        self.differences.append(text)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits."""
    return torch.equal(_bits(_plain(one)), _bits(_plain(other)))


def _owners(specs: Sequence[InputSpec]) -> list[int]:
    """For each value the position of the first one in the same storage."""
    first: dict[int, int] = {}
    return [
        first.setdefault(spec.storage, position) if isinstance(spec, TensorSpec) else position
        for position, spec in enumerate(specs)
    ]


def _steps(spec: TensorSpec) -> tuple[int, ...]:
    """The strides that decide about addresses."""
    if 0 in spec.shape:
        return ()
    return tuple(s for n, s in zip(spec.shape, spec.stride, strict=True) if n > 1)


def _same_number(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _largest_error(one: torch.Tensor, other: torch.Tensor) -> float:
    if not (one.dtype.is_floating_point or one.dtype.is_complex) or one.numel() == 0:
        return 0.0
    wide = torch.complex128 if one.dtype.is_complex else torch.float64
    return float((one.to(wide) - other.to(wide)).abs().nan_to_num().max())
