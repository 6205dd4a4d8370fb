"""The short way for a call that looks exactly like the last one.

``_guards.py`` compares a call with what a capture holds for, in python, and says what differs. Most
calls differ in nothing from the call before: the same modules with the same settings, tensors of
the same looks. :func:`shortcut` writes a function for calls like one that fitted. It asks whether
everything that the guard read is the same *object* now, in one long condition, and whether the
tensors that the model looks at look the same, in one call of C; then it runs the program. Any other
answer sends the call the long way.

Objects are enough: what is compared by identity cannot change (numbers, strings, modules as such),
and what can is compared by content (tensors by ``_torch_guards.py``, dictionaries by their length
and the objects in them, hooks by there being none).

There is no short way under autocast, for arguments that are nested or given by name, where memory
is shared and written, or without any tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ._captured import MISS, Capture
from ._condition import Condition
from ._freeze import Frozen
from ._guards import is_value
from ._specs import Itself, ViewOf
from ._state import HOOKS, TABLES, State
from ._torch_guards import function_modes_active, in_forward_mode, tensor_check
from ._torch_tracing import global_forward_hook_tables


def _reads_state(held: Capture, needed: Sequence[int], arguments: int) -> bool:
    inputs = held.program.inputs if held.program is not None else ()
    return bool(held.contract.written) or any(one >= arguments for one in (*needed, *inputs))


def _add_state(held_now: Condition, state: State, frozen: Sequence[Frozen]) -> None:
    """That all that a model holds besides tensors is as it is now, or KeyError: a part is gone."""
    for table in global_forward_hook_tables():
        held_now.add("not {}", table)
    held_now.same(vars(state.root), "training")
    for _, owner, key, module, _, kind in state.modules:
        held_now.same(owner, key)
        held_now.same(vars(module), "training")
        held_now.add("type({}) is {}", module, kind)
    for settings in state.settings:
        held = settings.held
        held_now.add("{}.__dict__ is {}", settings.module, held)
        for key in settings.keys:
            held_now.same(held, key)
        for key in HOOKS:
            held_now.add(f"not {{}}[{key!r}]", held)
        for key in TABLES:
            table = held[key]
            if not table and settings.tables is not None:
                held_now.add(f"not {{}}[{key!r}]", held)
                continue
            held_now.same(held, key)
            if settings.tables is not None:
                held_now.add("len({}) == {}", table, len(table))
                for name, value in table.items():
                    if not isinstance(value, torch.Tensor):
                        held_now.same(table, name)
        if settings.tables is not None:
            held_now.add("len({}) == {}", held, len(held))
    for name in state.names:
        held_now.add("{} not in {}", name, vars(state.root))
    for number, binding in state.ties:
        first = state.tensors[number]
        held_now.add("{}[{}] is {}[{}]", binding.owner, binding.key, first.owner, first.key)
    for one in frozen:
        held_now.same(one.binding.owner, one.binding.key)
        held_now.add("{}.data_ptr() == {}", one.tensor, one.address)
        if one.version >= 0:
            held_now.add("{}._version == {}", one.tensor, one.version)


def shortcut(
    held: Capture, args: Sequence[Any], sources: Sequence[torch.Tensor]
) -> Callable[[tuple[Any, ...]], Any] | None:
    """The short way for calls like one that fitted and ran; None if there is none.

    Args:
        held: The capture that it fitted.
        args: Its arguments by place; it had none by name.
        sources: The tensors of the call.

    Returns:
        A function of the arguments that returns what a call does, or :data:`MISS` if it does not
        look like this one. Safe to call from several threads.
    """
    guard = held.guard
    if (
        not sources
        or not all(isinstance(one, torch.Tensor) or is_value(one) for one in args)
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
    return _written(held, args, needed, check)


def _written(
    held: Capture, args: Sequence[Any], needed: Sequence[int], check: Callable[..., bool]
) -> Callable[[tuple[Any, ...]], Any]:
    state = held.guard.state
    tensors = [place for place, one in enumerate(args) if isinstance(one, torch.Tensor)]
    asked = Condition()
    parts = [f"args[{place}]" for place in tensors] if len(tensors) < len(args) else ["*args"]
    if _reads_state(held, needed, len(tensors)):
        parts += [asked.written(f"{{}}[{one.key!r}]", one.owner) for one in state.tensors]
        everything = len(needed) == len(tensors) + len(state.tensors)
    else:  # a frozen model often needs none of its tensors
        everything = len(needed) == len(tensors)
    looked_at = "*sources" if everything else ", ".join(f"sources[{one}]" for one in needed)
    asked.add(f"{{}}({looked_at})", check)
    for place, one in enumerate(args):
        if place not in tensors:
            asked.add(f"args[{place}] is {{}}", one)
    asked.add("{}() is {}", torch.is_grad_enabled, torch.is_grad_enabled())
    asked.add("{}() is {}", torch.get_default_dtype, torch.get_default_dtype())
    asked.add("not {}()", function_modes_active)
    asked.add("not {}()", in_forward_mode)
    _add_state(asked, state, held.guard.frozen)
    miss, run, count = asked.written("{}", MISS), asked.written("{}", held.prepared()), len(args)
    return asked.function(
        "args",
        f"if len(args) != {count}:",
        f"    return {miss}",
        "try:",
        f"    sources = [{', '.join(parts)}]",
        f"    if not {asked}:",
        f"        return {miss}",
        "except KeyError:",
        f"    return {miss}",
        f"return {run}(sources)",
    )


def _needed(held: Capture, count: int) -> list[int]:
    """The numbers of the sources whose looks can make a difference."""
    contract, guard = held.contract, held.guard
    if contract.written or guard.asked is not None:  # python code may ask for anything
        return list(range(count))
    returned = [leaf.source for leaf in contract.leaves if isinstance(leaf, (Itself, ViewOf))]
    used = held.program.inputs if held.program is not None else ()
    # Under grad mode, a call is refused if a weight has come to require grad.
    frozen = set() if torch.is_grad_enabled() else {one.number for one in guard.frozen}
    return sorted({*contract.looked_at, *returned, *used} - frozen)
