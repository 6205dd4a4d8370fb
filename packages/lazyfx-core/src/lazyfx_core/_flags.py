"""Who may make lazy modules: two context managers, the rule that joins them, and a factory.

The settings in force form a stack in a ``contextvars.ContextVar``, so threads and asyncio tasks
never see each other's. A block takes its own entry off the stack when it ends, wherever in the
stack it is by then: blocks may end in any order.

The rule, first match wins:

1. torch is inside its own ``_force_skip_lazy_graph_module``: plain.
2. any :func:`force_skip_lazy_graph_module` is in force: plain.
3. the innermost :func:`use_lazy_graph_module` in force says, and whether it says so for direct
   calls of ``fx.GraphModule(...)`` too.
4. nothing is in force: torch decides. (Its own ``False`` cannot be told from its default, which is
   why an explicit setting of ours wins over it.)

**Generators.** Python runs a generator in the context of whoever asks for its next value, so a
context variable set inside leaks to the caller while the generator is suspended. A block that was
entered in a generator is in force only while that generator runs. The exception is a generator
that *is* a context manager (``contextlib.contextmanager``, a pytest fixture): it is suspended
precisely so that its caller sees the setting, and the block counts as the caller's. What is still
the case: a block that a function enters for the generator that called it (an ``ExitStack`` passed
down) counts as the caller's, and a generator that is resumed in another thread or task than the one
it entered the block in does not take the block along.
"""

from __future__ import annotations

import functools
import inspect
import sys
from contextlib import ContextDecorator, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from torch import fx

from . import _torch_fx
from ._graph_module import LazyGraphModule
from ._structure import check_targets_exist, describe, require_parts
from .errors import NotAGraphModuleError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

    from torch import nn

_F = TypeVar("_F", bound="Callable[..., Any]")
_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
# Whoever drives a generator from here does so to use it as a context manager.
_CONTEXT_MANAGERS = ("contextlib", "_pytest.", "pluggy.", "pytest_asyncio", "anyio.")
_ENTERING = frozenset({"__enter__", "__aenter__", "enter_context", "enter_async_context"})


class _Entry(NamedTuple):
    """One entered block, and the generator without which it is not in force."""

    setting: _Setting
    generator: FrameType | None


class _Setting(ContextDecorator):
    """One block's wish. Reusable and reentrant: entering adds an entry, leaving takes it off."""

    __slots__ = ("everywhere", "lazy", "skip")

    def __init__(self, *, lazy: bool, skip: bool = False, everywhere: bool = False) -> None:
        self.lazy = lazy
        self.skip = skip
        self.everywhere = everywhere

    def __enter__(self) -> Self:
        _torch_fx.install(choose_class)
        if self.everywhere:
            _torch_fx.install_wide(class_for_direct_calls)
        entry = _Entry(self, _enclosing_generator(sys._getframe(1)))
        _entered.set((*_entered.get(), entry))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entries = list(_entered.get())
        generator = _enclosing_generator(sys._getframe(1))
        mine = [place for place, entry in enumerate(entries) if entry.setting is self]
        here = [place for place in mine if entries[place].generator is generator]
        if mine:
            del entries[(here or mine)[-1]]
        _entered.set(tuple(entries))

    def __call__(self, function: _F) -> _F:
        """Decorate a function, a coroutine function or a generator function.

        Raises:
            TypeError: It is an async generator function.
        """
        if inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{self!r} cannot decorate the async generator {function.__qualname__!r}; use "
                f"`with {self!r}:` inside of it"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

        elif inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return (yield from function(*args, **kwargs))

        else:
            return super().__call__(function)
        return run  # type: ignore[return-value]

    def __repr__(self) -> str:
        if self.skip:
            return "force_skip_lazy_graph_module()"
        return f"use_lazy_graph_module({self.lazy}{', everywhere=True' * self.everywhere})"


_entered: ContextVar[tuple[_Entry, ...]] = ContextVar("lazyfx_entered", default=())


