"""``lazyfx_ltc.compile(model)``: replay without tracing first, and without Dynamo.

The model becomes the only node of a graph, so a capture runs its python code, once for each kind of
call. What that code may ask for is guarded: arguments by their looks and values, the model's
modules with their attributes, and the names outside of it that its code mentions (``_outside.py``).
"""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from torch import fx, nn

from lazyfx_core import LazyGraphModule

from ._captured import MISS
from ._held import check_options
from ._outside import Outside, outside
from ._queries import RAN, Ran
from ._replay import CompiledGraph
from ._session import CAPTURING, initialize
from ._torch_tracing import is_fake, tree_flatten
from .errors import (
    CaptureError,
    FrozenError,
    GradientError,
    GuardError,
    InputError,
    LtcError,
    ProgramError,
)

_LOGGER = logging.getLogger("lazyfx_ltc")
_T = TypeVar("_T")
_NOTHING = Outside(unchanged=lambda: True, reason=None, caches=(), containers=(), codes=frozenset())
_CHANGES = 32  # of what is outside of a model, until it is left to eager
_TRIES = 3  # kinds of calls that cannot be captured, until nothing more is tried


def compile(
    model: Callable[..., Any],
    *,
    fallback: Literal["eager", "error"] = "eager",
    max_captures: int = 8,
    freeze: bool = False,
) -> Compiled:
    """A model, or a function of tensors, that is captured when it is first called, and replayed.

    For inference: there is no backward. Needs neither a trace nor Dynamo.

    Args:
        model: An ``nn.Module`` or function on the session's device. It is not changed.
        fallback: What becomes of a call that cannot be captured: it runs in ``"eager"``, with one
            warning in the log, or raises an ``"error"``.
        max_captures: How many kinds of calls are kept for each way to pass arguments.
        freeze: As for :func:`lazyfx_ltc.extract_compiled_graph`.

    Returns:
        A callable with the model's signature.

    Raises:
        SessionError: This process has no working lazy backend.
    """
    if not callable(model):
        raise InputError(f"model: expected a module or function, seen {type(model).__name__}")
    if fallback not in ("eager", "error"):
        raise ValueError(f"fallback: expected 'eager' or 'error', seen {fallback!r}")
    check_options(max_captures, freeze)
    return Compiled(model, fallback=fallback, max_captures=max_captures, freeze=freeze)


