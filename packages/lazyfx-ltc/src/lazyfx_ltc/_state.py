"""The model's own tensors: bound by reference, read anew at every call, never copied for keeps.

A captured graph must see ``weight.add_(1)``, ``load_state_dict``, ``weight.data = ...`` and
``module.weight = nn.Parameter(...)``. So a :class:`Binding` remembers *where* a tensor lives (the
dictionary of the module that owns it, and the key) and looks there at each call.

A tensor reachable under several names (tied weights) is one source; the replay checks that the
names still lead to one object. Submodules are remembered too: one that was replaced, or switched
between train and eval mode, since capture makes the call fail with a ``GuardError``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import GuardError


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One place where a tensor of the model lives."""

    name: str
    owner: dict[str, Any]
    key: str

    def read(self) -> torch.Tensor:
        """The tensor that lives there now.

        Raises:
            GuardError: Nothing, or no tensor, lives there any more.
        """
        value = self.owner.get(self.key)
        if not isinstance(value, torch.Tensor):
            raise GuardError(
                f"model tensor {self.name!r}: expected the tensor that was there at capture, seen"
                f" {type(value).__name__}; put it back or extract the graph again"
            )
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All tensors and submodules of a model, by where they live.

    Attributes:
        tensors: One binding for each distinct tensor.
        ties: Pairs (number in ``tensors``, a further place of the same tensor).
        modules: (name, parent's dictionary, key, module, its training flag) of each submodule.
        root: The model itself; its training flag is ``root_training`` at capture.
    """

    tensors: tuple[Binding, ...]
    ties: tuple[tuple[int, Binding], ...]
    modules: tuple[tuple[str, dict[str, Any], str, nn.Module, bool], ...]
    root: nn.Module
    root_training: bool

    def read(self) -> list[torch.Tensor]:
        """The current tensors, in order, after checking that the model is still as captured.

        Raises:
            GuardError: A submodule was replaced or switched between train and eval mode, a
                tensor was removed, or tied tensors were untied.
        """
        root = self.root
        if root.training is not self.root_training:
            raise _mode_changed("the model", self.root_training)
        for name, owner, key, module, training in self.modules:
            if owner.get(key) is not module:
                raise GuardError(
                    f"submodule {name!r}: expected the module that was there at capture, seen"
                    " another one or none; put it back or extract the graph again"
                )
            if module.training is not training:
                raise _mode_changed(f"submodule {name!r}", training)
        values = [binding.read() for binding in self.tensors]
        for number, binding in self.ties:
            if binding.read() is not values[number]:
                raise GuardError(
                    f"model tensor {binding.name!r}: expected one tensor with"
                    f" {self.tensors[number].name!r}, as at capture, seen two; tie them again or"
                    " extract the graph again"
                )
        return values


def _mode_changed(who: str, training: bool) -> GuardError:
    was, now = ("train", "eval") if training else ("eval", "train")
    back = "train()" if training else "eval()"
    return GuardError(
        f"{who}: expected {was} mode, as at capture, seen {now} mode; call .{back} or extract the"
        " graph again"
    )


def _places(model: nn.Module) -> Iterator[Binding]:
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for owner in (module._parameters, module._buffers, module.__dict__):
            for key, value in owner.items():
                if isinstance(value, torch.Tensor):
                    yield Binding(name=prefix + key, owner=owner, key=key)


def bind_state(model: nn.Module) -> State:
    """Find every tensor attribute of a model and of its submodules."""
    numbers: dict[int, int] = {}
    tensors: list[Binding] = []
    ties: list[tuple[int, Binding]] = []
    for binding in _places(model):
        number = numbers.setdefault(id(binding.read()), len(tensors))
        if number == len(tensors):
            tensors.append(binding)
        else:
            ties.append((number, binding))
    modules = tuple(
        (f"{path}.{key}" if path else key, parent._modules, key, child, child.training)
        for path, parent in model.named_modules()
        for key, child in parent._modules.items()
        if child is not None
    )
    return State(
        tensors=tuple(tensors),
        ties=tuple(ties),
        modules=modules,
        root=model,
        root_training=model.training,
    )
