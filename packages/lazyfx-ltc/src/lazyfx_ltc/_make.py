"""One capture, the whole path on one screen.

Check the arguments; learn what a call does from fake tensors; record the model on the lazy device;
compile the recording; hold the program against what was learnt. Only then is anything handed out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ._aliases import Group, groups_of, written_groups
from ._autocast import traced_under_autocast
from ._capture import Recording, record
from ._check import check_program
from ._contract import observe
from ._dump import dump
from ._guards import Guard, Modes, is_value, same_objects, why_not_writable
from ._one import Capture
from ._program import build
from ._session import LOCK
from ._specs import Contract, Itself, TensorSpec, ViewOf
from ._state import bind_state
from ._structure import Structure, flatten_call, has_objects
from ._subject import Subject, argument_names
from ._torch_tracing import is_fake, is_operator, without_modes
from .errors import CaptureError, InputError

_ABOUT_GRADIENTS = ("requires_grad", "is_leaf", "grad", "grad_fn")
_LOGGER = logging.getLogger("lazyfx_ltc")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of a call, taken apart; no fake tensor and no symbolic number is left."""

    leaves: tuple[Any, ...]
    structure: Structure


def request(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Request:
    """Take the arguments of a call apart.

    Raises:
        InputError: They are nested too deep, or a symbolic number has no value.
    """
    try:
        leaves, structure = flatten_call(args, dict(kwargs))
    except RecursionError as error:
        raise endless(error) from error
    return Request(leaves=tuple(_plain(leaf) for leaf in leaves), structure=structure)


def endless(error: RecursionError) -> InputError:
    """The error for arguments that contain themselves."""
    return InputError(f"arguments: expected nested values, seen some without end ({error})")


def capture(
    model: nn.Module,
    graph: fx.Graph,
    wanted: Request,
    device: str,
    modes: Modes,
    *,
    grad_if_needed: bool = True,
) -> Capture:
    """Capture a model for calls like one.

    Args:
        model: Holds what the graph refers to; not changed.
        graph: What a call runs; not changed.
        wanted: The call.
        device: The session's device type.
        modes: The thread's state at the call.
        grad_if_needed: Capture for grad mode although something requires grad.

    Raises:
        LtcError: As :func:`lazyfx_ltc.extract_compiled_graph` says.
    """
    started = time.perf_counter()
    names = argument_names(wanted.structure)
    for name, leaf in zip(names, wanted.leaves, strict=True):
        _check_leaf(name, leaf, device)
    state = bind_state(model, graph)
    own = [binding.read() for binding in state.tensors]
    names += [f"model tensor {binding.name!r}" for binding in state.tensors]
    for name, tensor in zip(names[len(wanted.leaves) :], own, strict=True):
        _check_tensor(name, tensor, device)
    inputs = [leaf for leaf in wanted.leaves if isinstance(leaf, torch.Tensor)]
    if not grad_if_needed and any(tensor.requires_grad for tensor in (*inputs, *own)):
        modes = dataclasses.replace(modes, grad=False)
    subject = Subject(
        model=model,
        graph=graph,
        structure=wanted.structure,
        leaves=wanted.leaves,
        own=tuple(own),
        own_names=tuple(binding.name for binding in state.tensors),
        device=device,
        grad=bool(modes.grad),
        python=False,
    )
    code = _python_code(subject)
    python = (
        _asks_as_python_may(graph)
        or has_objects(wanted.structure)
        or not all(_is_torchs(one) for one in code)
    )
    subject = dataclasses.replace(subject, python=python, grad=python and subject.grad)
    source_names = subject.names
    # What capture makes must be ordinary tensors, whatever mode the caller is in.
    with LOCK, without_modes(), torch.inference_mode(False), _no_autocast(device):
        with _autocast(device, modes.autocast):
            first = observe(subject)
        contract = first
        if modes.autocast is not None or first.in_autocast:
            if python and any(tensor.requires_grad for tensor in (*inputs, *own)):
                raise CaptureError(
                    "the model has python code that may ask whether its tensors require grad, under"
                    " autocast, and some do: trace it with make_fx in the autocast block, and"
                    " capture the result outside; or detach them"
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
                "the model's python code asks whether inference mode is on, and it is: a capture"
                " is made outside of it; call the model under no_grad instead"
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
        program = build(recording, len(expected)) if recording.text else None
        if program is not None:
            check_program(program, specs, expected)
    dump(graph, recording, program)
    used = {number for number in program.inputs if number is not None} if program else set()
    touched = set(first.touched)
    passed = {leaf.source for leaf in contract.leaves if isinstance(leaf, Itself)}
    # With python code of the user's own, nobody knows which views would carry a gradient.
    views = (
        {leaf.source for leaf in contract.leaves if isinstance(leaf, ViewOf)} if python else set()
    )
    members = {number for group in groups for number in group.members}
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
            requires_grad=tuple(one.requires_grad for one in (*inputs, *own)) if python else None,
            identical=same_objects([*inputs, *own]) if python else None,
            kinds=tuple(type(one) for one in (*inputs, *own)) if python else None,
        ),
        device=device,
        contract=contract,
        program=program,
        ir=recording.ir,
        used=frozenset(
            {*used, *first.touched, *contract.written, *members, *views} - (passed - used - touched)
        ),
        write_back=_write_back(first, groups, len(sources)),
    )
    _note(made, recording, time.perf_counter() - started)
    return made


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


