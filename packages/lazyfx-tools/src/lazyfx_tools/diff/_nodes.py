"""A graph as rows to compare: what each node runs, its arguments with holes for nodes, who uses it.

Rows stand in an order that follows from the structure alone: that in which a walk from the results
back to the inputs, argument by argument, is done with the nodes. So it is a topological order, and
the same for two graphs that list independent nodes differently. What no result needs comes last.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import marshal
import re
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from lazyfx_compilers import _torch_debug

from ._facts import recorded, without_lone_devices

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


HOLE = "\0"
"""Stands for a node in a template; no text of a value contains it."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its text with holes, the nodes in the holes, symbols in the text."""

    template: str
    nodes: tuple[int, ...]
    symbols: tuple[Any, ...]


@dataclass(slots=True, kw_only=True)
class Row:
    """A node.

    Attributes:
        node: The node.
        target: What it runs, as text for people.
        kind: What it runs, to be compared: not for placeholders and attributes.
        arguments: By place, ``"args[0]"``, ``"kwargs['dim']"``.
        slots: Every use of another node: place, position in it, row.
        users: Every use by another node: row and the number of the slot there.
        label: All that the node is by itself; given when inputs and attributes have been paired.
    """

    node: fx.Node
    target: str
    kind: Hashable
    arguments: dict[str, Argument]
    slots: tuple[tuple[str, int, int], ...]
    users: list[tuple[int, int]] = field(default_factory=list)
    label: Hashable = None


