"""A model in pieces: those that can be captured are replayed, the rest runs as in eager.

The graph is cut where it stands: a piece is a run of neighboring nodes. So everything that has an
order keeps it (writes, also through views; random draws; python code), which a partition that
gathers nodes from all over the graph cannot promise for graphs that write. Each captured piece is a
:class:`CompiledGraph` of its own on the user's model, with its guards, views and writes.

Where to cut is found while the first call runs. A piece that nobody has tried yet is captured for
what it is given. If that is refused at a node, the piece becomes what is before the node, the node,
and what follows; if nobody knows which node it is, two halves. Capture runs nothing, so a piece
that was refused has not done anything yet.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ._arguments import endless
from ._explanation import Explanation
from ._held import Held
from ._replay import CompiledGraph
from ._run import filled
from ._session import initialize
from ._signature import placeholder_values
from ._state import bind_state
from ._structure import flatten_call
from ._subject import argument_names
from .errors import CaptureError, GradientError, InputError, LtcError, ProgramError

_LOGGER = logging.getLogger("lazyfx_ltc")
_OUTSIDE = ("placeholder", "output")
_MUTABLE = (list, dict)  # a captured piece would hand out copies


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of neighboring nodes.

    Attributes:
        nodes: Their names, in order.
        graph: They as a graph; its placeholders are what they take, its output a tuple.
        inputs: The names of what they take.
        outputs: The names of what is used after them.
        dead: The names of what nobody uses after them.
        attributes: ``(name, target)`` of what is used after them and is an attribute of the model.
        captured: Replays them; None if they run as in eager, or nobody has tried yet.
        reason: Why they run as in eager.
    """

    nodes: tuple[str, ...]
    graph: fx.Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dead: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]
    captured: CompiledGraph | None = None
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether nobody has tried to capture it."""
        return self.captured is None and self.reason is None

    def __str__(self) -> str:
        if self.captured is not None:
            operators = sum(self.captured.explain().operators.values())
            return f"captured: {len(self.nodes)} nodes, {operators} operators"
        if self.reason is None:
            return f"captured at the first call, if it can be: {len(self.nodes)} nodes"
        named = ", ".join(repr(name) for name in self.nodes)
        return f"eager: {named}: {self.reason}"


def has_calls(graph: fx.Graph) -> bool:
    """Whether a graph computes anything."""
    return any(node.op not in _OUTSIDE for node in graph.nodes)


def cut(graph: fx.Graph, runs: Sequence[Sequence[str]]) -> list[Piece]:
    """A graph in pieces.

    Args:
        graph: What is cut; not changed.
        runs: The names of all nodes that compute something, in order, by piece.
    """
    nodes = {node.name: node for node in graph.nodes}
    home = {name: number for number, run in enumerate(runs) for name in run}
    last: dict[str, int] = {}
    for node in graph.nodes:
        number = len(runs) if node.op == "output" else home.get(node.name, -1)
        for used in node.all_input_nodes:
            last[used.name] = max(last.get(used.name, -1), number)
    return [_piece(nodes, run, number, home, last) for number, run in enumerate(runs)]


def _piece(
    nodes: Mapping[str, fx.Node],
    run: Sequence[str],
    number: int,
    home: Mapping[str, int],
    last: Mapping[str, int],
) -> Piece:
    graph = fx.Graph()
    inside = set(run)
    used = dict.fromkeys(one for name in run for one in nodes[name].all_input_nodes)
    taken = [one for one in used if one.name not in inside]
    made: dict[fx.Node, fx.Node] = {one: graph.placeholder(one.name) for one in taken}
    for name in run:
        made[nodes[name]] = graph.node_copy(nodes[name], made.__getitem__)
    leaving = [name for name in run if last.get(name, -1) > number]
    attributes = [(name, nodes[name]) for name in leaving if nodes[name].op == "get_attr"]
    outputs = [name for name in leaving if nodes[name].op != "get_attr"]
    graph.output(tuple(made[nodes[name]] for name in outputs))
    inputs = tuple(one.name for one in taken)
    return Piece(
        nodes=tuple(run),
        graph=graph,
        inputs=inputs,
        outputs=tuple(outputs),
        dead=tuple(name for name in inputs if last[name] == number),
        attributes=tuple((name, str(node.target)) for name, node in attributes),
    )


class PartitionedGraph(Held):
    """A model of which some nodes cannot be captured. Call it like the model.

    Made by :func:`lazyfx_ltc.extract_compiled_graph` with ``fallback="partition"``. Like a
    :class:`~lazyfx_ltc.CompiledGraph` it returns what eager returns and writes what eager writes;
    it has no backward. Safe to call from several threads; the first call, in which the pieces are
    found, is made by one at a time. What a piece cannot be captured for runs as in eager.
    """

    def __init__(
        self,
        model: fx.GraphModule,
        graph: fx.Graph,
        device: str,
        error: LtcError | None,
        *,
        max_captures: int,
        freeze: bool = False,
    ) -> None:
        super().__init__(model, graph, device)
        self._freeze = freeze
        self._max = max_captures
        self._error = error
        self._lock = threading.RLock()
        self._state = bind_state(model, graph)
        self._names = [node.name for node in graph.nodes if node.op not in _OUTSIDE]
        self._taken = [node.name for node in graph.nodes if node.op == "placeholder"]
        (self._output,) = (node for node in graph.nodes if node.op == "output")
        self._pieces = self._divided()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the pieces, one after the other.

        Raises:
            GradientError: Grad mode is on, and an argument or parameter requires grad.
            FrozenError: A frozen tensor of the model has changed.
            InputError: The arguments do not fit the model's signature.
        """
        self._refuse_gradients(args, kwargs)
        for piece in self._pieces if self._freeze else ():
            if piece.captured is not None:
                piece.captured.check_frozen()
        values = placeholder_values(self._graph, args, kwargs)
        held = dict(zip(self._taken, values, strict=True))
        pieces, number = self._pieces, 0
        while number < len(pieces):
            piece = pieces[number]
            if piece.is_open:
                with self._lock:
                    if pieces[number] is not piece:
                        continue
                    settled = self._settled(pieces, number, [held[name] for name in piece.inputs])
                    if settled is None:  # it is several now
                        continue
                    pieces[number] = piece = settled
            held.update(self._run(piece, [held[name] for name in piece.inputs]))
            for name in piece.dead:
                del held[name]
            number += 1
        returned = filled(self._output.args[0], lambda node: held[node.name])
        return self._graph.process_outputs(returned)

    def _run(self, piece: Piece, inputs: Sequence[Any]) -> dict[str, Any]:
        """The values that a piece makes for others, by name."""
        captured = piece.captured
        # What is captured anew for call after call (a number that was read, say) does not pay.
        if captured is not None and captured.dropped < 2 * self._max:
            try:
                results = captured(*inputs)
            except ProgramError:
                raise  # it may have drawn
            except LtcError as error:  # for these inputs; it has done nothing
                _LOGGER.info("a captured piece runs as in eager for this call: %s", error)
            else:
                found = dict(zip(piece.outputs, results, strict=True))
                found.update((name, _attribute(self._model, at)) for name, at in piece.attributes)
                return found
        wanted = {*piece.outputs, *(name for name, _ in piece.attributes)}
        return _Eager(self._model, piece.graph).values(inputs, wanted)

    def _settled(self, pieces: list[Piece], where: int, inputs: Sequence[Any]) -> Piece | None:
        """A piece that nobody has tried, captured or not; None if it was cut further."""
        piece = pieces[where]
        try:
            captured = CompiledGraph.captured(
                self._model,
                piece.graph,
                tuple(inputs),
                {},
                self._device,
                max_captures=self._max,
                freeze=self._freeze,
            )
            _refuse_containers(piece, captured)
        except (CaptureError, InputError) as error:
            if len(piece.nodes) == 1 or isinstance(error, InputError):
                return replace(piece, reason=str(error))
            runs = [one.nodes for one in pieces]
            parts = _parts(piece.nodes, error)
            fresh = cut(self._graph, [*runs[:where], *parts, *runs[where + 1 :]])
            middle = fresh[where : where + len(parts)]
            pieces[where : where + 1] = _with_reasons(middle, error)
            return None
        return replace(piece, captured=captured)

    def _divided(self) -> list[Piece]:
        if self._error is None:
            return cut(self._graph, [self._names] if self._names else [])
        pieces = cut(self._graph, _parts(self._names, self._error))
        return _with_reasons(pieces, self._error)

    def clear(self) -> None:
        """Forget all captures; the next call makes them anew."""
        with self._lock:
            self._pieces = self._divided()

    def _refuse_gradients(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        try:
            leaves, structure = flatten_call(args, dict(kwargs))
        except RecursionError as error:
            raise endless(error) from error
        names = argument_names(structure)
        names += [f"model tensor {binding.name!r}" for binding in self._state.tensors]
        own = [binding.read() for binding in self._state.tensors]
        for name, one in zip(names, (*leaves, *own), strict=True):
            if isinstance(one, torch.Tensor) and one.requires_grad:
                raise GradientError(
                    f"{name} requires grad and grad mode is on: expected a call without gradients,"
                    " as captured pieces have no backward. Call it under torch.no_grad(), or detach"
                    " what you pass in"
                )

    @property
    def captures(self) -> int:
        """How many kinds of calls are captured, over all pieces."""
        return sum(one.captured.captures for one in self._pieces if one.captured is not None)

    @property
    def segments(self) -> tuple[Piece, ...]:
        """The pieces, in the order in which they run."""
        return tuple(self._pieces)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The pieces that run as in eager, each with the reason."""
        return tuple(str(one) for one in self._pieces if one.reason is not None)

    def explain(self) -> Explanation:
        """What the pieces are, and what the captured ones do; complete after the first call."""
        told = {
            f"piece {number}": None if one.captured is None else one.captured.explain()
            for number, one in enumerate(self._pieces)
        }
        operators: dict[str, int] = {}
        mutated, outputs, guards = [], [], []
        for (piece, one), part in zip(told.items(), self._pieces, strict=True):
            if one is None:
                untried = "not tried yet" if part.is_open else None
                mutated.append(f"{piece}: {untried or 'whatever its operators write in eager'}")
                outputs.append(f"{piece}: {untried or 'whatever its operators give in eager'}")
                continue
            for name, count in one.operators.items():
                operators[name] = operators.get(name, 0) + count
            mutated += [f"{piece}: {line}" for line in one.mutated]
            outputs += [f"{piece}: {line}" for line in one.outputs]
            guards += [f"{piece}: {line}" for line in one.guards]
        return Explanation(
            inputs=tuple(node.name for node in self._graph.nodes if node.op == "placeholder"),
            state=tuple(binding.name for binding in self._state.tensors),
            mutated=tuple(mutated),
            outputs=tuple(outputs),
            guards=tuple(guards),
            operators=operators,
            fallbacks=self.fallbacks,
            segments=tuple(map(str, self._pieces)),
        )

    def __repr__(self) -> str:
        eager = sum(one.reason is not None for one in self._pieces)
        return (
            f"PartitionedGraph({len(self._pieces)} pieces, {eager} of them eager, {self._device},"
            f" {self.captures} captures)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        options = {"max_captures": self._max, "freeze": self._freeze}
        return _restore, (self._for_pickle(), self._error, options)


def _restore(
    model: fx.GraphModule, error: LtcError | None, options: dict[str, Any]
) -> PartitionedGraph:
    return PartitionedGraph(model, model.graph, initialize(), error, **options)


class _Eager(fx.Interpreter):
    """Runs a piece as eager would."""

    def __init__(self, model: fx.GraphModule, graph: fx.Graph) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False

    def values(self, inputs: Sequence[Any], wanted: Set[str]) -> dict[str, Any]:
        """Some of the values, by the names of their nodes."""
        self.run(*inputs, enable_io_processing=False)
        return {node.name: value for node, value in self.env.items() if node.name in wanted}

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a node, in containers that it may change, as in generated code."""
        args = filled(tuple(n.args), self.env.__getitem__)
        return args, filled(dict(n.kwargs), self.env.__getitem__)


def _refuse_containers(piece: Piece, captured: CompiledGraph) -> None:
    kinds = captured.returned_kinds()
    found = tuple(name for name, kind in zip(piece.outputs, kinds, strict=True) if kind in _MUTABLE)
    if found:
        error = CaptureError(
            f"{found[0]!r} is a {kinds[piece.outputs.index(found[0])].__name__}, which others use:"
            " a replay would give each of them a copy"
        )
        error.nodes = found
        raise error


def _parts(names: Sequence[str], error: LtcError) -> list[list[str]]:
    """Names of neighbors, cut around those that an error is about, or in half."""
    blamed = [name for name in names if name in error.nodes]
    if not blamed:
        half = max(1, len(names) // 2)
        return [part for part in (list(names[:half]), list(names[half:])) if part]
    parts: list[list[str]] = [[]]
    for name in names:
        if name in blamed:
            parts += [[name], []]
        else:
            parts[-1].append(name)
    return [part for part in parts if part]


def _with_reasons(pieces: Sequence[Piece], error: LtcError) -> list[Piece]:
    """Single nodes that an error is about run as in eager."""
    return [
        replace(one, reason=str(error))
        if len(one.nodes) == 1 and one.nodes[0] in error.nodes and one.is_open
        else one
        for one in pieces
    ]


def _attribute(model: Any, target: str) -> Any:
    found = model
    for part in target.split("."):
        found = getattr(found, part)
    return found
