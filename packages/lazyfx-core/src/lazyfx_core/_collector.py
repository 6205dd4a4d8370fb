"""No garbage collection while a large graph is written or read.

Python looks at every object of the process each time their number has grown by a quarter. Writing
or reading a graph makes objects by the hundred thousand, next to none of them garbage, in a process
where torch alone holds as many: more than half of the time went into looking (5,000 nodes with
metadata: 338 ms to write, 121 without). So the collector is off for that long, which is well below
a second for all but the largest graphs. It stays as it is for small ones, and if it was off before.

The collector belongs to the whole process. Threads that pause it at once are counted, and a child
that was forked meanwhile gets it back. Only a thread that calls ``gc.disable()`` itself, just then,
finds it on again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORTH_IT = 1_000
BYTES_OF_A_NODE = 40
"""Of JSON, without metadata."""
# Reentrant: switching the collector on may run a finaliser, which may read a graph.
_lock = threading.RLock()
_pauses = 0
_was_on = False


@contextlib.contextmanager
def collector_paused(nodes: int) -> Iterator[None]:
    """Keep the collector from running in this block, if it is worth it. Thread-safe.

    Args:
        nodes: About how many nodes will be written or read.
    """
    if nodes < _WORTH_IT:
        yield
        return
    _pause()
    try:
        yield
    finally:
        _resume()


def _pause() -> None:
    global _pauses, _was_on
    with _lock:
        if _pauses == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _pauses += 1


def _resume() -> None:
    global _pauses
    with _lock:
        _pauses = max(0, _pauses - 1)
        if _pauses == 0 and _was_on:
            gc.enable()


def _after_fork() -> None:
    """In the child there are no threads that would end their pauses."""
    global _lock, _pauses
    _lock = threading.RLock()
    if _pauses and _was_on:
        gc.enable()
    _pauses = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
