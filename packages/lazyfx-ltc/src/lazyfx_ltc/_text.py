"""The notation in which the backend writes a graph down: read it, write it.

One instruction a line: ``%out : Type = kind[attrs](%in, ...)``. Only what a lazy graph contains is
understood; any other line is refused, never skipped.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import CaptureError

_SOURCE = re.compile(r',?\s*source="(?:[^"\\]|\\.)*"')
_INPUT = re.compile(r"%(\w+) : Tensor")
_LINE = re.compile(
    r"^\s*(?P<outs>%\w+ : .+?) = (?P<kind>\w+::\w+)(?:\[(?P<attrs>.*)\])?\((?P<ins>[^()]*)\)\s*$"
)
_OUT = re.compile(r"%(\w+) : ([^%]+?)(?:, (?=%)|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One line of the program; names are without ``%``."""

    outs: tuple[tuple[str, str], ...]
    kind: str
    attrs: str | None
    ins: tuple[str, ...]

    def __str__(self) -> str:
        outs = ", ".join(f"%{name} : {kind}" for name, kind in self.outs)
        attrs = f"[{self.attrs}]" if self.attrs else ""
        return f"  {outs} = {self.kind}{attrs}({', '.join('%' + name for name in self.ins)})"


def parse(text: str) -> tuple[list[str], list[Instruction], list[str]]:
    """(input names, instructions, names of the returned values) of a graph's text."""
    body = _SOURCE.sub("", text)
    head, _, rest = body.partition("):\n")
    inputs = _INPUT.findall(head)
    instructions: list[Instruction] = []
    returned: list[str] = []
    for line in rest.splitlines():
        stripped = line.split(" # ")[0].rstrip()
        if stripped.strip().startswith("return ("):
            returned = re.findall(r"%(\w+)", stripped)
        elif stripped.strip():
            matched = _LINE.match(stripped)
            if matched is None:
                raise CaptureError(
                    f"a line of the recorded graph is not understood: {line.strip()!r}; please"
                    " report it together with the torch version"
                )
            instructions.append(
                Instruction(
                    outs=tuple(_OUT.findall(matched["outs"])),
                    kind=matched["kind"],
                    attrs=(matched["attrs"] or "").strip() or None,
                    ins=tuple(re.findall(r"%(\w+)", matched["ins"])),
                )
            )
    return inputs, instructions, returned


def parse_written(text: str) -> tuple[list[str], list[Instruction], list[str]]:
    """:func:`parse` of what :func:`write` wrote, without the tuple that it packs results into."""
    names, instructions, returned = parse(text)
    if instructions and instructions[-1].kind == "prim::TupleConstruct":
        *instructions, packed = instructions
        returned = list(packed.ins)
    return names, instructions, returned


def number(name: str, value: complex) -> list[Instruction]:
    """Instructions that make a scalar; ``repr`` of a float is exact.

    The notation has no word for nan, infinity (before torch 2.7), the smallest floats and complex
    numbers; they are computed from others.
    """
    if isinstance(value, complex):
        return _of(name, "complex", "aten::Complex", value.real, value.imag)
    if isinstance(value, float) and math.isnan(value):
        sign = math.copysign(1.0, value)
        unsigned = _of(f"{name}u", "float", "aten::sub", math.inf, math.inf)
        return [*unsigned, *number(f"{name}s", sign), _call(name, "aten::copysign", "u", "s")]
    if isinstance(value, float) and math.isinf(value):
        return _of(name, "float", "aten::mul", math.copysign(1e308, value), 10.0)
    if isinstance(value, float) and 0 < abs(value) < sys.float_info.min:
        return _of(name, "float", "aten::mul", value * 2.0**600, 2.0**-600)
    kind = {bool: "bool", int: "int", float: "float"}[type(value)]
    text = repr(int(value)) if kind != "float" else repr(value)
    return [Instruction(outs=((name, kind),), kind="prim::Constant", attrs=f"value={text}", ins=())]


def _of(name: str, kind: str, operator: str, left: float, right: float) -> list[Instruction]:
    made = Instruction(
        outs=((name, kind),), kind=operator, attrs=None, ins=(f"{name}a", f"{name}b")
    )
    return [*number(f"{name}a", left), *number(f"{name}b", right), made]


def _call(name: str, operator: str, *suffixes: str) -> Instruction:
    ins = tuple(name + one for one in suffixes)
    return Instruction(outs=((name, "float"),), kind=operator, attrs=None, ins=ins)


def as_scalar(name: str, value: str) -> Instruction:
    """A bool under a name that passes for a number, which the notation does not count it as."""
    return Instruction(
        outs=((name, "Scalar"),), kind="prim::unchecked_cast", attrs=None, ins=(value,)
    )


def write(names: Sequence[str], live: Sequence[Instruction], outputs: Sequence[str]) -> str:
    """The text of a graph from its inputs, instructions and outputs; several become a tuple."""
    head = ", ".join(f"%{name} : Tensor" for name in names)
    types = ", ".join("Tensor" for _ in outputs)
    packed = ", ".join(f"%{name}" for name in outputs)
    lines = [f"graph({head}):", *(str(one) for one in live)]
    if len(outputs) == 1:
        lines.append(f"  return ({packed})")
    else:
        lines.append(f"  %packed : ({types}) = prim::TupleConstruct({packed})")
        lines.append("  return (%packed)")
    return "\n".join(lines) + "\n"
