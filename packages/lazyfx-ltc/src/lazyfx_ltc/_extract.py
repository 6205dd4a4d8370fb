"""``extract_compiled_graph``: capture one kind of call, and hand out what can be called."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from torch import fx

from lazyfx_core import InvalidGraphError, check_graph, require_graph_module

from ._held import check_options
from ._partition import PartitionedGraph, has_calls
from ._replay import CompiledGraph
from ._session import initialize
from .errors import CaptureError, InputError


@overload
def extract_compiled_graph(
    model: fx.GraphModule,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = ...,
    *,
    on_mismatch: Literal["capture", "error"] = ...,
    max_captures: int = ...,
    freeze: bool = ...,
    fallback: Literal["error"] = ...,
) -> CompiledGraph: ...


@overload
def extract_compiled_graph(
    model: fx.GraphModule,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = ...,
    *,
    on_mismatch: Literal["capture"] = ...,
    max_captures: int = ...,
    freeze: bool = ...,
    fallback: Literal["partition"],
) -> CompiledGraph | PartitionedGraph: ...


def extract_compiled_graph(
    model: fx.GraphModule,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    on_mismatch: Literal["capture", "error"] = "capture",
    max_captures: int = 8,
    freeze: bool = False,
    fallback: Literal["error", "partition"] = "error",
) -> CompiledGraph | PartitionedGraph:
    """Capture a model on torch's lazy device as something that runs without retracing.

    Nothing is executed: neither the model nor the program runs on data, and the random state does
    not move. The model and the example inputs are not changed; parameters and buffers are bound
    by reference. Thread-safe; captures run one at a time.

    Args:
        model: A traced model on the session's device (``fx.symbolic_trace``, ``make_fx``, the
            graphs of AOTAutograd). Its graph is copied: later edits of the graph are not seen,
            changed weights are.
        example_inputs: The positional arguments of a call, as a tuple or list. Each may be nested
            (tuples, lists, dicts, named tuples, dataclasses, registered pytrees). Of tensors, fake
            ones included, only shape, strides, dtype and device count. Numbers, strings and None
            become part of the capture; a ``SymInt`` stands for its hint.
        example_kwargs: The arguments by name.
        on_mismatch: What a call does that is unlike all captures (another shape, structure, python
            value, train or eval mode, ...): ``"capture"`` it as well and go on, or raise a
            :class:`GuardError`.
        max_captures: How many captures are kept; the oldest goes first.
        freeze: Take the model's tensors as they are now for good, except those that it writes or
            returns: what follows from them alone is computed at capture, and batch normalization in
            eval mode becomes part of convolutions. A call raises :class:`FrozenError` if one has
            changed since; a write to ``weight.data`` goes unnoticed.
        fallback: What becomes of a model that cannot be captured whole: an ``"error"``, or a
            ``"partition"``, a :class:`PartitionedGraph` in which what cannot be captured runs as in
            eager, between captured pieces. They are found when it is first called.

    Returns:
        A callable with the model's signature and return structure.

    Raises:
        NotAGraphModuleError: ``model`` is something else.
        InvalidGraphError: Its graph cannot run; names the node.
        InputError: An example input cannot be captured; names the argument.
        FallbackError: Some operators can be no part of a program; lists them all.
        HostReadError: The model reads a tensor's value; names the node.
        CaptureError: The model does something else a captured graph could not repeat.
        SessionError: This process has no working lazy backend.
    """
    require_graph_module(model, "extract_compiled_graph(model, ...)")
    if on_mismatch not in ("capture", "error"):
        raise ValueError(f"on_mismatch: expected 'capture' or 'error', seen {on_mismatch!r}")
    check_options(max_captures, freeze)
    if not isinstance(example_inputs, (tuple, list)):
        raise InputError(
            "example_inputs: expected a tuple or list of arguments, seen"
            f" {type(example_inputs).__name__}; pass (x,) for a single one"
        )
    if fallback not in ("error", "partition"):
        raise ValueError(f"fallback: expected 'error' or 'partition', seen {fallback!r}")
    if fallback == "partition" and on_mismatch == "error":
        raise ValueError(
            "on_mismatch: expected 'capture' with fallback='partition', seen 'error': a call could"
            " be refused after some of its pieces have run"
        )
    device = initialize()
    _check_graph(model)
    graph = copy.deepcopy(model.graph)
    options: Any = {"on_mismatch": on_mismatch, "max_captures": max_captures, "freeze": freeze}
    args, kwargs = tuple(example_inputs), dict(example_kwargs or {})
    try:
        return CompiledGraph.captured(model, graph, args, kwargs, device, **options)
    except CaptureError as error:
        if not has_calls(graph):
            raise
        if fallback == "error":
            error.add_note(
                'fallback="partition" would capture the rest of the graph and run in eager what'
                " cannot be captured"
            )
            raise
        return PartitionedGraph(
            model, graph, device, error, max_captures=max_captures, freeze=freeze
        )


def _check_graph(model: fx.GraphModule) -> None:
    check_graph(model.graph)
    for node in model.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        found: object = model
        for part in str(node.target).split("."):
            found = getattr(found, part, None)
        if found is None:
            raise InvalidGraphError(
                f"node {node.name!r} ({node.op}) refers to {node.target!r}, which the model does"
                " not have; add the attribute or erase the node"
            )
