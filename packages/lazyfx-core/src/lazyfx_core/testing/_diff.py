"""Structural equality of graphs, and a text that says where two of them differ.

Two graphs are equal when they generate code that does the same on the same module: the same nodes
in the same order, each with the same op, target, arguments, annotation and (unless told
otherwise) name, and code generators of the same kind. Nodes inside arguments are compared by
position, so a graph equals its copy. Values are compared by type and value: ``1`` is not ``1.0``
or ``True``, ``-0.0`` is not ``0.0``, ``nan`` is ``nan``, a tuple is not a list, tensors agree in
dtype, shape, strides, device and every element. ``node.args`` turns lists and dicts into immutable
ones of fx; those count as lists and dicts.

Comparing reads graphs only. It never looks at code, so a stale lazy module stays stale.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from lazyfx_core._structure import describe
from lazyfx_core.errors import NotAGraphModuleError

from ._torch_codegen import describe_codegen

if TYPE_CHECKING:
    from collections.abc import Iterator

    Difference = tuple[str, str, str]

_SHOWN = 8
_LONGEST = 100


def assert_graphs_equal(
    left: fx.Graph | fx.GraphModule,
    right: fx.Graph | fx.GraphModule,
    *,
    names: bool = True,
    meta: bool = False,
) -> None:
    """Raise ``AssertionError`` with :func:`graph_diff` as its text unless the two are equal.

    Args:
        left: What is expected.
        right: What was seen.
        names: See :func:`graph_diff`.
        meta: See :func:`graph_diff`.

    Raises:
        AssertionError: They differ.
        NotAGraphModuleError: One of them is no graph.
    """
    difference = graph_diff(left, right, names=names, meta=meta)
    if difference:
        raise AssertionError(f"the graphs differ:\n{difference}")


def graph_diff(
    left: fx.Graph | fx.GraphModule,
    right: fx.Graph | fx.GraphModule,
    *,
    names: bool = True,
    meta: bool = False,
) -> str:
    """Where two graphs differ, as text; empty if they are equal.

    Graph modules are compared by their graphs and by those of all graph modules inside, found by
    qualified name. Neither the class of a module nor its parameters are compared.

    Args:
        left: What is expected. Read only; no code is generated.
        right: What was seen. Read only; no code is generated.
        names: Whether the names of nodes and the targets of placeholders must agree.
        meta: Whether ``node.meta`` must agree.

    Returns:
        A unified diff: for each difference a line naming submodule, node and field, then the
        expected value after ``-`` and the one seen after ``+``. At most eight are shown.

    Raises:
        NotAGraphModuleError: ``left`` or ``right`` is neither a ``Graph`` nor a ``GraphModule``.

    Example:
        >>> import torch
        >>> from torch import fx
        >>> left = fx.symbolic_trace(lambda x: torch.add(x, 1))
        >>> right = fx.symbolic_trace(lambda x: torch.add(x, 2))
        >>> print(graph_diff(left, right))
        --- left
        +++ right
        @@ node 1 'add' (call_function): args[1] @@
        - 1
        + 2
    """
    for side, value in (("left", left), ("right", right)):
        if not isinstance(value, (fx.Graph, fx.GraphModule)):
            raise NotAGraphModuleError(
                f"graph_diff({side}=...) takes a torch.fx.Graph or GraphModule, got "
                f"{describe(value)}; trace it first, for example with torch.fx.symbolic_trace"
            )
    found = list(_differences(left, right, names=names, meta=meta))
    if not found:
        return ""
    lines = ["--- left", "+++ right"]
    for where, expected, seen in found[:_SHOWN]:
        lines.append(f"@@ {where} @@")
        lines += [f"- {line}" for line in expected.splitlines()]
        lines += [f"+ {line}" for line in seen.splitlines()]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN} more differences")
    return "\n".join(lines)


def _differences(left: Any, right: Any, *, names: bool, meta: bool) -> Iterator[Difference]:
    graphs = [_graphs(left), _graphs(right)]
    if list(graphs[0]) != list(graphs[1]):
        yield "graph modules inside", _show(list(graphs[0])[1:]), _show(list(graphs[1])[1:])
    for path, one in graphs[0].items():
        if path in graphs[1]:
            prefix = f"submodule {path!r}, " if path else ""
            for where, expected, seen in _compare_graphs(one, graphs[1][path], names, meta):
                yield prefix + where, expected, seen


def _graphs(value: fx.Graph | fx.GraphModule) -> dict[str, fx.Graph]:
    if isinstance(value, fx.Graph):
        return {"": value}
    return {n: m.graph for n, m in value.named_modules() if isinstance(m, fx.GraphModule)}


def _compare_graphs(
    left: fx.Graph, right: fx.Graph, names: bool, meta: bool
) -> Iterator[Difference]:
    compare = _Comparison(left, right)
    yield from compare.values(describe_codegen(left), describe_codegen(right), "code generator")
    nodes = list(left.nodes), list(right.nodes)
    if len(nodes[0]) != len(nodes[1]):
        yield from _aligned(*nodes)
        return
    for index, (one, other) in enumerate(zip(*nodes, strict=True)):
        where = f"node {index} {one.name!r} ({one.op})"
        if one.op != other.op:
            yield f"{where}: op", _title(one), _title(other)
            continue
        fields = ["args", "kwargs", "type"]
        if names or one.op != "placeholder":
            fields.insert(0, "target")
        if names:
            fields.insert(0, "name")
        if meta:
            fields.append("meta")
        for field in fields:
            name = "default" if one.op == "placeholder" and field == "args" else field
            yield from compare.values(
                getattr(one, field), getattr(other, field), f"{where}: {name}"
            )


def _aligned(left: list[fx.Node], right: list[fx.Node]) -> Iterator[Difference]:
    """Which nodes are only on one side, where the numbers of nodes differ."""
    titles = [_title(node) for node in left], [_title(node) for node in right]
    matcher = difflib.SequenceMatcher(None, *titles, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            yield f"nodes from {a}", "\n".join(titles[0][a:b]), "\n".join(titles[1][c:d])


class _Comparison:
    """Compares values that may hold nodes of two graphs, which agree when their places do."""

    def __init__(self, left: fx.Graph, right: fx.Graph) -> None:
        self._left = {node: index for index, node in enumerate(left.nodes)}
        self._right = {node: index for index, node in enumerate(right.nodes)}

    def values(self, left: Any, right: Any, where: str) -> Iterator[Difference]:
        if isinstance(left, fx.Node) and isinstance(right, fx.Node):
            places = self._left.get(left), self._right.get(right)
            if places[0] != places[1] or (places[0] is None and left.name != right.name):
                yield where, _place(left, places[0]), _place(right, places[1])
        elif left is right:
            return
        elif _kind(left) is not _kind(right):
            yield where, _typed(left), _typed(right)
        elif isinstance(left, (list, tuple)):
            yield from self._sequences(left, right, where)
        elif isinstance(left, dict):
            yield from self._mappings(left, right, where)
        elif isinstance(left, slice):
            for field in ("start", "stop", "step"):
                yield from self.values(
                    getattr(left, field), getattr(right, field), f"{where}.{field}"
                )
        elif isinstance(left, fx.GraphModule):
            for deeper, expected, seen in _differences(left, right, names=True, meta=False):
                yield f"{where}, {deeper}", expected, seen
        else:
            reason = _unequal(left, right)
            if reason is not None:
                yield where, _show(left) + reason, _show(right) + reason

    def _sequences(self, left: Any, right: Any, where: str) -> Iterator[Difference]:
        if len(left) != len(right):
            yield f"{where}: length", f"{len(left)}: {_show(left)}", f"{len(right)}: {_show(right)}"
            return
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from self.values(one, other, f"{where}[{index}]")

    def _mappings(self, left: Any, right: Any, where: str) -> Iterator[Difference]:
        if list(left) != list(right):
            yield f"{where}: keys in order", _show(list(left)), _show(list(right))
            return
        for key in left:
            yield from self.values(left[key], right[key], f"{where}[{key!r}]")


def _kind(value: object) -> type:
    """The type, without the difference between fx's immutable containers and the builtin ones."""
    if type(value).__module__ == fx.immutable_collections.__name__:
        return list if isinstance(value, list) else dict
    return type(value)


