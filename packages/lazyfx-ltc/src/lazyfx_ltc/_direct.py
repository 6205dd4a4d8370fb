"""A program of a few operators as straight python.

For one or two operators, entering an interpreter takes as long as computing. The functions are
those that ``torch.add`` and its like stand for; a program that needs anything but plain calls of
them has no such form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import _torch_lazy
from ._text import Instruction, parse_written

_MOST = 3  # beyond, TorchScript's interpreter is faster
_LITERALS = ("int", "float", "bool", "NoneType")


def direct(text: str, constants: Mapping[int, torch.Tensor]) -> Callable[..., Any] | None:
    """A program as a python function of the inputs that are no constants; None if it has no form.

    Args:
        text: The program.
        constants: The values of some inputs, by place.
    """
    names, instructions, outputs = parse_written(text)
    calls = [one for one in instructions if one.kind.startswith("aten::")]
    if len(calls) > _MOST:
        return None
    values: dict[str, Any] = {f"v{names[place]}": one for place, one in constants.items()}
    parameters = [f"v{name}" for name in names if f"v{name}" not in values]
    schemas = (schema for _, _, schema in _torch_lazy.read_graph(text)[1] if schema is not None)
    lines: list[str] = []
    for one in instructions:
        written = _line(one, schemas, values)
        if written is None:
            return None
        lines.append(f"    {written}\n")
    results = "".join(f"v{name}, " for name in outputs)
    result = f"v{outputs[0]}" if len(outputs) == 1 else f"({results})"
    source = f"def run({', '.join(parameters)}):\n{''.join(lines)}    return {result}\n"
    exec(source, values)
    found: Callable[..., Any] = values["run"]
    return found


def _line(one: Instruction, schemas: Any, values: dict[str, Any]) -> str | None:
    """The line of python for an instruction; puts what it calls among the values."""
    if len(one.outs) != 1:
        return None
    ((name, kind),) = one.outs
    ins = [f"v{into}" for into in one.ins]
    if one.kind == "prim::Constant":
        literal = _literal(one, kind)
        return None if literal is None else f"v{name} = {literal}"
    if one.kind == "prim::ListConstruct":
        return f"v{name} = [{', '.join(ins)}]"
    schema = next(schemas, None) if one.kind.startswith("aten::") else None
    if schema is None or kind != "Tensor":
        return None
    function = _torch_lazy.python_function(one.kind.removeprefix("aten::"))
    if function is None or len(schema.arguments) != len(ins):
        return None
    values[f"f{name}"] = function
    given: Sequence[str] = [
        f"{argument.name}={into}" if argument.kwarg_only else into
        for argument, into in zip(schema.arguments, ins, strict=True)
    ]
    return f"v{name} = f{name}({', '.join(given)})"


def _literal(one: Instruction, kind: str) -> str | None:
    if kind not in _LITERALS:
        return None
    if kind == "NoneType":
        return "None"
    text = (one.attrs or "").removeprefix("value=")
    try:
        value = float(text) if kind == "float" else int(text)
    except ValueError:
        return None
    if kind == "bool":
        return repr(bool(value))
    return repr(value) if math.isfinite(value) else None
