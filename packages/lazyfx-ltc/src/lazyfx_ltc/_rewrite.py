"""Send what a model would create on a real device to the lazy device instead.

Two layers, because neither sees everything. :func:`force_lazy_device` edits the graph: factory
calls and explicit devices of nodes. :class:`LazyDevices` catches the same inside leaf modules,
whose Python code no graph edit reaches. What slips through both (a tensor hidden in a list, a
transfer to another device) is refused by ``_record.py``.

Sound because the contract run has already shown that every tensor of the model lives on the
session's device: there, "move to that device" means "stay".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from lazyfx_core import require_graph_module

from ._batch_norm import BATCH_NORMS
from ._torch_tracing import below_autograd, device_constructors

_LAZY = torch.device("lazy", 0)  # with its number: to() copies where devices are not equal
_TRANSFERS = ("cpu", "cuda")


def _is_device_name(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True


def _redirect(value: Any) -> Any:
    if isinstance(value, torch.device):
        return _LAZY
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_redirect(item) for item in value)
    return value


def _redirect_keywords(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    redirected = {key: _redirect(value) for key, value in kwargs.items()}
    device = redirected.get("device")
    if _is_device_name(device) or type(device) is int:
        redirected["device"] = _LAZY
    return redirected


def _redirect_transfer(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``x.to("cpu", ...)``: the device may be a bare string in second place, or a GPU's number."""
    if len(args) > 1 and (_is_device_name(args[1]) or type(args[1]) is int):
        return (args[0], _LAZY, *args[2:])
    return args


def _is_overload_factory(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    if schema is None:
        return False
    names = [argument.name for argument in schema.arguments]
    takes_tensor = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return "device" in names and not takes_tensor


def _names_device(values: Iterable[Any]) -> bool:
    return any(isinstance(value, torch.device) for value in values)


def _rewrite_node(node: fx.Node) -> None:
    args = tuple(_redirect(argument) for argument in node.args)
    kwargs = _redirect_keywords(node.kwargs)
    if node.op == "call_method" and node.target == "to":
        args = _redirect_transfer(args)
    elif node.op == "call_method" and node.target in _TRANSFERS:
        # x.cpu(memory_format=...) and x.cuda(device, non_blocking)
        node.target = "to"
        keep = {key: value for key, value in kwargs.items() if key == "memory_format"}
        args, kwargs = (args[0], _LAZY), keep
    elif node.op == "call_function" and not _names_device((*args, *kwargs.values())):
        target = node.target
        if target in device_constructors() or _is_overload_factory(target):
            kwargs["device"] = _LAZY
    node.args, node.kwargs = args, kwargs


def force_lazy_device(model: fx.GraphModule) -> None:
    """Make a graph create its tensors on the lazy device. Changes ``model`` in place.

    Covers explicit devices anywhere in the arguments (``torch.device`` objects, also nested, and
    names under the ``device`` keyword), ``x.to("cpu")``, ``x.cpu()``, ``x.cuda()``, and factory
    functions called without a device (``torch.zeros`` and its kin, ``torch.tensor``, and the aten
    overloads ``make_fx`` records). ``x.new_zeros`` and ``torch.zeros_like`` follow their input
    and are left alone. Code inside leaf modules is not touched. The model is recompiled once.

    :func:`lazyfx_ltc.extract_compiled_graph` does this on its own copy; there is no need to call
    it first.

    Args:
        model: A graph module; its graph is edited.

    Raises:
        NotAGraphModuleError: ``model`` is something else.
    """
    require_graph_module(model, "force_lazy_device(model)")
    for node in model.graph.nodes:
        if node.op in ("call_function", "call_method"):
            _rewrite_node(node)
    model.recompile()


# Eager has a kernel for the whole of these. On the lazy device they would be taken apart, and would
# run slower and round otherwise; below autograd they arrive whole.
_ATEN = torch.ops.aten
_WHOLE: dict[str, set[Any]] = {
    "aten::group_norm": {torch.group_norm, torch.nn.functional.group_norm, _ATEN.group_norm},
    "aten::native_group_norm": {torch.native_group_norm, _ATEN.native_group_norm},
    "aten::scaled_dot_product_attention": {
        torch.nn.functional.scaled_dot_product_attention,
        _ATEN.scaled_dot_product_attention,
    },
    "aten::linear": {torch.nn.functional.linear, _ATEN.linear},
    "aten::matmul": {
        torch.matmul,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        _ATEN.matmul,
    },
    "aten::lstm": {torch.lstm},
    "aten::gru": {torch.gru},
    "aten::rnn_tanh": {torch.rnn_tanh},
    "aten::rnn_relu": {torch.rnn_relu},
}
_WHOLE_BY_FUNCTION: dict[Any, str] = {
    overload: name
    for name, functions in _WHOLE.items()
    for one in functions
    for overload in (one, getattr(one, "default", one))
}
_RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})


