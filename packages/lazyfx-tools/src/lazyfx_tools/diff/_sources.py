"""Which inputs, and which attributes, of two graphs stand for each other.

Everything else is matched by what it is computed from and for, so this is where it starts. An
input is where it stands in the signature; names that tracing numbers through (``primals_3``) say
no more than that, others help. An attribute is its path; paths that tracing numbers through
(``_tensor_constant0``) are no better than what they lead to.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ._align import align
from ._facts import input_key, tensor_facts
from ._nodes import Side, attribute, digest, plain_repr

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    Pairs = list[tuple[int, int]]

_NUMBERED = re.compile(r"[a-zA-Z]*_?\d+(_\d+)?")
_GENERATED = re.compile(
    r"(_?\w*(constant|lifted_tensor|param|graph|body|cond|subgraph|fn)_?\w*?)\d+"
)


def pair_placeholders(old: Side, new: Side) -> list[Pairs]:
    """Rows of inputs that stand for each other: one way to pair them, or two.

    Of two, one prefers the first of several that are alike, the other those that are used alike
    down to the results. In a forward with a layer less the first is the better one, in its backward
    the second.
    """
    sides = (old, new)
    facts = [[_input_facts(side, row) for row in side.placeholders] for side in sides]
    if facts[0] == facts[1]:
        return [list(zip(old.placeholders, new.placeholders, strict=True))]
    names = [[_telling_name(side.name(row)) for row in side.placeholders] for side in sides]
    uses = [[_uses(side, row) for row in side.placeholders] for side in sides]
    below = _below(old, new)
    first = _keyed(names, facts, uses)
    used: list[list[Hashable]] = [
        [*zip(f, u, strict=True)] for f, u in zip(facts, uses, strict=True)
    ]
    deeply: list[list[Hashable]] = [
        [*zip(f, b, strict=True)] for f, b in zip(facts, below, strict=True)
    ]
    last = [used, _keyed(names, facts), facts, _keyed(names)]
    ways: list[Pairs] = []
    for keys in ([first, *last], [first, deeply, *last]):
        pairs = _refined(keys, (len(facts[0]), len(facts[1])))
        for gap in _gaps(pairs, (len(facts[0]), len(facts[1]))):
            if len(gap[0]) == len(gap[1]):
                pairs = sorted([*pairs, *zip(*gap, strict=True)])
        way = [(old.placeholders[i], new.placeholders[j]) for i, j in pairs]
        if way not in ways:
            ways.append(way)
    return ways


def _keyed(names: list[list[str]], *others: list[list[Hashable]]) -> list[list[Hashable]]:
    """Keys with a name in them; an input whose name says nothing is like no other."""
    return [
        [
            (name or (which, k), *(each[which][k] for each in others))
            for k, name in enumerate(names[which])
        ]
        for which in (0, 1)
    ]


def _refined(keys: Sequence[Sequence[Sequence[Hashable]]], lengths: tuple[int, int]) -> Pairs:
    """Align by the first key, what is left between by the second, and so on."""
    pairs: Pairs = []
    for one, other in keys:
        for mine, theirs in _gaps(pairs, lengths):
            found = align([one[i] for i in mine], [other[j] for j in theirs])
            pairs = pairs + [(mine[i], theirs[j]) for i, j in found]
        pairs.sort()
    return pairs


def _gaps(pairs: Pairs, lengths: tuple[int, int]) -> list[tuple[range, range]]:
    edges = [(-1, -1), *pairs, lengths]
    gaps = [(range(i + 1, k), range(j + 1, m)) for (i, j), (k, m) in itertools.pairwise(edges)]
    return [gap for gap in gaps if gap[0] and gap[1]]


def _input_facts(side: Side, row: int) -> Hashable:
    node = side.rows[row].node
    return side.rows[row].kind, input_key(side.facts.get(node, ()))


def _telling_name(name: str) -> str:
    return "" if _NUMBERED.fullmatch(name) else name


def _uses(side: Side, row: int) -> Hashable:
    users = side.rows[row].users
    return tuple(
        sorted((str(side.rows[user].kind), side.rows[user].slots[slot][0]) for user, slot in users)
    )


def _below(old: Side, new: Side) -> list[list[Hashable]]:
    """For each input a number: the same for what is used in the same way, down to the results."""
    counts = [
        {len(row.slots) for row in side.rows if row.node.op == "output"} for side in (old, new)
    ]
    known: dict[Hashable, int] = {}
    found: list[list[Hashable]] = []
    for side in (old, new):
        numbers = [0] * len(side)
        for i in range(len(side) - 1, -1, -1):  # users come later
            row = side.rows[i]
            users = sorted(
                # a result's number says nothing where there are more results on one side
                (numbers[user], -1 if counts[0] != counts[1] and _is_output(side, user) else slot)
                for user, slot in row.users
            )
            texts = () if _is_output(side, i) else tuple(a.template for a in row.arguments.values())
            key = (row.kind, texts, tuple(users))
            numbers[i] = known.setdefault(key, len(known))
        found.append([numbers[row] for row in side.placeholders])
    return found


def _is_output(side: Side, row: int) -> bool:
    return side.rows[row].node.op == "output"


# --- attributes --------------------------------------------------------------------------------


def pair_attributes(old: Side, new: Side) -> dict[str, str]:
    """Paths of the old graph, and the paths of the new one that stand for them."""
    left, right = _paths(old), _paths(new)
    pairs: dict[str, str] = {}

    def take(wanted: Callable[[str], bool], key: Callable[[fx.GraphModule, str], Hashable]) -> None:
        taken = set(pairs.values())
        mine = [path for path in left if path not in pairs and wanted(path)]
        theirs = [path for path in right if path not in taken and wanted(path)]
        found = align([key(old.gm, path) for path in mine], [key(new.gm, path) for path in theirs])
        pairs.update((mine[i], theirs[j]) for i, j in found)

    def same_path(wanted: Callable[[str], bool]) -> None:
        taken = set(pairs.values())
        for path in left:
            if path in right and path not in pairs and path not in taken and wanted(path):
                mine, theirs = attribute(old.gm, path), attribute(new.gm, path)
                if _sort(mine) == _sort(theirs):
                    pairs[path] = path

    same_path(lambda path: not _is_generated(path))
    take(_is_generated, _content)
    same_path(_is_generated)
    take(lambda _: True, _content)
    take(lambda _: True, _form)
    return pairs


def _paths(side: Side) -> dict[str, None]:
    return {
        str(node.target): None
        for node in side.gm.graph.nodes
        if node.op in ("get_attr", "call_module")
    }


def _is_generated(path: str) -> bool:
    return _GENERATED.fullmatch(path.rpartition(".")[2]) is not None


def _sort(value: Any) -> str:
    for kind in (torch.Tensor, fx.GraphModule, nn.Module):
        if isinstance(value, kind):
            return kind.__name__
    return type(value).__name__


def _form(gm: fx.GraphModule, path: str) -> Hashable:
    value = attribute(gm, path)
    if isinstance(value, torch.Tensor):
        return "tensor", input_key((tensor_facts(value),))
    return _sort(value)


def _content(gm: fx.GraphModule, path: str) -> Hashable:
    value = attribute(gm, path)
    if isinstance(value, torch.Tensor):
        return _form(gm, path), digest(value)
    if isinstance(value, fx.GraphModule):
        return tuple((row.kind, tuple(row.arguments.items())) for row in Side(value).rows)
    return _sort(value), module_text(value)


def module_text(value: object) -> str:
    """What a module, or another attribute, is, without the tensors in it."""
    training = f", training={value.training}" if isinstance(value, nn.Module) else ""
    return plain_repr(value) + training


_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


def module_settings(module: object) -> dict[str, str]:
    """Plain values that a module and those in it hold: not all of them are in its text."""
    if not isinstance(module, nn.Module):
        return {}
    return {
        f"{path}.{name}" if path else name: repr(value)
        for path, each in module.named_modules()
        if not isinstance(each, fx.GraphModule)
        for name, value in vars(each).items()
        if name not in _OF_EVERY_MODULE and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(each) for pair in value.items() for each in pair)
    return value is None or isinstance(
        value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
    )
