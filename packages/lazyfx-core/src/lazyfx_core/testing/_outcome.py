"""What running something gave: results or an exception, and what became of its inputs.

Two modules behave alike when the same call gives the same outcome on both. An exception is an
outcome too: where the plain module raises, the other must raise the same type with the same text.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ._case import clone_inputs

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBERED = re.compile(r"0x[0-9a-f]+|<eval_with_key>\.\d+|___torch_mangle_\d+\.?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run.

    Attributes:
        value: What was returned; None if something was raised.
        error: What was raised, or None.
        inputs: The inputs after the run.
    """

    value: Any
    error: Exception | None
    inputs: tuple[Any, ...]


def run(function: Callable[..., Any], inputs: tuple[Any, ...] = ()) -> Outcome:
    """Call ``function`` on clones of ``inputs`` with torch's random numbers at a fixed seed.

    Leaves the global random state as it was and drops warnings. Not for several threads at once:
    both are global.
    """
    clones = clone_inputs(inputs)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return run_unseeded(function, clones)


def run_unseeded(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Outcome:
    """Call ``function`` on ``inputs`` themselves and touch no global state."""
    try:
        return Outcome(value=function(*inputs), error=None, inputs=inputs)
    except Exception as error:
        return Outcome(value=None, error=error, inputs=inputs)


def assert_same_outcome(
    expected: Outcome, seen: Outcome, what: str, *, messages: bool = True
) -> None:
    """Raise unless two runs agree in results or exception, and in what became of the inputs.

    Args:
        expected: The run of the plain module.
        seen: The run of the module under test.
        what: Says in the message what was run.
        messages: Whether the texts of exceptions must agree, save for addresses and numbers that
            torch counts up.

    Raises:
        AssertionError: They differ. An unexpected exception is the ``__cause__``.
    """
    if type(expected.error) is not type(seen.error):
        raise AssertionError(
            f"{what}: the plain module {_ended(expected)}, the one under test {_ended(seen)}"
        ) from (seen.error or expected.error)
    if messages and _text(expected.error) != _text(seen.error):
        raise AssertionError(
            f"{what}: the plain module raised {_text(expected.error)!r}, the one under test "
            f"{_text(seen.error)!r}"
        ) from seen.error
    difference = value_difference(expected.value, seen.value, "result") or value_difference(
        expected.inputs, seen.inputs, "inputs after the call"
    )
    if difference:
        raise AssertionError(f"{what}: {difference}")


def value_difference(expected: Any, seen: Any, where: str) -> str:
    """Where two nested values differ, as text; empty if they are equal. ``nan`` equals ``nan``."""
    if type(expected) is not type(seen):
        return f"{where} should be a {type(expected).__name__}, is a {type(seen).__name__}"
    if isinstance(expected, torch.Tensor):
        return _tensor_difference(expected, seen, where)
    if isinstance(expected, dict):
        if list(expected) != list(seen):
            return f"{where} should have the keys {list(expected)}, has {list(seen)}"
        pairs = [(expected[key], seen[key], f"{where}[{key!r}]") for key in expected]
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(seen):
            return f"{where} should have {len(expected)} items, has {len(seen)}"
        pairs = [
            (*both, f"{where}[{i}]") for i, both in enumerate(zip(expected, seen, strict=True))
        ]
    else:
        both_nan = isinstance(expected, float) and math.isnan(expected) and math.isnan(seen)
        return (
            "" if both_nan or expected == seen else f"{where} should be {expected!r}, is {seen!r}"
        )
    return next(filter(None, (value_difference(*pair) for pair in pairs)), "")


def _tensor_difference(expected: torch.Tensor, seen: torch.Tensor, where: str) -> str:
    for field in ("dtype", "shape", "device", "requires_grad"):
        values = getattr(expected, field), getattr(seen, field)
        if values[0] != values[1]:
            return f"{where}.{field} should be {values[0]}, is {values[1]}"
    if torch.allclose(expected, seen, equal_nan=True):
        return ""
    return f"{where} should be {expected.tolist()}, is {seen.tolist()}"


def _ended(outcome: Outcome) -> str:
    if outcome.error is None:
        return "returned"
    return f"raised {type(outcome.error).__name__}: {_text(outcome.error)}"


def _text(error: Exception | None) -> str:
    return _NUMBERED.sub("#", str(error))
