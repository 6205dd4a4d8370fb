"""Turn what the backend recorded into a program of its own.

torch's extraction looks a graph up in a shared cache by a hash. The hash is the same for graphs
that differ only in the order of their arguments, and the cache forgets. Here the recorded graph's
*text* is read (``_text.py``), mended (``_repair.py``) and compiled to a function that belongs to
one ``CompiledGraph`` alone.

Inputs and instructions that nothing uses are dropped, except for random draws: an unused draw
still moves the random state in eager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import _torch_lazy
from ._called import splice
from ._freeze import folded
from ._inputs import GraphInputMatcher
from ._looks import looks
from ._optimize import asked, optimized
from ._record import Recording
from ._repair import Repair, scalar_of
from ._runners import Runners
from ._specs import TensorSpec
from ._text import Instruction, parse, write
from .errors import CaptureError


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A compiled graph with its wiring. Thread-safe; owns its function and its constants.

    Attributes:
        function: Takes the inputs in order, returns a tuple of tensors (or one tensor).
        runners: Ways to do the same, of which the quickest is found out by use.
        text: The program as text.
        inputs: For each input the number of its source.
        labels: For each input of the text the number of its source, or None for a constant.
        constants: The constants, in order.
        results: For each result (fresh outputs, then written sources) its place in the tuple.
        own: For each result whether its memory is its own, or it must be copied before it is
            handed out since it may share memory with an input, a constant or another result.
        arity: The length of the returned tuple.
        calls: How often each operator occurs.
    """

    function: Callable[..., Any]
    runners: Runners
    text: str
    inputs: tuple[int, ...]
    labels: tuple[int | None, ...]
    constants: tuple[torch.Tensor, ...]
    results: tuple[int, ...]
    own: tuple[bool, ...]
    arity: int
    calls: dict[str, int]


def _scheduled(
    instructions: Sequence[Instruction], effects: Sequence[str], wanted: Iterable[str]
) -> list[Instruction]:
    """What is needed for values, each after its operands; first for the effects, in their order."""
    makers = {name: one for one in instructions for name, _ in one.outs}
    placed: set[int] = set()
    order: list[Instruction] = []
    for name in (*effects, *wanted):
        waiting = [(makers[name], False)] if name in makers else []
        while waiting:
            one, ready = waiting.pop()
            if id(one) in placed:
                continue
            if ready:
                placed.add(id(one))
                order.append(one)
                continue
            waiting.append((one, True))
            waiting += [(makers[into], False) for into in reversed(one.ins) if into in makers]
    return order


