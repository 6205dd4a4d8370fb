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

from ._captured import Capture
from ._guards import is_value
from ._specs import picker
from ._torch_guards import tensor_check
from ._torch_tracing import global_forward_hook_tables

MISS: Any = object()
_BY_CONTENT = ("_forward_hooks", "_forward_pre_hooks")
_TABLES = ("_parameters", "_buffers", "_modules")


class Shortcut:
    """Immutable but for what it was built from; safe to call from several threads."""

    __slots__ = (
        "_check",
        "_count",
        "_default_dtype",
        "_everything",
        "_grad",
        "_hooks",
        "_keys",
        "_kinds",
        "_length",
        "_lengths",
        "_modules",
        "_owner_keys",
        "_owners",
        "_places",
        "_plain",
        "_run",
        "_tensors",
        "_tied",
        "_tied_to",
        "_values",
        "_want_plain",
        "_writes",
        "held",
    )

    def __init__(self, held: Capture, leaves: Sequence[Any], check: Callable[..., bool]) -> None:
        self.held = held
        self._check = check
        self._run = held.prepared()
        self._writes = held.guard.why_not_memory if held.guard.written else None
        self._grad = torch.is_grad_enabled()
        self._default_dtype = torch.get_default_dtype()
        self._count = len(leaves)
        tensors = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        others = [n for n in range(len(leaves)) if n not in tensors]
        self._everything = not others
        self._tensors = picker(tensors)
        self._plain = picker(others)
        self._want_plain = tuple(leaves[n] for n in others)
        state = held.guard.state
        self._owners = [binding.owner for binding in state.tensors]
        self._owner_keys = [binding.key for binding in state.tensors]
        self._tied = [number for number, _ in state.ties]
        self._tied_to = [binding for _, binding in state.ties]
        places: list[tuple[dict[str, Any], str]] = [(vars(state.root), "training")]
        dictionaries: list[Any] = []
        hooks: list[Any] = list(global_forward_hook_tables())
        for _, owner, key, module, _, _ in state.modules:
            places += [(owner, key), (vars(module), "training")]
        for settings in state.settings:
            places += [(settings.held, key) for key in (*settings.keys, *_BY_CONTENT)]
            hooks += [settings.held[key] for key in _BY_CONTENT]
            if settings.tables is not None:
                places += [(settings.held, key) for key in _TABLES]
                tables = [settings.held[key] for key in _TABLES]
                dictionaries += [settings.held, *tables]
                places += [
                    (table, key)
                    for table in tables
                    for key, value in table.items()
                    if not isinstance(value, torch.Tensor)
                ]
        self._places = [place for place, _ in places]
        self._keys = [key for _, key in places]
        self._values = [place[key] for place, key in places]
        self._hooks = hooks
        self._length = dictionaries
        self._lengths = list(map(len, dictionaries))
        self._modules = [module for *_, module, _, _ in state.modules]
        self._kinds = [kind for *_, kind in state.modules]

    def __call__(self, args: tuple[Any, ...]) -> Any:
        """What a call returns, or :data:`MISS` if it does not look like the last one."""
        if (
            len(args) != self._count
            or torch.is_grad_enabled() is not self._grad
            or torch.get_default_dtype() is not self._default_dtype
        ):
            return MISS
        try:
            own = [*map(getitem, self._owners, self._owner_keys)]
            if not all(map(is_, map(getitem, self._places, self._keys), self._values)):
                return MISS
            tied = [binding.owner[binding.key] for binding in self._tied_to]
        except KeyError:
            return MISS
        given = args
        if not self._everything:
            if not all(map(is_, self._plain(args), self._want_plain)):
                return MISS
            given = self._tensors(args)
        if (
            not self._check(*given, *own)
            or any(self._hooks)
            or not all(map(is_, map(type, self._modules), self._kinds))
            or [*map(len, self._length)] != self._lengths
            or not all(map(is_, tied, map(own.__getitem__, self._tied)))
        ):
            return MISS
        sources = [*given, *own]
        if self._writes is not None and self._writes(sources) is not None:
            return MISS
        return self._run(sources)


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
    return None if check is None else Shortcut(held, args, check)