def _asks_as_python_may(graph: fx.Graph) -> bool:
    """Whether a node asks what its tensors record, or whether they are one object."""
    return any(
        node.op == "call_function"
        and (
            node.target in (operator.is_, operator.is_not)
            or (node.target is getattr and node.args[1] in _ABOUT_GRADIENTS)
        )
        for node in graph.nodes
    )


def _is_torchs(code: Any) -> bool:
    """Whether a function or class belongs to torch or to Python, and asks nothing odd."""
    if isinstance(code, types.MethodType):
        return False
    module = getattr(code, "__module__", None) or ""
    if isinstance(code, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        return True
    return module.partition(".")[0] in ("torch", "operator", "_operator", "math", "builtins")


def _python_code(subject: Subject) -> set[Any]:
    """The functions and classes of modules that a call of the model runs, operators left out."""
    found: set[Any] = set()
    for node in subject.graph.nodes:
        if node.op == "call_module":
            module = subject.model.get_submodule(str(node.target))
            found.update(type(inner) for inner in module.modules())
        elif node.op == "call_function" and not (
            is_operator(node.target) or isinstance(node.target, types.BuiltinFunctionType)
        ):
            found.add(node.target)
    return found


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
    return [*fresh, *((who, _lifted(spec)) for who, spec in written)]


def _lifted(spec: TensorSpec) -> TensorSpec:
    if spec.shape:
        return spec
    return TensorSpec(shape=torch.Size([1]), stride=(1,), dtype=spec.dtype, device=spec.device)


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
            recording.draws,
        )


def _plain(leaf: Any) -> Any:
    """A leaf without symbols: a real tensor for a fake one, the hint for a symbolic number."""
    if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return _hint(leaf)
    if not is_fake(leaf):
        return leaf
    size = [_hint(length) for length in leaf.shape]
    stride = [_hint(length) for length in leaf.stride()]
    with without_modes(), torch.inference_mode(False):
        made = torch.empty_strided(size, stride, dtype=leaf.dtype, device=leaf.device)
        return made.requires_grad_(leaf.requires_grad)


def _hint(value: Any) -> Any:
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value
    hint = value.node.hint
    if hint is None:
        raise InputError(
            f"the symbolic number {value} has no value yet: expected one with a hint; a capture is"
            " for fixed shapes"
        )
    return hint


def _check_leaf(name: str, leaf: Any, device: str) -> None:
    if isinstance(leaf, torch.Tensor):
        _check_tensor(name, leaf, device)
    elif not is_value(leaf):
        raise InputError(
            f"{name}: expected a tensor, number, string or None, or a nest of them, seen"
            f" {type(leaf).__name__}; fix other values when tracing (concrete_args, or a closure)"
        )


def _check_tensor(name: str, value: torch.Tensor, device: str) -> None:
    if type(value) is not torch.Tensor and type(value) is not nn.Parameter:
        raise InputError(
            f"{name}: expected a plain torch.Tensor, seen the subclass {type(value).__name__};"
            " convert it first"
        )
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout)
        kind = "quantized" if value.is_quantized else kind
        raise InputError(f"{name}: expected a dense strided tensor, seen {kind}; use to_dense()")
    if value.device.type != device:
        raise InputError(
            f"{name}: expected a tensor on {device}, the device of this process's lazy session,"
            f" seen {value.device}; move it with .to({device!r})"
        )
    if value.is_conj() or value.is_neg():
        raise InputError(
            f"{name}: expected a plain tensor, seen a lazy conjugate or negative view; call"
            " resolve_conj() or resolve_neg()"
        )
