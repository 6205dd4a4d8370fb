"""The notation in which the backend writes a graph down: read it, write it.

One instruction a line: ``%out : Type = kind[attrs](%in, ...)``. Only what a lazy graph contains is
understood; any other line is refused, never skipped.
"""

from __future__ import annotations

import re
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


def number(name: str, value: bool | float) -> Instruction:
    """A scalar constant; ``repr`` of a float is exact."""
    kind = {bool: "bool", int: "int", float: "float"}[type(value)]
    text = repr(int(value)) if kind != "float" else repr(value)
    return Instruction(outs=((name, kind),), kind="prim::Constant", attrs=f"value={text}", ins=())


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
