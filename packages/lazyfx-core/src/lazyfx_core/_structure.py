"""Checks that a graph means what it says, cheaply enough to run before every code generation.

torch generates code from an invalid graph without a word: a node that belongs to another graph
becomes a name that does not exist, or, worse, one that does. ``Graph.lint`` would find it, but it
also walks the owning module, warns, and is run by nobody. :func:`check_graph` looks only at what
decides the meaning of the generated code, one pass over the edges.

A placeholder may stand anywhere in the node list: it becomes a parameter of ``forward`` wherever
it stands, and torch's own passes append placeholders late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx, nn

from .errors import InvalidGraphError, MissingTargetError, NotAGraphModuleError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_OPS = frozenset(
    {"placeholder", "get_attr", "call_function", "call_method", "call_module", "output"}
)


def check_graph(graph: fx.Graph) -> None:
    """Raise unless ``graph`` can be turned into code that means what the graph says.

    Checked: every node has a known op and a target of the kind that op needs; every argument
    belongs to this graph and is computed before it is used. Not checked: whether ``get_attr`` and
    ``call_module`` targets exist in some module, since a graph may be edited before its module.

    Args:
        graph: Read only. One pass over nodes and edges, no allocation per edge.

    Raises:
        NotAGraphModuleError: ``graph`` is not a ``torch.fx.Graph``.
        InvalidGraphError: Names the node, the offending argument and the repair.
    """
    if not isinstance(graph, fx.Graph):
        raise NotAGraphModuleError(
            f"check_graph() takes a torch.fx.Graph, got {describe(graph)}; "
            "pass gm.graph of a GraphModule"
        )
    seen: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op not in _OPS:
            raise InvalidGraphError(
                f"node {node.name!r} has the unknown op {node.op!r}; expected one of {sorted(_OPS)}"
            )
        if node.op == "call_function":
            if not callable(node.target):
                raise InvalidGraphError(
                    f"call_function node {node.name!r} has the target {node.target!r}; "
                    "expected something callable"
                )
        elif not isinstance(node.target, str):
            raise InvalidGraphError(
                f"{node.op} node {node.name!r} has the target {node.target!r}; expected a str"
            )
        for argument in node.all_input_nodes:
            if argument not in seen and argument.op != "placeholder":
                raise InvalidGraphError(_bad_argument(graph, node, argument))
            if argument.graph is not graph:
                raise InvalidGraphError(_bad_argument(graph, node, argument))
        seen.add(node)


def _bad_argument(graph: fx.Graph, node: fx.Node, argument: fx.Node) -> str:
    where = f"node {node.name!r} ({node.op} {node._pretty_print_target(node.target)})"
    if argument.graph is not graph:
        return (
            f"{where} uses {argument.name!r}, which belongs to another graph; expected a node of "
            "this graph: map arguments with arg_transform when copying nodes between graphs"
        )
    if any(argument is other for other in graph.nodes):
        return (
            f"{where} uses {argument.name!r}, which is computed only later; expected it earlier "
            "in the node list: move one of them with node.append() or node.prepend()"
        )
    return (
        f"{where} uses {argument.name!r}, which was erased from the graph; expected a node that is "
        "still there: call replace_all_uses_with() before erase_node()"
    )


def require_parts(where: str, root: object, graph: object) -> None:
    """Raise :class:`NotAGraphModuleError` unless a graph module can be built from them at all."""
    if not isinstance(root, (nn.Module, dict)):
        raise NotAGraphModuleError(
            f"{where}(root=...) takes an nn.Module or a dict, got {describe(root)}; "
            "pass nn.Module() if the graph refers to no parameters or submodules"
        )
    if not isinstance(graph, fx.Graph):
        hint = "pass gm.graph" if isinstance(graph, fx.GraphModule) else "trace one first"
        raise NotAGraphModuleError(
            f"{where}(graph=...) takes a torch.fx.Graph, got {describe(graph)}; {hint}"
        )


def check_targets_exist(root: nn.Module | Mapping[str, Any], graph: fx.Graph) -> None:
    """Raise :class:`MissingTargetError` naming the first node whose target ``root`` does not hold.

    Args:
        root: The module, or the mapping from qualified names, that a GraphModule is built from.
        graph: Read only.
    """
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        if isinstance(root, nn.Module):
            owner: Any = root
            for atom in node.target.split("."):
                if not hasattr(owner, atom):
                    raise MissingTargetError(
                        f"{node.op} node {node.name!r} refers to {node.target!r}, but "
                        f"{describe(owner)} has no attribute {atom!r}; add it to the root module "
                        "before building the graph module"
                    )
                owner = getattr(owner, atom)
        elif node.target not in root:
            raise MissingTargetError(
                f"{node.op} node {node.name!r} refers to {node.target!r}, which is not a key of "
                f"the root mapping (keys: {sorted(root)[:10]}); add it"
            )


def describe(value: object) -> str:
    """Name a value in an error message: its type, and the value itself where it is short."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, type):
        return f"the class {value.__module__}.{value.__qualname__}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{value!r} ({kind})"
    return f"an instance of {kind}"
