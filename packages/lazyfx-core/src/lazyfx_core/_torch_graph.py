"""The seam to torch's graphs: private parts of ``fx.Graph`` that lazyfx-core reads or builds.

====================================================  ==============================================
private name                                          used for
====================================================  ==============================================
``graph._PyTreeCodeGen``, ``Graph._codegen``          pytree specs at marking time; storing
``graph.CodeGen``, ``CodeGen._body_transformer``      telling that generation would repeat itself
``graph._BoxedCodeGen``                               the same (after torch 2.9)
``Graph._co_fields``, ``graph._custom_builtins``      what generated sources import
``_config.enrich_profiler_metadata``                  code then depends on node metadata (after
                                                      torch 2.9)
``Graph._find_nodes_lookup_table``                    nodes that refer to attributes
``Graph._tracer_cls``, ``Graph._tracer_extras``       storing and copying
``Graph._graph_namespace``                            copying a graph, see :func:`copy_graph`
``Graph._root``                                       the same
``Graph._len``                                        the same
``_Namespace._obj_to_name``                           the same
``node.map_arg``                                      the same
``node._fx_map_arg``                                  the same, in C (after torch 2.6)
``torch._ops``                                        storing operators by name
``OpOverload._schema``, ``OpOverload._overloadname``  the same
``OpOverloadPacket._qualified_op_name``               the same
``HigherOrderOperator._name``                         the same
====================================================  ==============================================

Nothing is patched here. Where a release lacks what copying needs, torch's own copy is used.
"""

from __future__ import annotations

import copy
import functools
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import graph as _torch_graph
from torch.fx.experimental import _config
from torch.fx.graph import CodeGen, _PyTreeCodeGen
from torch.fx.node import map_arg

if TYPE_CHECKING:
    from collections.abc import Callable

_BoxedCodeGen = getattr(_torch_graph, "_BoxedCodeGen", CodeGen)  # after torch 2.9
# Methods of graphs and code generators that make text; somebody may replace one of them.
_GENERATING = frozenset(
    {
        *("python_code", "_python_code", "_gen_python_code", "gen_fn_def", "generate_output"),
        *("additional_globals", "process_inputs", "process_outputs"),
    }
)
_KNOWN_CODEGENS = frozenset({CodeGen, _PyTreeCodeGen, _BoxedCodeGen})
_map_arg: Callable[..., Any] = getattr(fx.node, "_fx_map_arg", map_arg)  # the one written in C


def pytree_specs(graph: fx.Graph) -> tuple[Any, Any] | None:
    """The input and output tree specs of a graph with pytree code generation, else None."""
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        return codegen.pytree_info.in_spec, codegen.pytree_info.out_spec
    return None


def graph_parts(graph: fx.Graph) -> tuple[CodeGen, type[fx.Tracer] | None, dict[str, Any] | None]:
    """Code generator, tracer class and tracer extras: what a graph holds besides its nodes.

    A tracer class that lives inside a function cannot be found again by name and is left out, as
    ``fx.GraphModule`` leaves it out.
    """
    tracer_cls = graph._tracer_cls
    if tracer_cls is not None and "<locals>" in tracer_cls.__qualname__:
        tracer_cls = None
    return graph._codegen, tracer_cls, graph._tracer_extras


def node_count(graph: fx.Graph) -> int:
    """``len(graph.nodes)`` without making the list object."""
    return graph._len


def attribute_nodes(graph: fx.Graph) -> list[fx.Node]:
    """All ``get_attr`` and ``call_module`` nodes in graph order, from the graph's own index."""
    table = getattr(graph._find_nodes_lookup_table, "table", None)
    if table is None:
        return [node for node in graph.nodes if node.op in ("get_attr", "call_module")]
    found = [*table.get(("get_attr", None), ()), *table.get(("call_module", None), ())]
    if len(found) > 1:
        found.sort()
    return found


def codegen_fingerprint(graph: fx.Graph) -> tuple[object, ...] | None:
    """What decides the text of generated code besides the nodes, to be compared by identity.

    Returns:
        None if code depends on more than can be told: a code generator or a ``Graph`` subclass of
        the user's own, profiling metadata, dumps of ``node.meta`` into the code.
    """
    codegen = graph._codegen
    if (
        type(codegen) not in _KNOWN_CODEGENS
        or type(graph) is not fx.Graph
        or not _GENERATING.isdisjoint(vars(graph))
        or any(map(callable, vars(codegen).values()))  # a body transformer, or a method put there
        or getattr(_config, "enrich_profiler_metadata", False)
        or os.environ.get("FX_GRAPH_SHOW_META") == "1"
    ):
        return None
    held = vars(codegen)
    pytree = held.get("pytree_info")
    names = () if pytree is None else pytree.orig_args
    fields = getattr(graph, "_co_fields", None) or {}
    return (
        *(codegen, *held.values(), *names, *fields.values()),
        *_torch_graph._custom_builtins.values(),
        *map(vars(fx.Graph).get, _GENERATING),
        *map(vars(type(codegen)).get, _GENERATING),
        *map(vars(CodeGen).get, _GENERATING),
    )


