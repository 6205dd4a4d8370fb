"""Stale to fresh and back: the two transitions of a lazy module, under one lock.

*Stale*: the class of the module holds the descriptors of :mod:`lazyfx_core._forward`, the fields
that generation writes are absent. *Fresh*: the class holds the generated functions. Whatever
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
from ._instance_class import QUALNAME, Generated, own_classes, own_state
from ._snapshot import is_unchanged, take_snapshot
from ._structure import check_graph
from ._torch_fx import GENERATED_FIELDS
from ._torch_graph import node_count
from ._torch_sources import release_with
from .errors import CodeGenerationError

if TYPE_CHECKING:
    from torch.fx.graph import PythonCode

    from ._graph_module import LazyGraphModule


def mark_stale(module: LazyGraphModule) -> PythonCode:
    """Make every look generate, in constant time. Call with the generation lock held."""
    cls = type(module)
    if cls.__qualname__ != QUALNAME:  # somebody subclassed the instance's class
        for owned in own_classes(cls):
            owned.forward, owned.__call__ = STALE_FORWARD, STALE_CALL  # type: ignore[assignment]
            own_state(owned).stale = True
    attributes = cls.__dict__
    if attributes.get("forward") is not STALE_FORWARD:
        cls.forward = STALE_FORWARD  # type: ignore[assignment]
    if attributes.get("__call__") is not STALE_CALL:
        cls.__call__ = STALE_CALL  # type: ignore[assignment]
    state = cls._lazyfx
    held = module.__dict__
    if not state.stale or state.unasked or held.get("_code", "absent") is not None:
        state.unasked = False
        state.stale = True  # not before the descriptors are in place: an interrupt may come
        for name in GENERATED_FIELDS:
            held[name] = None  # stale values must not be readable
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
            if made is None or not is_unchanged(made.snapshot, module._graph):
                made = state.generated = _generate_anew(module, cls, cause)
            elif _codegen_stats.collecting and state.stale:
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
        made = cls._lazyfx.generated
        if cls._lazyfx.stale or made is None:
            return
        if cls.__dict__.get("forward") is STALE_FORWARD:
            cls.forward = made.forward
        if cls.__dict__.get("__call__") is STALE_CALL:
            cls.__call__ = made.call  # type: ignore[method-assign]


def _generate_anew(module: LazyGraphModule, cls: type[LazyGraphModule], cause: str) -> Generated:
    """Let torch generate, and take what it made."""
    start = time.perf_counter() if _codegen_stats.collecting else None
    check_graph(module._graph)
    try:
        code = module._generate_with_torch()
    except Exception as error:
        raise CodeGenerationError(
            f"torch could not generate code for {cls.__name__!r}: "
            f"{type(error).__name__}: {error}; the module stays stale: mend its graph and "
            "look again (gm.graph.lint() and print(gm.graph) may help)"
        ) from error
    made = Generated(
        take_snapshot(module._graph),
        code,
        {name: vars(module)[name] for name in GENERATED_FIELDS},
        vars(cls)["forward"],
        vars(cls)["__call__"],
    )
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
