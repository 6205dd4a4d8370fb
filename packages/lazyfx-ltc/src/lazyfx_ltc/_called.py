"""Operators that the lazy backend has no kernel for, called by the program as they are.

The backend lowers some 350 of torch's operators. Of any other it would compute the operands, run it
eagerly, and make its result a constant. Here such an operator becomes one instruction of the
program, between what the backend recorded before and after it: its operands are outputs of the
recording, its results are data that the recording starts from, and ``_program.py`` puts the two
together. So the program runs eager's own kernel, and numbers are eager's.

What an operator must be for that: functional (it writes nothing, and returns no view), with results
that are tensors, and arguments that the program's notation has words for.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.node import map_aggregate

from . import _torch_lazy
from ._text import Instruction, as_scalar, number
from ._torch_tracing import fake_mode, is_overload, op_name, schema_arguments

_MEMORY_FORMATS = {
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
}
# Integers are sizes that the shapes determine; they are read from the run on fake tensors.
_RETURNED = frozenset({"Tensor", "List[Tensor]", "int"})
_ELEMENTS = ("int", "float", "bool", "number")


@dataclass(frozen=True, slots=True)
class Operand:
    """Stands for a tensor: the n-th operand of the recording."""

    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of an operator; owns no tensor.

    Attributes:
        op: The operator, ``"aten::where.self"``.
        arguments: Type and value of each argument; :class:`Operand` for tensors.
        returns: The types of the results.
        results: For each result the tensor id, the ids of a list's tensors, or None where the
            operator gives no tensor.
        scalars: The ids of results without dimensions.
        operands: The numbers of its operands.
        dense: The operands that are contiguous in eager.
    """

    op: str
    arguments: tuple[tuple[str, Any], ...]
    returns: tuple[str, ...]
    results: tuple[int | tuple[int, ...] | None, ...]
    scalars: frozenset[int]
    operands: range
    dense: frozenset[int]

    @property
    def ids(self) -> list[int]:
        """The tensor ids of all results."""
        tuples = [one if isinstance(one, tuple) else (one,) for one in self.results]
        return [one for group in tuples for one in group if one is not None]


class _NoWord(Exception):
    """The notation has no word for a value."""