def generator_parts(graph: fx.Graph) -> tuple[object, ...]:
    """The code generator of ``graph`` and what it holds: what an edit of the graph can change."""
    codegen = graph._codegen
    held = vars(codegen)
    pytree = held.get("pytree_info")
    return (codegen, *held.values(), *(() if pytree is None else pytree.orig_args))


def depends_on_the_moment(graph: fx.Graph) -> bool:
    """Whether code generated later may differ although nobody edits anything until then.

    A body transformer is there for the length of a ``with`` block.
    """
    return graph._codegen._body_transformer is not None


def copy_graph(graph: fx.Graph, memo: dict[Any, Any]) -> fx.Graph:
    """What ``copy.deepcopy(graph, memo)`` returns, in a fraction of the time.

    Nodes are copied one by one without the checks that ``create_node`` makes of arguments that
    have passed them before. ``memo`` gets every node, old to new, and is respected where it
    already holds one.
    """
    if type(graph) is not fx.Graph or not _can_copy():
        return copy.deepcopy(graph, memo)
    new = fx.Graph(tracer_cls=graph._tracer_cls)
    create_name = new._graph_namespace.create_name
    names = new._graph_namespace._obj_to_name
    insert = new._root.prepend
    remember = new._find_nodes_lookup_table.insert
    lookup = memo.__getitem__
    count = 0
    for node in graph.nodes:
        if node in memo:
            continue
        is_output = node.op == "output"
        name = create_name("output" if is_output else node.name, None)
        args = _map_arg(node.args, lookup)
        kwargs = {} if is_output else _map_arg(node.kwargs, lookup)
        created = fx.Node(new, name, node.op, node.target, args, kwargs, node.type)
        meta = node.meta
        if meta:
            created.meta = copy.copy(meta)
        names[created] = name
        insert(created)
        remember(created)
        count += 1
        if is_output:
            break  # torch copies no further
        memo[node] = created
    new._len = count
    new._codegen = _copy_codegen(graph._codegen)
    return new


def node_adder(graph: fx.Graph) -> Callable[..., fx.Node]:
    """A function that appends nodes to ``graph`` in a fraction of the time of ``create_node``.

    It takes op, target, args, kwargs, name and type. The name is taken as it is, whatever the
    namespace of the graph would make of it: the caller sees to it that names are unique.
    """
    if type(graph).create_node is not fx.Graph.create_node or not _can_copy():
        return functools.partial(_add_node, graph)
    create_name = graph._graph_namespace.create_name
    names = graph._graph_namespace._obj_to_name
    insert = graph._root.prepend
    remember = graph._find_nodes_lookup_table.insert
    make = fx.Node

    def add(op: str, target: Any, args: Any, kwargs: Any, name: str, type_: Any) -> fx.Node:
        create_name(name, None)
        node = make(graph, name, op, target, args, kwargs, type_)
        names[node] = name
        insert(node)
        remember(node)
        graph._len += 1
        return node

    return add


def _add_node(
    graph: fx.Graph, op: str, target: Any, args: Any, kwargs: Any, name: str, type_: Any
) -> fx.Node:
    node = graph.create_node(op, target, args, kwargs, name, type_)
    if node.name != name:
        node.name = name  # the namespace sanitises; names given by hand must survive
    return node


@functools.cache
def _can_copy() -> bool:
    graph = fx.Graph()
    namespace = getattr(graph, "_graph_namespace", None)
    return (
        all(hasattr(graph, name) for name in ("_root", "_len", "_find_nodes_lookup_table"))
        and hasattr(namespace, "create_name")
        and hasattr(namespace, "_obj_to_name")
    )


def _copy_codegen(codegen: CodeGen) -> CodeGen:
    """A copy that shares nothing mutable. torch's deepcopy of tree specs warns and is slow."""
    if type(codegen) not in _KNOWN_CODEGENS:
        return copy.deepcopy(codegen)
    new = copy.copy(codegen)
    if isinstance(new, _PyTreeCodeGen):
        info = new.pytree_info
        new.pytree_info = info._replace(orig_args=list(info.orig_args))
    return new


def operator_name(value: object) -> tuple[str, str] | None:
    """``(kind, qualified name)`` of an operator of torch's registries, else None."""
    if isinstance(value, OpOverload):
        return (
            "overload",
            f"{value.namespace}.{value._schema.name.partition('::')[2]}.{value._overloadname}",
        )
    if isinstance(value, OpOverloadPacket):
        return "packet", value._qualified_op_name.replace("::", ".")
    if isinstance(value, HigherOrderOperator):
        return "higher_order", f"{value.namespace}.{value._name}"
    return None


def find_operator(kind: str, name: str) -> Any | None:
    """The operator that :func:`operator_name` named, or None if this torch does not have it."""
    found: Any = torch.ops
    for atom in name.split("."):
        try:
            found = getattr(found, atom)
        except AttributeError:
            return None
    expected = {
        "overload": OpOverload,
        "packet": OpOverloadPacket,
        "higher_order": HigherOrderOperator,
    }
    return found if isinstance(found, expected[kind]) else None
