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
from ._text import Instruction, parse, write

# Their results do not depend on whether an operand is contiguous, but for rounding.
_ANY_LAYOUT = frozenset({"aten::linear", "aten::matmul"})


def lean(text: str, constants: Mapping[int, torch.Tensor], inputs: Sequence[Any]) -> str:
    """The program without what changed nothing in a run on ``inputs``.

    Args:
        text: The program.
        constants: The values of some of its inputs, by place.
        inputs: The others.
    """
    names, instructions, returned = parse(text)
    users: dict[str, list[str]] = {}
    for one in instructions:
        for name in one.ins:
            users.setdefault(name, []).append(one.kind)
    doubtful = [one for one in instructions if _is_doubtful(one, users)]
    asked = list(dict.fromkeys(name for one in doubtful for name in (one.ins[0], one.outs[0][0])))
    if not asked:
        return text
    calls = [one for one in instructions if one.kind != "prim::TupleConstruct"]
    graph = _torch_lazy.bound_graph(write(names, calls, asked), constants)
    found = _torch_lazy.build_function(graph)(*inputs)
    values = dict(zip(asked, found if isinstance(found, tuple) else (found,), strict=True))
    aliases: dict[str, str] = {}
    done: list[Instruction] = []
    for one in instructions:
        one = replace(one, ins=tuple(aliases.get(name, name) for name in one.ins))
        result = one.outs[0][0]
        if any(one.outs == other.outs for other in doubtful):
            before, after = values[_origin(aliases, one.ins[0], values)], values[result]
            if one.kind == "aten::contiguous" and before.is_contiguous():
                aliases[result] = one.ins[0]
                continue
            if one.kind == "aten::reshape" and _is_view(before, after):
                one = replace(one, kind="aten::view")
        done.append(one)
    outputs = _returned(done, returned, aliases)
    return write(names, [one for one in done if one.kind != "prim::TupleConstruct"], outputs)


def _is_doubtful(one: Instruction, users: Mapping[str, Sequence[str]]) -> bool:
    if one.kind == "aten::contiguous":
        return set(users.get(one.outs[0][0], ["a result"])) <= _ANY_LAYOUT
    return one.kind == "aten::reshape"


def _origin(aliases: Mapping[str, str], name: str, values: Mapping[str, Any]) -> str:
    """A name under which a value is known, of several."""
    if name in values:
        return name
    return next(other for other, now in aliases.items() if now == name and other in values)


def _is_view(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.numel() > 0 and before.data_ptr() == after.data_ptr()


def _returned(
    done: Sequence[Instruction], returned: Sequence[str], aliases: Mapping[str, str]
) -> list[str]:
    packed = [one for one in done if one.kind == "prim::TupleConstruct"]
    return list(packed[-1].ins) if packed else [aliases.get(name, name) for name in returned]