class Side:
    """One of the two graphs that are compared. Reads only.

    Attributes:
        gm: The graph module.
        rows: Its nodes.
        placeholders: Their rows, in the order of the signature.
        place: The position of each row in the order in which the nodes run.
        facts: What was recorded about results.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        order = _canonical(gm.graph)
        index = {node: i for i, node in enumerate(order)}
        self.facts, lone = without_lone_devices(recorded(gm.graph))
        names = _Names(lone)
        self.rows = [_row(node, index, names) for node in order]
        for i, row in enumerate(self.rows):
            for slot, (_, _, source) in enumerate(row.slots):
                self.rows[source].users.append((i, slot))
        listed = list(gm.graph.nodes)
        self.placeholders = [index[node] for node in listed if node.op == "placeholder"]
        self.place = [0] * len(listed)
        for position, node in enumerate(listed):
            self.place[index[node]] = position

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """The name of a node."""
        return self.rows[row].node.name

    def text(self, argument: Argument | None) -> str:
        """An argument with the names of nodes, as people write it."""
        if argument is None:
            return "(not given)"
        parts = argument.template.split(HOLE)
        names = [self.name(each) for each in argument.nodes]
        return "".join(a + b for a, b in zip(parts, [*names, ""], strict=True))

    def line(self, row: int) -> str:
        """A node as a line of code."""
        each = self.rows[row]
        arguments = [
            self.text(value) if place.startswith("args") else f"{place[8:-2]}={self.text(value)}"
            for place, value in each.arguments.items()
        ]
        return f"{each.node.name} = {each.target}({', '.join(arguments)})"


def attribute(gm: fx.GraphModule, path: str) -> Any:
    """What ``path`` leads to; ``None`` if it leads nowhere, in a graph that cannot run."""
    found: Any = gm
    for atom in path.split("."):
        found = getattr(found, atom, None)
    return found


def _canonical(graph: fx.Graph) -> list[fx.Node]:
    listed = list(graph.nodes)
    roots = [node for node in listed if node.op == "output"] + listed
    done: dict[fx.Node, None] = {}
    for root in roots:
        stack = [(root, iter(root.all_input_nodes))] if root not in done else []
        while stack:
            node, waiting = stack[-1]
            below = next((each for each in waiting if each not in done), None)
            if below is None:
                stack.pop()
                done.setdefault(node)
            else:
                stack.append((below, iter(below.all_input_nodes)))
    return list(done)


def _row(node: fx.Node, index: dict[fx.Node, int], names: _Names) -> Row:
    values = [(f"args[{i}]", value) for i, value in enumerate(node.args)]
    values += [(f"kwargs[{key!r}]", node.kwargs[key]) for key in sorted(node.kwargs)]
    arguments = {}
    for place, value in values:
        holes: list[int] = []
        symbols: list[Any] = []
        template = "".join(_template(value, index, holes, symbols, names))
        arguments[place] = Argument(template, tuple(holes), tuple(symbols))
    target: str
    key: Hashable
    target, key = names.of(node.target) if callable(node.target) else (str(node.target), None)
    if node.op == "placeholder":
        stars = len(target) - len(target.lstrip("*"))
        target, key = "input", stars
    elif node.op in ("get_attr", "output", "call_module"):
        key = ""
    return Row(
        node=node,
        target=target,
        kind=(node.op, target if key is None else key),
        arguments=arguments,
        slots=tuple(
            (place, k, source)
            for place, each in arguments.items()
            for k, source in enumerate(each.nodes)
        ),
    )


def _template(
    value: Any, index: dict[fx.Node, int], holes: list[int], symbols: list[Any], names: _Names
) -> Iterator[str]:
    if isinstance(value, fx.Node):
        holes.append(index[value])
        yield HOLE
    elif value is None or type(value) in (bool, int, float, complex, str, bytes):
        yield repr(value)
    elif isinstance(value, (tuple, list)):
        kind = "" if type(value).__module__ in ("builtins", _IMMUTABLE) else type(value).__name__
        yield kind + ("[" if isinstance(value, list) else "(")
        for position, each in enumerate(value):
            yield ", " if position else ""
            yield from _template(each, index, holes, symbols, names)
        yield "]" if isinstance(value, list) else ",)" if len(value) == 1 else ")"
    elif isinstance(value, dict):
        yield "{"
        for position, (key, each) in enumerate(value.items()):
            yield f"{', ' if position else ''}{key!r}: "
            yield from _template(each, index, holes, symbols, names)
        yield "}"
    elif isinstance(value, slice):
        yield "slice("
        yield from _template((value.start, value.stop, value.step), index, holes, symbols, names)
        yield ")"
    elif isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        symbols.append(_torch_debug.expression(value))
        yield "<symbolic>"
    elif isinstance(value, torch.device):
        yield names.device(value)
    elif isinstance(value, torch.Tensor):
        yield f"<tensor {value.dtype} {list(value.shape)} {digest(value, most=None)}>"
    else:
        yield names.of(value)[0] if callable(value) else plain_repr(value)


_IMMUTABLE = type(fx.immutable_collections.immutable_list([])).__module__


def plain_repr(value: object) -> str:
    """``repr`` without addresses and holes; the type where an object cannot be shown."""
    try:
        text = repr(value)
    except Exception:  # whatever a foreign __repr__ raises: the type is all that is known then
        text = f"<{type(value).__qualname__}>"
    return _ADDRESS.sub("", text).replace(HOLE, "")


def digest(tensor: torch.Tensor, *, most: int | None = 4096) -> str:
    """A short hash of a tensor's contents; ``""`` for one of more elements or without data."""
    if (
        type(tensor) not in (torch.Tensor, nn.Parameter)
        or tensor.device.type == "meta"
        or tensor.layout is not torch.strided
        or tensor.is_quantized
        or (most is not None and tensor.numel() > most)
    ):
        return ""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    content = ctypes.string_at(plain.data_ptr(), plain.nbytes) if plain.nbytes else b""
    return hashlib.sha256(content).hexdigest()[:12]


class _Names:
    """Texts of targets: one for people, one to compare. Each is worked out once."""

    def __init__(self, lone_devices: frozenset[str]) -> None:
        self._known: dict[int, tuple[Any, str, str]] = {}
        self._lone = lone_devices

    def device(self, device: torch.device) -> str:
        return f"device({(device.type if device.type in self._lone else str(device))!r})"

    def of(self, target: Any) -> tuple[str, str]:
        found = self._known.get(id(target))
        if found is None:
            text = plain_repr_of_target(target)
            found = self._known[id(target)] = (target, text, text + _code_of(target))
        return found[1], found[2]


def plain_repr_of_target(target: Any) -> str:
    """What a node runs, without addresses; a function without a name by where it is written."""
    if isinstance(target, types.FunctionType) and _torch_debug.python_name(target) is None:
        code = target.__code__
        return f"{target.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
    return _ADDRESS.sub("", _torch_debug.target_text(target)).replace(HOLE, "")


def _code_of(target: Any) -> str:
    """What tells two functions that no name leads to apart: lambdas, functions in functions."""
    if not isinstance(target, types.FunctionType) or _torch_debug.python_name(target) is not None:
        return ""
    held = [target.__defaults__, target.__kwdefaults__]
    for cell in target.__closure__ or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            held.append(cell.cell_contents)
    return hashlib.sha256(marshal.dumps(target.__code__)).hexdigest() + plain_repr(held)
