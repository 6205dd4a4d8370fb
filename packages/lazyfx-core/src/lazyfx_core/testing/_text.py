"""Values as short text, and what they hold, for a diff.

Nothing here generates code, whatever graph modules are inside. ``repr`` is asked for values that
cannot hold a graph module only: the ``repr`` of a data class would print one, and the text of a
graph module is its generated code.

:func:`parts` says what an object holds that is neither a container nor a tensor. ``==`` of most
classes is no help: it compares identity, or ``1`` with ``True``, or asks tensors for one truth
value. So the attributes are compared, in ``__dict__`` and in slots, without those that only
remember what was worked out from others (``functools.cached_property``). A class that says itself
how its objects are rebuilt (``__reduce__``: dates, paths, deques, partial functions) is taken at
its word instead. Only where neither is possible is ``==`` left.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import types
from collections import deque
from itertools import islice
from typing import Any

import torch
from torch import fx, nn

from ._torch_values import cached_fields, describe_tensor


def fields(value: object) -> dict[str, Any]:
    """Attributes in ``__dict__`` and slots, except what is cached in them. Runs no user code."""
    cls = type(value)
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            if isinstance(member, types.MemberDescriptorType):
                try:
                    found[name] = member.__get__(value, cls)
                except AttributeError:
                    continue  # a slot nobody filled
    with contextlib.suppress(AttributeError):
        found.update(object.__getattribute__(value, "__dict__"))
    cached = cached_fields(cls)
    return {
        name: item for name, item in found.items() if name not in cached and not _cached(cls, name)
    }


def parts(value: object) -> tuple[Any, ...] | dict[str, Any] | None:
    """What two objects of one class have to agree in; None if only ``==`` can tell.

    Returns:
        A dictionary of attributes, in no order that means anything, or the parts that rebuild the
        object.
    """
    cls = type(value)
    rebuilds = (
        cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__
    )
    try:
        if not rebuilds and getattr(cls, "__getstate__", None) is not object.__getstate__:
            return fields(value)
        reduced: Any = value.__reduce_ex__(4)
    except Exception:
        return None  # it holds something that Python cannot see, or must not be rebuilt
    if not rebuilds:
        return fields(value)
    if isinstance(reduced, str):
        return None  # something global, of which there is one
    # Contents come as iterators, which are used up by looking.
    return tuple(
        list(item) if index in (3, 4) and item is not None else item
        for index, item in enumerate(reduced)
    )


def _cached(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name, None), functools.cached_property)


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
