"""Values as short text, for a diff. Generates no code, whatever graph modules are inside.

``repr`` is asked for values that cannot hold a graph module only: the ``repr`` of a data class
would print one, and the text of a graph module is its generated code.
"""

from __future__ import annotations

import enum
from collections import deque
from itertools import islice
from typing import Any

import torch
from torch import fx, nn

from ._objects import fields
from ._torch_values import describe_tensor

LONGEST = 100
"""Of how many characters a text has at most."""
_DEEPEST = 4
_PLAIN = (str, bytes, bytearray, int, float, complex, type, enum.Enum)


def show(value: object, depth: int = _DEEPEST) -> str:
    """``value`` as text. Never raises; what is nested too deeply or too long is cut."""
    try:
        text = _text(value, depth)
    except Exception as error:
        text = f"<{type(value).__name__}, whose text raised {type(error).__name__}>"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def kind_of(value: object) -> type:
    """The type, without the difference between fx's immutable containers and the builtin ones."""
    cls = type(value)
    if cls.__module__ == fx.immutable_collections.__name__:
        return list if isinstance(value, list) else dict
    return cls


def show_typed(value: object) -> str:
    """``value`` as text with the name of its type."""
    kind = kind_of(value)
    return f"{show(value)} ({kind.__module__}.{kind.__qualname__})".replace("builtins.", "")


def _text(value: Any, depth: int) -> str:
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, fx.Graph):
        return f"<{type(value).__name__}>"
    if isinstance(value, torch.Tensor):
        return describe_tensor(value)
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if depth == 0:
        return "..."
    if isinstance(value, dict):
        items = [f"{show(k, depth - 1)}: {show(v, depth - 1)}" for k, v in _first(value.items())]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return _sequence(value, [show(item, depth - 1) for item in _first(value)])
    if callable(value) and hasattr(value, "__name__"):
        module = getattr(value, "__module__", None)
        return f"{module}.{value.__name__}" if module else str(value)
    held = fields(value)
    if not held or type(value).__module__.startswith(("numpy", "sympy", "torch.utils._sympy")):
        return repr(value)
    items = [f"{name}={show(item, depth - 1)}" for name, item in _first(held.items())]
    return f"{type(value).__name__}({', '.join(items)})"


def _sequence(value: Any, items: list[str]) -> str:
    inside = ", ".join(items)
    if isinstance(value, list):
        return f"[{inside}]"
    if type(value) is tuple:
        return f"({inside}{',' if len(items) == 1 else ''})"
    return f"{type(value).__name__}({inside})"


def _first(items: Any) -> Any:
    return islice(items, LONGEST)
