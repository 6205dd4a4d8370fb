"""A loaded graph is built when somebody looks at it.

Loading a module only to run code that a cache holds for it, or to ask for its parameters, should
not pay for its nodes. While nobody has looked, the class of the module holds a descriptor where
``_graph`` is read; the key stays in the instance's dictionary, as for generated code. The first
look builds the graph, once, under the lock that generation takes, and takes the descriptor away. If
building fails, the error surfaces at every look and the module stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._forward import GENERATION_LOCK
from ._instance_class import own_classes
from .errors import LazyFxError, SerializationError

if TYPE_CHECKING:
    from torch import fx

    from ._graph_module import LazyGraphModule


class _DeferredGraph:
    """Reads and writes of ``_graph`` while it has not been built."""

    def __get__(self, module: LazyGraphModule | None, owner: type | None = None) -> Any:
        if module is None:
            return self
        with GENERATION_LOCK:
            graph = module.__dict__["_graph"]
            deferred = type(module).__lazyfx__.deferred
            if graph is None and deferred is not None:
                try:
                    graph = deferred.build(module)
                except LazyFxError:
                    raise
                except Exception as error:  # an AttributeError would vanish in nn.Module
                    raise SerializationError(
                        f"the stored graph of {type(module).__name__!r} cannot be built: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                graph.owning_module = module
                self._settle(module, graph)
            return graph

    def __set__(self, module: LazyGraphModule, graph: fx.Graph) -> None:
        with GENERATION_LOCK:
            self._settle(module, graph)

    def _settle(self, module: LazyGraphModule, graph: fx.Graph) -> None:
        module.__dict__["_graph"] = graph
        cls = type(module)
        for owned in own_classes(cls):
            if vars(owned).get("_graph") is self:
                delattr(owned, "_graph")
            own = vars(owned).get("__lazyfx__")
            if own is not None:
                own.deferred = None


DEFERRED_GRAPH = _DeferredGraph()
