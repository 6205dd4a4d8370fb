"""The strategy for graphs: placeholders, drawn nodes, an output that uses some of them.

What it draws is deliberately small: a handful of nodes over tensors of one shape. Failures are
about how nodes are combined, not about how many there are, and a small graph shrinks to one that
a person can read.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import fx

from . import _builder
from ._builder import Builder, Value, make_root, pattern
from ._case import GraphCase
from ._torch_values import give_pytree_signature


def graph_cases(
    *,
    max_nodes: int = 8,
    mutation: bool = True,
    submodules: bool = True,
    higher_order: bool = True,
    pytree: bool = True,
    randomness: bool = True,
) -> st.SearchStrategy[GraphCase]:
    """Valid fx graphs that run, each with its root module and inputs.

    Every kind of node is drawn: functions (of Python, of torch, of ``torch.ops.aten``), methods,
    modules, graph modules inside, parameters and buffers at any depth, in-place operators and
    methods, keyword arguments, containers, slices, constants of all kinds, unused nodes,
    annotations, names given by hand, placeholders with defaults, and outputs that are tensors,
    tuples, lists or dicts.

    Args:
        max_nodes: How many recipes are drawn at most; a recipe makes one to six nodes.
        mutation: Whether nodes may write to inputs, buffers and values, and batch norm is drawn.
        submodules: Whether modules and graph modules are called.
        higher_order: Whether ``torch.cond`` is drawn.
        pytree: Whether the graph may take nested inputs through a pytree signature.
        randomness: Whether dropout is drawn. Seed before each call that is compared.

    Raises:
        ValueError: ``max_nodes`` is not a positive int.

    Example:
        >>> import warnings
        >>> from hypothesis.errors import NonInteractiveExampleWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", NonInteractiveExampleWarning)
        ...     case = graph_cases(max_nodes=3).example()
        >>> _ = case.lazy()(*case.fresh_inputs())
    """
    if isinstance(max_nodes, bool) or not isinstance(max_nodes, int) or max_nodes < 1:
        raise ValueError(f"graph_cases(max_nodes=...) takes a positive int, got {max_nodes!r}")
    recipes: list[Any] = [*_builder.PURE]
    if mutation:
        recipes += [*_builder.MUTATING]
    if submodules:
        recipes += [*_builder.MODULES]
    if submodules and mutation:
        recipes += [*_builder.STATEFUL_MODULES]
    if higher_order:
        recipes += [*_builder.HIGHER_ORDER]
    if randomness:
        recipes += [*_builder.RANDOM]
    if randomness and submodules:
        recipes += [*_builder.RANDOM_MODULES]
    return _graph_cases(tuple(recipes), max_nodes, pytree)


@st.composite
def _graph_cases(
    draw: st.DrawFn, recipes: tuple[Any, ...], max_nodes: int, pytree: bool
) -> GraphCase:
    graph = fx.Graph()
    builder = Builder(draw, graph)
    nested = pytree and draw(st.sampled_from((False, False, False, True)))
    inputs = _nested_placeholders(builder) if nested else _placeholders(builder)
    for recipe in draw(st.lists(st.sampled_from(recipes), min_size=1, max_size=max_nodes)):
        recipe(builder)
    tensors = [v.node for v in builder.values if v.kind in ("full", "row", "mask")]
    chosen = draw(st.lists(st.sampled_from(tensors[::-1]), min_size=1, max_size=3))
    if nested:
        graph.output(tuple(chosen))
        result = {"first": chosen[0], "rest": chosen[1:]}
        give_pytree_signature(graph, ("pair", "more"), inputs, result)
    else:
        graph.output(_output(draw, chosen))
    graph.lint()
    return GraphCase(root=make_root(), graph=graph, inputs=inputs)


def _placeholders(builder: Builder) -> tuple[Any, ...]:
    """One to four placeholders; those with defaults may be left out of the inputs."""
    inputs: list[Any] = []
    for index in range(builder.choose((1, 2))):
        annotation = builder.choose((None, torch.Tensor))
        node = builder.graph.placeholder("xy"[index], type_expr=annotation)
        _remember(builder, node, "full")
        inputs.append(pattern(4 + index))
    defaults = builder.choose(((), (0.5,), (3, None), (True,), (float("inf"), "text")))
    for index, default in enumerate(defaults):
        annotated = default is not None and builder.choose((False, True))
        name = f"option_{index}"
        node = builder.graph.placeholder(
            name, type_expr=type(default) if annotated else None, default_value=default
        )
        if type(default) in (int, float) and default != float("inf"):
            _remember(builder, node, "number")
    given = builder.choose(range(len(defaults) + 1))
    return (*inputs, *defaults[:given])


def _nested_placeholders(builder: Builder) -> tuple[Any, ...]:
    """Three leaves: ``pair = (tensor, {"k": tensor})`` and ``more = [tensor]``."""
    for index in range(3):
        _remember(builder, builder.graph.placeholder(f"leaf_{index}"), "full")
    return ((pattern(4), {"k": pattern(5)}), [pattern(6)])


def _remember(builder: Builder, node: fx.Node, kind: str) -> None:
    memory = frozenset((len(builder.graph.nodes),))
    builder.values.append(Value(node=node, kind=kind, memory=memory, gradient=False))


def _output(draw: st.DrawFn, chosen: list[fx.Node]) -> Any:
    """The nodes in one of the containers that a graph can return, beside constants."""
    first = chosen[0]
    shape = draw(st.sampled_from(("single", "tuple", "list", "dict", "nested")))
    if shape == "single":
        return first
    if shape == "tuple":
        return tuple(chosen)
    if shape == "list":
        return list(chosen)
    if shape == "dict":
        return {"first": first, "rest": tuple(chosen[1:]), "none": None}
    return (first, {"deep": [chosen[-1]]}, (1, 2.5, "text", True, None))
