"""A graph as plain data: what is stored instead of source code that would be traced again.

Tracing generated source loses what tracing cannot see: ``a += b`` comes back as ``a + b`` (the
loaded module no longer mutates), ``is`` vanishes, unused nodes and names are gone. Here every node
is stored as it is and created again as it was.

Stored: op, target, args, kwargs, name and type of each node; the code generator (plain, pytree,
boxed), the tracer class and its extras. Not stored: ``node.meta``.

Operators from ``torch.ops`` and higher-order operators cannot be pickled; wherever one stands, as
a target or inside arguments, an :class:`OpRef` with its qualified name is stored. Any other
callable is stored by module and name, by whatever pickler walks the data.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx
from torch.fx.node import map_aggregate

from ._torch_graph import find_operator, graph_parts, operator_name
from .errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT = 1
"""Version of the stored data; a reader refuses what is newer than itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRef:
    """A use of the node that stands at ``index`` in the stored node list."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRef:
    """An operator of torch's registries, by ``kind`` (overload, packet, higher_order) and name."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNode:
    """One node; nodes in ``args`` and ``kwargs`` are :class:`NodeRef`."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    type: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGraph:
    """A whole graph as plain data, ready for any pickler."""

    format: int
    nodes: tuple[StoredNode, ...]
    codegen: Any
    tracer_cls: Any
    tracer_extras: dict[str, Any] | None


def store_graph(graph: fx.Graph) -> StoredGraph:
    """Turn ``graph`` into plain data. Reads only; generates no code.

    Raises:
        SerializationError: A node's target is a callable that cannot be found again by name;
            names the node.
    """
    index = {node: i for i, node in enumerate(graph.nodes)}

    def leaf(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return NodeRef(index=index[value])
        return _reference(value)

    nodes = tuple(
        StoredNode(
            op=node.op,
            target=_target(node),
            args=map_aggregate(node.args, leaf),
            kwargs=dict(map_aggregate(node.kwargs, leaf)),
            name=node.name,
            type=node.type,
        )
        for node in graph.nodes
    )
    codegen, tracer_cls, tracer_extras = graph_parts(graph)
    return StoredGraph(
        format=FORMAT,
        nodes=nodes,
        codegen=codegen,
        tracer_cls=tracer_cls,
        tracer_extras=tracer_extras,
    )


def build_graph(stored: StoredGraph) -> fx.Graph:
    """Create the graph that ``stored`` describes, node by node, without tracing anything.

    Raises:
        SerializationError: The data is newer than this lazyfx, or names an operator that this
            torch does not have; names the node.
    """
    if stored.format > FORMAT:
        raise SerializationError(
            f"the stored graph has format {stored.format}, this lazyfx-core reads up to {FORMAT}; "
            "load it with a newer lazyfx-core"
        )
    graph = fx.Graph(tracer_cls=stored.tracer_cls, tracer_extras=stored.tracer_extras)
    graph.set_codegen(stored.codegen)
    created: list[fx.Node] = []
    for item in stored.nodes:

        def leaf(value: Any, name: str = item.name) -> Any:
            if isinstance(value, NodeRef):
                return created[value.index]
            return _resolve(value, name)

        node = graph.create_node(
            item.op,
            _resolve(item.target, item.name),
            map_aggregate(item.args, leaf),
            map_aggregate(item.kwargs, leaf),
            item.name,
            item.type,
        )
        if node.name != item.name:
            node.name = item.name  # the namespace sanitises; names given by hand must survive
        created.append(node)
    return graph


def _target(node: fx.Node) -> Any:
    reference = _reference(node.target)
    if isinstance(reference, (OpRef, str)) or _findable(reference):
        return reference
    raise SerializationError(
        f"node {node.name!r} calls {node.target!r}, which cannot be found again as "
        f"{getattr(node.target, '__module__', None)}.{getattr(node.target, '__qualname__', None)}; "
        "move the function to the top level of an importable module"
    )


def _reference(value: Any) -> Any:
    named = operator_name(value)
    return value if named is None else OpRef(kind=named[0], name=named[1])


def _resolve(value: Any, node_name: str) -> Any:
    if not isinstance(value, OpRef):
        return value
    operator = find_operator(value.kind, value.name)
    if operator is None:
        raise SerializationError(
            f"node {node_name!r} uses the {value.kind} operator {value.name!r}, which this torch "
            "does not have; import the library that registers it before loading"
        )
    return operator


def _findable(function: Callable[..., Any]) -> bool:
    """Whether pickle can store ``function`` by name; what is no function pickles by value."""
    qualified = getattr(function, "__qualname__", None)
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if qualified is None or module is None:
        return True  # builtins of torch.Tensor and friends: pickle has its own ways to name them
    if "<locals>" in qualified or "<lambda>" in qualified:
        return False
    found: Any = module
    for atom in qualified.split("."):
        found = getattr(found, atom, None)
    return found is function or found is None
