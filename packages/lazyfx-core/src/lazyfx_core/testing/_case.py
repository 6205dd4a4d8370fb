"""``GraphCase``: a graph, the module its names refer to, and inputs it runs on.

Graph modules share what they are built from: the graph, the parameters, the buffers. A test that
builds two of them over one graph compares a thing with itself. Everything here therefore hands
out copies: each :meth:`GraphCase.build` has a graph, submodules and tensors of its own, and
:meth:`GraphCase.fresh_inputs` has new tensors, because graphs may mutate what they are given.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import fx, nn

from lazyfx_core._graph_module import LazyGraphModule

from ._torch_values import copy_codegen, tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Iterator

_GM = TypeVar("_GM", bound=fx.GraphModule)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GraphCase:
    """One drawn graph with what is needed to run it.

    Attributes:
        root: Holds every parameter, buffer and submodule that the graph names.
        graph: The graph. Nobody's: ``build`` copies it.
        inputs: Positional arguments the graph runs on: tensors, and, for a graph with a pytree
            signature, nested containers of tensors. Do not pass them on: a graph may mutate them;
            take :meth:`fresh_inputs`.
    """

    root: nn.Module
    graph: fx.Graph
    inputs: tuple[Any, ...]

    def build(self, cls: type[_GM]) -> _GM:
        """A graph module of ``cls`` over copies of the graph and of everything in ``root``.

        Graph modules inside are of ``cls`` too. Equal cases build equal modules.
        """
        root = copy.deepcopy(self.root)
        convert_children(root, cls)
        return cls(root, copy_graph(self.graph), "Case")

    def plain(self) -> fx.GraphModule:
        """An ``fx.GraphModule``; see :meth:`build`."""
        return self.build(fx.GraphModule)

    def lazy(self) -> LazyGraphModule:
        """A :class:`lazyfx_core.LazyGraphModule`; see :meth:`build`."""
        return self.build(LazyGraphModule)

    def fresh_inputs(self) -> tuple[Any, ...]:
        """New tensors equal to :attr:`inputs`."""
        return clone_inputs(self.inputs)

    def __repr__(self) -> str:
        shapes = ", ".join(_shape(leaf) for leaf in tree_leaves(self.inputs))
        return f"GraphCase(inputs=({shapes}), {str(self.graph).strip()})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # hypothesis would print the fields, whose texts do not show the nodes.
        printer.text(repr(self))


def clone_inputs(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """New tensors equal to those in ``inputs``, in the same containers."""
    cloned: tuple[Any, ...] = tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs
    )
    return cloned


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of ``graph``, nodes of its own, in which every node kept its name.

    ``copy.deepcopy`` renames nodes whose names were set by hand to something torch would not
    choose, and warns about torch's own tree specs.
    """
    new = fx.Graph(tracer_cls=getattr(graph, "_tracer_cls", None))
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        twin = copied[node] = new.node_copy(node, copied.__getitem__)
        if twin.name != node.name:
            twin.name = node.name
    copy_codegen(graph, new)
    return new


def convert_children(root: nn.Module, cls: type[fx.GraphModule]) -> None:
    """Replace every graph module below ``root`` by one of ``cls`` with a graph of its own."""
    for name, child in list(root.named_children()):
        if isinstance(child, fx.GraphModule):
            converted = cls(child, copy_graph(child.graph))
            convert_children(converted, cls)
            setattr(root, name, converted)
        else:
            convert_children(child, cls)


def graph_modules(gm: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """``gm`` and every graph module in it with its qualified name, children before parents."""
    found = [(n, m) for n, m in gm.named_modules() if isinstance(m, fx.GraphModule)]
    yield from reversed(found)


def _shape(leaf: object) -> str:
    return f"Tensor{list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else repr(leaf)
