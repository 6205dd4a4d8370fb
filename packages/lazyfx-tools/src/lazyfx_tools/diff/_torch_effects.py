"""Where the order of nodes counts, beyond what their arguments say.

Inputs are taken in order. Draws of random numbers, and whatever else has an effect besides its
result, happen in order. A read of memory that some node writes comes before that write or after
it. What cannot be told, such as whether a function of the user's returns a view, is taken for the
worse: a node too many is called moved, never one too few.

======================  ===============================================
private name            used for
======================  ===============================================
``OpOverload._schema``  what an operator writes to and returns views of
``torch._assert``       a call that has an effect
======================  ===============================================
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from lazyfx_compilers import _torch_randomness

from ._align import increasing
from ._nodes import attribute

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._match import Matching
    from ._nodes import Side

_KNOWN = ("torch", "operator", "_operator", "math", "builtins")
_PLAIN_MODULES = "torch.nn.modules."
_DRAWING_MODULES = ("Dropout", "RReLU", "FractionalMaxPool")


def moved(matching: Matching) -> list[tuple[int, int]]:
    """Matched pairs whose place in the order counts and is another."""
    pairs = sorted(matching.pairs(), key=lambda pair: matching.old.place[pair[0]])
    effects = [_Effects(matching.old), _Effects(matching.new)]
    found: dict[tuple[int, int], None] = {}
    for chain in ("input", "effect", "draw"):
        kept = [
            (i, j)
            for i, j in pairs
            if chain in effects[0].chains[i] and chain in effects[1].chains[j]
        ]
        found.update(dict.fromkeys(_out_of_order(kept, matching)))
    found.update(dict.fromkeys(_across_writes(pairs, matching, *effects)))
    return sorted(found, key=lambda pair: matching.new.place[pair[1]])


def _out_of_order(
    pairs: Sequence[tuple[int, int]], matching: Matching
) -> Iterable[tuple[int, int]]:
    stay = set(increasing([matching.new.place[j] for _, j in pairs]))
    return [pair for k, pair in enumerate(pairs) if k not in stay]


def _across_writes(
    pairs: Sequence[tuple[int, int]], matching: Matching, old: _Effects, new: _Effects
) -> Iterable[tuple[int, int]]:
    """Pairs that come after another write than before, or that write in another order."""
    if not (old.writes and new.writes):
        return
    accesses: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for pair in pairs:
        for memory in old.memory(pair[0]):
            accesses[memory].append(pair)
    for each in accesses.values():
        writes = [pair for pair in each if pair[0] in old.writes and pair[1] in new.writes]
        if not writes:
            continue
        late = set(_out_of_order(writes, matching))
        yield from late
        writes = [pair for pair in writes if pair not in late]
        before = -1
        waiting = iter(writes)
        following = next(waiting, None)
        for pair in each:
            if pair == following:
                before = matching.new.place[pair[1]]
                following = next(waiting, None)
            elif pair not in late:
                place = matching.new.place[pair[1]]
                after = following is not None and place > matching.new.place[following[1]]
                if place < before or after:
                    yield pair


class _Effects:
    """What the nodes of one graph do besides computing their results."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self.writes: dict[int, tuple[int, ...]] = {}
        self.chains: list[frozenset[str]] = []
        rows = {row.node: i for i, row in enumerate(side.rows)}
        for i, row in enumerate(side.rows):
            written = tuple(rows[each] for each in written_nodes(row.node))
            if written:
                self.writes[i] = written
            self.chains.append(frozenset(_chains(side.gm, row.node)))
        self._roots = list(range(len(side))) if self.writes else []
        if self.writes:
            for i, row in enumerate(side.rows):
                for source in _may_share(row.node):
                    self._join(i, rows[source])
        self._written = {self._root(each) for some in self.writes.values() for each in some}

    def memory(self, row: int) -> set[int]:
        """The memory that is written somewhere and that this row reads or writes."""
        if not self._written:
            return set()
        sources = [source for _, _, source in self._side.rows[row].slots]
        return {self._root(each) for each in sources} & self._written

    def _root(self, row: int) -> int:
        while self._roots[row] != row:
            self._roots[row] = self._roots[self._roots[row]]
            row = self._roots[row]
        return row

    def _join(self, one: int, other: int) -> None:
        self._roots[self._root(one)] = self._root(other)


