"""What an object holds that is neither a container nor a tensor, so that two can be compared.

``==`` of most classes is no help: it compares identity, or ``1`` with ``True``, or asks tensors
for one truth value. So the attributes are compared, in ``__dict__`` and in slots, without those
that only remember what was worked out from others (``functools.cached_property``). A class that
says itself how its objects are rebuilt (``__reduce__``: dates, paths, deques, partial functions) is
taken at its word instead. Only where neither is possible is ``==`` left.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from typing import Any

from ._torch_values import cached_fields


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