def called_whole(func: Callable[..., Any], args: Sequence[Any]) -> str | None:
    """The operator that a function is called as, if it would otherwise be taken apart."""
    name = _WHOLE_BY_FUNCTION.get(func)
    if name is None:
        return None
    if func in _RECURRENT:  # of padded sequences, and without random draws
        padded = len(args) == 9 and isinstance(args[2], (list, tuple))
        return name if padded and not (args[5] and args[6]) else None
    if name == "aten::matmul":  # of matrices and vectors it is a single operator as it is
        batched = any(isinstance(one, torch.Tensor) and one.dim() > 2 for one in args)
        return name if batched else None
    return name


def _apart(*names: str) -> frozenset[Any]:
    owners = (torch, torch.Tensor, _ATEN)
    found = [getattr(owner, name) for owner in owners for name in names if hasattr(owner, name)]
    overloads = [getattr(one, kind) for one in found for kind in _kinds(one)]
    return frozenset([*found, *overloads])


def _kinds(packet: Any) -> Sequence[str]:
    return packet.overloads() if hasattr(packet, "overloads") else ()


_UNBIND = _apart("unbind") | {torch.Tensor.__iter__}
_BY_NUMBER, _BY_INDEX = _apart("chunk", "unsafe_chunk"), _apart("tensor_split")
_SPLIT = (
    _BY_NUMBER
    | _BY_INDEX
    | _apart("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
)
_COUNTS = ("chunks", "split_size_or_sections", "split_size", "split_sizes", "indices_or_sections")


def _views(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Several views from one call, one by one.

    torch's lazy device loses track of views that come together, once their base is written to.
    """
    tensor = args[0] if args else kwargs.get("self", kwargs.get("input", kwargs.get("tensor")))
    where = 1 if func in _UNBIND else 2
    dim = kwargs.get("dim", args[where] if len(args) > where else 0)
    if not isinstance(tensor, torch.Tensor) or not tensor.dim() or type(dim) is not int:
        return NotImplemented
    length = tensor.shape[dim]
    if func in _UNBIND:
        parts = [torch.select(tensor, dim, place) for place in range(length)]
        return iter(parts) if func is torch.Tensor.__iter__ else tuple(parts)
    given = [args[1]] if len(args) > 1 else [kwargs[one] for one in kwargs if one in _COUNTS]
    starts = _starts(func, length, given[0]) if given else None
    if starts is None:
        return NotImplemented
    ends = [*starts[1:], length]
    return tuple(
        torch.narrow(tensor, dim, start, max(0, end - start))
        for start, end in zip(starts, ends, strict=True)
    )


def _starts(func: Callable[..., Any], length: int, given: Any) -> list[int] | None:
    """Where the parts of a split begin; None if it is not said with plain numbers."""
    if isinstance(given, (list, tuple)) and all(type(one) is int for one in given):
        if func in _BY_INDEX:
            places = [one + length if one < 0 else one for one in given]
            return [0, *(min(max(one, 0), length) for one in places)]
        return [sum(given[:place]) for place in range(len(given))] if given else None
    if type(given) is not int or given < 1:
        return None
    if func in _BY_INDEX:  # parts of nearly equal size, the larger ones first
        size, larger = divmod(length, given)
        return [place * size + min(place, larger) for place in range(given)]
    size = -(-length // given) if func in _BY_NUMBER else given
    return list(range(0, length, size)) if size and length else None


class LazyDevices(TorchFunctionMode):
    """While active, torch functions create and keep tensors on the lazy device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args = tuple(_redirect(argument) for argument in args)
        keywords = _redirect_keywords(kwargs or {})
        if func is torch.Tensor.to:
            args = _redirect_transfer(args)
        elif func in (torch.Tensor.cpu, torch.Tensor.cuda):
            return torch.Tensor.to(args[0], _LAZY)
        elif func in _UNBIND or func in _SPLIT:
            views = _views(func, args, keywords)
            if views is not NotImplemented:
                return views
        elif func in BATCH_NORMS:
            normalized = BATCH_NORMS[func](*args, **keywords)
            if normalized is not NotImplemented:
                return normalized
        elif called_whole(func, args):
            with below_autograd():
                return func(*args, **keywords)
        elif func in device_constructors() and not _names_device((*args, *keywords.values())):
            keywords["device"] = _LAZY
        return func(*args, **keywords)
