"""The module that drawn graphs refer to: every kind of attribute a graph can name.

All tensors are of shape ``SHAPE`` or broadcast to it, so that any value fits any operator and a
graph still runs after its nodes were dropped while a failure is being shrunk.
"""

from __future__ import annotations

import torch
from torch import fx, nn

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