def _chains(gm: fx.GraphModule, node: fx.Node) -> Iterable[str]:
    target = node.target
    if node.op == "placeholder":
        yield "input"
    elif node.op == "call_module":
        module = attribute(gm, str(target))
        plain = type(module).__module__.startswith(_PLAIN_MODULES)
        if plain and any(word in type(module).__name__ for word in _DRAWING_MODULES):
            yield "draw"
        elif plain and "BatchNorm" in type(module).__name__:
            yield "effect"
        elif not plain:
            yield from ("draw", "effect")
    elif node.op in ("call_function", "call_method"):
        if _torch_randomness.draws(node) or _may_draw(target) or _draws_inside(gm, node):
            yield "draw"
        if _is_foreign(target) or _has_effect(target):
            yield "effect"


def _draws_inside(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a graph that the node is given draws."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            inside = attribute(gm, str(source.target))
            if isinstance(inside, fx.GraphModule) and any(
                "draw" in _chains(inside, each) for each in inside.graph.nodes
            ):
                return True
    return False


def _is_foreign(target: Any) -> bool:
    if isinstance(target, str) or hasattr(target, "_schema"):
        return False
    module = str(getattr(target, "__module__", None) or "torch")
    return module.partition(".")[0] not in _KNOWN


def _has_effect(target: Any) -> bool:
    """Whether an operator returns nothing, or is there for its effect (an assertion, a print)."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return not schema.returns and not schema.is_mutable
    return "print" in str(getattr(target, "__name__", "")) or target is torch._assert


def written_nodes(node: fx.Node) -> list[fx.Node]:
    """The nodes whose memory ``node`` writes to."""
    if node.op not in ("call_function", "call_method"):
        return []
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        values = [
            node.kwargs.get(each.name, node.args[k] if k < len(node.args) else None)
            for k, each in enumerate(schema.arguments)
            if each.alias_info is not None and each.alias_info.is_write
        ]
    else:
        name = _name(node.target)
        first = node.args[:1]
        out = node.kwargs.get("out")
        values = [] if out is None else [out]
        if (
            (name.endswith("_") and not name.endswith("__"))
            or name == "__setitem__"
            or node.target in _WRITING
            or _asks_in_place(node)
        ):
            values.extend(first or list(node.kwargs.values())[:1])
    return [each for value in values for each in _nodes(value)]


_WRITING = frozenset(
    {
        *(operator.setitem, operator.delitem, operator.iconcat, operator.ipow),
        *(operator.iadd, operator.isub, operator.imul, operator.imatmul, operator.itruediv),
        *(operator.ifloordiv, operator.imod, operator.ilshift, operator.irshift),
        *(operator.iand, operator.ior, operator.ixor),
    }
)


def _asks_in_place(node: fx.Node) -> bool:
    if node.kwargs.get("inplace"):
        return True
    if not isinstance(node.target, types.FunctionType) or not any(a is True for a in node.args):
        return False
    place = _place_of_inplace(node.target)
    return place is not None and place < len(node.args) and bool(node.args[place])


@functools.lru_cache(maxsize=1024)
def _place_of_inplace(function: Any) -> int | None:
    names = list(inspect.signature(function).parameters)
    return names.index("inplace") if "inplace" in names else None


def _may_share(node: fx.Node) -> list[fx.Node]:
    """The nodes whose memory the result of ``node`` may be in."""
    if node.op in ("placeholder", "get_attr", "output"):
        return []
    target = node.target
    schema = getattr(target, "_schema", None)
    if schema is not None:
        if not any(each.alias_info is not None for each in schema.returns):
            return []
        values = [
            node.kwargs.get(each.name, node.args[k] if k < len(node.args) else None)
            for k, each in enumerate(schema.arguments)
            if each.alias_info is not None
        ]
        return [each for value in values for each in _nodes(value)]
    if node.op == "call_module" or _is_foreign(target):
        return node.all_input_nodes
    if written_nodes(node) or target is operator.getitem:
        return node.all_input_nodes
    return node.all_input_nodes if _operator_facts(_name(target))[0] else []


def _may_draw(target: Any) -> bool:
    return getattr(target, "_schema", None) is None and _operator_facts(_name(target))[1]


@functools.lru_cache(maxsize=4096)
def _operator_facts(name: str) -> tuple[bool, bool]:
    """Of the operators of that name: whether one returns a view, whether one draws."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if packet is None or not hasattr(packet, "overloads"):
        return True, False
    overloads = [getattr(packet, each) for each in packet.overloads()]
    views = any(
        each.alias_info is not None and not each.alias_info.is_write
        for overload in overloads
        for each in overload._schema.returns
    )
    draws = any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads)
    return views, draws


def _name(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found
