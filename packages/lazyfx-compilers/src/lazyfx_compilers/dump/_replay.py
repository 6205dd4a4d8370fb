"""Running a dumped graph again, and holding what comes out against what was recorded."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from lazyfx_compilers import _torch_aot
from lazyfx_compilers._nop import nop
from lazyfx_compilers._torch_randomness import random_operators
from lazyfx_compilers._types import as_boxed

from . import _environment
from ._comparison import Comparison, Results, same_bits
from ._graphs import output_names
from ._inputs import make_values
from ._schema import DATA, OUTPUTS, RESULTS, read_json
from ._specs import decode_specs, describe_inputs
from ._storages import read_contents

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from lazyfx_compilers._types import FxCompiler

    from ._dump import DumpedGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of running a graph again.

    Attributes:
        graph: Its ``id``.
        reference: What the results were compared with: ``"recorded"``, ``"eager"`` (the graph as it
            is) or ``None``.
        exact: Whether they had to be the same bits, as they have to if the graph ran as it is both
            times; otherwise they had to be close, as ``torch.testing.assert_close`` has it.
        compared: How many outputs and changed inputs were compared.
        skipped: Names of those that were not: no description can make them, or they are inputs of
            a backward that only the recorded run wrote to, as a compiler may.
        bit_equal: Whether all of them were the same, bit by bit.
        max_abs_error: The largest difference of two floating-point values.
        differences: What was wrong, one line each; empty if nothing was.
        random: The nodes that draw random numbers, where results differ and another compiler may
            have drawn them in a way of its own: then nothing is said about the results.
        seconds: Time of each further run.
        environment: Where this machine is another: ``{"torch": ("2.13.0", "2.15.0")}``.
    """

    graph: str
    reference: str | None
    exact: bool
    compared: int
    skipped: tuple[str, ...]
    bit_equal: bool
    max_abs_error: float
    differences: tuple[str, ...]
    random: tuple[str, ...]
    seconds: tuple[float, ...]
    environment: dict[str, tuple[Any, Any]]

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.differences

    def __str__(self) -> str:
        if self.random:
            verdict = (
                f"ran; results differ, but it draws random numbers (node {self.random[0]!r}) and a "
                "compiler may draw them in another order"
            )
        elif self.reference is None:
            verdict = "ran; nothing is recorded to compare with"
        elif self.differences:
            verdict = f"DIFFERS from what was {self._reference()}"
        elif self.bit_equal:
            verdict = f"{self.compared} results, bit-equal to what was {self._reference()}"
        else:
            verdict = (
                f"{self.compared} results, close to what was {self._reference()} (largest "
                f"difference {self.max_abs_error:.3g})"
            )
        if self.skipped:
            verdict += f"; not compared: {', '.join(self.skipped[:8])}"
            verdict += f" and {len(self.skipped) - 8} more" if len(self.skipped) > 8 else ""
        lines = [f"{self.graph}: {verdict}", *(f"  {each}" for each in self.differences)]
        if self.differences:
            lines += [
                f"  {what}: recorded on {there}, here {here}"
                for what, (there, here) in self.environment.items()
            ]
        if self.seconds:
            middle = sorted(self.seconds)[len(self.seconds) // 2]
            lines.append(
                f"  {middle * 1e3:.3f} ms (median of {len(self.seconds)}, "
                f"best {min(self.seconds) * 1e3:.3f})"
            )
        return "\n".join(lines)

    def _reference(self) -> str:
        return "recorded" if self.reference == "recorded" else "computed by the graph as it is"


def run_graph(
    graph: DumpedGraph,
    inputs: Sequence[Any] | None,
    *,
    seed: int,
    compiler: FxCompiler | None,
    device: str | None,
) -> Any:
    """See :meth:`DumpedGraph.run`."""
    values = graph.inputs(seed=seed, device=device) if inputs is None else list(inputs)
    run = _compiled(graph, values, compiler, device)
    with _as_recorded(_random_state(graph, seed), values):
        return run(list(values))


def replay_graph(
    graph: DumpedGraph, *, seed: int, repeat: int, compiler: FxCompiler | None, device: str | None
) -> Replay:
    """See :meth:`DumpedGraph.replay`."""
    expected: Results | None = None
    settings: dict[str, Any] = {}
    exact = compiler is None and device is None
    saved: Container[int] = ()
    overwritten: Container[int] = ()
    if graph.has_data and graph.has_outputs:
        expected, settings, recorded_exactly, results = _recorded(graph, device)
        exact = exact and recorded_exactly
        if not recorded_exactly and results is not None:
            saved = range(results, len(expected.specs))
    with _environment.applied(settings):
        reference = None if expected is None else "recorded"
        if expected is None and compiler is not None:
            expected, reference = _results(graph, seed, None, device), "eager"
        seen = _results(graph, seed, compiler, device)
        seconds = _times(graph, seed, repeat, compiler, device)
    found = Comparison(exact=exact)
    if expected is not None:
        if reference == "recorded" and not recorded_exactly and graph.phase == "backward":
            overwritten = _overwritten(graph, expected, seen, device)
        found.compare(expected, seen, saved=saved, overwritten=overwritten)
    random: tuple[str, ...] = ()
    if found.differences and not exact:
        random = tuple(each.name for each in random_operators(graph.module()))
        if random:  # nobody can tell a fault from other random numbers
            found, reference = Comparison(exact=exact), None
    return Replay(
        graph=graph.id,
        reference=reference,
        exact=exact,
        compared=found.compared,
        skipped=tuple(found.skipped),
        bit_equal=found.bit_equal and reference is not None,
        max_abs_error=found.max_abs_error,
        differences=tuple(found.differences),
        random=random,
        seconds=seconds,
        environment=_environment.differences(graph.environment),
    )


def node_times(
    graph: DumpedGraph, *, seed: int, repeat: int, device: str | None
) -> dict[str, float]:
    """See :meth:`DumpedGraph.times`."""
    gm = _flat(graph.module(device=device))
    best: dict[str, float] = {}

    class Timed(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            _synchronize(inputs)
            start = time.perf_counter()
            result = super().run_node(n)
            _synchronize(inputs)
            seconds = time.perf_counter() - start
            best[n.name] = min(seconds, best.get(n.name, seconds))
            return result

    state = _random_state(graph, seed)
    for _ in range(max(1, repeat)):
        inputs = graph.inputs(seed=seed, device=device)
        with _as_recorded(state, inputs):
            Timed(gm).run(*inputs)
    return best


def _flat(gm: fx.GraphModule) -> fx.GraphModule:
    """``gm``, changed so that it takes one flat list; a joint graph's code takes two."""
    if type(gm.graph._codegen) is not fx.graph.CodeGen:
        gm.graph.set_codegen(fx.graph.CodeGen())
        gm.recompile()
    return gm


def _compiled(
    graph: DumpedGraph, inputs: Sequence[Any], compiler: FxCompiler | None, device: str | None
) -> Callable[[list[Any]], Any]:
    gm = _flat(graph.module(device=device))
    return as_boxed((compiler or nop)(gm, inputs), "replay")


def _random_state(graph: DumpedGraph, seed: int) -> tuple[Mapping[str, torch.Tensor], int]:
    """The recorded states, and ``seed`` for what has none."""
    contents = read_contents(graph.folder / DATA) if graph.has_data else {}
    return {k: v for k, v in contents.items() if k.startswith("random_")}, seed


def _as_recorded(
    state: tuple[Mapping[str, torch.Tensor], int], inputs: Sequence[Any]
) -> contextlib.AbstractContextManager[Any]:
    devices = {each.device for each in inputs if isinstance(each, torch.Tensor)}
    stack = contextlib.ExitStack()
    stack.enter_context(_environment.random_state(*state, devices))
    stack.enter_context(torch.no_grad())
    for kind in {"cpu", *(device.type for device in devices)} - {"meta"}:
        # what autocast did is in the graph already
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def _results(
    graph: DumpedGraph, seed: int, compiler: FxCompiler | None, device: str | None
) -> Results:
    inputs = graph.inputs(seed=seed, device=device)
    gm = _flat(graph.module(device=device))
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    names += output_names(gm)
    run = as_boxed((compiler or nop)(gm, inputs), "replay")
    with _as_recorded(_random_state(graph, seed), inputs):
        outputs, _ = _torch_aot.tree_flatten(run(list(inputs)))
    leaves, _ = _torch_aot.tree_flatten(inputs)
    values = [*leaves, *outputs]
    return Results(specs=describe_inputs(names, values), values=values)


def _times(
    graph: DumpedGraph, seed: int, repeat: int, compiler: FxCompiler | None, device: str | None
) -> tuple[float, ...]:
    seconds = []
    if repeat > 0:
        run = _compiled(graph, graph.inputs(seed=seed, device=device), compiler, device)
        state = _random_state(graph, seed)
    for _ in range(repeat):
        inputs = graph.inputs(seed=seed, device=device)  # the last run may have changed them
        with _as_recorded(state, inputs):
            _synchronize(inputs)
            start = time.perf_counter()
            kept = run(list(inputs))
            _synchronize(inputs)
            seconds.append(time.perf_counter() - start)
            del kept
    return tuple(seconds)


def _synchronize(values: Sequence[Any]) -> None:
    for device in {each.device for each in values if isinstance(each, torch.Tensor)}:
        if device.type not in ("cpu", "meta"):
            torch.get_device_module(device).synchronize(device)


def _overwritten(
    graph: DumpedGraph, expected: Results, seen: Results, device: str | None
) -> list[int]:
    """Inputs that only the recorded run wrote to.

    A compiler may use the memory of what was saved for the backward, which nobody reads again.
    """
    before, _ = _torch_aot.tree_flatten(graph.inputs(device=device))
    found = []
    for position, (value, *after) in enumerate(
        zip(before, expected.values, seen.values, strict=False)
    ):
        if isinstance(value, torch.Tensor):
            recorded, here = (
                isinstance(each, torch.Tensor)
                and (each.dtype, each.shape) == (value.dtype, value.shape)
                and same_bits(value, each)
                for each in after
            )
            if here and not recorded:
                found.append(position)
    return found


def _recorded(
    graph: DumpedGraph, device: str | None
) -> tuple[Results, dict[str, Any], bool, int | None]:
    """Results, settings, whether they have to be the same bits, where saved values begin."""
    file = graph.folder / OUTPUTS
    root = read_json(file, "outputs")
    after, made = decode_specs(root.get("after")), decode_specs(root.get("outputs"))
    specs = (*after, *made)
    results = root.get("results", None)
    contents = {**read_contents(graph.folder / DATA), **read_contents(graph.folder / RESULTS)}
    values = make_values(specs, file, recorded=contents, device=device)
    return (
        Results(specs=specs, values=values),
        _environment.decode_settings(root.get("settings")),
        root.get("exact").boolean(),
        None if results.value is None else len(after) + results.integer(least=0),
    )
