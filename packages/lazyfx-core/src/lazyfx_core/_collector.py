"""No garbage collection while a large graph is written or read.

Python looks at every object of the process each time their number has grown by a quarter. Writing
or reading a graph makes objects by the hundred thousand, next to none of them garbage, in a process
where torch alone holds as many: more than half of the time went into looking (5,000 nodes with
metadata: 338 ms to write, 121 without). So the collector is off for that long, which is well below
a second for all but the largest graphs. It stays as it is for small ones, and if it was off before.

The collector belongs to the whole process, so nothing here may leave it off. Each pause switches it
on again if it found it on; one that finds it off, in another thread's pause, leaves that to the
other. There is no lock, which an interrupt could leave locked: threads that overlap may at worst
see the collector run. A pause ends when it dies, too, since Ctrl-C may come between any two lines,
and in the child of a process that forks meanwhile. Only a thread that calls ``gc.disable()``
itself, just then, finds it on again.
"""

from __future__ import annotations

import contextlib
import gc
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORTH_IT = 1_000
BYTES_OF_A_NODE = 40
"""Of JSON, without metadata."""

_pausing: set[int] = set()  # the pauses that will switch it on again


class _Pause:
    def begin(self) -> None:
        if gc.isenabled():
            _pausing.add(id(self))
            gc.disable()

    def end(self) -> None:
        if id(self) in _pausing:
            gc.enable()
            _pausing.discard(id(self))

    __del__ = end


@contextlib.contextmanager
def collector_paused(nodes: int) -> Iterator[None]:
    """Keep the collector from running in this block, if it is worth it. Thread-safe.

    Args:
        nodes: About how many nodes will be written or read.
    """
    if nodes < _WORTH_IT:
        yield
        return
    pause = _Pause()
    try:
        pause.begin()
        yield
    finally:
        pause.end()


def _in_forked_child() -> None:
    """There are no other threads here that would end their pauses."""
    if _pausing:
        gc.enable()
        _pausing.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
