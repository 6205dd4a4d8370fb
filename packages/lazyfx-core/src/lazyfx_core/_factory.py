"""Making graph modules of the class that the flags in force ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from . import _flags, _torch_fx
from ._structure import describe
from .errors import NotAGraphModuleError

if TYPE_CHECKING:
    from torch import nn


def get_graph_module_cls() -> type[fx.GraphModule]:
    """The class that ``make_graph_module`` and torch build in this context, now."""
    return _flags.choose_class(_torch_fx.torchs_choice)


def make_graph_module(
    root: nn.Module | dict[str, Any],
    graph: fx.Graph,
    class_name: str = "GraphModule",
    *,
    graph_module_cls: type[fx.GraphModule] | None = None,
) -> fx.GraphModule:
    """Build a graph module of ``graph_module_cls``, or of the class the flags ask for.

    Args:
        root: See :class:`LazyGraphModule`.
        graph: See :class:`LazyGraphModule`.
        class_name: See :class:`LazyGraphModule`.
        graph_module_cls: ``fx.GraphModule`` or a subclass; overrides every flag.

    Raises:
        NotAGraphModuleError: ``graph_module_cls`` is not a class of graph modules, or ``root`` or
            ``graph`` is of the wrong kind.
        InvalidGraphError: A node refers to something ``root`` does not have.

    Example:
        >>> import torch
        >>> graph = fx.symbolic_trace(lambda x: torch.sin(x)).graph
        >>> type(make_graph_module({}, graph, graph_module_cls=fx.GraphModule)).__mro__[1]
        <class 'torch.fx.graph_module.GraphModule'>
    """
    cls = get_graph_module_cls() if graph_module_cls is None else graph_module_cls
    if not (isinstance(cls, type) and issubclass(cls, fx.GraphModule)):
        raise NotAGraphModuleError(
            "make_graph_module(graph_module_cls=...) takes torch.fx.GraphModule or a subclass, "
            f"got {describe(cls)}; leave it out to let the flags decide"
        )
    if not isinstance(graph, fx.Graph):
        raise NotAGraphModuleError(
            f"make_graph_module(graph=...) takes a torch.fx.Graph, got {describe(graph)}; "
            "pass gm.graph of a GraphModule"
        )
    if graph_module_cls is fx.GraphModule and _torch_fx.wide_installed():
        with _flags.force_skip_lazy_graph_module():
            return cls(root, graph, class_name)
    return cls(root, graph, class_name)


def remove_seam() -> None:
    """Undo the one patch of torch that the flags install on first use.

    Flags set after this install it again. Thread-safe.

    Raises:
        SeamError: Somebody else patched the same function later.
    """
    _torch_fx.remove()


def seam_installed() -> bool:
    """Whether torch asks lazyfx-core which class to build (true after the first use of a flag)."""
    return _torch_fx.installed()
