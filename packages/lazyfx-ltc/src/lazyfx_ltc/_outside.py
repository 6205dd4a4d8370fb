"""What python code reads that is neither argument nor model: globals, closures, defaults.

A capture holds what the code did with their values. So everything that the code of a model mentions
is looked at before each call, as far as it can be followed: globals and variables of closures (also
those that are not bound yet, and builtins that a global may come to hide), attributes of python
modules, defaults, the functions that it calls and what they mention in turn, what a bound method
belongs to, modules that are no part of the model, and the items of lists, tuples and dicts. Each
must be the very object that it was. Of all that could be followed, only the functions that ran
while the model was captured count: a library has many more.

Not seen: what changes inside of other objects, and what the code asks of the process (the
environment, the clock). Code that *binds* a global or a variable of an enclosing function is not
captured, since a replay would not do that. Functions with a cache are followed, and what a
capture left in the cache is removed: it is no tensor that anybody could compute with.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._condition import Condition
from ._python import is_torchs
from ._state import BASE, HOOKS
from ._torch_tracing import is_fake

_ITEMS = 1000  # of a container; beyond, only the container itself is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What a model reads besides its arguments and itself.

    Attributes:
        unchanged: Whether all of it is as it was; raises LookupError, ValueError or AttributeError
            if a part is gone.
        reason: Why the model cannot be captured, if it cannot.
        caches: The functions with a cache that it may call.
        containers: The dicts and lists that it may put something into.
        codes: The code that was followed.
    """

    unchanged: Callable[[], bool]
    reason: str | None
    caches: tuple[Any, ...]
    containers: tuple[Any, ...]
    codes: frozenset[types.CodeType]

    def is_as_it_was(self) -> bool:
        """:attr:`unchanged`, False if a part is gone."""
        try:
            return self.unchanged()
        except (LookupError, ValueError, AttributeError):
            return False

    def cleanse(self) -> bool:
        """Remove what a capture has left behind: tensors without data. Whether there was any."""
        found = False
        for cache in self.caches:
            cache.cache_clear()
        for container in self.containers:
            if isinstance(container, dict):
                left = [key for key, value in container.items() if _is_left_over(value)]
                for key in left:
                    del container[key]
            else:
                left = [one for one in container if _is_left_over(one)]
                container[:] = [one for one in container if not _is_left_over(one)]
            found |= bool(left)
        return found


def outside(model: Callable[..., Any], codes: Container[types.CodeType] | None = None) -> Outside:
    """Follow the code of a model.

    Args:
        model: The model.
        codes: The code that a call runs; None: all that it may run.
    """
    walk = _Walk(codes)
    own = set(map(id, model.modules())) if isinstance(model, nn.Module) else set()
    walk.follow(model, own)
    while walk.waiting:
        walk.visit(walk.waiting.pop(), own)
    condition = walk.condition
    return Outside(
        unchanged=condition.function("", f"return {condition}"),
        reason=walk.reason,
        caches=tuple(walk.caches),
        containers=tuple(walk.containers),
        codes=frozenset(walk.codes),
    )