def can_be_called(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a program can call an operator with these arguments."""
    if not is_overload(func):
        return False
    schema = func._schema
    if schema.is_mutable or any(
        one.alias_info is not None for one in (*schema.arguments, *schema.returns)
    ):
        return False
    if not {str(one.type) for one in schema.returns} <= _RETURNED or not schema.returns:
        return False
    arguments = _arguments(func, args, kwargs, lambda _: Operand(0))
    fresh = (f"k{place}" for place in range(sys.maxsize))
    try:
        before, ins = _splice_arguments(arguments, {0: "x"}, fresh)
    except _NoWord:
        return False
    outs = tuple((next(fresh), kind) for kind in _returns(func))
    called = Instruction(outs=outs, kind=schema.name, attrs=None, ins=tuple(ins))
    returned = ", ".join(f"%{name}" for name, _ in outs)
    lines = ["graph(%x : Tensor):", *map(str, (*before, called)), f"  return ({returned})"]
    # The notation names operators without their overloads: it must find the one that is meant.
    found = _torch_lazy.overload_of("\n".join(lines) + "\n", schema.name)
    return found == op_name(func) or (found is not None and _numbers_for_tensors(arguments))


def _numbers_for_tensors(arguments: Sequence[tuple[str, Any]]) -> bool:
    """Whether a number stands for a tensor, so that an overload for numbers means the same."""
    return any("Tensor" in kind and isinstance(one, (int, float)) for kind, one in arguments)


def _returns(func: Any) -> tuple[str, ...]:
    kinds = [str(one.type) for one in func._schema.returns]
    return tuple("Tensor[]" if kind == "List[Tensor]" else kind for kind in kinds)


def _arguments(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operand: Any
) -> tuple[tuple[str, Any], ...]:
    def plain(value: Any) -> Any:
        return operand(value) if isinstance(value, torch.Tensor) else value

    given = schema_arguments(func, args, kwargs)
    return tuple(
        (str(one.type), map_aggregate(given[one.name], plain)) for one in func._schema.arguments
    )


class Calls:
    """The calls of one recording, and the lazy tensors that they start from."""

    def __init__(self, device: str, dense: Mapping[str, Sequence[tuple[bool, ...]]]) -> None:
        self.device = device
        self._dense = dense
        self._counts: collections.Counter[str] = collections.Counter()
        self.made: list[Call] = []
        self.operands: list[torch.Tensor] = []
        self._mode = fake_mode()

    def add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note a call; returns lazy tensors that stand for its results."""
        args, kwargs = map_aggregate(args, self._moved), map_aggregate(kwargs, self._moved)
        first = len(self.operands)
        arguments = _arguments(func, args, kwargs, self._operand)
        results = self._examples(func, args, kwargs)
        ids: list[int | tuple[int, ...] | None] = []
        scalars: set[int] = set()

        def stand_in(example: torch.Tensor) -> tuple[torch.Tensor, int]:
            made, one = lazy_data(example.shape, example.dtype, self.device)
            if not example.dim():
                scalars.add(one)
            return made, one

        stand_ins: list[Any] = []
        for result in results if isinstance(results, tuple) else (results,):
            if isinstance(result, (list, tuple)):
                pairs = [stand_in(one) for one in result]
                stand_ins.append([made for made, _ in pairs])
                ids.append(tuple(one for _, one in pairs))
            elif isinstance(result, torch.Tensor):
                made, one = stand_in(result)
                stand_ins.append(made)
                ids.append(one)
            else:
                stand_ins.append(result)
                ids.append(None)
        self.made.append(
            Call(
                op=op_name(func),
                arguments=arguments,
                returns=_returns(func),
                results=tuple(ids),
                scalars=frozenset(scalars),
                operands=range(first, len(self.operands)),
                dense=self._dense_operands(op_name(func), first),
            )
        )
        return tuple(stand_ins) if isinstance(results, tuple) else stand_ins[0]

    def _dense_operands(self, op: str, first: int) -> frozenset[int]:
        """The operands from ``first`` on that are contiguous in eager.

        A copy by ``contiguous`` leaves no trace in the recording, and some kernels count on it. If
        eager made no such call, to be contiguous is always right.
        """
        numbers = range(first, len(self.operands))
        calls = self._dense.get(op, ())
        seen = calls[self._counts[op]] if self._counts[op] < len(calls) else ()
        self._counts[op] += 1
        if len(seen) != len(numbers):
            return frozenset(numbers)
        return frozenset(n for n, is_dense in zip(numbers, seen, strict=True) if is_dense)

    def _moved(self, value: Any) -> Any:
        """A device in the place of the lazy one."""
        is_lazy = isinstance(value, torch.device) and value.type == "lazy"
        return torch.device(self.device) if is_lazy else value

    def _operand(self, tensor: torch.Tensor) -> Operand:
        self.operands.append(tensor)
        return Operand(len(self.operands) - 1)

    def _examples(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operator returns, as fake tensors on the session's device."""

        def fake(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return torch.empty(value.shape, dtype=value.dtype, device=self.device)

        with self._mode:
            return func(*map_aggregate(args, fake), **map_aggregate(kwargs, fake))


def lazy_data(shape: Sequence[int], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, int]:
    """A lazy tensor that the recording starts from, and its id.

    The backend merges equal scalars, so one without dimensions is a view of one element.
    """
    data = torch.empty(tuple(shape) or (1,), dtype=dtype, device=device).to("lazy")
    one = _torch_lazy.tensor_id(data)
    if tuple(shape):
        return data, one
    view: torch.Tensor = torch.ops.aten.view_copy.default(data, [])
    return view, one


# Into the program.


def splice(
    calls: Sequence[Call], operands: Sequence[str]
) -> tuple[list[Instruction], dict[int, str], list[str]]:
    """The instructions of calls.

    Args:
        calls: The calls of a recording.
        operands: The name of each operand in the program.

    Returns:
        The instructions; the name of the result behind each tensor id, where the recording knows
        one that has no dimensions as one element; the name of some result of each call.
    """
    instructions: list[Instruction] = []
    names: dict[int, str] = {}
    firsts: list[str] = []
    for index, call in enumerate(calls):
        fresh = (f"k{index}x{count}" for count in range(sys.maxsize))
        dense: list[Instruction] = []
        named = {place: operands[place] for place in call.operands}
        for place in sorted(call.dense):
            named[place] = _contiguous(operands[place], dense, fresh)
        before, ins = _splice_arguments(call.arguments, named, fresh)
        before = [*dense, *before]
        outs = tuple((next(fresh), kind) for kind in call.returns)
        called = Instruction(outs=outs, kind=call.op.partition(".")[0], attrs=None, ins=tuple(ins))
        instructions += [*before, called]
        firsts.append(outs[0][0])
        for (name, _), result in zip(outs, call.results, strict=True):
            if isinstance(result, tuple):
                parts = tuple(next(fresh) for _ in result)
                instructions.append(
                    Instruction(
                        outs=tuple((part, "Tensor") for part in parts),
                        kind="prim::ListUnpack",
                        attrs=None,
                        ins=(name,),
                    )
                )
                pairs = list(zip(result, parts, strict=True))
            else:
                pairs = [] if result is None else [(result, name)]
            for one, part in pairs:
                names[one] = part
                if one in call.scalars:
                    names[one] = _as_one_element(part, instructions, fresh)
    return instructions, names, firsts


def _as_one_element(name: str, instructions: list[Instruction], fresh: Iterator[str]) -> str:
    length, size, lifted = next(fresh), next(fresh), next(fresh)
    instructions += [
        *number(length, 1),
        Instruction(outs=((size, "int[]"),), kind="prim::ListConstruct", attrs=None, ins=(length,)),
        Instruction(outs=((lifted, "Tensor"),), kind="aten::reshape", attrs=None, ins=(name, size)),
    ]
    return str(lifted)


def _contiguous(name: str, instructions: list[Instruction], fresh: Iterator[str]) -> str:
    """The same values in a contiguous tensor, the same one if it is."""
    zero, dense = next(fresh), next(fresh)
    instructions += [
        *number(zero, 0),
        Instruction(
            outs=((dense, "Tensor"),), kind="aten::contiguous", attrs=None, ins=(name, zero)
        ),
    ]
    return str(dense)


def _splice_arguments(
    arguments: Sequence[tuple[str, Any]], operands: Mapping[int, str], fresh: Iterator[str]
) -> tuple[list[Instruction], list[str]]:
    instructions: list[Instruction] = []
    ins = [
        _value(value, kind.removeprefix("Optional[").rstrip("]"), operands, fresh, instructions)
        if kind.startswith("Optional[") and not kind.startswith("Optional[List[")
        else _value(value, kind, operands, fresh, instructions)
        for kind, value in arguments
    ]
    return instructions, ins


def _value(
    value: Any,
    kind: str,
    operands: Mapping[int, str],
    fresh: Iterator[str],
    instructions: list[Instruction],
) -> str:
    """The name of a value, whose instructions are appended.

    Raises:
        _NoWord: The notation has no word for it.
    """
    if isinstance(value, Operand):
        return operands[value.place]
    if value is None:
        return _constant("NoneType", None, fresh, instructions)
    if isinstance(value, (list, tuple)):
        return _list(value, kind, operands, fresh, instructions)
    if isinstance(value, (bool, int, float, complex)):
        return _number(value, kind, fresh, instructions)
    if isinstance(value, str):
        quoted = value.isascii() and value.isprintable() and not set(value) & set('"\\')
        if not quoted:
            raise _NoWord
        return _constant("str", f'"{value}"', fresh, instructions)
    if isinstance(value, torch.device):
        return _constant("Device", f'"{value}"', fresh, instructions)
    if isinstance(value, torch.memory_format):
        return _constant("int", str(_MEMORY_FORMATS[value]), fresh, instructions)
    if isinstance(value, (torch.dtype, torch.layout)):
        return _constant("int", str(_torch_lazy.code_of(value)), fresh, instructions)
    raise _NoWord


def _constant(
    kind: str, text: str | None, fresh: Iterator[str], instructions: list[Instruction]
) -> str:
    name = str(next(fresh))
    attrs = None if text is None else f"value={text}"
    instructions.append(
        Instruction(outs=((name, kind),), kind="prim::Constant", attrs=attrs, ins=())
    )
    return name


def _number(
    value: complex, kind: str, fresh: Iterator[str], instructions: list[Instruction]
) -> str:
    if not isinstance(value, complex):
        value = float(value) if kind == "float" else int(value) if kind == "int" else value
    name = str(next(fresh))
    instructions += number(name, value)
    if isinstance(value, bool) and kind == "number":
        scalar = str(next(fresh))
        instructions.append(as_scalar(scalar, name))
        return scalar
    return name


def _list(
    values: Sequence[Any],
    kind: str,
    operands: Mapping[int, str],
    fresh: Iterator[str],
    instructions: list[Instruction],
) -> str:
    inner = kind.removeprefix("Optional[").removeprefix("List[").rstrip("]")
    if "Tensor" in kind:
        whole = "Tensor?[]" if "Optional[Tensor" in kind else "Tensor[]"
    elif inner in _ELEMENTS:
        kinds = {type(value).__name__ for value in values} or {inner}
        inner = kinds.pop() if inner == "number" and len(kinds) == 1 else inner
        if inner == "number":
            raise _NoWord
        whole = f"{inner}[]"
    else:
        raise _NoWord
    ins = tuple(_value(value, inner, operands, fresh, instructions) for value in values)
    name = str(next(fresh))
    instructions.append(
        Instruction(outs=((name, whole),), kind="prim::ListConstruct", attrs=None, ins=ins)
    )
    return name
