"""The check for people who forget ``recompile()``: is the code still that of the graph?

``fx`` runs old code after an edit that nobody announced, without a word. A *verified* module keeps
its descriptors while fresh, and each look at ``forward`` or ``__call__`` compares the graph with
the snapshot its code was made from. That is a pass over the nodes, so it has to be asked for.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from torch import fx

from . import _snapshot
from ._forward import GENERATION_LOCK, STALE_CALL, STALE_FORWARD
from ._structure import describe
from .errors import NotAGraphModuleError, StaleGraphError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._graph_module import LazyGraphModule

_verifying: ContextVar[bool] = ContextVar("lazyfx_verifying", default=False)


def asked_for() -> bool:
    """Whether modules built in this context are to be verified."""
    return _verifying.get()


@contextmanager
def verify_graphs(*modules: fx.GraphModule) -> Iterator[None]:
    """Raise when a module runs code that is older than its graph.

    Args:
        modules: The lazy modules to watch while the block is open; each call of theirs, and each
            look at their ``forward``, compares the graph with the code. Without any: every lazy
            module built in the block, in this thread or asyncio task, for as long as it lives.

    Raises:
        NotAGraphModuleError: A module is not a ``LazyGraphModule``; a plain one has nothing to
            hook into.
        StaleGraphError: From the call in question, not from leaving the block. Names the node that
            was edited.

    Example:
        >>> import torch
        >>> from lazyfx_core import LazyGraphModule
        >>> gm = LazyGraphModule({}, fx.symbolic_trace(lambda x: torch.sin(x)).graph)
        >>> with verify_graphs(gm):
        ...     _ = gm(torch.zeros(2))
        ...     gm.graph.find_nodes(op="call_function", target=torch.sin)[0].target = torch.cos
        ...     gm(torch.zeros(2))
        Traceback (most recent call last):
            ...
        lazyfx_core.errors.StaleGraphError: the graph of 'GraphModule' was edited after its code \
was generated, and recompile() was not called: node 'sin' (call_function): target was sin, is cos; \
call gm.recompile() after editing
    """
    from ._graph_module import LazyGraphModule

    for position, module in enumerate(modules):
        if not isinstance(module, LazyGraphModule):
            raise NotAGraphModuleError(
                f"verify_graphs() argument {position} is {describe(module)}; expected a "
                "LazyGraphModule: make one with LazyGraphModule.from_graphmodule(gm)"
            )
    if not modules:
        token = _verifying.set(True)
        try:
            yield
        finally:
            _verifying.reset(token)
        return
    watched = [m for m in modules if not type(m).__lazyfx__.verify]  # type: ignore[attr-defined]
    for module in watched:
        set_verified(module, True)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module in watched:
            set_verified(module, False)  # type: ignore[arg-type]


def set_verified(module: LazyGraphModule, verify: bool) -> None:
    """Switch verification of one module on or off, whatever state it is in."""
    with GENERATION_LOCK:
        cls = type(module)
        state = cls.__lazyfx__
        state.verify = verify
        made = state.generated
        if state.stale or made is None:
            return
        # What was set by hand stays.
        if vars(cls).get("forward") in (made.forward, STALE_FORWARD):
            cls.forward = STALE_FORWARD if verify else made.forward  # type: ignore[assignment]
        if vars(cls).get("__call__") in (made.call, STALE_CALL):
            cls.__call__ = STALE_CALL if verify else made.call  # type: ignore[assignment]


def check(module: LazyGraphModule) -> None:
    """Raise :class:`StaleGraphError` if the graph is not the one the code was made from."""
    made = type(module).__lazyfx__.generated
    if made is None:
        return
    snapshot = _snapshot.kept_snapshot(module.graph, made)
    change: str | None = "it was replaced by another graph"
    if snapshot is not None:
        change = _snapshot.describe_change(snapshot, module.graph)
    if change is not None:
        raise StaleGraphError(
            f"the graph of {type(module).__name__!r} was edited after its code was generated, and "
            f"recompile() was not called: {change}; call gm.recompile() after editing"
        )