class _Walk:
    def __init__(self, codes: Container[types.CodeType] | None) -> None:
        self.condition = Condition()
        self._ran = codes
        self.waiting: list[types.FunctionType] = []
        self.reason: str | None = None
        self.caches: list[Any] = []
        self.containers: list[Any] = []
        self.codes: set[types.CodeType] = set()
        self._seen: dict[int, Any] = {}

    def visit(self, function: types.FunctionType, own: set[int]) -> None:
        """One function: what it mentions, and what may make another one of it."""
        condition = self.condition
        condition.add("{}.__code__ is {}", function, function.__code__)
        condition.add("{}.__defaults__ is {}", function, function.__defaults__)
        condition.add("{}.__kwdefaults__ is {}", function, function.__kwdefaults__)
        self.follow(function.__defaults__, own)
        self.follow(function.__kwdefaults__, own)
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                condition.add("{}({})", _is_empty, cell)
                continue
            condition.add("{}.cell_contents is {}", cell, value)
            self.follow(value, own)
        for path in _mentioned(function.__code__, self):
            self._global(function.__globals__, path, own)

    def _global(self, names: dict[str, Any], path: tuple[str, ...], own: set[int]) -> None:
        if path[0] not in names:
            self.condition.add(f"{path[0]!r} not in {{}}", names)  # a builtin, or not bound yet
            return
        owner = names
        for name in path:
            if name not in owner:
                return  # an attribute that a module makes up
            value = owner[name]
            self.condition.same(owner, name)
            if not isinstance(value, types.ModuleType):
                self.follow(value, own)
                return
            if is_torchs(value):
                return
            owner = vars(value)

    def follow(self, value: Any, own: set[int]) -> None:
        """What a value may run, or hold."""
        if id(value) in self._seen or value is None:
            return
        self._seen[id(value)] = value  # so that its id stays its own
        if type(value).__module__.partition(".")[0] == "lazyfx_ltc":
            self.follow(getattr(value, "model", None), own)  # compiled as well
            return
        if hasattr(value, "cache_info") and not isinstance(value, type):
            self.caches.append(value)
        if isinstance(value, types.FunctionType):
            if not is_torchs(value) and (self._ran is None or value.__code__ in self._ran):
                self.waiting.append(value)
        elif isinstance(value, types.MethodType):
            self.follow(value.__func__, own)
            self._object(value.__self__, own)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.follow(part, own)
        elif isinstance(value, nn.Module):
            self._module(value, own)
        elif isinstance(value, type):
            self._class(value, own)
        elif isinstance(value, (list, tuple, dict)):
            self._container(value, own)
        elif callable(value) and not is_torchs(type(value)) and not inspect.isbuiltin(value):
            self._object(value, own)
        if not isinstance(value, nn.Module) and (inner := _wrapped(value)) is not None:
            self.follow(inner, own)

    def _class(self, kind: type, own: set[int]) -> None:
        for base in kind.__mro__:
            if is_torchs(base):
                continue
            for member in vars(base).values():
                for name in ("__func__", "fget", "func"):
                    member = getattr(member, name, member)
                if isinstance(member, types.FunctionType) or hasattr(member, "cache_info"):
                    self.follow(member, own)

    def _object(self, value: Any, own: set[int]) -> None:
        if isinstance(value, nn.Module):
            self.follow(value, own)
            return
        self.follow(type(value), own)
        self._attributes(value, own)

    def _attributes(self, value: Any, own: set[int]) -> None:
        held = getattr(value, "__dict__", None)
        if type(held) is not dict:
            return
        self.condition.add("len({}) == {}", held, len(held))
        for name, item in held.items():
            self.condition.same(held, name)
            self.follow(item, own)

    def _module(self, module: nn.Module, own: set[int]) -> None:
        for one in module.modules():
            self.follow(type(one), own)
            if id(one) not in own:  # nobody else looks at it
                self._attributes(one, own)
                for hooks in HOOKS:
                    self.condition.add("not {}", vars(one)[hooks])
                continue
            for name, item in vars(one).items():
                if name not in BASE and not isinstance(item, torch.Tensor):
                    self.follow(item, own)

    def _container(self, value: Any, own: set[int]) -> None:
        if isinstance(value, (list, dict)) and type(value) in (list, dict):
            self.containers.append(value)
        self.condition.add("len({}) == {}", value, len(value))
        if len(value) > _ITEMS:
            return
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            self.condition.add("{}[{}] is {}", value, key, item)
            self.follow(item, own)


def _mentioned(code: types.CodeType, walk: _Walk) -> Iterator[tuple[str, ...]]:
    """The globals that code mentions, with the attributes that it asks of them."""
    codes = [code]
    while codes:
        one = codes.pop()
        walk.codes.add(one)
        codes += [inner for inner in one.co_consts if isinstance(inner, types.CodeType)]
        instructions = list(dis.get_instructions(one))
        for index, instruction in enumerate(instructions):
            name = instruction.opname
            if name == "STORE_DEREF" and instruction.argval in code.co_freevars:
                walk.reason = (
                    f"{one.co_name} binds {instruction.argval!r}, a variable of an enclosing"
                    " function, when it runs: a replay would not do that. Return the value, or"
                    " keep it in a buffer"
                )
            if name not in ("LOAD_GLOBAL", "LOAD_NAME"):
                continue
            path = [instruction.argval]
            for later in instructions[index + 1 :]:
                if later.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                path.append(later.argval)
            yield tuple(path)


def _wrapped(value: Any) -> Any:
    """What a decorated function wraps."""
    try:
        return getattr(value, "__wrapped__", None)
    except Exception:  # an object of the user's, which may raise anything
        return None


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _is_left_over(value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    return is_fake(value) or value.device.type == "lazy"
