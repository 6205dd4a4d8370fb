"""The short way for a call that looks exactly like the last one.

``_guards.py`` compares a call with what a capture holds for, in python, and says what differs. Most
calls differ in nothing from the call before: the same modules with the same settings, tensors of
the same looks. A :class:`Shortcut` is built from a call that fitted. It asks whether everything
that the guard read is the same *object* now, in a few calls of C functions, and whether the tensors
look the same; then it runs the program. Any other answer sends the call the long way.

Objects are enough: what is compared by identity cannot change (numbers, strings, modules as such),
and what can is compared by content (tensors by ``_torch_guards.py``, dictionaries by their length
and the objects in them, hooks by there being none).

There is no short way for models with python code of the user's own, under autocast, for arguments
that are nested or given by name, where memory is shared and written, or without any tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import getitem, is_
from typing import Any

import torch

from ._captured import MISS, Capture
from ._guards import is_value
from ._specs import picker
from ._state import State
from ._torch_guards import tensor_check
from ._torch_tracing import global_forward_hook_tables

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TABLES = ("_parameters", "_buffers", "_modules")


class Shortcut:
    """Immutable but for what it was built from; safe to call from several threads."""

    __slots__ = ("_check", "_count", "_default_dtype", "_grad", "_keys", "_owners", "_run", "_same")

    def __init__(self, held: Capture, args: Sequence[Any], check: Callable[..., bool]) -> None:
        state = held.guard.state
        self._check = check
        self._run = held.prepared()
        self._grad = torch.is_grad_enabled()
        self._default_dtype = torch.get_default_dtype()
        self._count = len(args)
        self._owners = [binding.owner for binding in state.tensors]
        self._keys = [binding.key for binding in state.tensors]
        self._same = _unchanged(state)

    def __call__(self, args: tuple[Any, ...]) -> Any:
        """What a call returns, or :data:`MISS` if it does not look like the last one."""
        if len(args) != self._count:
            return MISS
        sources = [*args]
        try:
            if self._owners:
                sources += map(getitem, self._owners, self._keys)
            if (
                not self._check(*sources)
                or not self._same()
                or torch.is_grad_enabled() is not self._grad
                or torch.get_default_dtype() is not self._default_dtype
            ):
                return MISS
        except KeyError:
            return MISS
        return self._run(sources)


class WithValues(Shortcut):
    """The same for calls with arguments that are no tensors."""

    __slots__ = ("_others", "_short", "_tensors", "_values")

    def __init__(self, held: Capture, args: Sequence[Any], check: Callable[..., bool]) -> None:
        tensors = [place for place, one in enumerate(args) if isinstance(one, torch.Tensor)]
        others = [place for place in range(len(args)) if place not in tensors]
        self._tensors = picker(tensors)
        self._others = picker(others)
        self._values = tuple(args[place] for place in others)
        self._short = len(args)
        super().__init__(held, self._tensors(args), check)

    def __call__(self, args: tuple[Any, ...]) -> Any:
        """What a call returns, or :data:`MISS` if it does not look like the last one."""
        if len(args) != self._short or not all(map(is_, self._others(args), self._values)):
            return MISS
        return super().__call__(self._tensors(args))


def _unchanged(state: State) -> Callable[[], bool]:
    """A function that says whether all that a model holds besides tensors is as it is now.

    It raises KeyError if something is gone.
    """
    places: list[tuple[dict[str, Any], str]] = [(vars(state.root), "training")]
    dictionaries: list[Any] = []
    hooks: list[Any] = list(global_forward_hook_tables())
    for _, owner, key, module, _, _ in state.modules:
        places += [(owner, key), (vars(module), "training")]
    for settings in state.settings:
        held = settings.held
        places += [(held, key) for key in (*settings.keys, *_HOOKS)]
        hooks += [held[key] for key in _HOOKS]
        if settings.tables is not None:
            tables = [held[key] for key in _TABLES]
            places += [(held, key) for key in _TABLES]
            dictionaries += [held, *tables]
            places += [
                (table, key)
                for table in tables
                for key, value in table.items()
                if not isinstance(value, torch.Tensor)
            ]
    owners = [place for place, _ in places]
    keys = [key for _, key in places]
    values = [place[key] for place, key in places]

    def plain() -> bool:
        return all(map(is_, map(getitem, owners, keys), values)) and not any(hooks)

    if not state.modules and not state.ties:
        return plain
    lengths = [*map(len, dictionaries)]
    modules = [module for *_, module, _, _ in state.modules]
    kinds = [kind for *_, kind in state.modules]
    tied = [(binding, state.tensors[number]) for number, binding in state.ties]

    def all_of_it() -> bool:
        return (
            plain()
            and [*map(len, dictionaries)] == lengths
            and all(map(is_, map(type, modules), kinds))
            and all(one.owner[one.key] is two.owner[two.key] for one, two in tied)
        )

    return all_of_it


def shortcut(
    held: Capture, args: Sequence[Any], sources: Sequence[torch.Tensor]
) -> Shortcut | None:
    """The short way for calls like one that fitted and ran; None if there is none.

    Args:
        held: The capture that it fitted.
        args: Its arguments by place; it had none by name.
        sources: The tensors of the call.
    """
    guard = held.guard
    if (
        not sources
        or not all(isinstance(one, torch.Tensor) or is_value(one) for one in args)
        or guard.asked is not None
        or guard.groups
        or guard.modes.autocast is not None
        or torch.is_autocast_enabled(held.device)
        or (torch.is_grad_enabled() and any(one.requires_grad for one in sources))
    ):
        return None
    check = tensor_check(sources)
    if check is None:
        return None
    plain = all(isinstance(one, torch.Tensor) for one in args)
    return Shortcut(held, args, check) if plain else WithValues(held, args, check)
