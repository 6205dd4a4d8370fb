"""``memory_report``: what a training step keeps for its backward, why, and what it peaks at.

Three things are put side by side. What eager does, measured. What the compiled step does, measured.
And what the partition of the step says: which values the forward saves, which the backward computes
again, and how much memory the two graphs hold at each node (``_liveness.py``). Measured is what
torch's allocator was asked for; simulated is what it would be asked for if nothing were fused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from . import _liveness, _messages, _torch_aot, _torch_partition, _torch_randomness
from ._fused import FusedModule, fused_function, is_fused
from ._memory_data import MemoryReport, RecomputedValue, SavedValue, Simulation, Usage
from ._recompute import Choice, Halves, Joint
from ._torch_lines import UserLines
from ._torch_profiler import allocations
from .errors import NotCompilableError
from .fusion import make_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ._types import FxCompiler

__all__ = ["MemoryReport", "RecomputedValue", "SavedValue", "Simulation", "Usage", "memory_report"]

_WARM_UPS = 3  # TorchScript compiles once more after the first calls


def memory_report(
    fn: Callable[..., Any] | nn.Module,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    codegen: str | FxCompiler = "inductor",
    budget: float | None = None,
    partitioner: Callable[..., Any] | None = None,
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
    measure: bool = True,
) -> MemoryReport:
    """What ``memory_efficient_fusion`` makes of one training step of ``fn(*args)``.

    The step is the forward, the sum of its results as a loss, and the gradients of all inputs and
    parameters that require them. It runs a few times, eagerly and compiled. Afterwards arguments,
    buffers, ``.grad`` and torch's random number generators are what they were.

    Args:
        fn: A function or module, not yet compiled. Not changed.
        *args: Its arguments; tensors are copied.
        kwargs: Its arguments by name.
        codegen: As in :func:`memory_efficient_fusion`.
        budget: As in :func:`memory_efficient_fusion`.
        partitioner: As in :func:`memory_efficient_fusion`.
        decompositions: As in :func:`memory_efficient_fusion`.
        measure: With ``False`` the compiled step is traced and runs once, eager does not run, and
            there is no measurement.

    Returns:
        The report: ``print`` it, read its fields, or ``report.plot("memory.svg")``.

    Raises:
        NotCompilableError: ``fn`` is compiled already, or nothing requires grad, so that nothing
            is saved.
        CompilerError: Whatever :func:`memory_efficient_fusion` raises, on making and calling.

    Thread-safety: call it while nobody else uses ``fn``: the profiler counts the whole process.
    """
    kwargs = dict(kwargs or {})
    given = {"partition_fn": partitioner, "decompositions": decompositions}
    overrides = {name: value for name, value in given.items() if value is not None}
    _require_uncompiled(fn)
    recipe = make_recipe(codegen, budget=budget, overrides=overrides)
    found: list[Callable[[], MemoryReport]] = []
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    text = _settings_text(codegen, budget, partitioner)

    def described(
        joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        results = int(settings["num_fwd_outputs"])
        written = _torch_partition.written_inputs(joint, results)
        forward, backward = recipe.partition_fn(joint, joint_inputs, **settings)
        # at once: code generators change the graphs that they are given
        halves = Halves(forward=forward, backward=backward, results=results, written=written)
        partition = _describe(halves)
        found.append(functools.partial(MemoryReport, name=name, settings=text, **partition))
        return forward, backward

    settings = dataclasses.replace(recipe, partition_fn=described).settings()
    compiled: Callable[..., Any]
    if isinstance(fn, nn.Module):
        compiled = FusedModule(_Lined(fn), settings, guard=False)
    else:
        compiled = fused_function(_lined(fn), settings, guard=False)
    step = _TrainingStep(fn, args, kwargs)
    with _unchanged(fn, step.devices):
        seen, eager = (step.measured(one) for one in (compiled, fn)) if measure else (None, None)
        if not measure:
            step.traced(compiled)
    if len(found) != 1:
        raise NotCompilableError(
            f"memory_report: expected one joint graph of {name}, seen {len(found)}: no result"
            " depends on an input or parameter that requires grad, so nothing is saved"
        )
    return found[0](eager=eager, compiled=seen)  # type: ignore[call-arg]


def _require_uncompiled(fn: object) -> None:
    if not callable(fn):
        raise NotCompilableError(
            f"memory_report(fn): expected a function or an nn.Module, got {type(fn)!r}"
        )
    if is_fused(fn) or hasattr(fn, "_torchdynamo_orig_callable"):
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        raise NotCompilableError(
            f"memory_report(fn): {name} is compiled already; give the original, "
            "and codegen and budget to memory_report"
        )


def _settings_text(codegen: Any, budget: float | None, partitioner: Any) -> str:
    parts = [f"codegen {codegen if isinstance(codegen, str) else _name(codegen)}"]
    if budget is not None:
        parts.append(f"budget {budget!r}")
    if partitioner is not None:
        parts.append(f"partitioner {_name(partitioner)}")
    return ", ".join(parts)


def _name(what: Any) -> str:
    return str(getattr(what, "__qualname__", type(what).__qualname__))


# --- running -----------------------------------------------------------------------------------


class _TrainingStep:
    """Forward and backward of something with the arguments of ``fn``."""

    def __init__(
        self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self._leaves, self._structure = _torch_aot.tree_flatten((tuple(args), dict(kwargs)))
        held = list(fn.parameters()) if isinstance(fn, nn.Module) else []
        self._parameters = [one for one in held if one.requires_grad]
        tensors = [one for one in (*self._leaves, *held) if isinstance(one, torch.Tensor)]
        # a number beside tensors on a GPU may be a tensor on the CPU
        elsewhere = (one.device for one in tensors if one.device.type != "cpu")
        self._device = next(elsewhere, torch.device("cpu"))
        self._inputs: list[Any] = []
        self.devices = {one.device for one in tensors}

    def traced(self, run: Callable[..., Any]) -> None:
        """Run it once."""
        self._renew()
        self._backward(self._forward(run))

    def measured(self, run: Callable[..., Any]) -> Usage:
        """Run it until it is warm, and once more with the profiler."""
        for _ in range(_WARM_UPS):
            self.traced(run)
        self._renew()
        return allocations(lambda: self._forward(run), self._backward, self._device)

    def _renew(self) -> None:
        self._inputs = [_copy(leaf) for leaf in self._leaves]

    def _forward(self, run: Callable[..., Any]) -> torch.Tensor | None:
        """The sum of all results: a loss, so that nobody holds the results themselves."""
        args, kwargs = _torch_aot.tree_unflatten(self._inputs, self._structure)
        sums = [
            (torch.view_as_real(one) if one.is_complex() else one).sum()
            for one in _torch_aot.tree_flatten(run(*args, **kwargs))[0]
            if isinstance(one, torch.Tensor) and one.requires_grad
        ]
        return functools.reduce(operator.add, sums) if sums else None

    def _backward(self, loss: torch.Tensor | None) -> None:
        if loss is None:
            return
        inputs = [one for one in self._inputs if isinstance(one, torch.Tensor)]
        wanted = [one for one in inputs if one.requires_grad] + self._parameters
        torch.autograd.grad(loss, wanted, allow_unused=True)


def _copy(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


@contextlib.contextmanager
def _unchanged(fn: Any, devices: Iterable[torch.device]) -> Iterator[None]:
    """Put the random number generators of these devices and the CPU, and buffers, back afterwards.

    Left to itself, torch would start every GPU of the machine to read its generator.
    """
    modules = list(fn.modules()) if isinstance(fn, nn.Module) else []
    homes = [(one._buffers, dict(one._buffers)) for one in modules]
    buffers = [one for _, held in homes for one in held.values() if one is not None]
    before = [one.detach().clone() for one in buffers]
    with contextlib.ExitStack() as kept:
        kept.enter_context(torch.random.fork_rng(devices=[]))
        for device in devices:
            if device.type not in ("cpu", "meta"):
                fork = torch.random.fork_rng(devices=[device], device_type=device.type)
                kept.enter_context(fork)
        try:
            yield
        finally:
            for home, held in homes:  # a forward may have put others there
                home.clear()
                home.update(held)
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)


class _Lined(nn.Module):
    """A module whose traced nodes know the user's lines."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.__qualname__ = type(module).__qualname__  # for errors

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with UserLines():
            return self.module(*args, **kwargs)


