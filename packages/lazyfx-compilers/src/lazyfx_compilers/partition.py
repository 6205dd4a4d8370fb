"""Partitioners: what the forward saves for the backward.

A partitioner takes the joint graph and gives forward and backward. The one here begins with torch's
min-cut partition and drops saved values until a budget is kept (``_budget.py``). It never draws
random numbers again, whatever torch's own settings of recomputation say.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from . import _torch_partition, _torch_randomness
from ._budget import Budget, Place
from ._liveness import is_tensor
from ._recompute import Halves
from ._torch_randomness import never_redrawn
from .errors import BudgetError, BudgetWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Place", "budget_partitioner"]


def budget_partitioner(
    budget: float | None = None,
) -> Callable[..., tuple[fx.GraphModule, fx.GraphModule]]:
    """A partitioner that saves no more than a budget.

    Usable as ``partition_fn`` of ``aot_function`` and of Dynamo's ``aot_autograd``.

    Args:
        budget: From 0 to 1: the fraction of the bytes that torch's min-cut partition would save
            (inputs and parameters left out). An int from 2 up: bytes. None: torch's setting
            ``torch._functorch.config.activation_memory_budget`` when a graph is partitioned. What
            has to be saved (results of random operators, say) is saved even if it is more, with a
            :class:`BudgetWarning`.

    Raises:
        BudgetError: ``budget`` is neither.
    """
    check_budget(budget)

    def partition(
        joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        results = int(settings["num_fwd_outputs"])
        written = _torch_partition.written_inputs(joint, results)
        wanted = _torch_partition.budget_setting() if budget is None else budget
        draws = _torch_randomness.random_operators(joint)
        merging = not _torch_partition.would_be_merged(draws)
        with _torch_partition.partitioner_settings(merging=merging):
            forward, backward = _torch_partition.min_cut_partition(joint, joint_inputs, **settings)
        _copy_what_is_written(forward, backward, results, written)
        if wanted == 1:
            return forward, backward
        halves = Halves(forward=forward, backward=backward, results=results, written=written)
        _, halves = within(halves, wanted)
        return halves.forward, halves.backward

    return never_redrawn(partition)


def _copy_what_is_written(
    forward: fx.GraphModule, backward: fx.GraphModule, results: int, written: frozenset[str]
) -> None:
    """Save copies of inputs that are written before the backward runs, and of views of them.

    Torch's partitioner saves an input where eager saves what follows from it, since it takes no
    memory; if it is a buffer that the module writes to, the backward then finds it changed.
    """
    output = forward.graph.output_node()
    returned: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    first = next(node for node in forward.graph.nodes if node.op != "placeholder")
    inputs = [node for node in forward.graph.nodes if node.op == "placeholder"]
    at_risk = {node for node in inputs if node.name in written}
    for place, node in enumerate(returned[results:], start=results):
        if not isinstance(node, fx.Node) or not is_tensor(node):
            continue  # a symbolic size that was read off an input is no view of it
        if _torch_partition.viewed(node) not in at_risk:
            continue
        _torch_partition.describe_views(node)
        with forward.graph.inserting_before(first if node.op == "placeholder" else node.next):
            copied = forward.graph.call_function(torch.ops.aten.clone.default, (node,))
        copied.meta.update(_torch_partition.meta_of_copy(node))
        returned[place] = copied
        taken = next(one for one in backward.graph.nodes if one.name == node.name)
        with backward.graph.inserting_before(taken):
            renamed = backward.graph.placeholder(copied.name)
        renamed.meta.update(copied.meta)
        taken.replace_all_uses_with(renamed)
        backward.graph.erase_node(taken)
    if tuple(returned) != output.args[0]:
        output.args = (tuple(returned),)
        forward.recompile()
        backward.recompile()


def within(halves: Halves, budget: float) -> tuple[Place, Halves]:
    """Halves that save no more than a budget, and what they come to.

    Warns:
        BudgetWarning: More has to be saved.
    """
    way = Budget(halves)
    first = way.places[0]
    limit = int(budget * first.saved) if budget <= 1 else int(budget)
    place, chosen = way.within(limit)
    if place.saved > limit:
        warnings.warn(
            f"budget {budget!r}: expected at most {limit} bytes saved for the backward, and"
            f" {place.saved} have to be (results of random operators, of operators with effects,"
            " or what follows from inputs that are written)",
            BudgetWarning,
            stacklevel=2,
        )
    return place, chosen


def check_budget(budget: object) -> None:
    """Raise :class:`BudgetError` unless it is None, a fraction or a number of bytes."""
    if budget is None or _is_budget(budget):
        return
    raise BudgetError(
        "budget: expected a fraction of what is saved (0 to 1) or a number of bytes (an int from 2"
        f" up), seen {budget!r}"
    )


def _is_budget(value: Any) -> bool:
    if type(value) is float:
        return 0 <= value <= 1
    return type(value) is int and value >= 0
