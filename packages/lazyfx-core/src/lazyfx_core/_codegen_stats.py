"""Who asks for code, who needs it, and what it costs: counts of recompiles, on request.

A *recompile* is a moment at which ``fx.GraphModule`` generates code: a construction, an assigned
graph, a ``recompile()``. For a lazy module it only asks for code, which is *done* when somebody
looks, or *avoided* when nobody does before the next one. Plain modules do what they are asked;
they are counted too, through a wrapper of ``fx.GraphModule.recompile`` that is there while a block
is open.

Counting is process-wide (autograd compiles in threads of its own) and off by default: the hot
paths test one module-level name.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from torch import fx

from .errors import TooManyRecompilesError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from types import FrameType, TracebackType

_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
_open: list[RecompileStats] = []
collecting = False
"""Whether any block is open; read by the hot paths before they call :func:`asked`."""

# Modules that stand between a caller and a recompile in every stack.
_BETWEEN = (
    *("lazyfx_core", "torch.nn.modules.module", "torch.fx.graph_module", "copy", "contextlib"),
    *("torch.fx._lazy_graph_module", "torch._dynamo.mutation_guard"),
)
_REFINED = (
    *(("torch.jit", "script"), ("torch._dynamo", "dynamo"), ("torch.export", "export")),
    *(("torch.fx._symbolic_trace", "trace"), ("torch._export", "export"), ("inspect", "inspect")),
    *(("torch._jit_internal", "script"), ("torch.package", "package")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecompileCount:
    """Recompiles that share a cause or a caller; ``seconds`` went into generating."""

    asked: int = 0
    done: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecompileSnapshot:
    """What was counted up to one moment.

    Attributes:
        asked: Moments at which plain modules would have generated code. torch's own lazy modules
            are counted when they do generate, as plain ones.
        done: Generations that took place, those of plain modules included.
        plain: How many of ``done`` plain modules did.
        unchanged: Looks at a stale module whose graph turned out to be what it was.
        seconds: Spent generating, plain modules included.
        causes: What made generation necessary: ``call``, ``forward``, ``code``, ``script``,
            ``dynamo``, ``pickle``, ``plain`` …
        callers: The same by ``file:line`` of whoever asked (``asked``) or looked (``done``).
    """

    asked: int
    done: int
    plain: int
    unchanged: int
    seconds: float
    causes: Mapping[str, RecompileCount]
    callers: Mapping[str, RecompileCount]

    @property
    def avoided(self) -> int:
        """Recompiles that cost nothing, which is ``asked`` less ``done``.

        Not final, as a stale module may yet be looked at; and a module that was stale before the
        block and is looked at inside counts as done without having been asked for here.
        """
        return max(0, self.asked - self.done)

    def report(self, *, top: int = 10) -> str:
        """A table for a person: totals, then causes and callers, the most expensive first.

        Args:
            top: How many callers to list.
        """
        lines = [
            f"recompiles: {self.asked} asked for, {self.done} done ({self.plain} by plain "
            f"modules), {self.avoided} avoided, {self.unchanged} found unchanged; "
            f"{self.seconds * 1e3:.1f} ms generating"
        ]
        for title, table in (("cause", self.causes), ("caller", self.callers)):
            rows = sorted(table.items(), key=lambda i: (-i[1].seconds, -i[1].asked, i[0]))
            if not rows:
                continue
            lines += ["", f"{'asked':>8} {'done':>8} {'ms':>10}  {title}"]
            lines += [
                f"{count.asked:>8} {count.done:>8} {count.seconds * 1e3:>10.2f}  {name}"
                for name, count in rows[:top]
            ]
            if len(rows) > top:
                lines.append(f"{'':>28}  … and {len(rows) - top} more")
        return "\n".join(lines)


class RecompileStats:
    """An open count. Made by :func:`recompile_stats`; a context manager, usable once."""

    def __init__(self) -> None:
        self._asked: Counter[str] = Counter()
        self._done: Counter[tuple[str, str]] = Counter()
        self._seconds: Counter[tuple[str, str]] = Counter()
        self._unchanged = 0
        self._used = False

    def __enter__(self) -> Self:
        global collecting
        with _lock:
            if self._used:
                raise RuntimeError(
                    "this recompile_stats() block is open or was used already; call "
                    "recompile_stats() again for a second count"
                )
            self._used = True
            if not _open:
                _watch_plain_modules()
            _open.append(self)
            collecting = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global collecting
        with _lock:
            if self in _open:
                _open.remove(self)
            if not _open:
                collecting = False
                _stop_watching()

    def snapshot(self) -> RecompileSnapshot:
        """What was counted so far, as a value that does not change any more."""
        with _lock:
            asked, done, seconds = self._asked.copy(), self._done.copy(), self._seconds.copy()
            unchanged = self._unchanged
        return RecompileSnapshot(
            asked=asked.total(),
            done=done.total(),
            plain=sum(n for (cause, _), n in done.items() if cause == "plain"),
            unchanged=unchanged,
            seconds=sum(seconds.values()),
            causes=_grouped(Counter(), done, seconds, 0),
            callers=_grouped(asked, done, seconds, 1),
        )

    def report(self, *, top: int = 10) -> str:
        """:meth:`RecompileSnapshot.report` of what was counted so far."""
        return self.snapshot().report(top=top)


def recompile_stats() -> RecompileStats:
    """Count recompiles in a ``with`` block: asked for, done, avoided, by cause and by caller.

    Counts all graph modules of the process, in all threads, also plain ones. Blocks may nest and
    overlap; each counts on its own. Entering wraps ``fx.GraphModule.recompile``; leaving the last
    block takes the wrapper off.

    Example:
        >>> import torch
        >>> from torch import fx
        >>> from lazyfx_core import LazyGraphModule, recompile_stats
        >>> graph = fx.symbolic_trace(lambda x: torch.sin(x)).graph
        >>> with recompile_stats() as stats:
        ...     gm = LazyGraphModule({}, graph)
        ...     _ = gm.recompile(), gm.recompile(), gm(torch.zeros(2))
        >>> counted = stats.snapshot()
        >>> counted.asked, counted.done, counted.avoided
        (3, 1, 2)
    """
    return RecompileStats()


def assert_max_recompiles(most: int) -> AbstractContextManager[RecompileStats]:
    """Fail if a ``with`` block generates code more than ``most`` times. For tests and CI.

    Counts what :func:`recompile_stats` counts as ``done``. An exception raised inside the block
    passes through unchanged.

    Args:
        most: The number of generations allowed.

    Raises:
        TypeError: ``most`` is not an int.
        ValueError: ``most`` is negative.
        TooManyRecompilesError: At the end of the block; an ``AssertionError`` whose message holds
            the report.
    """
    if isinstance(most, bool) or not isinstance(most, int):
        raise TypeError(f"assert_max_recompiles(most) takes an int, got {most!r}")
    if most < 0:
        raise ValueError(f"assert_max_recompiles(most) takes 0 or more, got {most}")
    return _at_most(most)


@contextmanager
def _at_most(most: int) -> Iterator[RecompileStats]:
    with RecompileStats() as stats:
        yield stats
    seen = stats.snapshot()
    if seen.done > most:
        raise TooManyRecompilesError(
            f"expected at most {most} code generations, saw {seen.done}; look at the callers "
            f"below, or raise the limit\n{seen.report()}"
        )


def asked() -> None:
    """Count a recompile that a lazy module was asked for. Call only while ``collecting``."""
    place = _place(_caller())
    with _lock:
        for stats in _open:
            stats._asked[place] += 1


def generated(cause: str, seconds: float) -> None:
    """Count a generation by a lazy module. Call only while ``collecting``."""
    frame = _caller()
    name = "" if frame is None else frame.f_globals.get("__name__", "")
    key = (next((c for package, c in _REFINED if _is_in(name, (package,))), cause), _place(frame))
    with _lock:
        for stats in _open:
            stats._done[key] += 1
            stats._seconds[key] += seconds  # type: ignore[assignment]


def unchanged() -> None:
    """Count a look that needed no generation after all. Call only while ``collecting``."""
    with _lock:
        for stats in _open:
            stats._unchanged += 1


_plain_recompile: Any = None


class _PlainNow(threading.local):
    """The plain modules this thread is recompiling, and the seconds their children took."""

    def __init__(self) -> None:
        self.modules: list[fx.GraphModule] = []
        self.children = 0.0


_plain_now = _PlainNow()


def _watch_plain_modules() -> None:
    global _plain_recompile
    from ._graph_module import LazyGraphModule

    kept = fx.GraphModule.recompile
    clock = time.perf_counter

    def recompile(self: fx.GraphModule) -> Any:
        inside = _plain_now.modules
        if isinstance(self, LazyGraphModule) or self in inside or not collecting:
            # Counted where it was asked for; or by another wrapper of ours, around a patch that
            # somebody made and left in place.
            return kept(self)
        inside.append(self)
        outer, _plain_now.children = _plain_now.children, 0.0
        start = clock()
        try:
            code = kept(self)
        finally:
            inside.pop()
            elapsed = clock() - start
            seconds = elapsed - _plain_now.children  # those count their own
            _plain_now.children = outer + elapsed
        place = _place(_caller())
        with _lock:
            for stats in _open:
                stats._asked[place] += 1
                stats._done["plain", place] += 1
                stats._seconds["plain", place] += seconds  # type: ignore[assignment]
        return code

    _plain_recompile = (kept, recompile)
    fx.GraphModule.recompile = recompile  # type: ignore[method-assign]


def _stop_watching() -> None:
    kept, ours = _plain_recompile
    if vars(fx.GraphModule).get("recompile") is ours:
        fx.GraphModule.recompile = kept  # type: ignore[method-assign]


def _caller() -> FrameType | None:
    """The nearest frame that belongs neither to lazyfx-core nor to the machinery around it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        _is_in(frame.f_globals.get("__name__", ""), _BETWEEN)
        or frame.f_code.co_filename.startswith("<eval_with_key>")
    ):
        frame = frame.f_back
    return frame


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _place(frame: FrameType | None) -> str:
    return "unknown" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _grouped(
    asked: Counter[str],
    done: Counter[tuple[str, str]],
    seconds: Counter[tuple[str, str]],
    position: int,
) -> dict[str, RecompileCount]:
    pick: Callable[[tuple[str, str]], str] = lambda key: key[position]  # noqa: E731
    names = {*asked, *map(pick, done)}
    return {
        name: RecompileCount(
            asked=asked[name],
            done=sum(n for key, n in done.items() if pick(key) == name),
            seconds=sum(s for key, s in seconds.items() if pick(key) == name),
        )
        for name in sorted(names)
    }
