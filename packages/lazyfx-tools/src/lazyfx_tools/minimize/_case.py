"""A graph with its inputs, and parts of it.

Every choice of a graph's calls is a graph: what a chosen call reads from one that is not chosen
becomes an input, which gets the value that the whole graph computes there, and what nobody chosen
reads any more becomes an output. A number is not made an input but written into the call.

Values are computed again each time, by running the graph up to the last one that is needed: to keep
all of them would take all the memory the graph has ever used.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from lazyfx_compilers._torch_standalone import copied, seed
from lazyfx_tools.compare import _torch_compare

_WRITTEN = (int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout)
_UNWRITTEN = frozenset(
    ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A graph and its inputs, neither of which is ever changed."""

    gm: fx.GraphModule
    inputs: tuple[Any, ...]

    def calls(self) -> list[fx.Node]:
        """The nodes that compute something."""
        return [node for node in self.gm.graph.nodes if node.op.startswith("call_")]

    def placeholders(self) -> list[fx.Node]:
        """The inputs' nodes."""
        return [node for node in self.gm.graph.nodes if node.op == "placeholder"]

    def outputs(self) -> list[fx.Node]:
        """The nodes that are returned, each once."""
        output = next(iter(reversed(self.gm.graph.nodes)))
        return list(output.all_input_nodes) if output.op == "output" else []

    def nbytes(self) -> int:
        """Bytes of the inputs and of the tensors that the graph holds, shared memory once."""
        return nbytes([*self.inputs, *_constants(self.gm)])

    def measure(self) -> tuple[int, int, int, int]:
        """How large it is; what is smaller by this is simpler."""
        count = len(self.outputs())
        return len(self.calls()), len(self.placeholders()), count, self.nbytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What a node gives.

    ``description`` is the dtype, shape, strides, device and layout of a tensor; ``parts`` are what
    stands in a list.

    ``kind`` is ``"tensor"``, ``"list"``, ``"written"`` (can stand in a call) or ``"other"``.
    """

    kind: str
    description: tuple[Any, ...] = ()
    parts: tuple[Fact, ...] = ()


def fact(value: Any) -> Fact:
    """Describe a value."""
    if isinstance(value, torch.Tensor):
        strided = value.layout is torch.strided
        strides = value.stride() if strided else None
        described = (value.dtype, tuple(value.shape), strides, str(value.device), value.layout)
        return Fact(kind="tensor", description=described)
    if isinstance(value, (list, tuple)):
        return Fact(kind="list", parts=tuple(fact(each) for each in value))
    return Fact(kind="written" if isinstance(value, _WRITTEN) else "other")


def facts(case: Case) -> dict[fx.Node, Fact]:
    """What each node gives; runs the graph once."""
    found: dict[fx.Node, Fact] = {}

    def note(node: fx.Node, value: Any) -> None:
        found[node] = fact(value)

    _run(case, note, None)
    return found


def part(
    case: Case,
    known: Mapping[fx.Node, Fact],
    kept: Collection[fx.Node],
    *,
    replaced: Mapping[fx.Node, Any] | None = None,
    outputs: Sequence[fx.Node] | None = None,
) -> Case | None:
    """The graph of the calls in ``kept``; ``None`` if there is none that can be run.

    Args:
        case: The whole.
        known: Its :func:`facts`.
        kept: Calls of it.
        replaced: Nodes, none of them kept, for which others or written values are used.
        outputs: Return these of the kept calls instead of all that nobody reads.
    """
    swap = dict(replaced or {})
    chosen = [node for node in case.calls() if node in kept]
    read = {_resolve(node, swap) for call in chosen for node in call.all_input_nodes}
    lifted = [n for n in case.calls() if n in read and n not in kept]
    if not chosen or any(_has_other(known[node]) for node in lifted):
        return None
    graph = fx.Graph()
    made: dict[fx.Node, Any] = {}
    inputs: list[Any] = []
    for node, value in zip(case.placeholders(), case.inputs, strict=False):
        if node in read:
            made[node] = _copy(graph, node, made)
            inputs.append(value)
    for node, value in _values(case, lifted).items():
        made[node] = _lift(graph, node, node.name, value, inputs)
    for node in case.gm.graph.nodes:
        if node in kept or (node.op == "get_attr" and node in read):
            full = {n: made.get(_resolve(n, swap), _resolve(n, swap)) for n in node.all_input_nodes}
            made[node] = _copy(graph, node, full)
    if outputs is None:
        outputs = _outputs(case, known, chosen, swap)
    returned = [each for node in outputs for each in _tensors(graph, made[node], known[node])]
    if not returned:
        return None
    graph.output(tuple(returned))
    gm = fx.GraphModule(case.gm, graph)
    gm.meta.update(case.gm.meta)
    return Case(gm=gm, inputs=tuple(inputs))


def is_getitem(node: fx.Node) -> bool:
    """Whether a node only takes a value out of a list."""
    return node.target is operator.getitem and isinstance(node.args[0], fx.Node)


def changes_inputs(node: fx.Node) -> bool:
    """Whether a call writes into what it is given."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return bool(schema.is_mutable)
    name = str(getattr(node.target, "__name__", ""))
    return (name.endswith("_") and not name.endswith("__")) or "out" in node.kwargs


def is_random(node: fx.Node) -> bool:
    """Whether a call draws random numbers, or gives what happens to be in memory."""
    drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return drawn or _is_unwritten(node)


