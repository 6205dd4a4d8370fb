"""Structural equality of graphs, and a text that says where two of them differ.

Two graphs are equal when they generate code that does the same on the same module: the same nodes
in the same order, each with the same op, target, arguments, annotation and (unless told
otherwise) name, and code generators of the same class with the same attributes. Nodes inside
arguments are compared by position, so a graph equals its copy. Other values are compared by type
and value; how, is said in :mod:`._values`.

Comparing reads graphs only. It never looks at code, so a stale lazy module stays stale.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from lazyfx_core._structure import describe
from lazyfx_core.errors import NotAGraphModuleError

from ._text import show
from ._torch_values import describe_codegen
from ._values import Values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._values import Difference, Pair

_SHOWN = 8
_LONGEST_PLACE = 200
_NOTHING = (type(None), tuple, dict)


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
    qualified name; whether one module is there twice or two equal ones, is no difference. Neither
    the class of a module nor its parameters are compared.

    Args:
        left: What is expected. Read only; no code is generated.
        right: What was seen. Read only; no code is generated.
        names: Whether the names of nodes and the targets of placeholders must agree.
        meta: Whether ``node.meta``, and ``meta`` of graph modules, must agree.

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
    found = list(_Walk([(left, right, "")], names=names, meta=meta).differences())
    if not found:
        return ""
    lines = ["--- left", "+++ right"]
    for where, expected, seen in found[:_SHOWN]:
        lines.append(f"@@ {_shortened(where)} @@")
        lines += [f"- {line}" for line in expected.splitlines()]
        lines += [f"+ {line}" for line in seen.splitlines()]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN} more differences")
    return "\n".join(lines)


def _shortened(where: str) -> str:
    if len(where) <= _LONGEST_PLACE:
        return where
    return f"{where[: _LONGEST_PLACE // 2]} ... {where[-_LONGEST_PLACE // 2 :]}"


class _Walk:
    """Compares graph modules with all graph modules inside them, pair by pair.

    A pair that was met before is not looked at again, so modules may be shared or contain
    themselves. ``waiting`` holds what is still to be compared: two graphs or modules, and where.
    """

    def __init__(self, waiting: list[Pair], *, names: bool, meta: bool) -> None:
        self.waiting = waiting
        self._names = names
        self._meta = meta
        self._met: dict[tuple[int, int], tuple[Any, Any]] = {}  # holds them: ids are used again

    def differences(self) -> Iterator[Difference]:
        while self.waiting:
            pairs, self.waiting = self.waiting, []
            for left, right, where in pairs:
                yield from self._modules(left, right, where)

    def _differ(self, pairs: list[Pair]) -> bool:
        """Whether ``pairs`` differ, apart from what is being compared already."""
        walk = _Walk(pairs, names=self._names, meta=self._meta)
        walk._met = dict(self._met)
        return next(walk.differences(), None) is not None

    def _modules(self, left: Any, right: Any, where: str) -> Iterator[Difference]:
        """Compares the graphs of two modules and of those inside that have one."""
        only: tuple[list[str], list[str]] = [], []
        below = [(left, right, "")]
        while below:
            one, other, path = below.pop()
            if (id(one), id(other)) in self._met:
                continue
            self._met[id(one), id(other)] = one, other
            pair = _graph(one), _graph(other)
            if pair[0] is not None and pair[1] is not None:
                yield from self._graphs(pair[0], pair[1], _prefix(where, path))
                if self._meta and isinstance(one, nn.Module) and isinstance(other, nn.Module):
                    yield from self._values(
                        pair[0], pair[1], one.meta, other.meta, f"{_prefix(where, path)}meta"
                    )
            elif pair[0] is not None or pair[1] is not None:
                only[pair[0] is None].append(path)
            children = _children(one), _children(other)
            for name, child in reversed(children[0].items()):
                if name in children[1]:
                    below.append((child, children[1][name], _join(path, name)))
                else:
                    only[0].extend(_graph_modules(child, _join(path, name)))
            for name in children[1].keys() - children[0].keys():
                only[1].extend(_graph_modules(children[1][name], _join(path, name)))
        if only[0] or only[1]:
            yield f"{_prefix(where, '')}graph modules inside", show(only[0]), show(sorted(only[1]))

    def _values(
        self, left: fx.Graph, right: fx.Graph, one: Any, other: Any, where: str
    ) -> Iterator[Difference]:
        compare = Values(left, right, names=self._names, differ=self._differ)
        yield from compare.differences(one, other, where)
        self.waiting += compare.inside

    def _graphs(self, left: fx.Graph, right: fx.Graph, where: str) -> Iterator[Difference]:
        compare = Values(left, right, names=self._names, differ=self._differ)
        yield from compare.differences(
            describe_codegen(left), describe_codegen(right), f"{where}code generator"
        )
        nodes = list(left.nodes), list(right.nodes)
        if len(nodes[0]) != len(nodes[1]):
            yield from _aligned(*nodes, where)
            return
        for index, (one, other) in enumerate(zip(*nodes, strict=True)):
            yield from self._nodes(one, other, compare, f"{where}node {index} {one.name!r}")
        self.waiting += compare.inside

    def _nodes(
        self, left: fx.Node, right: fx.Node, compare: Values, where: str
    ) -> Iterator[Difference]:
        where = f"{where} ({left.op})"
        if left.op != right.op:
            yield f"{where}: op", _title(left), _title(right)
            return
        fields = ["args", "kwargs", "type"]
        if self._names or left.op != "placeholder":
            fields.insert(0, "target")
        elif _stars(left) != _stars(right):
            yield f"{where}: target", show(left.target), show(right.target)
        if self._names:
            fields.insert(0, "name")
        if self._meta:
            fields.append("meta")
        for field in fields:
            pair = getattr(left, field), getattr(right, field)
            if _plainly_equal(*pair):
                continue
            name = "default" if left.op == "placeholder" and field == "args" else field
            yield from compare.differences(*pair, f"{where}: {name}")


def _plainly_equal(left: object, right: object) -> bool:
    """True for what most fields of most nodes are: the same text, or nothing on both sides."""
    if type(left) is str:
        return type(right) is str and left == right
    return type(left) is type(right) and type(left) in _NOTHING and not left and not right


def _graph(value: object) -> fx.Graph | None:
    if isinstance(value, fx.GraphModule):
        return value.graph
    return value if isinstance(value, fx.Graph) else None


def _children(value: object) -> dict[str, nn.Module]:
    modules = value._modules if isinstance(value, nn.Module) else {}
    return {name: child for name, child in modules.items() if child is not None}


def _graph_modules(module: nn.Module, path: str) -> list[str]:
    return [n for n, m in module.named_modules(prefix=path) if isinstance(m, fx.GraphModule)]


def _prefix(where: str, path: str) -> str:
    """Names a module, before what differs in it: ``where`` it was met, and ``path`` from there."""
    return (f"{where}, " if where else "") + (f"submodule {path!r}, " if path else "")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _stars(placeholder: fx.Node) -> int:
    """How many stars mark a placeholder: it takes one value, all others, or all other keywords."""
    target = str(placeholder.target)
    return len(target) - len(target.lstrip("*"))


def _aligned(left: list[fx.Node], right: list[fx.Node], where: str) -> Iterator[Difference]:
    """Which nodes are only on one side, where the numbers of nodes differ."""
    titles = [_title(node) for node in left], [_title(node) for node in right]
    matcher = difflib.SequenceMatcher(None, *titles, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            yield f"{where}nodes from {a}", "\n".join(titles[0][a:b]), "\n".join(titles[1][c:d])


def _title(node: fx.Node) -> str:
    return f"{node.name!r} ({node.op} {show(node.target)})"
