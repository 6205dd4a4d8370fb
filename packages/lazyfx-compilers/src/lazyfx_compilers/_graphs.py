"""Compiled graphs by key, made one at a time."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from . import _torch_aot

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_GRAPHS = 8
"""How many compiled graphs one function or module keeps; the one unused longest is dropped."""

_log = logging.getLogger(__name__)


class Graphs:
    """At most :data:`MAX_GRAPHS` compiled functions, the least recently used one dropped.

    Args:
        compile_one: Makes a function that compiles itself when first called.
        name: Of what is compiled, for the log.
    """

    def __init__(self, compile_one: Callable[[], Callable[..., Any]], name: str) -> None:
        self._compile_one = compile_one
        self._name = name
        self._dropped = 0
        self._by_key: OrderedDict[Any, Callable[..., Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: Any) -> Callable[..., Any]:
        """The function for this key, a new one if there is none. Thread-safe."""
        with self._lock:
            found = self._by_key.get(key)
            if found is None:
                found = self._by_key[key] = _Once(self._compile_one())
                if len(self._by_key) > MAX_GRAPHS:
                    self._by_key.popitem(last=False)
                    self._dropped += 1
                    if self._dropped == 1:
                        _log.warning(
                            "%s has been compiled for more than %d kinds of call, and compiling "
                            "is slow: do its shapes, Python arguments or attributes change at "
                            "each call? (said once)",
                            self._name,
                            MAX_GRAPHS,
                        )
            else:
                self._by_key.move_to_end(key)
        return found


class _Once:
    """Serializes the calls of an ``aot_function`` until its first one has compiled it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._ready = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._ready:
            return self._function(*args, **kwargs)
        with _torch_aot.compile_lock():
            result = self._function(*args, **kwargs)
            self._ready = True
        return result