class Compiled:
    """A model that is captured as it is called. Made by :func:`lazyfx_ltc.compile`; thread-safe.

    A call returns what the model returns and writes what the model writes. One that is unlike those
    before (other shapes, python values, attributes, train or eval mode) is captured as well.

    Attributes:
        model: What it stands for.
        fallbacks: Why calls ran in eager, the reasons in order.
    """

    def __init__(
        self, model: Callable[..., Any], *, fallback: str, max_captures: int, freeze: bool
    ) -> None:
        self.model = model
        self.fallbacks: tuple[str, ...] = ()
        self._options: Any = {"max_captures": max_captures, "freeze": freeze}
        self._fallback = fallback
        self._lock = threading.RLock()
        self._device = initialize()
        self._graphs: dict[tuple[Any, ...], CompiledGraph] = {}
        self._refused: dict[tuple[Any, ...], int] = {}
        self._changes = 0
        self._outside = _NOTHING
        self._ran: set[types.CodeType] | None = set()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """What the model returns.

        Raises:
            GradientError: Grad mode is on, and an argument or parameter requires grad.
            FrozenError: A frozen tensor of the model has changed.
            LtcError: With ``fallback="error"``: the call cannot be captured, or what is outside of
                the model has changed too often.
        """
        if (
            CAPTURING.get()
            or (self._changes > _CHANGES and self._fallback == "eager")
            or not (self._outside.is_as_it_was() or self._changed())
        ):
            return self.model(*args, **kwargs)
        way = (len(args), *kwargs)
        try:
            held = self._graphs.get(way)
            if held is not None:
                result = held.replayed(args, kwargs)
                if result is not MISS:
                    return result
            if self._is_traced(args, kwargs) or self._refused.get(way, 0) >= _TRIES:
                return self.model(*args, **kwargs)
            return self._captured(way, args, kwargs)
        except (ProgramError, GradientError, FrozenError):
            raise  # the first may have drawn random numbers
        except (CaptureError, InputError, GuardError) as error:  # it has done nothing
            if self._fallback == "error":
                raise
            self._note(way, error)
        return self.model(*args, **kwargs)

    def _changed(self) -> bool:
        """Go on with what is outside of the model now; False once it has changed too often."""
        with self._lock:
            self._changes += 1
            if self._changes <= _CHANGES:
                self._graphs, self._outside = {}, _NOTHING
                return True
        error = CaptureError(
            f"globals, closures or other objects that {_name(self.model)} reads change all the"
            " time: expected them to stay; pass what changes as an argument"
        )
        if self._fallback == "error":
            raise error
        self._note((), error)
        return False

    @staticmethod
    def _is_traced(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether somebody else looks on at what the model does: a capture of what calls it."""
        return any(map(is_fake, tree_flatten((args, kwargs))[0]))

    def _captured(self, way: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Capture a call, and run it."""
        with self._lock:
            found = self._graphs.get(way)
            if found is None:
                whole = _whole(self.model, len(args), tuple(kwargs))
                held, reason = self._watched(
                    lambda: CompiledGraph.captured(
                        whole, whole.graph, args, kwargs, self._device, **self._options
                    )
                )
            else:
                held = found
                _, reason = self._watched(lambda: held.prepare(args, kwargs))
            if reason is not None:
                held.clear()  # nothing has run
                raise CaptureError(reason)
            self._graphs[way] = held
        return held(*args, **kwargs)

    def _watched(self, work: Callable[[], _T]) -> tuple[_T, str | None]:
        """Do what captures the model; why a replay would not do what it did, if that is so."""
        ran = Ran()
        token = RAN.set(ran)
        try:
            result = work()
        finally:
            RAN.reset(token)
            seen, before = ran.codes, self._ran
            everything = None if seen is None or before is None else seen | before
            found = outside(self.model, everything)
            left = found.cleanse()
        what = ran.changed(found.codes)
        if what is None and left:
            what = "puts a tensor into a list or dict outside of it"
        if what is not None:
            return result, (
                f"{_name(self.model)} {what} when it runs: a replay would not do that. Return the"
                " value, or keep it in a buffer"
            )
        if found.reason is None:
            self._ran, self._outside = everything, found
        return result, found.reason

    def _note(self, way: tuple[Any, ...], error: LtcError) -> None:
        reason = str(error)
        with self._lock:
            if not isinstance(error, GuardError):
                self._refused[way] = self._refused.get(way, 0) + 1
            if reason not in self.fallbacks:
                _LOGGER.warning("%r runs in eager: %s", _name(self.model), reason)
                self.fallbacks = (*self.fallbacks, reason)

    def clear(self) -> None:
        """Forget all captures; the next call captures anew."""
        with self._lock:
            self._graphs, self._refused, self.fallbacks, self._changes = {}, {}, (), 0
            self._outside, self._ran = _NOTHING, set()

    @property
    def captures(self) -> int:
        """How many kinds of calls are captured."""
        return sum(one.captures for one in self._graphs.values())

    @property
    def graphs(self) -> tuple[CompiledGraph, ...]:
        """What replays, one for each way to pass arguments: ``explain()`` of each tells more."""
        return tuple(self._graphs.values())

    def __repr__(self) -> str:
        return f"Compiled({_name(self.model)}, {self.captures} captures)"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.model, {**self._options, "fallback": self._fallback})


def _again(model: Callable[..., Any], options: dict[str, Any]) -> Compiled:
    return Compiled(model, **options)


def _name(model: Any) -> str:
    kind: str = type(model).__name__
    return str(getattr(model, "__name__", kind))


def _whole(model: Callable[..., Any], count: int, names: tuple[str, ...]) -> fx.GraphModule:
    """A graph of one node, which is a call of the model."""
    root, graph = nn.Module(), fx.Graph()
    args = tuple(graph.placeholder(f"argument_{place}") for place in range(count))
    kwargs: dict[str, Any] = {name: graph.placeholder(f"named_{name}") for name in names}
    for name, node in kwargs.items():
        node.target = name
    if isinstance(model, nn.Module):
        root.add_module("model", model)
        called = graph.call_module("model", args, kwargs)
    else:

        def function(*given: Any, **named: Any) -> Any:
            return model(*given, **named)

        function.__name__ = function.__qualname__ = _name(model)
        called = graph.call_function(function, args, kwargs)
    graph.output(called)
    whole = LazyGraphModule(root, graph)
    whole.training = getattr(model, "training", True)
    return whole
