"""What was recorded about a node's result, to be held against what was recorded about another's.

Sizes and strides are numbers or expressions over symbols. A symbol has another name in another
trace, so symbols are paired: by the sizes of inputs first, then wherever one stands alone.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_aot, _torch_debug

from ._data import FieldChange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import fx

_SYMBOL = re.compile(r"\b[a-zA-Z]+\d+\b")


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor; ``size`` and ``stride`` hold ints and expressions, ``None`` where not known."""

    dtype: str
    device: str
    layout: str
    size: tuple[Any, ...] | None
    stride: tuple[Any, ...] | None

    def __str__(self) -> str:
        size = "?" if self.size is None else ", ".join(map(str, self.size))
        return f"{self.dtype}[{size}] {self.device}"


@dataclass(frozen=True, slots=True)
class NumberFacts:
    """A number or truth value: known, or an expression."""

    value: Any

    def __str__(self) -> str:
        return str(self.value)


Leaf = TensorFacts | NumberFacts | None
Facts = tuple[Leaf, ...]
"""Of every leaf of a result."""


def recorded(graph: fx.Graph) -> dict[fx.Node, Facts]:
    """What tracing has recorded about each node; nodes about which it has not are left out."""
    found: dict[fx.Node, Facts] = {}
    later: set[int] = set()
    for node in reversed(graph.nodes):
        if node.op == "output":
            continue
        if node.meta.get("val") is not None:
            found[node] = _leaves(node.meta["val"], sized=True)
        elif node.meta.get("example_value") is not None:
            value = node.meta["example_value"]
            # Dynamo records the very tensor it traces with: after `a.t_()` the record of `a` has
            # the sizes that it got there, so only the last node of a tensor tells its sizes.
            found[node] = _leaves(value, sized=id(value) not in later)
            if isinstance(value, torch.Tensor):
                later.add(id(value))
    return found


def without_lone_devices(
    found: dict[fx.Node, Facts],
) -> tuple[dict[fx.Node, Facts], frozenset[str]]:
    """The same without numbers of devices of which a graph uses one, and the kinds of those.

    Ranks run one graph on ``cuda:0`` and ``cuda:1``: that is no difference. Where a graph uses
    several of a kind, which one it is does count.
    """
    devices = {
        each.device for facts in found.values() for each in facts if isinstance(each, TensorFacts)
    }
    kinds = Counter(device.partition(":")[0] for device in devices)
    lone = frozenset(kind for kind, count in kinds.items() if count == 1)
    if not any(":" in device and device.partition(":")[0] in lone for device in devices):
        return found, lone

    def short(each: Leaf) -> Leaf:
        kind = each.device.partition(":")[0] if isinstance(each, TensorFacts) else ""
        return replace(each, device=kind) if kind in lone else each  # type: ignore[type-var]

    return {node: tuple(map(short, facts)) for node, facts in found.items()}, lone


def tensor_facts(tensor: torch.Tensor, *, sized: bool = True) -> TensorFacts:
    """The facts about one tensor, real or fake; its data is not read."""
    size = stride = None
    if sized and not tensor.is_nested:
        size = tuple(map(_extent, tensor.shape))
        if tensor.layout is torch.strided:
            stride = tuple(map(_extent, tensor.stride()))
    return TensorFacts(
        str(tensor.dtype).removeprefix("torch."),
        str(tensor.device),
        str(tensor.layout).removeprefix("torch."),
        size,
        stride,
    )


def _leaves(value: Any, *, sized: bool) -> Facts:
    if isinstance(value, torch.Tensor):
        return (tensor_facts(value, sized=sized),)
    return tuple(_leaf(each, sized) for each in _torch_aot.tree_flatten(value)[0])


