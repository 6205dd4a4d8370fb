"""Mend a recorded graph, instruction by instruction, so that it means what the model meant.

* Tensor constants of one element, which torch cannot read back, become scalars, and lists of bools
  are put together from them; tuples that only name the results of an operator have no reader and
  are dropped.
* A python number in the model arrives as a zero-dimensional tensor, which takes part in type
  promotion (``int_tensor * 0.5`` would become float64). Where the operator has an overload for a
  number, it gets the number back.
* Functionalization left a copy where the model had a view. Nothing in the program writes, so a
  view serves as well (``_program.py`` finds the results that would now share memory).
* Random draws get contiguous operands, as eager's were: ``clone`` and ``contiguous`` leave no
  trace in the recording, and the order of draws follows the memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from . import _torch_lazy
from ._text import Instruction, as_scalar, number
from .errors import CaptureError

_TENSOR_CONSTANT = re.compile(r"value=\{(?P<value>[^{}]*)\}")
_NUMBERS = frozenset({torch.int64, torch.float64, torch.bool, torch.complex128})
_VIEWS = {
    # ``view`` needs suitable strides where the copy did not; ``reshape`` copies if it must.
    "aten::view_copy": "aten::reshape",
    "aten::t_copy": "aten::t",
    "aten::transpose_copy": "aten::transpose",
    "aten::permute_copy": "aten::permute",
    "aten::expand_copy": "aten::expand",
    "aten::unsqueeze_copy": "aten::unsqueeze",
    "aten::squeeze_copy": "aten::squeeze",
    "aten::slice_copy": "aten::slice",
    "aten::select_copy": "aten::select",
    "aten::diagonal_copy": "aten::diagonal",
}
_SAME = {"aten::detach_copy", "aten::alias_copy"}
_IMPLICIT = {"aten::IntImplicit", "aten::FloatImplicit", "aten::ScalarImplicit"}


def scalar_of(datum: Any) -> complex | None:
    """The python number behind a zero-dimensional constant, if it can have been one."""
    if isinstance(datum, torch.Tensor):
        if datum.dim() != 0 or datum.dtype not in _NUMBERS:
            return None
        datum = datum.item()
    return datum if isinstance(datum, (bool, int, float, complex)) else None


def _takes_numbers(kind: str, types: Sequence[str], wanted: set[int]) -> bool:
    """Whether an overload of ``kind`` takes numbers exactly at the wanted positions."""
    for schema in _torch_lazy.schemas(kind):
        arguments = schema.arguments
        if len(arguments) < len(types):
            continue
        if any(not one.has_default_value() for one in arguments[len(types) :]):
            continue
        for index, seen in enumerate(types):
            expected = str(arguments[index].type)
            if index in wanted:
                fits = expected in ("number", "Optional[number]")
            elif seen == "Tensor":
                fits = expected in ("Tensor", "Optional[Tensor]")
            else:
                fits = "Tensor" not in expected or expected.startswith(("List", "Optional[List"))
                fits = fits or (seen == "NoneType" and expected == "Optional[Tensor]")
            if not fits:
                break
        else:
            return True
    return False


class Repair:
    """Rewrites instructions one by one; ``numbers`` are the scalars known so far."""

    def __init__(self, scalars: dict[str, complex], draws: set[str]) -> None:
        self.draws = draws
        self.numbers = dict(scalars)
        self.types: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.done: list[Instruction] = []
        self._scalar_names: dict[str, str] = {}

    def scalar(self, name: str) -> str:
        """The name of a scalar constant equal to a zero-dimensional tensor constant."""
        if name not in self._scalar_names:
            scalar = f"n{name}"
            self._scalar_names[name] = scalar
            for one in number(scalar, self.numbers[name]):
                self._append(one)
        return self._scalar_names[name]

    def operand(self, name: str) -> str:
        """The same as a number that an operator takes."""
        scalar = self.scalar(name)
        if type(self.numbers[name]) is not bool:
            return scalar
        if f"{scalar}s" not in self.types:
            self._append(as_scalar(f"{scalar}s", scalar))
        return f"{scalar}s"

    def add(self, one: Instruction) -> None:
        """Repair one instruction and append it."""
        one = replace(one, ins=tuple(self.aliases.get(name, name) for name in one.ins))
        if one.kind == "prim::TupleConstruct":
            return
        if one.kind == "prim::Constant" and (match := _TENSOR_CONSTANT.search(one.attrs or "")):
            self._tensor_constant(one, match["value"])
            return
        if one.kind == "prim::Constant" and one.outs[0][1] == "bool[]":
            self._bools(one)
            return
        if one.kind in _IMPLICIT and one.ins[0] in self.numbers:
            self.aliases[one.outs[0][0]] = self.scalar(one.ins[0])
            return
        if one.kind in _SAME:
            self.aliases[one.outs[0][0]] = one.ins[0]
            return
        if one.kind in _VIEWS:
            by_size = one.kind != "aten::view_copy" or self.types.get(one.ins[1]) == "int[]"
            self._append(replace(one, kind=_VIEWS[one.kind]) if by_size else one)
            return
        one = self._with_numbers(one)
        if any(name in self.draws for name, _ in one.outs):
            one = replace(one, ins=tuple(self._contiguous(name) for name in one.ins))
        self._append(one)

    def _bools(self, one: Instruction) -> None:
        """A list of bools, which torch cannot read back as a constant."""
        name = one.outs[0][0]
        values = re.findall(r"True|False|\d+", (one.attrs or "").partition("=")[2])
        parts = [f"b{name}x{index}" for index in range(len(values))]
        for part, text in zip(parts, values, strict=True):
            self.done += number(part, text in ("True", "1"))
        self._append(replace(one, kind="prim::ListConstruct", attrs=None, ins=tuple(parts)))

    def _contiguous(self, name: str) -> str:
        if self.types.get(name, "Tensor") != "Tensor":
            return name
        count = len(self.done)
        zero, dense = f"f{count}", f"c{count}"
        self.done += number(zero, 0)
        self._append(
            Instruction(
                outs=((dense, "Tensor"),), kind="aten::contiguous", attrs=None, ins=(name, zero)
            )
        )
        return dense

    def _append(self, one: Instruction) -> None:
        self.types.update(one.outs)
        self.done.append(one)

    def _tensor_constant(self, one: Instruction, text: str) -> None:
        name, kind = one.outs[0]
        try:
            value: bool | float
            if kind.startswith(("Long", "Int", "Short", "Char", "Byte")):
                value = int(text)
            elif kind.startswith("Bool"):
                value = bool(int(text))
            else:
                value = float(text)
        except ValueError as error:
            raise CaptureError(
                f"a constant of the recorded graph is not understood: {one}; please report it"
                " together with the torch version"
            ) from error
        if kind.startswith(("Long", "Double", "Bool")):
            self.numbers[name] = value
            scalar = self.scalar(name)
            self._append(
                Instruction(
                    outs=((name, "Tensor"),), kind="prim::NumToTensor", attrs=None, ins=(scalar,)
                )
            )
            return
        raise CaptureError(
            f"a constant of the recorded graph has an unexpected type: {one}; please report it"
            " together with the torch version"
        )

    def _with_numbers(self, one: Instruction) -> Instruction:
        candidates = {i for i, name in enumerate(one.ins) if name in self.numbers}
        if not candidates or one.kind.startswith("prim::"):
            return one
        if one.kind == "aten::sub" and candidates == {0}:
            # number - tensor: torch's operator for it takes the operands the other way round
            one = replace(one, kind="aten::rsub", ins=(one.ins[1], one.ins[0], *one.ins[2:]))
            candidates = {1}
        types = [self.types.get(name, "Tensor") for name in one.ins]
        if not _takes_numbers(one.kind, types, candidates):
            return one
        ins = [self.operand(n) if i in candidates else n for i, n in enumerate(one.ins)]
        return replace(one, ins=tuple(ins))
