"""Who may make lazy modules: two context managers, and the rule that joins them.

The settings in force form a stack in a ``contextvars.ContextVar``, so threads and asyncio tasks
never see each other's. A block takes its own entry off the stack when it ends, wherever in the
stack it is by then: blocks may end in any order.

The rule, first match wins:

1. torch is inside its own ``_force_skip_lazy_graph_module``: plain.
2. any :func:`force_skip_lazy_graph_module` is in force: plain.
3. the innermost :func:`use_lazy_graph_module` in force says.
4. nothing is in force: torch decides. (Its own ``False`` cannot be told from its default, which is
   why an explicit setting of ours wins over it.)
"""

from __future__ import annotations

from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

from torch import fx

from . import _torch_fx
from ._graph_module import LazyGraphModule

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class _Setting(ContextDecorator):
    """One block's wish. Reusable and reentrant: entering adds an entry, leaving takes it off."""

    __slots__ = ("lazy", "skip")

    def __init__(self, *, lazy: bool, skip: bool) -> None:
        self.lazy = lazy
        self.skip = skip

    def __enter__(self) -> Self:
        _torch_fx.install(choose_class)
        _in_force.set((*_in_force.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entries = list(_in_force.get())
        for position in range(len(entries) - 1, -1, -1):
            if entries[position] is self:
                del entries[position]
                break
        _in_force.set(tuple(entries))

    def __repr__(self) -> str:
        if self.skip:
            return "force_skip_lazy_graph_module()"
        return f"use_lazy_graph_module({self.lazy})"


_in_force: ContextVar[tuple[_Setting, ...]] = ContextVar("lazyfx_in_force", default=())


def use_lazy_graph_module(should_use: bool = True) -> _Setting:
    """While entered, torch builds :class:`LazyGraphModule` (or, with ``False``, plain modules).

    Works as a ``with`` block and as a decorator; reaches ``symbolic_trace``, ``make_fx``,
    ``Transformer``, Dynamo, the AOT partitioners, ``split_module`` and unpickling of plain
    modules, in this thread or asyncio task only. It does not reach code that calls
    ``fx.GraphModule(...)`` by itself.

    Args:
        should_use: ``True`` for lazy modules, ``False`` for plain ones even where torch would
            make its own lazy class.

    Raises:
        TypeError: ``should_use`` is not a bool.
        SeamError: On entering, if this release of torch cannot be reached.

    Example:
        >>> import torch
        >>> from torch import fx
        >>> with use_lazy_graph_module(True):
        ...     gm = fx.symbolic_trace(lambda x: torch.sin(x))
        >>> isinstance(gm, LazyGraphModule), gm.needs_recompile
        (True, True)
    """
    if not isinstance(should_use, bool):
        raise TypeError(
            f"use_lazy_graph_module(should_use) takes True or False, got {should_use!r}"
        )
    return _Setting(lazy=should_use, skip=False)


def force_skip_lazy_graph_module() -> _Setting:
    """While entered, plain ``fx.GraphModule`` is built, whatever any other setting says.

    Works as a ``with`` block and as a decorator, in this thread or asyncio task only.

    Raises:
        SeamError: On entering, if this release of torch cannot be reached.
    """
    return _Setting(lazy=False, skip=True)


def choose_class(torchs_choice: Callable[[], type[fx.GraphModule]]) -> type[fx.GraphModule]:
    """The class to build now, by the rule at the top of this module."""
    entries = _in_force.get()
    if not entries:
        return torchs_choice()
    if _torch_fx.torch_forbids_laziness() or any(entry.skip for entry in entries):
        return fx.GraphModule
    return LazyGraphModule if entries[-1].lazy else fx.GraphModule
