"""Passes over graphs of ATen operators, each ``(gm) -> whether it changed anything``.

A pass ends with ``gm.recompile()``, as every pass over ``fx`` graphs does. On a lazy module that
marks and generates nothing, so the passes may be small and many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from lazyfx_core import LazyGraphModule, check_graph

aten = torch.ops.aten

_NEUTRAL = {
    aten.mul.Tensor: 1,
    aten.div.Tensor: 1,
    aten.add.Tensor: 0,
    aten.sub.Tensor: 0,
}
_INVOLUTIONS = (aten.neg.default, aten.t.default)


def drop_neutral(gm: fx.GraphModule) -> bool:
    """``x * 1``, ``x / 1``, ``x + 0`` and ``x - 0`` are ``x``, if dtype and shape say so too.

    Not so ``x + 0.0``, which makes 0.0 of -0.0.
    """
    changed = False
    for node in list(gm.graph.nodes):
        match node.args:
            case (fx.Node() as x, int() | float() as number) if not node.kwargs:
                if _is_neutral(node.target, number, x) and _alike(node, x):
                    changed |= _replace(gm, node, x)
    return changed


def cancel_pairs(gm: fx.GraphModule) -> bool:
    """``-(-x)`` and ``x.t().t()`` are ``x``."""
    changed = False
    for node in list(gm.graph.nodes):
        if node.target in _INVOLUTIONS:
            inner = node.args[0]
            if inner.target is node.target and _alike(node, inner.args[0]):
                changed |= _replace(gm, node, inner.args[0])
    return changed


def share_equal(gm: fx.GraphModule) -> bool:
    """Of equal calls of operators that draw nothing and write nothing, one is enough."""
    changed = False
    seen: dict[Any, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload) or not _is_pure(node.target):
            continue
        leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
        try:
            # 1 == 1.0 == True, and they are different arguments; so are 0.0 and -0.0
            key = (node.target, structure, *((type(leaf), leaf, str(leaf)) for leaf in leaves))
            first = seen.setdefault(key, node)
        except TypeError:  # a symbolic size has no hash
            continue
        if first is not node:
            changed |= _replace(gm, node, first)
    return changed


def drop_dead(gm: fx.GraphModule) -> bool:
    """What nobody uses is not computed."""
    changed = gm.graph.eliminate_dead_code()
    if changed:
        gm.recompile()
    return changed


PASSES: tuple[Callable[[fx.GraphModule], bool], ...] = (
    drop_neutral,
    cancel_pairs,
    share_equal,
    drop_dead,
)


def optimize(gm: fx.GraphModule) -> LazyGraphModule:
    """A simpler module that computes the same as ``gm``, whose graph it takes over."""
    made = LazyGraphModule.from_graphmodule(gm)
    while any(each(made) for each in PASSES):
        pass
    check_graph(made.graph)
    return made


def _is_neutral(target: Any, number: float, x: fx.Node) -> bool:
    if _NEUTRAL.get(target) != number:
        return False
    value = x.meta.get("val")
    if number or not isinstance(value, torch.Tensor) or not _has_signed_zeros(value.dtype):
        return True
    return (math.copysign(1.0, number) < 0) == (target is aten.add.Tensor)


def _has_signed_zeros(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _is_pure(target: torch._ops.OpOverload) -> bool:
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _alike(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta.get("val"), other.meta.get("val")
    return (
        isinstance(a, torch.Tensor)
        and isinstance(b, torch.Tensor)
        and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
    )


def _replace(gm: fx.GraphModule, node: fx.Node, by: fx.Node) -> bool:
    # What a graph returns must stay memory of its own: callers may write to it.
    users = [user for user in node.users if user.op != "output"]
    for user in users:
        user.replace_input_with(node, by)
    if users:
        gm.recompile()
    return bool(users)
