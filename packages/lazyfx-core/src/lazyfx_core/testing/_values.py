"""Compares values that may hold nodes of two graphs: arguments and metadata.

By type and value, all the way down:

- ``1`` is not ``1.0`` or ``True``, ``-0.0`` is not ``0.0``, ``nan`` is ``nan``; so too as keys of
  dictionaries and as elements of sets. A tuple is not a list; fx's immutable lists and dicts count
  as lists and dicts.
- Nodes agree when their places do: in the two graphs, or else in the graphs they belong to.
- Tensors agree in type, dtype, size, stride, layout, device, ``requires_grad`` and every element,
  tensors of subclasses in the tensors they consist of. Fake, functional and meta tensors have no
  elements; they agree in storage offset and in being a parameter. Symbolic sizes and numbers agree
  when their expressions read the same, since comparing them would add guards.
- Classes, functions, operators and modules of Python are compared by identity, any other object by
  what it holds (:mod:`._text`).
- Graphs and graph modules inside are handed back, to be compared as graphs.

Values may contain themselves, and be nested as deep as memory allows: pairs of values wait in a
list instead of on the stack, and a pair that was met before is not looked at again.
"""

from __future__ import annotations

import sys
import types
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ._text import fields, kind_of, parts, show, show_typed
from ._torch_values import (
    OPERATORS,
    SYMBOLIC,
    is_expression,
    same_elements,
    tensor_facts,
    tensor_parts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Difference = tuple[str, str, str]
    Pair = tuple[Any, Any, str]

_ATOMS = frozenset({str, int, bool, float, complex, bytes, type(None)})
_BASES = (int, float, complex, str, bytes, bytearray)
_CONTAINERS = (list, tuple, dict, set, frozenset, types.MappingProxyType)
_SINGLE = (
    *(type, types.FunctionType, types.ModuleType, types.MethodDescriptorType),
    *(types.WrapperDescriptorType, *OPERATORS),
)


class Values:
    """Compares values of two graphs.

    Args:
        left: The graph whose nodes are expected. Read only, like all that is compared.
        right: The graph whose nodes were seen.
        names: Whether nodes of other graphs must agree in their names.
        differ: Whether graphs or graph modules differ; asked where a yes or no is needed.

    Attributes:
        inside: Graphs and graph modules that were met and still have to be compared, with where.
    """

    def __init__(
        self,
        left: fx.Graph,
        right: fx.Graph,
        *,
        names: bool,
        differ: Callable[[list[Pair]], bool],
    ) -> None:
        self.inside: list[Pair] = []
        self._graphs = left, right
        self._names = names
        self._differ = differ
        self._places: dict[int, tuple[fx.Graph, dict[fx.Node, int]]] = {}
        self._met: dict[tuple[int, int], tuple[Any, Any]] = {}  # holds them: ids are used again

    def differences(self, left: Any, right: Any, where: str) -> Iterator[Difference]:
        """Where two values differ: the place, the expected value and the one seen, as text."""
        waiting = [(left, right, where)]
        while waiting:
            one, other, where = waiting.pop()
            try:
                found = self._compare(one, other, where)
            except Exception as error:
                reason = f" (comparing them raised {type(error).__name__}: {error})"
                yield where, show(one) + reason, show(other) + reason
                continue
            if isinstance(found, tuple):
                where, expected, seen = found
                yield where, expected, seen if seen != expected else f"{seen}, another one"
            else:
                waiting += reversed(found)

    def _equal(self, left: Any, right: Any) -> bool:
        """A yes or no. What is being compared already counts as equal; else it is found there."""
        if kind_of(left) is not kind_of(right):
            return False
        if type(left) in _ATOMS:
            return _atom(left) == _atom(right)
        met, inside = self._met, self.inside
        self._met, self.inside = dict(met), []
        try:
            found = next(self.differences(left, right, ""), None)
            return found is None and not (self.inside and self._differ(self.inside))
        finally:
            self._met, self.inside = met, inside

    def _compare(self, left: Any, right: Any, where: str) -> list[Pair] | Difference:
        """The pairs of which two values consist, or how they differ."""
        kind = kind_of(left)
        if kind in _ATOMS and type(right) is kind:
            return [] if _atom(left) == _atom(right) else (where, show(left), show(right))
        if isinstance(left, fx.Node) and isinstance(right, fx.Node):
            return self._nodes(left, right, where)
        if left is right and (
            not isinstance(left, _CONTAINERS) or self._graphs[0] is self._graphs[1]
        ):
            return []
        for cls in (fx.GraphModule, fx.Graph):
            if isinstance(left, cls) and isinstance(right, cls):
                self.inside.append((left, right, where))
                return []
        if kind is not kind_of(right):
            return where, show_typed(left), show_typed(right)
        if (id(left), id(right)) in self._met:
            return []
        self._met[id(left), id(right)] = left, right
        if isinstance(left, _CONTAINERS):
            return self._containers(left, right, where)
        if isinstance(left, torch.Tensor):
            return _tensors(left, right, where)
        return self._objects(left, right, where)

    def _nodes(self, left: fx.Node, right: fx.Node, where: str) -> list[Pair] | Difference:
        places = self._place(left, self._graphs[0]), self._place(right, self._graphs[1])
        if places[0] != places[1]:
            return where, _show_place(left, places[0]), _show_place(right, places[1])
        if places[0] is None:  # both belong to other graphs, or to none any more
            pair = tuple(
                (self._place(n, n.graph), n.op, n.name if self._names else "")
                for n in (left, right)
            )
            if pair[0] != pair[1]:
                return where, _show_place(left, None), _show_place(right, None)
        return []

    def _place(self, node: fx.Node, graph: fx.Graph) -> int | None:
        if id(graph) not in self._places:
            self._places[id(graph)] = graph, {n: i for i, n in enumerate(graph.nodes)}
        return self._places[id(graph)][1].get(node)

    def _containers(self, left: Any, right: Any, where: str) -> list[Pair] | Difference:
        pairs: list[Pair] = []
        if isinstance(left, (list, tuple)):
            if len(left) != len(right):
                texts = f"{len(left)}: {show(left)}", f"{len(right)}: {show(right)}"
                return f"{where}: length", *texts
            for index, (one, other) in enumerate(zip(left, right, strict=True)):
                pairs.append((one, other, f"{where}[{index}]"))
        elif isinstance(left, (set, frozenset)):
            if len(left) != len(right) or not self._same_elements(left, right):
                return f"{where}: elements", show(left), show(right)
        else:
            keys = list(left), list(right)
            if len(left) != len(right) or not all(map(self._equal, *keys)):
                return f"{where}: keys in order", show(keys[0]), show(keys[1])
            # By items: a key that is nan, or of an odd class, may not be found again.
            for (key, one), other in zip(left.items(), right.values(), strict=True):
                pairs.append((one, other, f"{where}[{show(key)}]"))
        return pairs + _attributes(left, right, where)

    def _same_elements(self, left: Any, right: Any) -> bool:
        counts = [Counter(_atom(x) for x in side if type(x) in _ATOMS) for side in (left, right)]
        if counts[0] != counts[1]:
            return False
        others = [item for item in right if type(item) not in _ATOMS]
        for item in left:
            if type(item) not in _ATOMS:
                match = next((i for i, x in enumerate(others) if self._equal(item, x)), None)
                if match is None:
                    return False
                del others[match]
        return True

    def _objects(self, left: Any, right: Any, where: str) -> list[Pair] | Difference:
        different = where, show(left), show(right)
        if isinstance(left, _SINGLE):
            return different
        if isinstance(left, types.BuiltinFunctionType):
            return [] if left == right else different  # bound ones are made at each look
        if isinstance(left, SYMBOLIC):
            return [] if str(left) == str(right) else different
        if is_expression(left):
            return [] if left == right else different
        if isinstance(left, _BASES):
            same = _base_value(left) == _base_value(right)
            return _attributes(left, right, where) if same else different
        if isinstance(left, types.MethodType):
            bound = ("__func__", "__self__")
            return [(getattr(left, n), getattr(right, n), f"{where}.{n}") for n in bound]
        if isinstance(left, slice):
            names = ("start", "stop", "step")
            return [(getattr(left, n), getattr(right, n), f"{where}.{n}") for n in names]
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(left, (numpy.generic, numpy.ndarray)):
            same = _same_arrays(numpy, numpy.asarray(left), numpy.asarray(right))
            return _array_parts(numpy, left, right, where) if same else different
        held = parts(left), parts(right)
        if held[0] is None or held[1] is None:
            return [] if bool(left == right) else different
        return _held(*held, where, different)


def _held(left: Any, right: Any, where: str, different: Difference) -> list[Pair] | Difference:
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return different
        return [(left[name], right[name], f"{where}.{name}") for name in left]
    return [(left, right, f"{where} as it is rebuilt")]


def _tensors(left: torch.Tensor, right: torch.Tensor, where: str) -> list[Pair] | Difference:
    texts = show(left), show(right)
    facts = tensor_facts(left), tensor_facts(right)
    for name, expected in facts[0].items():
        seen = facts[1].get(name)
        if expected != seen:
            return where, f"{texts[0]}, {name} {expected}", f"{texts[1]}, {name} {seen}"
    inside = tensor_parts(left), tensor_parts(right)
    if inside[0] is None or inside[1] is None:
        return [] if same_elements(left, right) else (where, *texts)
    return _held(*inside, where, (where, *texts))


def _attributes(left: Any, right: Any, where: str) -> list[Pair]:
    """What objects of subclasses of builtin types hold besides."""
    if kind_of(left) in _CONTAINERS:
        return []
    pairs: list[Pair] = [(fields(left), fields(right), f"{where}: attributes")]
    if isinstance(left, defaultdict):
        pairs.append((left.default_factory, right.default_factory, f"{where}.default_factory"))
    return pairs if pairs[0][0] or pairs[0][1] else pairs[1:]


def _atom(value: Any) -> tuple[type, object]:
    """Equal for values that are equal by type and value: ``repr`` tells zeros apart, not nans."""
    return type(value), repr(value) if isinstance(value, (float, complex)) else value


def _base_value(value: Any) -> object:
    """A number or text of a subclass as one of the builtin type, whatever its own methods say."""
    base: Any = next(base for base in _BASES if isinstance(value, base))
    if base in (float, complex):
        return base.__repr__(value)
    return base.__str__(value) if base is str else base.__add__(value, base())


def _same_arrays(numpy: Any, left: Any, right: Any) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.hasobject or left.dtype.names is not None:
        return True  # compared as lists
    if left.tobytes() == right.tobytes():
        return True
    if left.dtype.kind == "c":
        return _same_arrays(numpy, left.real, right.real) and _same_arrays(
            numpy, left.imag, right.imag
        )
    if left.dtype.kind != "f":
        return False
    same = (left == right) & (numpy.signbit(left) == numpy.signbit(right))
    return bool((same | (numpy.isnan(left) & numpy.isnan(right))).all())


def _array_parts(numpy: Any, left: Any, right: Any, where: str) -> list[Pair]:
    pairs = _attributes(left, right, where) if type(left) is not numpy.ndarray else []
    if left.dtype.hasobject or left.dtype.names is not None:
        pairs.append((left.tolist(), right.tolist(), where))
    return pairs


def _show_place(node: fx.Node, place: int | None) -> str:
    if place is None:
        return f"{node.name!r}, not in its graph"
    return f"node {place} {node.name!r}"