def build(
    recording: Recording,
    results: int,
    sources: Sequence[TensorSpec],
    frozen: Mapping[int, torch.Tensor],
    device: str,
) -> Program:
    """Compile a recording.

    Args:
        recording: What the backend recorded.
        results: The number of outputs after the random draws.
        sources: What the sources look like, by number.
        frozen: Sources that are constants, by number.
        device: The session's device type.

    Raises:
        CaptureError: The text does not say what the recording promised.
    """
    inputs, instructions, returned = parse(recording.text)
    draws = sum(one >= 0 for one in recording.draws)
    promised = draws + recording.operands + results
    if len(inputs) != len(recording.ids) or len(returned) != promised:
        raise CaptureError(
            f"the recorded graph has {len(inputs)} inputs and {len(returned)} outputs: expected"
            f" {len(recording.ids)} and {promised}; please report it together"
            " with the torch version"
        )
    matcher = GraphInputMatcher(recording.source_ids, recording.ids, recording.values)
    positions = dict(zip(inputs, matcher.positions(), strict=True))
    values = dict(zip(inputs, recording.values, strict=True))
    scalars = {
        name: scalar
        for name, value in values.items()
        if positions[name] is None and (scalar := scalar_of(value)) is not None
    }
    repair = Repair(scalars, set(returned[:draws]))
    for one in instructions:
        repair.add(one)
    named = [repair.aliases.get(name, name) for name in returned]
    first = draws + recording.operands
    called, made, firsts = splice(recording.calls, named[draws:first])
    stand_ins = {
        name: made[one] for name, one in zip(inputs, recording.ids, strict=True) if one in made
    }
    named = [stand_ins.get(name, name) for name in named]
    everything = [
        replace(one, ins=tuple(stand_ins.get(name, name) for name in one.ins))
        for one in (*repair.done, *called)
    ]
    effects = [named[one] if one >= 0 else firsts[~one] for one in recording.draws]
    wanted_results = named[first:]
    live = _scheduled(everything, effects, wanted_results)
    taken = {name for one in live for name in one.ins}.union(wanted_results)
    names = [name for name in inputs if name in taken]
    where = {name: positions[name] for name in names}
    constants = {name: _constant(values[name]) for name in names if where[name] is None}
    for name, number in where.items():
        if number is not None and number in frozen:
            constants[name] = lifted_tensor(frozen[number].detach())
            where[name] = None
    try:
        seen = {name: lifted(sources[one]) for name, one in where.items() if one is not None}
        known = looks(live, asked(live), seen, constants)
        live, more, aliases = optimized(live, known, seen)
        effects = [aliases.get(name, name) for name in effects]
        wanted_results = [aliases.get(name, name) for name in wanted_results]
        constants.update(more)
        if frozen:
            live = _scheduled(live, effects, wanted_results)
            live, more, aliases = folded(live, constants, set(effects), wanted_results)
            wanted_results = [aliases.get(name, name) for name in wanted_results]
            constants.update(more)
        live = _scheduled(live, effects, wanted_results)
        where.update(dict.fromkeys(name for name in constants if name not in where))
        used = {name for one in live for name in one.ins}
        # A draw somebody uses runs anyway; one nobody uses must stay an output to run at all.
        unused = (name for name in effects if name not in used)
        outputs = list(dict.fromkeys([*unused, *wanted_results]))
        names = [name for name in where if name in used or name in outputs]
        text = write(names, live, outputs)
        bound = {place: constants[name] for place, name in enumerate(names) if name in constants}
        function = _torch_lazy.build_function(_torch_lazy.bound_graph(text, bound))
    except RuntimeError as error:
        raise CaptureError(
            f"torch cannot compile the recorded graph: {error}; please report it together with"
            " the torch version"
        ) from error
    calls: dict[str, int] = {}
    for one in live:
        if one.kind.startswith("aten::"):
            calls[one.kind] = calls.get(one.kind, 0) + 1
    pure = not effects and all(one.kind.startswith(("aten::", "prim::")) for one in live)
    return Program(
        function=function,
        runners=Runners(function, text, bound, tried=pure and device == "cpu"),
        text=text,
        inputs=tuple(number for name in names if (number := where[name]) is not None),
        labels=tuple(where[name] for name in names),
        constants=tuple(bound.values()),
        results=tuple(outputs.index(name) for name in wanted_results),
        own=_owned(text, [outputs.index(name) for name in wanted_results]),
        arity=len(outputs),
        calls=calls,
    )


def _constant(value: Any) -> torch.Tensor:
    made = torch.tensor(value) if isinstance(value, (bool, int, float)) else value
    return made.detach() if isinstance(made, torch.Tensor) else torch.tensor(made)


def lifted_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A source as the program gets it, see :func:`lifted`."""
    return tensor if tensor.dim() else tensor.reshape(1)


def lifted(spec: TensorSpec) -> TensorSpec:
    """What a source looks like in the program: one without dimensions is of one element."""
    if spec.shape:
        return spec
    return TensorSpec(shape=torch.Size([1]), stride=(1,), dtype=spec.dtype, device=spec.device)


def _owned(text: str, results: Sequence[int]) -> tuple[bool, ...]:
    """Which results are memory of their own; decided by the operators' alias annotations.

    A result is not if, through operators that may return a view of an operand, it leads to an
    input, to something computed from no input at all (an optimizing TorchScript folds that into a
    constant it hands out again at every call), or to a value another result leads to.
    """
    borrowed = -1
    inputs, nodes, returned = _torch_lazy.read_graph(text)
    origins: dict[int, set[int]] = {value: {borrowed} for value in inputs}
    varying = set(inputs)
    for operands, outputs, schema in nodes:
        aliased = _aliased(operands, schema) if schema is not None else set()
        depends = bool(varying.intersection(operands))
        for value in outputs:
            origins[value] = {borrowed} if not depends else {value}
            if aliased:
                origins[value] = set().union(*(origins.get(one, {one}) for one in aliased))
            if depends:
                varying.add(value)
    owned: list[bool] = []
    taken = {borrowed}
    for index in results:
        reached = origins[returned[index]]
        owned.append(not reached & taken)
        taken |= reached
    return tuple(owned)


def _aliased(operands: Sequence[int], schema: Any) -> set[int]:
    """The operands an operator may return a view of."""
    for argument in (*schema.arguments, *schema.returns):
        if argument.alias_info is not None and argument.alias_info.is_write:
            raise CaptureError(
                f"the recorded graph writes in place ({schema}); please report it together with"
                " the torch version"
            )
    pairs = zip(operands, schema.arguments, strict=False)
    return {operand for operand, argument in pairs if argument.alias_info is not None}
