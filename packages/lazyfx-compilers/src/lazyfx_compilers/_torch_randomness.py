"""Random numbers that the forward has drawn must not be drawn again in the backward.

A partitioner may recompute in the backward what the forward computed. Of an operator that draws
random numbers that makes other numbers: a dropout mask that the forward never used, and a gradient
that is wrong without a word. Torch's partitioner does so under several of its settings (an
activation memory budget below one, aggressive recomputation, no allow-list). So every partition is
looked at after the fact, whichever partitioner made it.

Operators that torch itself has paired with a saved generator state (``run_with_rng_state``) draw
the same numbers again and are fine.

=================================================  =================================================
private name                                       used for
=================================================  =================================================
``torch._ops.OpOverload``, ``OpOverload._schema``  which operators draw, and the probability they
                                                   are given
=================================================  =================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch._ops import OpOverload

from . import _torch_aot, _torch_partition
from .errors import UnsafeRecomputationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx


def never_redrawn(
    partition: Callable[..., tuple[fx.GraphModule, fx.GraphModule]],
) -> Callable[..., tuple[fx.GraphModule, fx.GraphModule]]:
    """``partition``, refusing a result in which the backward draws the forward's numbers again.

    Refused is also one that draws less often than the joint graph: merging common subexpressions
    takes two draws with the same arguments for one.

    Raises:
        UnsafeRecomputationError: By the result, on compiling; names the operator.
    """

    def checked(
        joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        before = random_operators(joint)
        used = [node.name for node in before if node.users]
        forward, backward = partition(joint, joint_inputs, **settings)
        drawn = random_operators(forward)
        later = random_operators(backward)
        names = {node.name for node in drawn}
        again = [node for node in later if node.name in names]
        if not again and len(drawn) + len(later) > len(before):
            again = later  # a partitioner that renames: one of these is drawn twice
        again = _without_dead(backward, again)
        if again:
            setting = _torch_partition.recomputation_setting() or "the partitioner that was given"
            raise UnsafeRecomputationError(
                f"node {again[0].name!r} ({again[0].target}) draws random numbers, and {setting} "
                "has it computed again in the backward with other numbers, which makes wrong "
                "gradients; use torch's default for that setting, or a partitioner that saves the "
                "results of random operators"
            )
        names |= {node.name for node in later}
        if len(names) + _paired(forward) < len(used):
            gone = next((name for name in used if name not in names), used[-1])
            raise UnsafeRecomputationError(
                f"node {gone!r} draws random numbers, and the partitioner that was given has merged"
                " it with another draw, which makes both the same; use one that does not merge"
                " (torch._functorch.config.cse = False)"
            )
        return forward, backward

    return checked


def _paired(forward: fx.GraphModule) -> int:
    """How many draws torch has paired with a saved generator state."""
    return sum(
        _torch_aot.is_higher_order(node.target) and "rng_state" in node.target.name()
        for node in forward.graph.nodes
    )


def _without_dead(backward: fx.GraphModule, nodes: list[fx.Node]) -> list[fx.Node]:
    """Erase those of ``nodes`` whose result nobody uses; the others.

    torch's default partitioner leaves them: they change no gradient, but draw, and the next step
    would not have eager's random numbers.
    """
    dead = [node for node in nodes if not node.users]
    for node in dead:
        backward.graph.erase_node(node)
    if dead:
        backward.graph.eliminate_dead_code()
        backward.recompile()
    return [node for node in nodes if node not in dead]


def random_operators(gm: fx.GraphModule) -> list[fx.Node]:
    """Nodes that draw from a random number generator."""
    return [node for node in gm.graph.nodes if draws(node)]


def draws(node: fx.Node) -> bool:
    """Whether a node draws from a random number generator; attention without dropout does not."""
    target = node.target
    return (
        isinstance(target, OpOverload)
        and torch.Tag.nondeterministic_seeded in target.tags
        and not _drops_nothing(node, target)
    )


def _drops_nothing(node: fx.Node, target: OpOverload) -> bool:
    for place, argument in enumerate(target._schema.arguments):
        if argument.name == "dropout_p":
            given: Any = node.args[place] if place < len(node.args) else argument.default_value
            return bool(node.kwargs.get("dropout_p", given) == 0)
    return False
