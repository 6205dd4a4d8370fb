"""``pickle``, ``torch.save`` and ``copyreg``: a thin user of :mod:`lazyfx_core._serialize`.

A pickled lazy module holds its state dictionary and its graph as data, and loads without tracing
and without generating code. Class, class name and laziness come back whatever the flags say at
load time.

:func:`restore_module` is named in every pickle ever written: it keeps its place, its name and the
meaning of its arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._serialize import StoredGraph, build_graph, store_graph
from ._torch_fx import GENERATED_FIELDS

if TYPE_CHECKING:
    from ._graph_module import LazyGraphModule


def reduce_module(gm: LazyGraphModule) -> tuple[Any, ...]:
    """The reduction of ``gm`` for the pickle protocol. Generates nothing, changes nothing."""
    return (restore_module, module_state(gm))


def module_state(
    gm: LazyGraphModule,
) -> tuple[type[LazyGraphModule], str, dict[str, Any], StoredGraph]:
    """Class, class name, attributes and stored graph of ``gm``: all that a pickle holds."""
    from ._instance_class import user_class

    attributes = {
        name: value
        for name, value in vars(gm).items()
        if name != "_graph" and name not in GENERATED_FIELDS
    }
    cls: Any = user_class(type(gm))
    return (cls, type(gm).__name__, attributes, store_graph(gm.graph))


def restore_module(
    cls: type[LazyGraphModule], class_name: str, attributes: dict[str, Any], graph: StoredGraph
) -> LazyGraphModule:
    """Build the module that :func:`module_state` describes; it is stale.

    Raises:
        SerializationError: The graph cannot be rebuilt on this torch; names the node.
    """
    gm = cls.__new__(cls)
    gm.__setstate__(attributes)  # type: ignore[no-untyped-call]
    gm._adopt(build_graph(graph), class_name)
    return gm