def _unequal(left: Any, right: Any) -> str | None:
    """None if two values of one type are equal; else what to add to both, mostly nothing."""
    if isinstance(left, (float, complex)):
        return None if repr(left) == repr(right) else ""  # nan is nan, -0.0 is not 0.0
    if isinstance(left, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return None if str(left) == str(right) else ""  # comparing them would add guards
    try:
        if isinstance(left, torch.Tensor):
            return _unequal_tensors(left, right)
        same = left == right
        return None if isinstance(same, bool) and same else ""
    except Exception as error:
        return f" (comparing them raised {type(error).__name__}: {error})"


def _unequal_tensors(left: torch.Tensor, right: torch.Tensor) -> str | None:
    if _layout(left) != _layout(right):
        return ""
    if left.device.type == "meta" or type(left) not in (torch.Tensor, nn.Parameter):
        return None  # there are no values to compare, or only the subclass knows them
    same = (left == right) | ((left != left) & (right != right))
    return None if bool(same.all()) else ""


def _layout(tensor: torch.Tensor) -> tuple[object, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    return tensor.dtype, tensor.shape, strides, tensor.device, tensor.layout, tensor.requires_grad


def _title(node: fx.Node) -> str:
    return f"{node.name!r} ({node.op} {_show(node.target)})"


def _place(node: fx.Node, index: int | None) -> str:
    return (
        f"node {index} {node.name!r}" if index is not None else f"{node.name!r}, not in its graph"
    )


def _typed(value: object) -> str:
    return f"{_show(value)} ({_kind(value).__module__}.{_kind(value).__qualname__})".replace(
        "builtins.", ""
    )


def _show(value: object) -> str:
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"  # the text of a graph module is generated code
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, torch.Tensor):
        text = f"tensor of {value.dtype}, {list(value.shape)}"
        if value.numel() <= 8 and value.device.type == "cpu" and type(value) is torch.Tensor:
            text += f", {value.tolist()}"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key!r}: {_show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list):
        text = f"[{', '.join(map(_show, value))}]"
    elif type(value) is tuple:
        text = f"({', '.join(map(_show, value))}{',' if len(value) == 1 else ''})"
    elif callable(value) and not isinstance(value, type) and hasattr(value, "__name__"):
        module = getattr(value, "__module__", None)
        text = f"{module}.{value.__name__}" if module else str(value)
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
