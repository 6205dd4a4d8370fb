"""A graph as plain JSON, for tools that count, search or compare; it is not made to be run again.

Inside arguments what JSON has stands for itself; everything else is an object with one key that
says what it is: ``{"node": "add"}``, ``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``,
``{"slice": [...]}``, ``{"float": "inf"}``, ``{"complex": [...]}``, ``{"dtype": "float32"}``,
``{"device": "cpu"}``, ``{"layout": ...}``, ``{"memory_format": ...}``, ``{"symbolic": "s0 + 1"}``,
``{"target": "aten.add.Tensor"}`` and, for the rest, ``{"repr": ...}``.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from typing import Any

import torch
from torch import fx

from lazyfx_compilers import _torch_debug
from lazyfx_compilers._checks import user_line

from ._specs import InputSpec, describe_inputs, encode_spec


def graph_content(gm: fx.GraphModule) -> dict[str, Any]:
    """Nodes, attributes and subgraphs of ``gm``; reads only, generates no code."""
    subgraphs = {
        name: graph_content(child)
        for name, child in gm.named_children()
        if isinstance(child, fx.GraphModule)
    }
    return {
        "nodes": [_encode_node(node) for node in gm.graph.nodes],
        "attributes": [
            encode_spec(spec)
            for name, tensor in _attributes(gm)
            for spec in describe_inputs([name], [tensor])
        ],
        "subgraphs": subgraphs,
    }


def readable_code(gm: fx.GraphModule) -> str:
    """The code of a graph with shapes, strides, devices and the user's lines."""
    known = inspect.signature(gm.print_readable).parameters
    wanted: dict[str, Any] = {"include_stride": True, "include_device": True}
    options: Any = {key: value for key, value in wanted.items() if key in known}
    return gm.print_readable(print_output=False, **options) + "\n"


def operator_counts(gm: fx.GraphModule) -> dict[str, int]:
    """How often each target is called, the most frequent first."""
    counts = Counter(
        _torch_debug.target_text(node.target)
        for node in gm.graph.nodes
        if node.op.startswith("call_")
    )
    return dict(counts.most_common())


def _attributes(gm: fx.GraphModule) -> list[tuple[str, torch.Tensor]]:
    found: dict[str, torch.Tensor] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            value: Any = gm
            for atom in node.target.split("."):
                value = getattr(value, atom, None)
            if isinstance(value, torch.Tensor):
                found[node.target] = value
    return list(found.items())


def _encode_node(node: fx.Node) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "name": node.name,
        "op": node.op,
        "target": _torch_debug.target_text(node.target),
        "args": [encode_argument(each) for each in node.args],
        "kwargs": {key: encode_argument(each) for key, each in node.kwargs.items()},
    }
    value = node.meta.get("val", node.meta.get("example_value"))
    if value is not None:
        encoded["value"] = [_shown(spec) for spec in describe_inputs([], [value])]
    line = user_line(node)
    if line is not None:
        encoded["from"] = line
    return encoded


_NOT_OF_RESULTS = ("name", "storage", "requires_grad")


def _shown(spec: InputSpec) -> dict[str, Any]:
    encoded = encode_spec(spec)
    return {key: value for key, value in encoded.items() if key not in _NOT_OF_RESULTS}


def encode_argument(value: Any) -> Any:
    """An argument of a node as JSON."""
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if -(1 << 63) <= value < 1 << 63 else {"repr": repr(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, slice):
        return {"slice": [encode_argument(e) for e in (value.start, value.stop, value.step)]}
    if isinstance(value, tuple):
        return {"tuple": [encode_argument(each) for each in value]}
    if isinstance(value, list):
        return [encode_argument(each) for each in value]
    if isinstance(value, dict):
        pairs = [[encode_argument(k), encode_argument(v)] for k, v in value.items()]
        return {"dict": pairs}
    return _encode_object(value)


def _encode_object(value: Any) -> dict[str, Any]:
    if type(value) is complex:
        return {"complex": [encode_argument(value.real), encode_argument(value.imag)]}
    for kind, name in (
        (torch.dtype, "dtype"),
        (torch.device, "device"),
        (torch.layout, "layout"),
        (torch.memory_format, "memory_format"),
    ):
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return {"symbolic": str(value)}
    if callable(value) and _torch_debug.python_name(value) is not None:
        return {"target": _torch_debug.target_text(value)}
    return {"repr": repr(value)[:1000]}
