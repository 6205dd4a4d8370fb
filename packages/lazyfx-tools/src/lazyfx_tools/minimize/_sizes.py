"""The same graph with smaller inputs.

A size is a number that stands in shapes of inputs and, since tracing writes sizes down, in calls.
All of its places are changed at once; products of it too, if it does not work without. What then
still runs is a graph, if not always the same model: whether it shows the fault is asked as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from lazyfx_compilers._torch_standalone import CannotTell, annotate, copied, run_eagerly

from ._case import Case


def smaller_sizes(case: Case) -> Iterator[Case]:
    """Cases with one size of the inputs made smaller, the largest size first; all of them run."""
    tensors = [value for value in case.inputs if isinstance(value, torch.Tensor)]
    if any(_is_index(tensor) and tensor.device.type != "cpu" for tensor in tensors):
        return  # an index out of bounds ends all work on an accelerator
    sizes = {extent for tensor in tensors for extent in tensor.shape if extent > 1}
    for size in sorted(sizes, reverse=True):
        for target in sorted({1, 2, size // 2}):
            if target >= size:
                continue
            for products in (False, True):
                smaller = _resized(case, size, target, products)
                if smaller is not None:
                    yield smaller
                    break


def _resized(case: Case, size: int, target: int, products: bool) -> Case | None:
    def number(value: Any) -> Any:
        if type(value) is not int or value % size or value < size:
            return value
        return value // size * target if products or value == size else value

    graph: Any = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in case.gm.graph.nodes:
        made[node] = graph.node_copy(node, lambda one: made[one])
        if node.op.startswith("call_"):
            made[node].args = _mapped(made[node].args, number)
            made[node].kwargs = _mapped(made[node].kwargs, number)
    inputs = tuple(
        _narrowed(value, size, target) if isinstance(value, torch.Tensor) else number(value)
        for value in case.inputs
    )
    gm = fx.GraphModule(case.gm, graph)
    gm.meta.update(case.gm.meta)
    smaller = Case(gm=gm, inputs=inputs)
    try:
        run_eagerly(gm, inputs)
    except CannotTell:
        return None
    _describe_again(smaller)
    return smaller


def _mapped(value: Any, number: Callable[[Any], Any]) -> Any:
    return fx.node.map_aggregate(value, number)


def _narrowed(tensor: torch.Tensor, size: int, target: int) -> torch.Tensor:
    """The beginning of a tensor, in memory of its own, its dimensions in the same order there."""
    small = tensor.detach()
    for dimension, extent in enumerate(tensor.shape):
        if extent == size:
            small = small.narrow(dimension, 0, target)
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride()[d], d))
    strides, step = [0] * tensor.dim(), 1
    for dimension in reversed(order):
        if tensor.stride(dimension) or small.shape[dimension] <= 1:
            strides[dimension] = step
            step *= max(small.shape[dimension], 1)
    new = torch.empty_strided(small.shape, strides, dtype=tensor.dtype, device=tensor.device)
    places = [slice(0, 1) if s == 0 else slice(None) for s in strides]
    new[tuple(places)] = small[tuple(places)]
    return new.requires_grad_(tensor.requires_grad)


def _describe_again(case: Case) -> None:
    keys = ("val", "example_value")
    key = next((k for k in keys if any(k in n.meta for n in case.gm.graph.nodes)), None)
    for node in case.gm.graph.nodes:
        for old in (*keys, "tensor_meta"):
            node.meta.pop(old, None)
    annotate(case.gm, copied(case.inputs), key)


def _is_index(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