def _lined(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def lined(*args: Any, **kwargs: Any) -> Any:
        with UserLines():
            return function(*args, **kwargs)

    return lined


# --- describing --------------------------------------------------------------------------------


def _describe(halves: Halves) -> dict[str, Any]:
    joint = Joint(halves)
    choice = Choice(dict.fromkeys(joint.kept))
    steps = joint.storages.steps(halves.backward.graph)
    inputs = len(_liveness.inputs(halves.backward.graph))
    steps = _liveness.separated(steps, inputs, joint.storages, joint.foreign)
    backward = _liveness.timeline(steps, joint.storages.sizes, joint.foreign)
    held = max(backward[:inputs], default=0)  # they are all there from the start
    backward[:inputs] = [held] * inputs
    saved, counted = [], set(joint.foreign)
    for value in joint.kept:
        fresh = set(joint.behind[value]) - counted
        counted |= fresh
        saved.append(_saved(joint, value, joint.storages.total(fresh)))
    return {
        "simulation": Simulation(
            forward=tuple(joint.forward_timeline(choice)), backward=tuple(backward)
        ),
        "saved": tuple(sorted(saved, key=lambda one: -one.nbytes)),
        "recomputed": tuple(
            RecomputedValue(
                name=joint.nodes[value].name,
                target=_target(joint.nodes[value]),
                nbytes=joint.bytes_of([value]),
                seconds=joint.seconds[value],
                user_line=_messages.user_line(joint.nodes[value]),
            )
            for value in joint.recomputed()
        ),
    }


def _saved(joint: Joint, value: int, nbytes: int) -> SavedValue:
    node = joint.nodes[value]
    described = node.meta.get("val")
    tensor = described if isinstance(described, torch.Tensor) else None
    why, seconds = _reason(joint, value)
    return SavedValue(
        name=node.name,
        target=_target(node),
        shape=() if tensor is None else tuple(_torch_aot.hint(one) for one in tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch.") if tensor is not None else "int",
        nbytes=nbytes,
        why=why,
        seconds=seconds,
        user_line=_messages.user_line(node),
    )


def _reason(joint: Joint, value: int) -> tuple[str, float | None]:
    """Why a value is saved, and the seconds that it would take to compute it again."""
    node = joint.nodes[value]
    if not _liveness.is_tensor(node):
        return "a number that the backward reads", None
    if node.op == "placeholder" or (joint.behind[value] and joint.is_foreign(value)):
        return "an input or parameter, or a view of one: it is there anyway", None
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if source is not None and source.name in joint.halves.written:
        return "a copy: the input is written to before the backward runs", None
    drawn = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else node
    if _torch_randomness.draws(node) or (joint.fixed[value] and _torch_randomness.draws(drawn)):
        return "random: drawn again it would be another", None
    if joint.fixed[value]:
        return "its operator has an effect or hides a graph, and must not run twice", None
    reached = joint.reached([value], dict.fromkeys(joint.kept), ())
    if reached is None:
        return "what it follows from cannot be had in the backward", None
    computed, besides = reached
    if joint.bytes_of(besides) >= joint.bytes_of([value]):
        return "the smallest of what follows from random numbers", None
    seconds = sum(joint.seconds[one] for one in computed)
    count = "1 node" if len(computed) == 1 else f"{len(computed)} nodes"
    return f"to compute it again would take about {seconds * 1e3:.2g} ms ({count})", seconds


def _target(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    return str(node._pretty_print_target(node.target)).removeprefix("torch.ops.")
