"""The graphs that ``torch.compile`` makes of one call, with the inputs they really get."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from lazyfx_compilers import _torch_aot
from lazyfx_compilers._nop import nop
from lazyfx_compilers._torch_standalone import copied, leaves
from lazyfx_compilers._types import boxed
from lazyfx_compilers.partition import budget_partitioner
from lazyfx_tools.compare import _torch_compare

from ._case import Case, drop_unwritten_outputs
from ._search import seeded


@dataclass(slots=True)
class Seen:
    """A graph that was compiled; ``case`` is there once it has run."""

    name: str
    gm: fx.GraphModule
    case: Case | None = None


def graphs_of(
    function: Callable[..., Any],
    args: Sequence[Any],
    decompositions: Mapping[Any, Any] | None = None,
) -> list[Seen]:
    """Call ``function`` once under ``torch.compile`` and keep each ATen graph and its inputs.

    If a result requires gradients, the backward runs as well; no ``.grad`` is touched.
    """
    seen: list[Seen] = []

    def keep(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        entry = Seen(f"{len(seen)} ({_torch_aot.phase(gm)})", copy.deepcopy(gm))
        drop_unwritten_outputs(entry.gm)
        seen.append(entry)
        compiled = nop(gm, example_inputs)

        def run(inputs: list[Any]) -> Any:
            if entry.case is None:
                entry.case = Case(gm=entry.gm, inputs=tuple(copied(inputs)))
            return compiled(inputs)

        return boxed(run, "minify")

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        if not _torch_aot.is_dynamo_graph(gm):
            return keep(gm, example_inputs)
        return _torch_aot.compile_dynamo_graph(
            gm,
            example_inputs,
            fw_compiler=keep,
            partition_fn=budget_partitioner(),
            decompositions=decompositions,
        )

    # Dynamo counts compilations by code object, and gives up on one that it has compiled often
    call = _torch_compare.never_compiled_before(function)
    with seeded(), _torch_compare.settings(inductor=False):
        results = torch.compile(call, backend=backend)(*args)
        roots = [
            one for one in leaves(results) if isinstance(one, torch.Tensor) and one.requires_grad
        ]
        if roots:
            torch.autograd.grad(
                roots,
                _leaves_of(roots),
                [torch.randn_like(one) for one in roots],
                allow_unused=True,
            )
    return seen


def _leaves_of(roots: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors that a backward from ``roots`` ends at."""
    found: dict[int, torch.Tensor] = {}
    waiting: list[Any] = [one.grad_fn for one in roots]
    met = set()
    found.update({id(one): one for one in roots if one.grad_fn is None})
    while waiting:
        step = waiting.pop()
        if step is None or step in met:
            continue
        met.add(step)
        variable = getattr(step, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        waiting.extend(one for one, _ in step.next_functions)
    return list(found.values())
