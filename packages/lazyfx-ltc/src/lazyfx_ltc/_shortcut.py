"""The short way for a call that looks exactly like the last one.

``_guards.py`` compares a call with what a capture holds for, in python, and says what differs. Most
calls differ in nothing from the call before: the same modules with the same settings, tensors of
the same looks. A :class:`Shortcut` is built from a call that fitted. It asks whether everything
that the guard read is the same *object* now, in one written-out condition, and whether the tensors
that the model looks at look the same, in one call of C; then it runs the program. Any other answer
sends the call the long way.

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
from ._specs import Itself, ViewOf, picker
from ._state import HOOKS, TABLES, State
from ._torch_guards import function_modes_active, tensor_check
from ._torch_tracing import global_forward_hook_tables


class Shortcut:
    """Immutable but for what it was built from; safe to call from several threads."""

    __slots__ = (
        "_check",
        "_count",
        "_default_dtype",
        "_grad",
        "_keys",
        "_needed",
        "_owners",
        "_run",
        "_same",
    )

    def __init__(
        self, held: Capture, args: Sequence[Any], needed: Sequence[int], check: Callable[..., bool]
    ) -> None:
        state = held.guard.state
        self._check = check
        everything = len(needed) == len(args) + len(state.tensors)
        self._needed = None if everything else picker(needed)
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
                not self._check(*(sources if self._needed is None else self._needed(sources)))
                or not self._same()
                or torch.is_grad_enabled() is not self._grad
                or torch.get_default_dtype() is not self._default_dtype
                or function_modes_active()
            ):
                return MISS
        except KeyError:
            return MISS
        return self._run(sources)


class WithValues(Shortcut):
    """The same for calls with arguments that are no tensors."""

    __slots__ = ("_others", "_short", "_tensors", "_values")

    def __init__(
        self, held: Capture, args: Sequence[Any], needed: Sequence[int], check: Callable[..., bool]
    ) -> None:
        tensors = [place for place, one in enumerate(args) if isinstance(one, torch.Tensor)]
        others = [place for place in range(len(args)) if place not in tensors]
        self._tensors = picker(tensors)
        self._others = picker(others)
        self._values = tuple(args[place] for place in others)
        self._short = len(args)
        super().__init__(held, self._tensors(args), needed, check)

    def __call__(self, args: tuple[Any, ...]) -> Any:
        """What a call returns, or :data:`MISS` if it does not look like the last one."""
        if len(args) != self._short or not all(map(is_, self._others(args), self._values)):
            return MISS
        return super().__call__(self._tensors(args))


def _unchanged(state: State) -> Callable[[], bool]:
    """A function that says whether all that a model holds besides tensors is as it is now.

    It is one long condition, written out: that takes half the time of going through lists. It
    raises KeyError if something is gone.
    """
    held_now = _Condition()
    held_now.add("not {}", *global_forward_hook_tables())
    held_now.same(vars(state.root), "training")
    for _, owner, key, module, _, kind in state.modules:
        held_now.same(owner, key)
        held_now.same(vars(module), "training")
        held_now.add("type({}) is {}", module, kind)
    for settings in state.settings:
        held = settings.held
        for key in (*settings.keys, *HOOKS):
            held_now.same(held, key)
        held_now.add("{}.__dict__ is {}", settings.module, held)
        for key in TABLES:
            held_now.same(held, key)
        held_now.add("not {}", held[HOOKS[0]])
        held_now.add("not {}", held[HOOKS[1]])
        if settings.tables is None:
            continue
        held_now.add("len({}) == {}", held, len(held))
        for table in (held[key] for key in TABLES):
            if not table:
                held_now.add("not {}", table)
                continue
            held_now.add("len({}) == {}", table, len(table))
            for key, value in table.items():
                if not isinstance(value, torch.Tensor):
                    held_now.same(table, key)
    for name in state.names:
        held_now.add("{} not in {}", name, vars(state.root))
    for number, binding in state.ties:
        first = state.tensors[number]
        held_now.add("{}[{}] is {}[{}]", binding.owner, binding.key, first.owner, first.key)
    return held_now.function()


class _Condition:
    """A condition on objects, put together part by part."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._names: dict[int, str] = {}
        self._objects: dict[str, Any] = {}

    def add(self, pattern: str, *objects: Any) -> None:
        """One more part: ``{}`` stands for each object in turn."""
        self._parts.append(pattern.format(*map(self._name, objects)))

    def same(self, owner: dict[str, Any], key: str) -> None:
        """One more part: a dictionary holds the very object that it holds now."""
        self._parts.append(f"{self._name(owner)}[{key!r}] is {self._name(owner[key])}")

    def function(self) -> Callable[[], bool]:
        """The whole condition."""
        source = f"def condition():\n    return ({' and '.join(self._parts)})\n"
        exec(source, self._objects)
        found: Callable[[], bool] = self._objects["condition"]
        return found

    def _name(self, one: Any) -> str:
        if one is None or one is True or one is False:
            return repr(one)
        name = self._names.setdefault(id(one), f"o{len(self._names)}")
        self._objects[name] = one  # so that its id stays its own
        return name


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
        or function_modes_active()
        or (torch.is_grad_enabled() and any(one.requires_grad for one in sources))
    ):
        return None
    needed = _needed(held, len(sources))
    check = tensor_check([sources[number] for number in needed]) if needed else None
    if check is None:
        return None
    plain = all(isinstance(one, torch.Tensor) for one in args)
    return (Shortcut if plain else WithValues)(held, args, needed, check)


def _needed(held: Capture, count: int) -> list[int]:
    """The numbers of the sources whose looks can make a difference."""
    contract = held.contract
    if contract.written:
        return list(range(count))
    returned = [leaf.source for leaf in contract.leaves if isinstance(leaf, (Itself, ViewOf))]
    used = held.program.inputs if held.program is not None else ()
    return sorted({*contract.looked_at, *returned, *used})
