"""Python code about objects, put together part by part and written out.

Going through lists of objects takes twice as long as python that names each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Condition:
    """What must hold, all of it, and functions that ask."""

    def __init__(self) -> None:
        self._parts: dict[str, None] = {}
        self._names: dict[int, str] = {}
        self._objects: dict[str, Any] = {}

    def add(self, pattern: str, *objects: Any) -> None:
        """One more part: ``{}`` stands for each object in turn."""
        self._parts[self.written(pattern, *objects)] = None

    def same(self, owner: dict[str, Any], key: str) -> None:
        """One more part: a dictionary holds the very object that it holds now."""
        self.add(f"{{}}[{key!r}] is {{}}", owner, owner[key])

    def written(self, pattern: str, *objects: Any) -> str:
        """Code that is no part of the condition, with names for objects."""
        return pattern.format(*map(self._name, objects))

    def __str__(self) -> str:
        return f"({' and '.join(self._parts) or 'True'})"

    def function(self, arguments: str, *body: str) -> Callable[..., Any]:
        """A function of some lines of code, which may name :meth:`written` objects."""
        source = f"def written({arguments}):\n" + "".join(f"    {line}\n" for line in body)
        exec(source, self._objects)
        found: Callable[..., Any] = self._objects["written"]
        return found

    def _name(self, one: Any) -> str:
        if one is None or one is True or one is False:
            return repr(one)
        name = self._names.setdefault(id(one), f"o{len(self._names)}")
        self._objects[name] = one  # so that its id stays its own
        return name
