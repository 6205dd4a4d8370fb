"""What python code reads that is neither argument nor model: globals, and variables of closures.

A capture holds what the code did with their values. So the names that the code of a model mentions
are looked at before each call: are they still bound to the same objects? What changes inside such
an object (an entry of a dict of settings, say) is not seen.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ._condition import Condition
from ._python import is_torchs


def unchanged(model: Callable[..., Any]) -> Callable[[], bool]:
    """A function that says whether names outside of a model mean what they mean now.

    It raises KeyError or ValueError if one is gone.
    """
    condition = Condition()
    seen: set[int] = set()
    waiting = list(_functions(model))
    while waiting:
        function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for owner, name in _globals(function):
            value = owner[name]
            if not isinstance(value, types.ModuleType):
                condition.same(owner, name)
                waiting += _functions(value)
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            condition.add("{}.cell_contents is {}", cell, value)
            waiting += _functions(value)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            waiting += _functions(default)
    return condition.function("", f"return {condition}")


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The python functions that a call of a value may run; torch's own are left out."""
    value = inspect.unwrap(value) if isinstance(value, types.FunctionType) else value
    if isinstance(value, types.MethodType):
        yield from _functions(value.__func__)
        yield from _functions(type(value.__self__))
    elif isinstance(value, types.FunctionType):
        if not is_torchs(value):
            yield value
    elif isinstance(value, nn.Module):
        for kind in {type(one) for one in value.modules()}:
            yield from _functions(kind)
    elif isinstance(value, type):
        for base in value.__mro__:
            if not is_torchs(base):
                for member in vars(base).values():
                    inner = getattr(member, "__func__", getattr(member, "fget", member))
                    if isinstance(inner, types.FunctionType):
                        yield from _functions(inner)


def _globals(function: types.FunctionType) -> Iterator[tuple[dict[str, Any], str]]:
    """The names of a function's module that its code mentions, inner functions included."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [one for one in code.co_consts if isinstance(one, types.CodeType)]
        for name in code.co_names:
            if name in function.__globals__:
                yield function.__globals__, name
