"""Graphs made from a graph: parts of it, or all of it with more results.

Nodes keep names and meta, so a compiler sees in the part what it saw in the whole. A value that is
an input of the part and not of the whole is a placeholder with the name of the node that made it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

import lazyfx_core

from . import _torch_compare

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A graph and inputs for it.

    Attributes:
        gm: Not changed.
        values: The inputs by name; not changed either.
        examples: What to compile with, by name: descriptions of the inputs.
        shown: The node behind each flat output; None for constants.
    """

    gm: fx.GraphModule
    values: Mapping[str, Any]
    examples: Mapping[str, Any]
    shown: tuple[fx.Node | None, ...]

    @property
    def steps(self) -> list[fx.Node]:
        """The nodes that compute, in order."""
        return [
            one
            for one in self.gm.graph.nodes
            if one.op not in ("placeholder", "output", "get_attr")
        ]

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs, in order."""
        return [one.name for one in self.gm.graph.nodes if one.op == "placeholder"]


def whole(gm: fx.GraphModule, values: list[Any], examples: list[Any]) -> Problem:
    """A graph as AOTAutograd gave it."""
    names = [one.name for one in gm.graph.nodes if one.op == "placeholder"]
    return Problem(
        gm=gm,
        values=dict(zip(names, values, strict=True)),
        examples=dict(zip(names, examples, strict=True)),
        shown=_shown(gm.graph),
    )


def exposing(problem: Problem, upto: fx.Node | None = None) -> Problem:
    """The graph with every tensor that it computes as a result, those of the graph first.

    Args:
        problem: Of which graph.
        upto: The last node that is left; what the graph itself returns is left out then.
    """
    graph, made = _copied(problem, upto)
    own = [] if upto is not None else _returned(problem.gm.graph)
    more = [one for one in problem.steps if one in made and is_tensor(one) and one not in own]
    return _with(problem, graph, made, [*own, *more])


def cut(problem: Problem, upto: fx.Node) -> Problem:
    """The graph up to a node; its results are what the rest of the graph takes."""
    graph, made = _copied(problem, upto)
    live = [
        one
        for one in problem.steps
        if one in made
        and is_tensor(one)
        and (not one.users or any(user not in made for user in one.users))
    ]
    return _with(problem, graph, made, live)


def alone(problem: Problem, node: fx.Node, values: Mapping[str, Any]) -> Problem:
    """One operator by itself, the items of its result with it.

    Args:
        problem: Of which graph.
        node: Which operator.
        values: What the reference has for the values it takes.
    """
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    given: dict[str, Any] = {}
    examples = dict(problem.examples)
    for one in problem.gm.graph.nodes:
        # symbolic sizes may be needed to compile anything that has them in a shape
        size = one.op == "placeholder" and isinstance(one.meta.get("val"), torch.SymInt)
        if one.op == "get_attr" and one in node.all_input_nodes:
            made[one] = graph.node_copy(one)
        elif size or one in node.all_input_nodes:
            made[one] = _placeholder(graph, one)
            given[one.name] = values[one.name]
            examples.setdefault(one.name, one.meta.get("val"))
    unit = [node, *items(node)]
    for one in unit:
        made[one] = graph.node_copy(one, lambda each: made[each])
    part = replace(problem, values=given, examples=examples)
    return _with(part, graph, made, [one for one in unit if is_tensor(one)])


def lifted(problem: Problem, operators: Collection[str], values: Mapping[str, Any]) -> Problem:
    """The graph with the results of some operators as inputs instead of computed ones.

    Args:
        problem: Of which graph.
        operators: Names of nodes.
        values: What the reference has for every node.
    """
    graph = fx.Graph()
    nodes = list(problem.gm.graph.nodes)
    found = [one for one in nodes if operator_of(one).name in operators]
    inputs = {one.name: one for one in found if is_tensor(one)}
    made = {one: graph.node_copy(one) for one in nodes if one.op == "placeholder"}
    made |= {one: _placeholder(graph, one) for one in inputs.values()}
    for one in nodes:
        if one not in made and one not in found:
            made[one] = graph.node_copy(one, lambda each: made[each])
    return Problem(
        gm=_module(problem.gm, graph),
        values={**problem.values, **{name: values[name] for name in inputs}},
        examples={**problem.examples, **{name: one.meta["val"] for name, one in inputs.items()}},
        shown=_shown(graph),
    )


def fresh(problem: Problem) -> fx.GraphModule:
    """A copy of the graph for a compiler to change."""
    graph, made = _copied(problem, None)
    graph.node_copy(problem.gm.graph.output_node(), lambda one: made[one])
    made_whole = fx.GraphModule(problem.gm, graph)  # nothing special for a stranger
    made_whole.meta = dict(problem.gm.meta)
    return made_whole


def operator_of(node: fx.Node) -> fx.Node:
    """The operator behind an item of its result; any other node is its own."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def items(node: fx.Node) -> list[fx.Node]:
    """The items that a graph takes out of a node's result, in the order of the graph."""
    found = [one for one in node.users if one.target is operator.getitem and one.args[0] is node]
    return [each for one in found for each in (one, *items(one))]


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is one tensor, and not an input that it has written."""
    if _torch_compare.written_arguments(node):
        return False
    return isinstance(node.meta.get("val"), torch.Tensor)


def _placeholder(graph: fx.Graph, node: fx.Node) -> fx.Node:
    made = graph.placeholder(node.name)
    made.name = node.name
    made.meta = {key: node.meta[key] for key in ("val", "tensor_meta") if key in node.meta}
    return made


def _copied(problem: Problem, upto: fx.Node | None) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    kept = () if upto is None else items(upto)
    for node in problem.gm.graph.nodes:
        if node.op == "output":
            break
        behind = upto is not None and node.op != "placeholder" and upto < node
        if behind and node not in kept:
            continue
        made[node] = graph.node_copy(node, lambda one: made[one])
    return graph, made


def _with(
    problem: Problem, graph: fx.Graph, made: Mapping[fx.Node, fx.Node], results: Iterable[Any]
) -> Problem:
    chosen = [made[one] if isinstance(one, fx.Node) else one for one in results]
    output = graph.output(tuple(chosen))
    output.meta["val"] = tuple(
        one.meta.get("val") if isinstance(one, fx.Node) else one for one in chosen
    )
    return replace(problem, gm=_module(problem.gm, graph), shown=_shown(graph))


def _module(root: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    made = lazyfx_core.LazyGraphModule(root, graph)  # interpreted: its code is never made
    made.meta = dict(root.meta)
    return made


def _returned(graph: fx.Graph) -> list[Any]:
    output = graph.output_node()
    found: Any = output.args[0]
    return _flat(found)


def _shown(graph: fx.Graph) -> tuple[fx.Node | None, ...]:
    return tuple(one if isinstance(one, fx.Node) else None for one in _returned(graph))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for each in value for leaf in _flat(each)]
    return [value]