def use_lazy_graph_module(should_use: bool = True, *, everywhere: bool = False) -> _Setting:
    """While entered, torch builds :class:`LazyGraphModule` (or, with ``False``, plain modules).

    Works as a ``with`` block and as a decorator; reaches ``symbolic_trace``, ``make_fx``,
    ``Transformer``, Dynamo, the AOT partitioners (the backward graph of the min-cut one only with
    ``everywhere=True``), ``split_module`` and unpickling of plain modules, in this thread, asyncio
    task or generator only.

    Args:
        should_use: ``True`` for lazy modules, ``False`` for plain ones even where torch would
            make its own lazy class.
        everywhere: Also reach code that calls ``fx.GraphModule(...)`` by itself, as some 75 places
            in torch do; subclasses of ``fx.GraphModule`` build what they are. Wraps
            ``fx.GraphModule.__new__`` until :func:`remove_seam`.

    Raises:
        TypeError: ``should_use`` or ``everywhere`` is not a bool.
        ValueError: ``everywhere=True`` with ``should_use=False``: a direct call builds a plain
            module anyway.
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
    if not isinstance(everywhere, bool):
        raise TypeError(
            f"use_lazy_graph_module(everywhere=...) takes True or False, got {everywhere!r}"
        )
    if everywhere and not should_use:
        raise ValueError(
            "use_lazy_graph_module(False, everywhere=True): a direct fx.GraphModule(...) is plain "
            "anyway; leave everywhere out, or pass True first"
        )
    return _Setting(lazy=should_use, everywhere=everywhere)


def force_skip_lazy_graph_module() -> _Setting:
    """While entered, plain ``fx.GraphModule`` is built, whatever any other setting says.

    Works as a ``with`` block and as a decorator, in this thread or asyncio task only.

    Raises:
        SeamError: On entering, if this release of torch cannot be reached.
    """
    return _Setting(lazy=False, skip=True)


def choose_class(torchs_choice: Callable[[], type[fx.GraphModule]]) -> type[fx.GraphModule]:
    """The class to build now, by the rule at the top of this module."""
    settings = _in_force()
    if not settings:
        return torchs_choice()
    return LazyGraphModule if _want_lazy(settings) else fx.GraphModule


def class_for_direct_calls() -> type[fx.GraphModule] | None:
    """What a direct ``fx.GraphModule(...)`` builds instead now; None for what it says."""
    settings = _in_force()
    if settings and settings[-1].everywhere and _want_lazy(settings):
        return LazyGraphModule
    return None


def _want_lazy(settings: list[_Setting]) -> bool:
    if _torch_fx.torch_forbids_laziness() or any(setting.skip for setting in settings):
        return False
    return settings[-1].lazy


def _in_force() -> list[_Setting]:
    """The settings of this context whose generators, if any, are running now; innermost last."""
    entries = _entered.get()
    if all(entry.generator is None for entry in entries):
        return [entry.setting for entry in entries]
    running = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        running.add(frame)
        frame = frame.f_back
    return [e.setting for e in entries if e.generator is None or e.generator in running]


def _enclosing_generator(frame: FrameType | None) -> FrameType | None:
    """The generator that a block entered in ``frame`` belongs to, or None."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_CONTEXT_MANAGERS) or frame.f_code.co_name in _ENTERING:
            frame = frame.f_back
        elif frame.f_code.co_flags & _GENERATOR:
            driver = frame.f_back
            if driver is None or not (
                driver.f_code.co_name in _ENTERING
                or driver.f_globals.get("__name__", "").startswith(_CONTEXT_MANAGERS)
            ):
                return frame
            frame = driver
        else:
            return None
    return None


def get_graph_module_cls() -> type[fx.GraphModule]:
    """The class that ``make_graph_module`` and torch build in this context, now."""
    return choose_class(_torch_fx.torchs_choice)


def make_graph_module(
    root: nn.Module | dict[str, Any],
    graph: fx.Graph,
    class_name: str = "GraphModule",
    *,
    graph_module_cls: type[fx.GraphModule] | None = None,
) -> fx.GraphModule:
    """Build a graph module of ``graph_module_cls``, or of the class the flags ask for.

    Args:
        root: See :class:`LazyGraphModule`.
        graph: See :class:`LazyGraphModule`.
        class_name: See :class:`LazyGraphModule`.
        graph_module_cls: ``fx.GraphModule`` or a subclass; overrides every flag.

    Raises:
        NotAGraphModuleError: ``graph_module_cls`` is not a class of graph modules, or ``root`` or
            ``graph`` is of the wrong kind.
        InvalidGraphError: A node refers to something ``root`` does not have.

    Example:
        >>> import torch
        >>> graph = fx.symbolic_trace(lambda x: torch.sin(x)).graph
        >>> type(make_graph_module({}, graph, graph_module_cls=fx.GraphModule)).__mro__[1]
        <class 'torch.fx.graph_module.GraphModule'>
    """
    cls = get_graph_module_cls() if graph_module_cls is None else graph_module_cls
    if not (isinstance(cls, type) and issubclass(cls, fx.GraphModule)):
        raise NotAGraphModuleError(
            "make_graph_module(graph_module_cls=...) takes torch.fx.GraphModule or a subclass, "
            f"got {describe(cls)}; leave it out to let the flags decide"
        )
    require_parts("make_graph_module", root, graph)
    forced = graph_module_cls is fx.GraphModule and _torch_fx.wide_installed()
    try:
        with force_skip_lazy_graph_module() if forced else nullcontext():
            return cls(root, graph, class_name)
    except (AttributeError, KeyError, RuntimeError):
        if cls.__init__ is fx.GraphModule.__init__:
            check_targets_exist(root, graph)  # says it better, if that is what went wrong
        raise


def remove_seam() -> None:
    """Undo the one patch of torch that the flags install on first use.

    Flags set after this install it again. Thread-safe.

    Raises:
        SeamError: Somebody else patched the same function later.
    """
    _torch_fx.remove()


def seam_installed() -> bool:
    """Whether torch asks lazyfx-core which class to build (true after the first use of a flag)."""
    return _torch_fx.installed()
