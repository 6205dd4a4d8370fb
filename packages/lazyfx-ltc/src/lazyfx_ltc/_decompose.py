"""Decompositions that bring a model down to what the lazy backend has kernels for.

The table is derived from the kernels the running torch has registered, not kept by hand: for every
operator *without* a lazy kernel it holds torch's own decomposition, if there is one. An operator
the backend lowers itself is never taken apart. A few operators that torch does not decompose, and
the backend does not lower, are written here with operators it does lower, value for value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ._fallback import is_composite
from ._session import initialize
from ._torch_tracing import core_decompositions, op_name

_KEEP = frozenset(
    # Captured as they are (_record.py), or made of parts the backend lowers.
    {"aten::split", "aten::split_with_sizes", "aten::unbind", "aten::_safe_softmax", "aten::copy_"}
)


def _where(condition: torch.Tensor, first: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Pick by ``gather``: exact, also for infinities and NaN in the branch not taken."""
    dtype = torch.result_type(first, other)
    shapes = (condition.shape, first.shape, other.shape)
    shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    both = torch.stack([other.to(dtype).expand(shape), first.to(dtype).expand(shape)])
    chosen = condition.to(torch.int64).expand(shape).unsqueeze(0)
    return both.gather(0, chosen).squeeze(0)


def _logical_not(value: torch.Tensor) -> torch.Tensor:
    return value == 0


def _bitwise_not(value: torch.Tensor) -> torch.Tensor:
    return value == 0 if value.dtype == torch.bool else -1 - value


def _logical_and(first: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (first != 0) & (other != 0)


def _logical_or(first: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (first != 0) | (other != 0)


def _index_one(tensor: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Any:
    """``tensor[index]`` with one integer index, on the first dimension."""
    index = indices[0]
    if len(indices) != 1 or index is None or index.dtype not in (torch.int32, torch.int64):
        return NotImplemented
    size = tensor.shape[0]
    flat = index.reshape(-1)
    flat = flat + (flat < 0).to(flat.dtype) * size
    return tensor.index_select(0, flat).reshape(*index.shape, *tensor.shape[1:])


def _center(
    tensor: torch.Tensor, dim: Sequence[int] | None, correction: float | None
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(variance, mean, dimensions), reduced dimensions kept."""
    dims = list(range(tensor.dim())) if not dim else [one % tensor.dim() for one in dim]
    count = 1
    for one in dims:
        count *= tensor.shape[one]
    mean = tensor.mean(dims, keepdim=True) if dims else tensor
    squares = (tensor - mean) ** 2
    total = squares.sum(dims, keepdim=True) if dims else squares
    divisor = max(count - (1 if correction is None else correction), 0)
    return total / divisor, mean, dims


def _reduced(tensor: torch.Tensor, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
    if keepdim:
        return tensor
    return tensor.reshape([n for dim, n in enumerate(tensor.shape) if dim not in dims])


def _var(
    tensor: torch.Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    if tensor.is_complex():
        return NotImplemented
    variance, _, dims = _center(tensor, dim, correction)
    return _reduced(variance, dims, keepdim)


def _var_mean(
    tensor: torch.Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    if tensor.is_complex():
        return NotImplemented
    variance, mean, dims = _center(tensor, dim, correction)
    return _reduced(variance, dims, keepdim), _reduced(mean, dims, keepdim)


def _roll(tensor: torch.Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> torch.Tensor:
    if not dims:
        return _roll(tensor.reshape(-1), shifts, [0]).reshape(tensor.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        size = tensor.shape[dim]
        if size and (cut := size - shift % size) < size:
            head, tail = tensor.narrow(dim, 0, cut), tensor.narrow(dim, cut, size - cut)
            tensor = torch.cat([tail, head], dim)
    return tensor


_OURS: dict[str, Callable[..., Any]] = {
    "where.self": _where,
    "logical_not.default": _logical_not,
    "bitwise_not.default": _bitwise_not,
    "logical_and.default": _logical_and,
    "logical_or.default": _logical_or,
    "index.Tensor": _index_one,
    "var.correction": _var,
    "var_mean.correction": _var_mean,
    "roll.default": _roll,
}


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """A decomposition table for ``make_fx``, for the lazy backend of the running torch.

    ``make_fx(model, decomposition_table=decompositions())(*inputs)`` gives a graph that
    :func:`lazyfx_ltc.extract_compiled_graph` captures with kernels of the lazy backend alone. It is
    rarely needed: without it, operators that have no such kernel are called as they are. Numbers
    agree with eager within the usual floating-point tolerance, since a decomposed operator may
    round differently.

    Returns:
        A new dictionary from operator overload to function. Initializes the session, since the
        backend's kernels are only known then.

    Raises:
        SessionError: This process has no working lazy backend.
    """
    initialize()
    table = {op: f for op, f in core_decompositions().items() if _wanted(op)}
    for name, function in _OURS.items():
        op = _overload(name)
        if is_composite(op_name(op)):
            table[op] = function
    return table


def _wanted(op: Any) -> bool:
    """Whether the backend is better off without the operator, and can be."""
    schema = getattr(op, "_schema", None)
    if schema is None or not schema.name.startswith("aten::") or schema.name in _KEEP:
        return False
    if op.is_view or torch.Tag.nondeterministic_seeded in op.tags:
        return False
    # Where one overload is native (mul.Tensor), the others (mul.Scalar) lead there by themselves;
    # torch's decomposition of them leads to prims, which the backend does not know.
    overloads = op.overloadpacket.overloads()
    names = (schema.name if one == "default" else f"{schema.name}.{one}" for one in overloads)
    return all(is_composite(name) for name in names)
