"""The seam to torch's caches of generated source, so that a source lives as long as its code.

torch keeps the text of everything it ever generated in two dictionaries, its own loader's and
``linecache``, under a name that is used once. Nothing is ever removed: 11.7 MB for a thousand
recompiles of a 200-node graph. Here an entry goes when the *code object* it belongs to is freed,
so a traceback, ``inspect.getsource`` or a saved ``forward`` still shows its lines as long as
anybody can run it.

``linecache`` refuses names that look like ``<…>``, and that of a traced lambda does
(``<eval_with_key>.0 from file.py:1 in <lambda>``): it can then not be scripted and a traceback
shows none of its lines. Such entries are made here.

A code object may be freed anywhere, inside ``linecache`` itself too; the entries of dead ones are
therefore removed by the next generation, not by the garbage collector.

=================================================  =========================================
private name                                       used for
=================================================  =========================================
``graph_module._loader.eval_cache``                torch's own copy of every source
=================================================  =========================================

Where a release has no such loader, its copy cannot be released and only ``linecache`` is.
"""

from __future__ import annotations

import linecache
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from torch.fx import graph_module as _torch_module

if TYPE_CHECKING:
    from types import CodeType

_ONCE = "<eval_with_key>"  # names that are used again, by content, belong to nobody
_alive: dict[str, weakref.ref[CodeType]] = {}
_dead: deque[str] = deque()


def release_with(code: CodeType) -> None:
    """Forget the source of ``code`` once ``code`` is freed, and that of what was freed before.

    Call with the generation lock held.
    """
    name = code.co_filename
    if name.startswith(_ONCE):
        _alive[name] = weakref.ref(code, lambda _: _dead.append(name))
    sources: Any = getattr(getattr(_torch_module, "_loader", None), "eval_cache", {})
    if name not in linecache.cache and name in sources:
        text = sources[name]
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    while _dead:
        gone = _dead.popleft()
        _alive.pop(gone, None)
        sources.pop(gone, None)
        linecache.cache.pop(gone, None)
