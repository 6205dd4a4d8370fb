"""One capture, the whole path on one screen.

Check the arguments; learn what a call does from fake tensors; record the model on the lazy device;
compile the recording; hold the program against what was learnt. Only then is anything handed out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from ._aliases import Group, groups_of, written_groups
from ._arguments import Request, check_leaf, check_tensor
from ._autocast import traced_under_autocast
from ._captured import Capture
from ._check import check_program
from ._contract import observe
from ._dump import dump
from ._freeze import Frozen
from ._guards import Guard, Modes, what_may_be_asked, why_not_writable
from ._program import build, lifted
from ._python import is_torchs, may_ask_anything, python_code
from ._record import Recording, record
from ._session import CAPTURING, LOCK
from ._specs import Contract, Itself, TensorSpec, ViewOf
from ._state import bind_state
from ._subject import Subject, argument_names
from ._torch_tracing import without_modes
from .errors import CaptureError

_LOGGER = logging.getLogger("lazyfx_ltc")


def capture(
    model: nn.Module,
    graph: fx.Graph,
    wanted: Request,
    device: str,
    modes: Modes,
    *,
    grad_if_needed: bool = True,
    freeze: bool = False,
) -> Capture:
    """Capture a model for calls like one.

    Args:
        model: Holds what the graph refers to; not changed.
        graph: What a call runs; not changed.
        wanted: The call.
        device: The session's device type.
        modes: The thread's state at the call.
        grad_if_needed: Capture for grad mode although something requires grad.
        freeze: Make constants of the model's tensors that it neither writes nor returns.

    Raises:
        LtcError: As :func:`lazyfx_ltc.extract_compiled_graph` says.
    """
    started = time.perf_counter()
    names = argument_names(wanted.structure)
    for name, leaf in zip(names, wanted.leaves, strict=True):
        check_leaf(name, leaf, device)
    state = bind_state(model, graph)
    own = [binding.read() for binding in state.tensors]
    names += [f"model tensor {binding.name!r}" for binding in state.tensors]
    for name, tensor in zip(names[len(wanted.leaves) :], own, strict=True):
        check_tensor(name, tensor, device)
    inputs = [leaf for leaf in wanted.leaves if isinstance(leaf, torch.Tensor)]
    if not grad_if_needed and any(tensor.requires_grad for tensor in (*inputs, *own)):
        modes = dataclasses.replace(modes, grad=False)
    code = python_code(model, graph)
    python = may_ask_anything(graph, wanted.structure, code)
    subject = Subject(
        model=model,
        graph=graph,
        structure=wanted.structure,
        leaves=wanted.leaves,
        own=tuple(own),
        own_names=tuple(binding.name for binding in state.tensors),
        device=device,
        grad=python and bool(modes.grad),
        python=python,
    )
    source_names = subject.names
    # What capture makes must be ordinary tensors, whatever mode the caller is in.
    with (
        LOCK,
        _capturing(),
        without_modes(),
        torch.inference_mode(False),
        _no_autocast(device),
    ):
        with _autocast(device, modes.autocast):
            first = observe(subject)
            if code and not all(map(is_torchs, code)) and observe(subject).trace != first.trace:
                raise CaptureError(
                    "the model's python code computes with other numbers when it runs again (a"
                    " counter, a clock, a list that grows): a replay would repeat those of one"
                    " run; pass what changes as an argument, as a tensor if it changes often"
                )
        contract = first
        if modes.autocast is not None or first.in_autocast:
            if python and any(tensor.requires_grad for tensor in (*inputs, *own)):
                raise CaptureError(
                    f"{_first_that_requires_grad(source_names, (*inputs, *own))} requires grad, and"
                    " the model has python code that may ask for that, under autocast: trace it"
                    " with make_fx in the autocast block, and capture the result outside; or"
                    " detach what requires grad"
                )
            subject = traced_under_autocast(subject, modes.autocast)
            constants = bind_state(subject.model, subject.graph).tensors
            state = dataclasses.replace(state, tensors=(*state.tensors, *constants))
            source_names += [f"constant {one.name!r}" for one in constants]
            names += source_names[-len(constants) :] if constants else []
            own += subject.own
            contract = observe(subject)
        contract, groups = _with_groups(subject, contract, source_names)
        asked = first.modes_asked
        if "is_inference_mode_enabled" in asked and modes.inference and python:
            raise CaptureError(
                f"{asked['is_inference_mode_enabled']}: python code asks whether inference mode is"
                " on, and it is: a capture is made outside of it; call the model under no_grad"
                " instead"
            )
        if "is_inference_mode_enabled" not in asked:
            modes = dataclasses.replace(modes, inference=None)
        if "is_grad_enabled" not in asked and not (
            code and _depends_on_grad_mode(subject, contract, groups)
        ):
            modes = dataclasses.replace(modes, grad=None)
        sources = subject.sources
        source_names += [_memory_name(one, source_names) for one in groups]
        specs = [TensorSpec.of(tensor) for tensor in sources]
        specs += [_flat_spec(group, specs) for group in groups]
        reason = why_not_writable(sources, _single(contract.written, sources), source_names)
        if reason is not None:
            raise CaptureError(reason)
        recording = record(subject, contract, groups)
        expected = _expected(contract, specs, source_names)
        kept = _kept(first, groups, len(inputs), own) if freeze else {}
        frozen = [Frozen.of(number, state.tensors[place]) for number, place in kept.items()]
        fixed = {one.number: one.tensor for one in frozen}
        program = build(recording, len(expected), specs, fixed, device) if recording.text else None
        if program is not None:
            check_program(program, specs, expected)
    dump(graph, recording, program)
    used = set(program.inputs) if program is not None else set()
    # With python code of the user's own, nobody knows which views would carry a gradient.
    views = (
        {leaf.source for leaf in contract.leaves if isinstance(leaf, ViewOf)} if python else set()
    )
    members = {number for group in groups for number in group.members}
    write_back = _write_back(first, groups, len(sources))
    made = Capture(
        guard=Guard(
            structure=wanted.structure,
            leaves=tuple(_look(leaf) for leaf in wanted.leaves),
            names=(*names, *source_names[len(sources) :]),
            state=state,
            state_specs=tuple(TensorSpec.of(tensor) for tensor in own),
            modes=modes,
            written=contract.written,
            groups=groups,
            asked=what_may_be_asked([*inputs, *own]) if python else None,
            frozen=tuple(frozen),
        ),
        device=device,
        contract=contract,
        program=program,
        ir=recording.ir,
        used=frozenset({*used, *first.touched, *members, *views}),
        write_back=write_back,
        targets=(
            *_single(contract.written, sources),
            *(number for pairs in write_back.values() for number, _ in pairs),
        ),
    )
    _note(made, recording, time.perf_counter() - started)
    return made


def _first_that_requires_grad(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> str:
    return next(name for name, one in zip(names, tensors, strict=True) if one.requires_grad)


def _kept(
    contract: Contract, groups: Sequence[Group], arguments: int, own: Sequence[torch.Tensor]
) -> dict[int, int]:
    """``{number of a source: its place among the model's tensors}`` of what a call leaves alone."""
    shown = {leaf.source for leaf in contract.leaves if isinstance(leaf, (Itself, ViewOf))}
    shared = {number for group in groups for number in group.members}
    used = shown | shared | set(contract.written)
    # Of a tensor that was made in inference mode, nobody counts the writes.
    return {
        arguments + place: place
        for place in range(len(own))
        if arguments + place not in used and not own[place].is_inference()
    }


def _write_back(
    first: Contract, groups: Sequence[Group], sources: int
) -> dict[int, tuple[tuple[int, int], ...]]:
    """For each flat source, ``(number, offset)`` of the members that the model writes itself.

    Nothing else is written: what lies between them may be another thread's.
    """
    return {
        sources + index: tuple(
            (number, offset)
            for number, offset in zip(group.members, group.offsets, strict=True)
            if number in first.written
        )
        for index, group in enumerate(groups)
    }


def _with_groups(
    subject: Subject, contract: Contract, names: Sequence[str]
) -> tuple[Contract, tuple[Group, ...]]:
    """The contract, and the groups of sources that share memory which is written."""
    shared = groups_of(subject.sources) if contract.written else ()
    groups = written_groups(shared, contract.written)
    if not groups:
        return contract, ()
    for group in groups:
        if group.numel < 0:
            first, second = (names[number] for number in group.members[:2])
            raise CaptureError(
                f"{second} shares memory with {first} as another dtype or through a storage of its"
                " own, and the model writes to one of them: expected separate memory; pass a"
                " clone()"
            )
    return observe(subject, groups), groups


def _depends_on_grad_mode(subject: Subject, contract: Contract, groups: Sequence[Group]) -> bool:
    """Whether torch's own python code in the model does something else under grad mode."""
    try:
        other = observe(dataclasses.replace(subject, grad=True), groups)
    except CaptureError:
        return True
    return other.trace != contract.trace


def _single(written: Sequence[int], sources: Sequence[torch.Tensor]) -> list[int]:
    return [number for number in written if number < len(sources)]


def _memory_name(group: Group, names: Sequence[str]) -> str:
    return "the memory of " + " and ".join(names[number] for number in group.members)


def _flat_spec(group: Group, specs: Sequence[TensorSpec]) -> TensorSpec:
    first = specs[group.members[0]]
    return TensorSpec(
        shape=torch.Size([group.numel]), stride=(1,), dtype=first.dtype, device=first.device
    )


def _expected(
    contract: Contract, specs: Sequence[TensorSpec], names: Sequence[str]
) -> list[tuple[str, TensorSpec]]:
    fresh = [(f"computed output {slot}", spec) for slot, spec in enumerate(contract.fresh)]
    written = [(f"the new value of {names[number]}", specs[number]) for number in contract.written]
    return [*fresh, *((who, lifted(spec)) for who, spec in written)]


@contextlib.contextmanager
def _capturing() -> Iterator[None]:
    token = CAPTURING.set(True)
    try:
        yield
    finally:
        CAPTURING.reset(token)


def _autocast(device: str, dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=dtype, cache_enabled=False)


def _no_autocast(device: str) -> torch.autocast:
    return torch.autocast(device, enabled=False)


def _look(leaf: Any) -> Any:
    return TensorSpec.of(leaf) if isinstance(leaf, torch.Tensor) else leaf


def _note(made: Capture, recording: Recording, seconds: float) -> None:
    if _LOGGER.isEnabledFor(logging.INFO):
        calls = sum(made.program.calls.values()) if made.program is not None else 0
        _LOGGER.info(
            "captured %d operators as %d in %.1f ms, %d random draws",
            len(made.contract.trace),
            calls,
            seconds * 1e3,
            len(recording.draws),
        )
