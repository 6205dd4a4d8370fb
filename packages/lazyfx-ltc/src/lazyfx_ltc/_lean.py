"""What a run of a program shows: which copies it makes for nothing.

A recording says ``reshape`` where eager took a view, and makes operands contiguous that were so in
eager, since a program's own intermediate results might be laid out otherwise. Whether they are is
settled by the looks of the arguments, so one run tells for all calls that look alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from . import _torch_lazy
from ._text import Instruction, parse_written, write

# Their results do not depend on whether an operand is contiguous, but for rounding.
_ANY_LAYOUT = frozenset({"aten::linear", "aten::matmul"})


def lean(text: str, constants: Mapping[int, torch.Tensor], inputs: Sequence[Any]) -> str:
    """The program without what changed nothing in a run on ``inputs``.

    Args:
        text: The program.
        constants: The values of some of its inputs, by place.
        inputs: The others.
    """
    names, instructions, returned = parse_written(text)
    users: dict[str, list[str]] = {}
    for one in instructions:
        for name in one.ins:
            users.setdefault(name, []).append(one.kind)
    doubtful = [one for one in instructions if _is_doubtful(one, users)]
    asked = list(dict.fromkeys(name for one in doubtful for name in (one.ins[0], one.outs[0][0])))
    if not asked:
        return text
    graph = _torch_lazy.bound_graph(write(names, instructions, asked), constants)
    found = _torch_lazy.build_function(graph)(*inputs)
    values = dict(zip(asked, found if isinstance(found, tuple) else (found,), strict=True))
    results = {one.outs[0][0] for one in doubtful}
    aliases: dict[str, str] = {}
    done: list[Instruction] = []
    for one in instructions:
        result, kind = one.outs[0][0], one.kind
        if result in results:
            before, after = values[one.ins[0]], values[result]
            if kind == "aten::contiguous" and before.is_contiguous():
                aliases[result] = aliases.get(one.ins[0], one.ins[0])
                continue
            if kind == "aten::reshape" and _is_view(before, after):
                kind = "aten::view"
        ins = tuple(aliases.get(name, name) for name in one.ins)
        done.append(replace(one, kind=kind, ins=ins))
    return write(names, done, [aliases.get(name, name) for name in returned])


def _is_doubtful(one: Instruction, users: Mapping[str, Sequence[str]]) -> bool:
    if one.kind == "aten::contiguous":
        return set(users.get(one.outs[0][0], ["a result"])) <= _ANY_LAYOUT
    return one.kind == "aten::reshape"


def _is_view(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.numel() > 0 and before.data_ptr() == after.data_ptr()
