"""Make a program faster without changing a bit of what it computes.

* A number beside a tensor of its own kind (``x * 0.5``) becomes a constant of the tensor's dtype.
  Eager wraps the number into a tensor and converts it at every call, which takes as long as the
  arithmetic of some thousand elements.
* What changes nothing is left out: a reshape to the same shape, an expansion to the same size, a
  slice of everything, a copy, a source made contiguous that is. Nothing in a program writes, so
  nobody can tell; a result that would now share memory is found by ``_program.py``, and copied
  there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ._specs import TensorSpec
from ._text import Instruction

_WITH_NUMBERS = frozenset({"aten::add", "aten::sub", "aten::mul", "aten::div", "aten::rsub"})
_FLOATS = (torch.float32, torch.float64)
_NEUTRAL = frozenset(
    {"aten::reshape", "aten::expand", "aten::slice", "aten::_to_copy", "aten::clone"}
)


def asked(instructions: Sequence[Instruction]) -> set[str]:
    """The tensors of a program whose looks :func:`optimized` goes by."""
    kinds = _WITH_NUMBERS | _NEUTRAL
    concerned = [one for one in instructions if one.kind in kinds]
    return {name for one in concerned for name in (one.ins[0], one.outs[0][0])}


def optimized(
    instructions: Sequence[Instruction],
    looks: Mapping[str, TensorSpec],
    sources: Mapping[str, TensorSpec],
) -> tuple[list[Instruction], dict[str, torch.Tensor], dict[str, str]]:
    """A faster program.

    Args:
        instructions: The program; not changed.
        looks: What its tensors look like.
        sources: What its inputs look like for certain.

    Returns:
        The instructions, constants that they use by name, and names that now have another one.
    """
    numbers = {one.outs[0][0]: _number(one) for one in instructions if not one.ins}
    constants: dict[tuple[torch.dtype, str], str] = {}
    made: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    done: list[Instruction] = []
    for one in instructions:
        one = replace(one, ins=tuple(aliases.get(name, name) for name in one.ins))
        if one.kind in _NEUTRAL and _changes_nothing(one, looks):
            aliases[one.outs[0][0]] = one.ins[0]
            continue
        if one.kind == "aten::contiguous" and _is_contiguous(sources.get(one.ins[0])):
            aliases[one.outs[0][0]] = one.ins[0]
            continue
        if one.kind in _WITH_NUMBERS and len(one.ins) > 1:
            value = numbers.get(one.ins[1])
            dtype = _dtype_of_both(one, looks)
            if value is not None and dtype is not None and _is_exact(value, dtype, one.kind):
                key = (dtype, repr(value))
                name = constants.setdefault(key, f"w{len(constants)}")
                made[name] = torch.tensor(value, dtype=dtype)
                one = replace(one, ins=(one.ins[0], name, *one.ins[2:]))
        done.append(one)
    return done, made, aliases


def _number(one: Instruction) -> float | None:
    """The number that an instruction makes, if it makes one."""
    if one.kind != "prim::Constant" or one.outs[0][1] not in ("int", "float"):
        return None
    text = (one.attrs or "").removeprefix("value=")
    try:
        return int(text) if one.outs[0][1] == "int" else float(text)
    except ValueError:
        return None


def _dtype_of_both(one: Instruction, looks: Mapping[str, TensorSpec]) -> torch.dtype | None:
    """The dtype of the first operand, if the result has it too."""
    operand, result = looks.get(one.ins[0]), looks.get(one.outs[0][0])
    if operand is None or result is None or operand.dtype is not result.dtype:
        return None
    return operand.dtype


def _is_exact(value: float, dtype: torch.dtype, kind: str) -> bool:
    """Whether a tensor of one number of this dtype means the same as the number."""
    if dtype is torch.int64:
        return isinstance(value, int) and abs(value) < 2**53 and kind != "aten::div"
    if dtype not in _FLOATS or not math.isfinite(value):
        return False
    limits = torch.finfo(dtype)
    return value == 0 or limits.tiny <= abs(value) <= limits.max


def _is_contiguous(spec: TensorSpec | None) -> bool:
    """Whether the layout is that of :func:`torch.contiguous_format`, sizes of one aside."""
    if spec is None:
        return False
    dense, step = [], 1
    for size in reversed(spec.shape):
        dense.append(step)
        step *= size
    return spec.same_layout(tuple(reversed(dense)))


def _changes_nothing(one: Instruction, looks: Mapping[str, TensorSpec]) -> bool:
    operand, result = looks.get(one.ins[0]), looks.get(one.outs[0][0])
    return (
        operand is not None
        and result is not None
        and operand.shape == result.shape
        and operand.dtype is result.dtype
        and operand.device == result.device
    )
