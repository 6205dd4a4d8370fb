"""The kinds of nodes that drawn graphs consist of: one small function for each.

A recipe appends one or a few nodes to a :class:`Builder`. To draw more kinds of nodes, add a
function here and name it in the table at the end.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ._root import SHAPE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._builder import Builder, Value

_aten = torch.ops.aten
UNARY_FUNCTIONS = (
    *(torch.sin, torch.cos, torch.tanh, torch.sigmoid, torch.neg, torch.abs, operator.neg),
    *(functional.relu, functional.gelu, _aten.sin.default, _aten.cos.default),
)
BINARY_FUNCTIONS = (*(operator.add, operator.sub, operator.mul, torch.add, torch.sub, torch.mul),)
UNARY_METHODS = ("sin", "cos", "tanh", "neg", "relu", "clone")
BINARY_METHODS = ("add", "sub", "mul")
INPLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul)
INPLACE_METHODS = ("add_", "mul_", "sub_")


def call_unary_function(b: Builder) -> None:
    """``torch.sin(x)`` and the like, operators of ``torch.ops.aten`` included."""
    x = b.pick("full")
    b.add("call_function", b.choose(UNARY_FUNCTIONS), (x.node,), uses=[x])


def call_binary_function(b: Builder) -> None:
    """``x + y`` where ``y`` is a tensor, something that broadcasts, or a number."""
    x = b.pick("full")
    other, used = b.other()
    b.add("call_function", b.choose(BINARY_FUNCTIONS), (x.node, other), uses=[x, *used])


def call_with_kwargs(b: Builder) -> None:
    """Keyword arguments: bools, strings, None, infinities, dtypes; also nothing but keywords."""
    x = b.pick("full")
    y = b.pick("full", "row")
    options: Sequence[tuple[Any, tuple[Any, ...], dict[str, Any]]] = (
        (torch.clamp, (x.node,), {"min": None, "max": float("inf")}),
        (torch.add, (), {"input": x.node, "other": y.node, "alpha": 2}),
        (functional.softmax, (x.node,), {"dim": -1, "dtype": torch.float32}),
        (torch.div, (x.node, 2.0), {"rounding_mode": "floor"}),
        (torch.nan_to_num, (x.node,), {"nan": 0.0, "posinf": None}),
        (functional.layer_norm, (x.node, [SHAPE[1]]), {"weight": None, "eps": 1e-5}),
        (_aten.add.Tensor, (x.node, y.node), {"alpha": -1}),
    )
    function, args, kwargs = b.choose(options)
    b.add("call_function", function, args, kwargs, uses=[x, y])


def call_unary_method(b: Builder) -> None:
    """``x.sin()`` and the like."""
    x = b.pick("full")
    b.add("call_method", b.choose(UNARY_METHODS), (x.node,), uses=[x])


def call_binary_method(b: Builder) -> None:
    """``x.add(y)``, with and without keyword arguments."""
    x = b.pick("full")
    other, used = b.other()
    method, as_keyword = b.choose(BINARY_METHODS), b.choose((False, True))
    args, kwargs = ((x.node,), {"other": other}) if as_keyword else ((x.node, other), {})
    b.add("call_method", method, args, kwargs, uses=[x, *used])


def get_parameter(b: Builder) -> None:
    """A parameter, at the top or inside a submodule."""
    name = b.choose(("weight", "bias", "block.inner.weight"))
    b.add("get_attr", name, kind="full" if name == "weight" else "row", gradient=True)


def get_buffer(b: Builder) -> None:
    """A buffer; all reads of one buffer share its memory."""
    name = b.choose(("table", "not_saved", "block.scale"))
    before = [v for v in b.values if v.node.op == "get_attr" and v.node.target == name]
    b.add("get_attr", name, shares=before)


def reduce_to_row(b: Builder) -> None:
    """What broadcasts to the common shape: reductions and slices."""
    x = b.pick("full")
    what = b.choose(("sum", "mean", "index", "slice", "ellipsis"))
    if what == "sum":
        b.add("call_method", "sum", (x.node, 0), {"keepdim": True}, kind="row", uses=[x])
    elif what == "mean":
        b.add("call_function", torch.mean, (x.node,), kind="row", uses=[x])
    else:
        key: Any = {
            "index": 0,
            "slice": (slice(None, None, None), slice(0, 1, None)),
            "ellipsis": (Ellipsis, slice(1, None, 2)),
        }[what]
        b.add("call_function", operator.getitem, (x.node, key), kind="row", shares=[x])


def take_from_several(b: Builder) -> None:
    """A function with several results, and getitem on it."""
    x = b.pick("full")
    target, args = b.choose(
        ((torch.chunk, (x.node, 2)), (torch.unbind, (x.node,)), (torch.split, (x.node, [1, 1])))
    )
    parts = b.add("call_function", target, args, kind="several", shares=[x])
    index = b.choose((0, 1))
    b.add("call_function", operator.getitem, (parts.node, index), kind="row", shares=[x])


def take_from_named_tuple(b: Builder) -> None:
    """A named tuple, read by ``getattr`` and by index."""
    x = b.pick("full")
    both = b.add("call_function", torch.max, (x.node,), {"dim": 0}, kind="several", uses=[x])
    reader, key = b.choose(((operator.getitem, 0), (getattr, "values")))
    b.add("call_function", reader, (both.node, key), kind="row", uses=[x])


def join_containers(b: Builder) -> None:
    """Lists and tuples of nodes as arguments."""
    x, y = b.pick("full"), b.pick("full")
    if b.choose(("cat", "stack")) == "cat":
        joined = b.add("call_function", torch.cat, ([x.node, y.node],), kind="several", uses=[x, y])
        key: Any = slice(0, SHAPE[0], None)
    else:
        pair = (x.node, y.node)
        kwargs = {"dim": 0}
        joined = b.add("call_function", torch.stack, (pair,), kwargs, kind="several", uses=[x, y])
        key = 1
    b.add("call_function", operator.getitem, (joined.node, key), shares=[joined])


def make_constant(b: Builder) -> None:
    """A tensor from constants: sizes, a dtype, a device, a layout."""
    function, args, kwargs = b.choose(
        (
            (torch.zeros, (SHAPE,), {"dtype": torch.float32, "device": torch.device("cpu")}),
            (torch.full, (list(SHAPE), 0.25), {}),
            (torch.ones, SHAPE, {"layout": torch.strided, "requires_grad": False}),
        )
    )
    b.add("call_function", function, args, kwargs)


def convert_dtype(b: Builder) -> None:
    """To another dtype or device and back, positional and by keyword."""
    x = b.pick("full")
    wide = b.add("call_method", "to", (x.node, torch.float64), kind="several", uses=[x])
    back: dict[str, Any] = b.choose(
        ({"dtype": torch.float32}, {"device": "cpu", "dtype": torch.float32})
    )
    b.add("call_method", "to", (wide.node,), back, uses=[wide])


def compare_and_select(b: Builder) -> None:
    """A mask of bools and ``torch.where``."""
    x, y = b.pick("full"), b.pick("full", "row")
    mask = b.add("call_function", b.choose((torch.gt, operator.le)), (x.node, 0.25), kind="mask")
    b.add("call_function", torch.where, (mask.node, x.node, y.node), uses=[x, y])


def compute_with_sizes(b: Builder) -> None:
    """A number read off a shape, and a view that uses it."""
    x = b.pick("full")
    if b.choose(("size", "shape")) == "size":
        number = b.add("call_method", "size", (x.node, 0), kind="number")
    else:
        shape = b.add("call_function", getattr, (x.node, "shape"), kind="several")
        number = b.add("call_function", operator.getitem, (shape.node, 0), kind="number")
    b.add("call_method", "view", (x.node, number.node, -1), shares=[x])


def use_inplace_operator(b: Builder) -> None:
    """``x += y``, on an input, a buffer or a value of the graph."""
    x = b.choose(b.writable())
    args = (x.node, b.operand_beside(x))
    b.add("call_function", b.choose(INPLACE_OPERATORS), args, shares=[x])


def use_inplace_method(b: Builder) -> None:
    """``x.add_(y)``."""
    x = b.choose(b.writable())
    args = (x.node, b.operand_beside(x))
    b.add("call_method", b.choose(INPLACE_METHODS), args, shares=[x])


def write_an_item(b: Builder) -> None:
    """``x[0, :] = 0.5``, whose own result is None and used by nobody."""
    x = b.choose(b.writable())
    args = (x.node, (0, slice(None, None, None)), b.choose((0.5, -1)))
    b.add("call_function", operator.setitem, args, kind="several")


def use_module(b: Builder) -> None:
    """A module of torch or of the user, with parameters or without."""
    x = b.pick("full")
    name = b.choose(("act", "linear", "block"))
    b.add("call_module", name, (x.node,), uses=[x], gradient=name != "act")


def use_stateful_module(b: Builder) -> None:
    """Batch norm, whose buffers move in training."""
    x = b.pick("full")
    b.add("call_module", "norm", (x.node,), uses=[x], gradient=True)


def use_graph_module(b: Builder) -> None:
    """A graph module that calls another one."""
    x = b.pick("full")
    b.add("call_module", "sub", (x.node,), uses=[x])


def draw_random_numbers(b: Builder) -> None:
    """Dropout as a function, whatever the module's ``training``."""
    x = b.pick("full")
    kwargs = {"p": 0.5, "training": True, "inplace": False}
    b.add("call_function", functional.dropout, (x.node,), kwargs, uses=[x])