def drop_unwritten_outputs(gm: fx.GraphModule) -> None:
    """Let a graph not return what happens to be in memory, if it returns anything else."""
    output = next(iter(reversed(gm.graph.nodes)))
    returned: Any = output.args[0] if output.op == "output" else None
    if not isinstance(returned, (tuple, list)):
        return
    kept = [one for one in returned if not (isinstance(one, fx.Node) and _is_unwritten(one))]
    if 0 < len(kept) < len(returned):
        output.args = (tuple(kept),)
        output.meta.pop("val", None)
        gm.recompile()


def _is_unwritten(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", "")).split(".")[0]
    return name in _UNWRITTEN or _torch_compare.is_uninitialized(node)


def nbytes(values: Iterable[Any]) -> int:
    """Bytes that tensors span, those that share memory counted once."""
    ends: dict[int, tuple[int, int]] = {}
    total = 0
    for value in values:
        if not isinstance(value, torch.Tensor):
            continue
        if value.layout is not torch.strided:
            total += value.numel() * value.element_size()
        elif value.numel():
            size, start = value.element_size(), int(value.storage_offset())
            steps = zip(value.shape, value.stride(), strict=True)
            stop = start + 1 + sum((n - 1) * step for n, step in steps)
            key = value.untyped_storage().data_ptr()
            least, most = ends.get(key, (start * size, stop * size))
            ends[key] = min(least, start * size), max(most, stop * size)
    return total + sum(stop - start for start, stop in ends.values())


def _constants(gm: fx.GraphModule) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            value: Any = gm
            for atom in node.target.split("."):
                value = getattr(value, atom, None)
            found.extend(_constants(value) if isinstance(value, fx.GraphModule) else [value])
    return found


def _resolve(node: Any, swap: Mapping[fx.Node, Any]) -> Any:
    while isinstance(node, fx.Node) and node in swap:
        node = swap[node]
    return node


def _copy(graph: fx.Graph, node: fx.Node, made: Mapping[fx.Node, Any]) -> fx.Node:
    args = fx.node.map_aggregate(node.args, lambda a: made[a] if isinstance(a, fx.Node) else a)
    kwargs = fx.node.map_aggregate(node.kwargs, lambda a: made[a] if isinstance(a, fx.Node) else a)
    new = graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
    new.meta = dict(node.meta)
    return new


def _lift(graph: fx.Graph, node: fx.Node, name: str, value: Any, inputs: list[Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_lift(graph, node, f"{name}_{i}", each, inputs) for i, each in enumerate(value)]
    if not isinstance(value, torch.Tensor):
        return value
    new = graph.create_node("placeholder", name, (), {}, name)
    if not isinstance(node.meta.get("val"), (list, tuple)):
        new.meta = dict(node.meta)
    inputs.append(value)
    return new


def _outputs(
    case: Case, known: Mapping[fx.Node, Fact], chosen: Sequence[fx.Node], swap: Mapping[Any, Any]
) -> list[fx.Node]:
    """What was returned before, and what nobody reads now."""
    within = set(chosen)
    before = [_resolve(node, swap) for node in case.outputs()]
    read = {_resolve(node, swap) for call in chosen for node in call.all_input_nodes}
    unread = [node for node in chosen if node not in read and node.users]
    wanted = dict.fromkeys(
        node
        for node in (*(node for node in before if node in within), *unread)
        if not _is_unwritten(node)  # to compare that would be to compare what is in memory
    )
    tensors = [node for node in wanted if known[node].kind in ("tensor", "list")]
    return tensors or list(wanted)


def _tensors(graph: fx.Graph, node: fx.Node, known: Fact) -> list[fx.Node]:
    if known.kind != "list":
        return [node]
    if any(is_getitem(user) for user in node.users):
        return []
    unwritten = _torch_compare.unwritten_results(node)
    return [
        each
        for i, one in enumerate(known.parts)
        if one.kind in ("tensor", "list") and i not in unwritten
        for each in _tensors(graph, graph.call_function(operator.getitem, (node, i)), one)
    ]


def _has_other(known: Fact) -> bool:
    return known.kind == "other" or any(_has_other(one) for one in known.parts)


def _values(case: Case, nodes: Sequence[fx.Node]) -> dict[fx.Node, Any]:
    """Copies of what nodes give, in order."""
    wanted = set(nodes)
    found: dict[fx.Node, Any] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node in wanted:
            found[node] = _kept(value)

    if nodes:
        _run(case, keep, nodes[-1])
    return found


def _kept(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_kept(each) for each in value]
    return copied([value.detach()])[0] if isinstance(value, torch.Tensor) else value


class _Watched(fx.Interpreter):
    """Tells what each node gives."""

    def __init__(self, gm: fx.GraphModule, tell: Any, last: fx.Node | None) -> None:
        super().__init__(gm)
        self._tell = tell
        self._last = last

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if _is_unwritten(n) and isinstance(value, torch.Tensor):
            value.zero_()  # what happens to be in memory would be another value each time
        if n.op != "output":
            self._tell(n, value)
        if n is self._last:
            raise _EnoughError
        return value


class _EnoughError(Exception):
    pass


def _run(case: Case, tell: Any, last: fx.Node | None) -> None:
    seed()
    try:
        with torch.no_grad():
            _Watched(case.gm, tell, last).run(*copied(case.inputs), enable_io_processing=False)
    except _EnoughError:
        pass
