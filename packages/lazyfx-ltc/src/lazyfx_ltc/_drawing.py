"""A program as a drawing in Graphviz' notation: operators as boxes, tensors as arrows.

(torch's own drawing of a lazy graph ends in an error for operators that take lists.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ._program import Program
from ._text import parse


def drawing(program: Program | None, names: Sequence[str]) -> str:
    """The drawing.

    Args:
        program: What to draw; nothing is drawn for None.
        names: The sources in words, by number.
    """
    lines = ["digraph program {", "  node [shape=box, fontname=monospace];"]
    if program is not None:
        lines += _body(program, names)
    return "\n".join([*lines, "}"]) + "\n"


def _body(program: Program, names: Sequence[str]) -> list[str]:
    inputs, instructions, _ = parse(program.text)
    lines: list[str] = []
    made_by: dict[str, str] = {}
    for name, number in zip(inputs, program.labels, strict=True):
        made_by[name] = f"in_{name}"
        shown = "constant" if number is None else names[number]
        lines.append(f"  in_{name} [label={json.dumps(shown)}, shape=ellipse];")
    for index, one in enumerate(instructions):
        if one.kind == "prim::Constant":
            continue
        shown = one.kind.removeprefix("aten::")
        if one.kind == "prim::TupleConstruct":
            shown = "results"
        lines.append(f"  n{index} [label={json.dumps(shown)}];")
        lines += [f"  {made_by[name]} -> n{index};" for name in one.ins if name in made_by]
        made_by.update((name, f"n{index}") for name, _ in one.outs)
    return lines
