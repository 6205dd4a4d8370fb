"""Drawing nodes one by one so that the graph runs whatever was drawn.

Each node has a *kind*, which says what it may be passed to, and two facts that in-place operators
need: which memory it may share (torch refuses to write to memory that another operand partly
covers) and whether it may require a gradient (torch refuses to write to a leaf, and a buffer that
got a gradient cannot be copied).

:func:`make_root` makes the module that drawn graphs refer to: every kind of attribute a graph can
name. All its tensors are of shape ``SHAPE`` or broadcast to it, so that any value fits any operator
and a graph still runs after its nodes were dropped while a failure is being shrunk.

A recipe, one small function for each kind of node, appends one or a few nodes to a
:class:`Builder`. To draw more kinds of nodes, add a function and name it in the table at the end.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


SHAPE = (2, 3)
"""The shape of every value that is not a row, a mask or a number."""


class Inner(nn.Module):
    """A parameter two levels down, for qualified names like ``block.inner.weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 0.5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the columns of ``x``."""
        return x * self.weight


class Block(nn.Module):
    """A module with a child and a buffer, called as a whole or looked into."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.register_buffer("scale", torch.full(SHAPE, 0.75))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the columns of ``x`` and add the buffer."""
        out: torch.Tensor = self.inner(x) + self.scale
        return out


def make_root() -> nn.Module:
    """A new module with parameters, buffers, modules and graph modules; equal at every call."""
    root = nn.Module()
    root.weight = nn.Parameter(pattern(1))
    root.bias = nn.Parameter(torch.linspace(0.1, 0.3, SHAPE[1]))
    root.register_buffer("table", pattern(2))
    root.register_buffer("not_saved", pattern(3), persistent=False)
    root.block = Block()
    root.linear = nn.Linear(SHAPE[1], SHAPE[1])
    with torch.no_grad():
        root.linear.weight.copy_(torch.eye(SHAPE[1]).add_(0.25))
        root.linear.bias.fill_(0.125)
    root.norm = nn.BatchNorm1d(SHAPE[1])
    root.drop = nn.Dropout(0.5)
    root.act = nn.Tanh()
    root.sub = _nested_graph_module()
    root.then_0 = _branch(torch.sin)
    root.else_0 = _branch(torch.cos)
    return root


def pattern(index: int) -> torch.Tensor:
    """Small distinct numbers of both signs, another set for each ``index``."""
    return torch.arange(6.0).reshape(SHAPE).mul_(0.37).sub_(0.9).add_(0.11 * index)


def _nested_graph_module() -> fx.GraphModule:
    """A graph module with a buffer that calls another graph module."""
    inner = fx.Graph()
    x = inner.placeholder("x")
    inner.output(inner.call_function(torch.tanh, (x,)))
    outer = fx.Graph()
    x = outer.placeholder("x")
    called = outer.call_module("deep", (x,))
    outer.output(outer.call_function(torch.add, (called, outer.get_attr("shift"))))
    attributes = {"deep": fx.GraphModule({}, inner), "shift": torch.full(SHAPE, 0.5)}
    return fx.GraphModule(attributes, outer)


def _branch(function: object) -> fx.GraphModule:
    """What a higher-order operator calls: one operand in, a tuple out."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.create_node("call_function", function, (x,)),))  # type: ignore[arg-type]
    return fx.GraphModule({}, graph)


_T = TypeVar("_T")
_NUMBERS = (0.5, 2, -1.25, 3, 1e-3, float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A node and what may be done with it.

    Attributes:
        node: The node.
        kind: ``full``: a float tensor of the common shape; ``row``: one that broadcasts to it;
            ``mask``: a bool tensor of the common shape; ``number``: a Python number.
        memory: Names the storages it may be a view of.
        gradient: Whether it may require a gradient.
    """

    node: fx.Node
    kind: str
    memory: frozenset[int]
    gradient: bool


class Builder:
    """A graph that grows by drawn nodes.

    Args:
        draw: The ``draw`` of a hypothesis composite.
        graph: Changed: nodes are appended.
    """

    def __init__(self, draw: Callable[[Any], Any], graph: fx.Graph) -> None:
        self._draw = draw
        self.graph = graph
        self.values: list[Value] = []

    def choose(self, options: Sequence[_T]) -> _T:
        """Draw one of ``options``; the first is the simplest."""
        chosen: _T = self._draw(st.sampled_from(options))
        return chosen

    def pick(self, *kinds: str) -> Value:
        """Draw a value of one of ``kinds``; the latest is the simplest, which shrinks to chains."""
        return self.choose([v for v in reversed(self.values) if v.kind in kinds])

    def has(self, kind: str) -> bool:
        """Whether there is a value of ``kind``."""
        return any(value.kind == kind for value in self.values)

    def other(self) -> tuple[Any, tuple[Value, ...]]:
        """Draw a second operand: a node or a number. Also returns the value it came from."""
        source = self.choose(("number", "node"))
        if source == "number":
            return self.choose(_NUMBERS[:-2]), ()
        value = self.pick("full", "row", "number")
        return value.node, (value,)

    def writable(self) -> list[Value]:
        """The values an in-place operator may write to, latest first."""
        return [v for v in reversed(self.values) if v.kind == "full" and not v.gradient]

    def operand_beside(self, target: Value) -> Any:
        """Draw what an in-place operator may combine ``target`` with."""
        nodes = [
            value.node
            for value in reversed(self.values)
            if value.kind in ("full", "row")
            and not value.gradient
            and not value.memory & target.memory
        ]
        return self.choose((*_NUMBERS[:-2], *nodes))

    def add(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        kind: str = "full",
        uses: Sequence[Value] = (),
        shares: Sequence[Value] = (),
        gradient: bool = False,
    ) -> Value:
        """Append a node.

        Args:
            op: As in ``fx.Graph.create_node``.
            target: As in ``fx.Graph.create_node``.
            args: As in ``fx.Graph.create_node``.
            kwargs: As in ``fx.Graph.create_node``.
            kind: See :class:`Value`.
            uses: Values whose gradient the result inherits.
            shares: Values whose memory the result may share, and whose gradient it inherits.
            gradient: Whether it may require a gradient whatever it uses.
        """
        node = self.graph.create_node(op, target, args, kwargs or {})
        style = self.choose(("plain", "plain", "plain", "named", "typed"))
        if style == "named":
            node.name = f"by_hand_{len(self.graph.nodes)}"
        elif style == "typed" and kind in ("full", "row", "mask"):
            node.type = torch.Tensor
        memory = frozenset[int]().union(*(value.memory for value in shares))
        value = Value(
            node=node,
            kind=kind,
            memory=memory or frozenset((len(self.graph.nodes),)),
            gradient=gradient or any(v.gradient for v in (*uses, *shares)),
        )
        self.values.append(value)
        return value


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
