"""``extract_compiled_graph``: the whole path on one screen.

Check the arguments; learn what a call does from fake tensors; record the model on the lazy device;
compile the recording; hold the program against what was learnt. Only then is anything handed out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import fx, nn

from lazyfx_core import InvalidGraphError, check_graph, require_graph_module

from ._capture import record
from ._check import check_program
from ._contract import observe, source_name
from ._dump import dump
from ._program import build
from ._replay import CompiledGraph, refuse_shared_writes
from ._session import LOCK, initialize
from ._specs import Contract, Itself, TensorSpec
from ._state import bind_state
from .errors import CaptureError, InputError


def extract_compiled_graph(
    model: fx.GraphModule, example_inputs: Sequence[torch.Tensor]
) -> CompiledGraph:
    """Capture a model on torch's lazy device as something that runs without retracing.

    Nothing is executed: neither the model nor the program runs on data, and the random state does
    not move. The model and the example inputs are not changed; parameters and buffers are bound
    by reference. Thread-safe; captures run one at a time.

    Args:
        model: A traced model on the session's device (``fx.symbolic_trace``, ``make_fx``). Its
            graph is copied: later edits of the graph are not seen, changed weights are.
        example_inputs: One tensor for each placeholder, of the shapes, strides and dtypes that
            calls will have. Their values do not matter.

    Returns:
        A callable with the model's positional signature and return structure.

    Raises:
        NotAGraphModuleError: ``model`` is something else.
        InvalidGraphError: Its graph cannot run; names the node.
        InputError: An example input cannot be captured; names its index.
        FallbackError: The lazy backend has no kernel for some operators; lists them all.
        HostReadError: The model reads a tensor's value; names the node.
        CaptureError: The model does something else a captured graph could not repeat.
        SessionError: This process has no working lazy backend.
    """
    require_graph_module(model, "extract_compiled_graph(model, ...)")
    device = initialize()
    _check_graph(model)
    inputs = _check_inputs(model, example_inputs, device)
    state = bind_state(model)
    own = [binding.read() for binding in state.tensors]
    sources = [*inputs, *own]
    names = tuple(source_name(number, len(inputs), state) for number in range(len(sources)))
    for name, tensor in zip(names[len(inputs) :], own, strict=True):
        _check_tensor(name, tensor, device)
    if torch.is_autocast_enabled(device):
        raise CaptureError(
            f"autocast: expected off for {device}, seen on: the lazy backend does not follow it;"
            " trace the model under autocast with make_fx and extract the result outside"
        )
    specs = [TensorSpec.of(tensor) for tensor in sources]
    # What capture makes must be ordinary tensors, whatever mode the caller is in.
    ordinary = torch.inference_mode(False)
    with LOCK, _random_state_kept(device), ordinary, torch.no_grad():
        contract = observe(model, state, inputs, device)
        refuse_shared_writes(sources, contract.written, names, CaptureError)
        recording = record(model, state, inputs, contract, device)
        expected = _expected(contract, specs, names)
        program = build(recording, len(expected)) if recording.text else None
        if program is not None:
            check_program(program, specs, expected)
    dump(model.graph, recording, program)
    used = {number for number in program.inputs if number is not None} if program else set()
    passed = {leaf.source for leaf in contract.leaves if isinstance(leaf, Itself)}
    return CompiledGraph(
        graph=copy.deepcopy(model.graph),
        input_specs=tuple(specs[: len(inputs)]),
        device=device,
        _state=state,
        _state_specs=tuple(specs[len(inputs) :]),
        _names=names,
        _contract=contract,
        _program=program,
        _ir=recording.ir,
        _used=frozenset(used | set(contract.written)) - (passed - used),
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


@contextmanager
def _random_state_kept(device: str) -> Iterator[None]:
    with torch.random.fork_rng(devices=None if device == "cuda" else []):
        yield


def _check_graph(model: fx.GraphModule) -> None:
    check_graph(model.graph)
    for node in model.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        found: object = model
        for part in str(node.target).split("."):
            found = getattr(found, part, None)
        if found is None:
            raise InvalidGraphError(
                f"node {node.name!r} ({node.op}) refers to {node.target!r}, which the model does"
                " not have; add the attribute or erase the node"
            )


def _check_inputs(
    model: fx.GraphModule, example_inputs: Sequence[torch.Tensor], device: str
) -> list[torch.Tensor]:
    if isinstance(example_inputs, torch.Tensor) or not isinstance(example_inputs, (tuple, list)):
        raise InputError(
            f"example_inputs: expected a tuple or list of tensors, seen"
            f" {type(example_inputs).__name__}; pass (x,) for a single one"
        )
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    starred = next((node for node in placeholders if str(node.target).startswith("*")), None)
    if starred is not None:
        raise InputError(
            f"the model takes {starred.target}: expected placeholders for single tensors; trace a"
            " function that takes them one by one"
        )
    required = sum(1 for node in placeholders if not node.args)
    if not required <= len(example_inputs) <= len(placeholders):
        names = ", ".join(node.name for node in placeholders) or "none"
        raise InputError(
            f"example_inputs: expected {len(placeholders)} tensors, one for each placeholder"
            f" ({names}), seen {len(example_inputs)}"
        )
    for index, value in enumerate(example_inputs):
        _check_tensor(f"example_inputs[{index}]", value, device)
    return list(example_inputs)


def _check_tensor(name: str, value: object, device: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise InputError(
            f"{name}: expected a torch.Tensor, seen {type(value).__name__}; fix other values when"
            " tracing (concrete_args, or a closure), or pass a tensor"
        )
    if type(value) is not torch.Tensor and type(value) is not nn.Parameter:
        raise InputError(
            f"{name}: expected a plain torch.Tensor, seen the subclass {type(value).__name__};"
            " convert it first"
        )
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        kind = "quantized" if value.is_quantized else str(value.layout)
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