def _leaf(value: Any, sized: bool) -> Leaf:
    if isinstance(value, torch.Tensor):
        return tensor_facts(value, sized=sized)
    if isinstance(value, (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return NumberFacts(_extent(value))
    return None


def _extent(value: Any) -> Any:
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return _torch_debug.expression(value)
    return value


def input_key(facts: Facts) -> Any:
    """What two inputs that stand for each other have in common, symbols without their names."""
    return tuple(
        (each.dtype, each.device.partition(":")[0], each.size and tuple(map(_nameless, each.size)))
        if isinstance(each, TensorFacts)
        else each and _nameless(each.value)
        for each in facts
    )


def _nameless(extent: Any) -> Any:
    return repr(extent) if isinstance(extent, (bool, int, float)) else "symbol"


class Symbols:
    """Which symbols of two traces stand for each other; learns as it compares."""

    def __init__(self) -> None:
        self._new: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}

    def same(self, one: Any, other: Any) -> bool:
        """Whether two sizes, numbers or expressions are the same, with symbols renamed."""
        plain = [isinstance(each, (bool, int, float)) or each is None for each in (one, other)]
        if any(plain):
            return all(plain) and type(one) is type(other) and repr(one) == repr(other)
        if _torch_debug.is_symbol(one) and _torch_debug.is_symbol(other):
            self._pair(one, other)
            return bool(self._new.get(one) == other and self._old.get(other) == one)
        mine, theirs = _torch_debug.free_symbols(one), _torch_debug.free_symbols(other)
        if len(mine) != len(theirs):
            return False
        if not all(each in self._new for each in mine):
            self._pair_by_text(one, other)
        if not all(each in self._new for each in mine):
            return False
        return bool(one.xreplace({each: self._new[each] for each in mine}) == other)

    def _pair(self, one: Any, other: Any) -> None:
        if one not in self._new and other not in self._old:
            self._new[one], self._old[other] = other, one

    def _pair_by_text(self, one: Any, other: Any) -> None:
        texts = str(one), str(other)
        if _SYMBOL.sub("$", texts[0]) != _SYMBOL.sub("$", texts[1]):
            return
        symbols = [
            {str(each): each for each in _torch_debug.free_symbols(side)} for side in (one, other)
        ]
        for mine, theirs in zip(*map(_SYMBOL.findall, texts), strict=True):
            one, other = symbols[0].get(mine), symbols[1].get(theirs)
            if one is not None and other is not None and one not in self._new:
                self._pair(one, other)


def differences(old: Facts, new: Facts, symbols: Symbols) -> Iterator[FieldChange]:
    """What differs between two records, field by field; what one has not recorded does not."""
    if len(old) != len(new):
        yield FieldChange(field="results", old=str(len(old)), new=str(len(new)))
        return
    for index, (one, other) in enumerate(zip(old, new, strict=True)):
        prefix = f"result {index}: " if len(old) > 1 else ""
        for field, before, after in _leaf_differences(one, other, symbols):
            yield FieldChange(field=prefix + field, old=str(before), new=str(after))


def _leaf_differences(
    one: Leaf, other: Leaf, symbols: Symbols
) -> Iterator[tuple[str, object, object]]:
    if one is None or other is None:
        return
    if isinstance(one, NumberFacts) and isinstance(other, NumberFacts):
        if not symbols.same(one.value, other.value):
            yield "number", one, other
        return
    if isinstance(one, NumberFacts) or isinstance(other, NumberFacts):
        yield "kind", one, other
        return
    for field in ("dtype", "device", "layout"):
        if getattr(one, field) != getattr(other, field):
            yield field, getattr(one, field), getattr(other, field)
    if one.size is None or other.size is None:
        return
    if not _all_same(one.size, other.size, symbols):
        yield "shape", _listed(one.size), _listed(other.size)
    elif one.stride is not None and other.stride is not None and 0 not in one.size:
        # a step along a dimension of one element is never taken
        taken = [k for k, extent in enumerate(one.size) if extent != 1]
        before, after = ([each[k] for k in taken] for each in (one.stride, other.stride))
        if not _all_same(before, after, symbols):
            yield "stride", _listed(one.stride), _listed(other.stride)


def _all_same(one: Sequence[Any], other: Sequence[Any], symbols: Symbols) -> bool:
    if len(one) != len(other):
        return False
    # of symbols that stand alone first: they tell what the others are
    order = sorted(range(len(one)), key=lambda k: not _torch_debug.is_symbol(one[k]))
    return all(symbols.same(one[k], other[k]) for k in order)


def _listed(extents: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(str, extents))}]"