def use_random_module(b: Builder) -> None:
    """Dropout as a module, which follows ``training`` and returns its very input without."""
    x = b.pick("full")
    b.add("call_module", "drop", (x.node,), shares=[x])


def use_higher_order(b: Builder) -> None:
    """``torch.cond`` over two graph modules that the graph gets as attributes."""
    candidates: list[Value] = b.writable()  # a gradient would be traced through Dynamo
    x = b.choose(candidates)
    total = b.add("call_method", "sum", (x.node,), kind="several")
    positive = b.add("call_function", operator.gt, (total.node, 0), kind="several")
    branches = [b.add("get_attr", n, kind="several").node for n in ("then_0", "else_0")]
    args = (positive.node, *branches, (x.node,))
    outs = b.add("call_function", torch.ops.higher_order.cond, args, kind="several")
    b.add("call_function", operator.getitem, (outs.node, 0))


PURE: tuple[Callable[[Builder], None], ...] = (
    *(call_unary_function, call_binary_function, call_with_kwargs, call_unary_method),
    *(call_binary_method, get_parameter, get_buffer, reduce_to_row, take_from_several),
    *(take_from_named_tuple, join_containers, make_constant, convert_dtype, compare_and_select),
    compute_with_sizes,
)
MUTATING = (use_inplace_operator, use_inplace_method, write_an_item)
MODULES = (use_module, use_graph_module)
STATEFUL_MODULES = (use_stateful_module,)
RANDOM = (draw_random_numbers,)
RANDOM_MODULES = (use_random_module,)
HIGHER_ORDER = (use_higher_order,)
