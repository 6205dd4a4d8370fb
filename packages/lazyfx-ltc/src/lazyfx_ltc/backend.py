"""``torch.compile(model, backend="lazyfx_ltc")``.

Dynamo takes the python apart, AOTAutograd makes graphs of operators for forward and backward, and
each of them is captured and replayed. With dynamic shapes a graph is captured once for each kind of
call, with the sizes of that call. A graph that cannot be captured whole runs in pieces.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ._extract import extract_compiled_graph
from ._partition import PartitionedGraph
from ._replay import CompiledGraph
from ._session import initialize
from ._torch_aot import compile_with_autograd
from .errors import InputError, OptionError

__all__ = ["lazyfx_ltc", "reset"]

_OPTIONS = ("fallback", "max_captures")
_made: weakref.WeakSet[CompiledGraph | PartitionedGraph] = weakref.WeakSet()


def lazyfx_ltc(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend, as the entry point ``torch_dynamo_backends`` names it.

    Inference and training; numbers are those of eager's kernels. Thread-safe.

    Args:
        gm: A graph of Dynamo.
        example_inputs: Its inputs.
        mode: None or ``"default"``; there are no others.
        options: ``fallback`` (``"partition"``, the default, or ``"error"``) and ``max_captures``
            (how many kinds of calls are kept for each graph; 8), as in
            :func:`lazyfx_ltc.extract_compiled_graph`.

    Raises:
        OptionError: A mode or option is unknown, or has an unknown value.
        CaptureError: With ``fallback="error"``: a graph cannot be captured.
    """
    taken = _known(mode, options)
    initialize()

    def compiler(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        captured = _captured(graph, examples, taken)
        _made.add(captured)
        return captured.boxed

    return compile_with_autograd(gm, example_inputs, compiler)


def _captured(
    graph: fx.GraphModule, examples: Sequence[Any], options: Mapping[str, Any]
) -> CompiledGraph | PartitionedGraph:
    try:
        # Saved tensors and such require grad; neither graph of AOTAutograd records for it.
        with torch.no_grad():
            made: CompiledGraph | PartitionedGraph = extract_compiled_graph(
                graph, list(examples), **options
            )
            return made
    except InputError:
        # A size without a value yet: captured when it is called.
        if options["fallback"] == "error":
            raise
        return PartitionedGraph(
            graph, graph.graph, initialize(), None, max_captures=options["max_captures"]
        )


def reset() -> None:
    """Forget what functions compiled by this backend have captured; they capture anew if called.

    ``torch._dynamo.reset()`` calls it.
    """
    for one in list(_made):
        one.clear()


lazyfx_ltc.reset = reset  # type: ignore[attr-defined]


def _known(mode: str | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    if mode not in (None, "default"):
        raise OptionError(f"backend 'lazyfx_ltc' has no modes, seen mode={mode!r}; leave it out")
    for name in options or {}:
        if name not in _OPTIONS:
            raise OptionError(
                f"backend 'lazyfx_ltc': unknown option {name!r}; it takes {', '.join(_OPTIONS)}"
            )
    taken = {"fallback": "partition", "max_captures": 8, **(options or {})}
    if taken["fallback"] not in ("partition", "error"):
        raise OptionError(
            "backend 'lazyfx_ltc': option 'fallback': expected 'partition' or 'error', seen"
            f" {taken['fallback']!r}"
        )
    if type(taken["max_captures"]) is not int or taken["max_captures"] < 1:
        raise OptionError(
            "backend 'lazyfx_ltc': option 'max_captures': expected a number from 1 up, seen"
            f" {taken['max_captures']!r}"
        )
    return taken
