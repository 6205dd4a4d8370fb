"""A graph as Python statements that build it again, node by node.

Not the generated ``forward``: tracing that would lose in-place operators, unused nodes and names.
Tensors that the graph holds are collected, and become an argument of the function that builds it.
"""

from __future__ import annotations

import builtins
import keyword
import math
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from . import _torch_aot, _torch_debug
from .errors import ReproError


@dataclass(slots=True, kw_only=True)
class Script:
    """What is collected on the way: the functions, what they import, the tensors they take."""

    functions: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    constants: list[torch.Tensor] = field(default_factory=list)


def add_function(script: Script, gm: fx.GraphModule) -> str:
    """Add a function that builds ``gm``, after those of its subgraphs; returns its name.

    The function takes the list of the script's constants.

    Args:
        script: Added to.
        gm: Read only.

    Raises:
        ReproError: Something cannot be written as Python; names the node.
    """
    attributes = _attributes(script, gm)
    variables = _variables(gm.graph)
    lines = ["graph = fx.Graph()"]
    for node in gm.graph.nodes:
        target = repr(node.target)
        if node.op == "call_function":
            target = _function(script, node)
        args = _literal(script, node, tuple(node.args), variables)
        kwargs = _literal(script, node, dict(node.kwargs), variables)
        lines.append(
            f"{variables[node]} = graph.create_node({node.op!r}, {target}, {args}, {kwargs}, "
            f"name={node.name!r})"
        )
    lines.append(f"return fx.GraphModule({{{', '.join(attributes)}}}, graph)")
    name = f"{_FUNCTION}{len(script.functions)}"
    script.functions.append(
        f"def {name}(constants):\n" + "".join(f"    {line}\n" for line in lines)
    )
    return name


_RESERVED = frozenset({"graph", "fx", "constants", "device"})
_FUNCTION = "build_"  # and a number


def _variables(graph: fx.Graph) -> dict[fx.Node, str]:
    names: dict[fx.Node, str] = {}
    for i, node in enumerate(graph.nodes):
        usable = node.name.isidentifier() and node.name.isascii()
        # a builtin or an imported module must not be hidden by a node
        hides = hasattr(builtins, node.name) or node.name in sys.modules
        hides = hides or node.name.startswith(_FUNCTION)  # nor a function that builds a subgraph
        taken = keyword.iskeyword(node.name) or node.name in _RESERVED or hides
        names[node] = f"{node.name}_" if usable and taken else node.name if usable else f"n_{i}"
    if len(set(names.values())) != len(names):
        return {node: f"n_{i}" for i, node in enumerate(graph.nodes)}
    return names


def _function(script: Script, node: fx.Node) -> str:
    name = _named(script, node.target)
    if name is None:
        raise ReproError(
            f"node {node.name!r} calls {node.target!r}, which a script cannot import; move it to "
            "the top level of an importable module"
        )
    return name


def _named(script: Script, target: Any) -> str | None:
    name = _torch_debug.python_name(target)
    if name is None or name.startswith("__main__."):
        return None
    module = _torch_debug.module_of(target)
    if module is not None:
        script.imports.add(module)
    namespace = _torch_debug.foreign_namespace(target)
    if namespace is not None:
        script.foreign.add(namespace)
    return name


def _literal(script: Script, node: fx.Node, value: Any, names: dict[fx.Node, str]) -> str:
    def inner(each: Any) -> str:
        return _literal(script, node, each, names)

    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, tuple):
        return f"({''.join(f'{inner(each)}, ' for each in value).strip()})"
    if isinstance(value, list):
        return f"[{', '.join(inner(each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{inner(k)}: {inner(v)}' for k, v in value.items())}}}"
    if isinstance(value, slice):
        return f"slice({inner(value.start)}, {inner(value.stop)}, {inner(value.step)})"
    if value is ...:
        return "..."
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if type(value) is complex:
        return f"complex({inner(value.real)}, {inner(value.imag)})"
    if value is None or type(value) in (bool, int, str, bytes, range):
        return repr(value)
    if isinstance(value, torch.device):
        return f"device({str(value)!r})"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if callable(value) and (name := _named(script, value)) is not None:
        return name
    raise ReproError(
        f"node {node.name!r} has an argument {value!r} of type {type(value).__qualname__}, which "
        "cannot be written as Python; expected nodes, numbers, strings, dtypes, devices and "
        "containers of them"
    )


def _attributes(script: Script, gm: fx.GraphModule) -> list[str]:
    found: dict[str, str] = {}
    for node in gm.graph.nodes:
        if node.op not in ("get_attr", "call_module") or node.target in found:
            continue
        value: Any = gm
        for atom in node.target.split("."):
            value = getattr(value, atom)
        if isinstance(value, fx.GraphModule):
            found[node.target] = f"{add_function(script, value)}(constants)"
        elif isinstance(value, torch.Tensor):
            found[node.target] = _constant(script, node, value)
        else:
            raise ReproError(
                f"node {node.name!r} uses the attribute {node.target!r}, an instance of "
                f"{type(value).__qualname__}; expected a tensor or a graph module: trace through it"
            )
    return [f"{target!r}: {source}" for target, source in found.items()]


def _constant(script: Script, node: fx.Node, tensor: torch.Tensor) -> str:
    if _torch_aot.is_fake(tensor) or tensor.layout is not torch.strided:
        raise ReproError(
            f"node {node.name!r} uses the tensor {node.target!r}, which has no plain values "
            f"({type(tensor).__qualname__}, {tensor.layout}); expected a real, strided tensor"
        )
    with _torch_aot.outside_fake_mode():
        script.constants.append(tensor.detach())
    return f"constants[{len(script.constants) - 1}]"
