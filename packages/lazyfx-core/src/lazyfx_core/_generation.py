"""Stale to fresh and back: the two transitions of a lazy module, under one lock.

*Stale*: the class of the module holds the descriptors of :mod:`lazyfx_core._forward`, the fields
that generation writes are None. *Fresh*: the class holds the generated functions. Whatever
fails or interrupts on the way leaves the module stale, never half of each.

What somebody put on the class by hand while the module was stale stays in force until the next
``recompile()``, as it would on a plain module.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

from . import _codegen_stats
from ._forward import GENERATION_LOCK, STALE_CALL, STALE_FORWARD, LazyPythonCode
from ._instance_class import QUALNAME, Generated, own_classes, own_state, with_own_class
from ._snapshot import is_unchanged, keep_snapshot, kept_snapshot, take_snapshot
from ._structure import check_graph
from ._torch_fx import GENERATED_FIELDS, inside_dynamo, release_with
from ._torch_graph import node_count
from .errors import CodeGenerationError, LazyFxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx.graph import PythonCode

    from ._graph_module import LazyGraphModule


_torch_recompile: Callable[[LazyGraphModule], PythonCode]


def set_torch_recompile(recompile: Callable[[LazyGraphModule], PythonCode]) -> None:
    """Say how torch generates; the class of lazy modules knows, which is defined later."""
    global _torch_recompile
    _torch_recompile = recompile


def generate_if_stale(module: LazyGraphModule, cause: str) -> None:
    """Generate the code of ``module`` if it is stale and has been asked for code.

    Raises:
        InvalidGraphError, CodeGenerationError: See ``LazyGraphModule``.
    """
    with GENERATION_LOCK:
        state = type(module).__lazyfx__
        if state.stale and not state.unasked:
            try:
                bring_up_to_date(module, cause)
            except AttributeError as error:  # nn.Module.__getattr__ would swallow it
                if isinstance(error, LazyFxError):
                    raise
                raise CodeGenerationError(
                    f"looking at {type(module).__name__!r} failed with AttributeError: {error}; "
                    "the module stays stale"
                ) from error


def mark_stale(module: LazyGraphModule) -> PythonCode:
    """Make every look generate, in constant time. Call with the generation lock held."""
    cls = type(module)
    if cls.__qualname__ != QUALNAME:  # somebody subclassed the instance's class, or replaced it
        cls = with_own_class(module, STALE_FORWARD, STALE_CALL)
        for owned in own_classes(cls):
            owned.forward, owned.__call__ = STALE_FORWARD, STALE_CALL  # type: ignore[assignment]
            own_state(owned).stale = True
    attributes = cls.__dict__
    if attributes.get("forward") is not STALE_FORWARD:
        cls.forward = STALE_FORWARD  # type: ignore[assignment]
    if attributes.get("__call__") is not STALE_CALL:
        cls.__call__ = STALE_CALL  # type: ignore[assignment]
    state = cls.__lazyfx__
    held = module.__dict__
    if not state.stale or state.unasked or held.get("_code", "absent") is not None:
        state.unasked = False
        state.stale = True  # not before the descriptors are in place: an interrupt may come
        for name in GENERATED_FIELDS:
            held[name] = None  # stale values must not be readable
        state.by_dynamo = inside_dynamo()
    state.superseded = None
    old = state.generated
    if old is not None and not state.verify and node_count(held["_graph"]) != old.nodes:
        state.generated = None  # lets go of code, source and erased nodes
    pending = None if state.pending is None else state.pending()
    if pending is None:
        pending = LazyPythonCode(module)
        state.pending = weakref.ref(pending)
    return pending


def leave_to_subclass(module: LazyGraphModule) -> None:
    """Take back that ``module`` was born stale: its class brings a ``recompile()`` that decides."""
    with GENERATION_LOCK:
        cls = type(module)
        for name, descriptor in (("forward", STALE_FORWARD), ("__call__", STALE_CALL)):
            if cls.__dict__.get(name) is descriptor:
                delattr(cls, name)
        own_state(cls).unasked = True


def bring_up_to_date(module: LazyGraphModule, cause: str) -> PythonCode:
    """Generate, or find that nothing changed; install. On any error the module is stale."""
    with GENERATION_LOCK:
        cls = type(module)
        state = own_state(cls)
        by_hand = _set_by_hand(cls) if state.stale else {}
        try:
            for owned in own_classes(cls):
                # torch wraps a __call__ that it finds here, for good: a descriptor would
                # recurse, and what somebody put here for a while would stay.
                if "__call__" in vars(owned):
                    del owned.__call__
            made = state.generated
            graph = module._graph
            snapshot = None if made is None else kept_snapshot(graph, made)
            if made is None or snapshot is None or not is_unchanged(snapshot, graph):
                # Whoever looks may be Dynamo, in the middle of checking a guard that belongs to the
                # old code: that has to live until somebody edits the graph again.
                state.superseded = made
                made = state.generated = _generate_anew(module, cls, cause)
            elif state.stale:
                made.renew()
                if _codegen_stats.collecting:
                    _codegen_stats.unchanged()
            module.__dict__.update(made.fields)
            cls.forward = STALE_FORWARD if state.verify else made.forward  # type: ignore[assignment]
            cls.__call__ = STALE_CALL if state.verify else made.call  # type: ignore[assignment]
            _put_back(cls, by_hand)
            state.stale = state.unasked = False
        except BaseException:
            mark_stale(module)
            _put_back(cls, by_hand)
            raise
        pending = None if state.pending is None else state.pending()
        if pending is not None:
            pending.fill(made.code)
        state.pending = None
        return made.code


def install_generated(module: LazyGraphModule) -> None:
    """Put the generated functions of a fresh module where a descriptor still stands."""
    with GENERATION_LOCK:
        cls = type(module)
        made = cls.__lazyfx__.generated
        if cls.__lazyfx__.stale or made is None:
            return
        if cls.__dict__.get("forward") is STALE_FORWARD:
            cls.forward = made.forward
        if cls.__dict__.get("__call__") is STALE_CALL:
            cls.__call__ = made.call  # type: ignore[method-assign]


def _generate_anew(module: LazyGraphModule, cls: type[LazyGraphModule], cause: str) -> Generated:
    """Let torch generate, and take what it made."""
    start = time.perf_counter() if _codegen_stats.collecting else None
    check_graph(module._graph)
    snapshot = take_snapshot(module._graph)  # first: generating may edit the graph
    try:
        code = _torch_recompile(module)
    except Exception as error:
        raise CodeGenerationError(
            f"torch could not generate code for {cls.__name__!r}: "
            f"{type(error).__name__}: {error}; the module stays stale: mend its graph and "
            "look again (gm.graph.lint() and print(gm.graph) may help)"
        ) from error
    if inside_dynamo() and not cls.__lazyfx__.by_dynamo:
        # Dynamo marks whatever is generated while it compiles as not to be compiled. This module is
        # somebody else's, who only looked late: code that nobody has marked takes its place.
        forward = vars(cls)["forward"]
        forward.__code__ = forward.__code__.replace()
    made = Generated(
        snapshot.nodes,
        code,
        {name: vars(module)[name] for name in GENERATED_FIELDS},
        vars(cls)["forward"],
        vars(cls)["__call__"],
    )
    keep_snapshot(module._graph, made, snapshot)
    release_with(made.forward.__code__)
    if start is not None:
        _codegen_stats.generated(cause, time.perf_counter() - start)
    return made


def _set_by_hand(cls: type[LazyGraphModule]) -> dict[str, Any]:
    """What a user put where a descriptor of a stale module was: it stays until recompile()."""
    found: dict[str, Any] = {}
    for name, descriptor in (("forward", STALE_FORWARD), ("__call__", STALE_CALL)):
        for owned in own_classes(cls):
            value = vars(owned).get(name)
            if value is not None and value is not descriptor:
                found.setdefault(name, value)
    return found


def _put_back(cls: type[LazyGraphModule], by_hand: dict[str, Any]) -> None:
    for name, value in by_hand.items():
        setattr(cls, name, value)
