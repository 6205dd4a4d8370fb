"""The model's own tensors: bound by reference, read anew at every call, never copied for keeps.

A captured graph must see ``weight.add_(1)``, ``load_state_dict``, ``weight.data = ...`` and
``module.weight = nn.Parameter(...)``. So a :class:`Binding` remembers *where* a tensor lives (the
dictionary of the module that owns it, and the key) and looks there at each call.

Only what the graph can reach counts: attributes of the model that no node names are not its.

A tensor reachable under several names (tied weights) is one source; the replay checks that the
names still lead to one object. Submodules are remembered too: one that was replaced, or switched
between train and eval mode, since capture makes the call fail with a ``GuardError``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ._torch_tracing import global_forward_hooks
from .errors import CaptureError, GuardError

BASE = frozenset(vars(nn.Module()))
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = frozenset({bool, int, str, type(None)})
_MISSING = object()
TABLES = ("_parameters", "_buffers", "_modules")


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


def _tables(held: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
    """The names of what a module holds, and whether it is None."""
    return tuple((key, value is None) for table in TABLES for key, value in held[table].items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a submodule holds besides tensors and children: ``p`` of a dropout, say, and hooks.

    What changes inside a list or object of the user's own is not seen.
    """

    name: str
    module: nn.Module
    held: dict[str, Any]
    inside: tuple[dict[str, Any], ...]
    count: int | None
    tables: tuple[tuple[str, bool], ...] | None
    keys: tuple[str, ...]
    values: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, module: nn.Module, only: frozenset[str] | None = None) -> Settings:
        """Those of a module, or only some of them."""
        held = vars(module)
        keys = tuple(
            key
            for key, value in held.items()
            if key not in BASE
            and not isinstance(value, torch.Tensor)
            and (only is None or key in only)
        )
        return cls(
            name=name,
            module=module,
            held=held,
            inside=tuple(held[table] for table in TABLES),
            count=len(held) if only is None else None,
            tables=_tables(held) if only is None else None,
            keys=keys,
            values=tuple(held[key] for key in keys),
        )

    def check(self) -> None:
        """Raise :class:`GuardError` if something is not as it was."""
        held = self.held
        who = f"submodule {self.name!r}" if self.name else "the model"
        if vars(self.module) is not held or not all(
            held[table] is one for table, one in zip(TABLES, self.inside, strict=True)
        ):
            raise GuardError(
                f"{who}: expected the dictionaries of attributes, parameters and children it had at"
                " capture, seen others (__setstate__ does that); extract the graph again"
            )
        if any(held[hooks] for hooks in HOOKS):
            raise GuardError(
                f"{who} has forward hooks: expected none, as at capture, since a replay does not"
                " call them; remove them"
            )
        if (self.count is not None and len(held) != self.count) or (
            self.tables is not None and _tables(held) != self.tables
        ):
            raise GuardError(
                f"{who}: expected the attributes, parameters and children it had at capture, seen"
                " others; put them back or extract the graph again"
            )
        for key, expected in zip(self.keys, self.values, strict=True):
            seen = held.get(key, _MISSING)
            if seen is not expected and not (
                type(seen) in _PLAIN and type(seen) is type(expected) and seen == expected
            ):
                raise GuardError(
                    f"{who}: expected the attribute {key!r} as at capture"
                    f" ({expected!r:.80}), seen {seen!r:.80}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All tensors and submodules of a model, by where they live.

    Attributes:
        tensors: One binding for each distinct tensor.
        ties: Pairs (number in ``tensors``, a further place of the same tensor).
        modules: (name, parent's dictionary, key, module, its training flag, its class) of each
            submodule.
        settings: Everything else that the submodules hold.
        names: What the graph refers to that lives in a table of the model, not in its dictionary.
        root: The model itself; its training flag is ``root_training`` at capture.
    """

    tensors: tuple[Binding, ...]
    ties: tuple[tuple[int, Binding], ...]
    modules: tuple[tuple[str, dict[str, Any], str, nn.Module, bool, type], ...]
    settings: tuple[Settings, ...]
    names: tuple[str, ...]
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
        for name, owner, key, module, training, kind in self.modules:
            if owner.get(key) is not module or type(module) is not kind:
                raise GuardError(
                    f"submodule {name!r}: expected the module that was there at capture, seen"
                    " another one or none; put it back or extract the graph again"
                )
            if module.training is not training:
                raise _mode_changed(f"submodule {name!r}", training)
        if global_forward_hooks():
            raise GuardError(
                "forward hooks are registered for all modules: expected none, since a replay does"
                " not call them; remove them"
            )
        for settings in self.settings:
            settings.check()
        for name in self.names:
            if name in vars(root):
                raise GuardError(
                    f"the model: expected no attribute {name!r} in its dictionary, where it hides"
                    " the parameter, buffer or child that was captured; delete it"
                )
        values = [binding.read() for binding in self.tensors]
        for number, binding in self.ties:
            if binding.read() is not values[number]:
                raise GuardError(
                    f"model tensor {binding.name!r}: expected one tensor with"
                    f" {self.tensors[number].name!r}, as at capture, seen two; tie them again or"
                    " extract the graph again"
                )
        return values

    def describe(self) -> tuple[str, ...]:
        """What :meth:`read` checks, a line each."""
        lines = [f"the model: {'train' if self.root_training else 'eval'} mode"]
        for name, _, _, module, training, _ in self.modules:
            lines.append(
                f"submodule {name!r}: this {type(module).__name__}, in"
                f" {'train' if training else 'eval'} mode"
            )
        for number, binding in self.ties:
            lines.append(f"model tensor {binding.name!r}: is {self.tensors[number].name!r}")
        return tuple(lines)


def _mode_changed(who: str, training: bool) -> GuardError:
    was, now = ("train", "eval") if training else ("eval", "train")
    back = "train()" if training else "eval()"
    return GuardError(
        f"{who}: expected {was} mode, as at capture, seen {now} mode; call .{back} or extract the"
        " graph again"
    )


def referenced(graph: fx.Graph) -> frozenset[str]:
    """The names of the model's own attributes that a graph refers to, through whatever path."""
    nodes = (node for node in graph.nodes if node.op in ("get_attr", "call_module"))
    return frozenset(str(node.target).partition(".")[0] for node in nodes)


def _reachable(model: nn.Module, names: frozenset[str]) -> Iterator[tuple[str, nn.Module]]:
    """The model and its submodules with their paths, but only those under ``names``."""
    yield "", model
    seen: set[nn.Module] = set()
    for name in sorted(names):
        child = model._modules.get(name)
        if child is not None:
            yield from child.named_modules(seen, name)


def _places(model: nn.Module, names: frozenset[str]) -> Iterator[Binding]:
    for path, module in _reachable(model, names):
        prefix = f"{path}." if path else ""
        for owner in (module._parameters, module._buffers, module.__dict__):
            for key, value in owner.items():
                if isinstance(value, torch.Tensor) and (path or key in names):
                    yield Binding(name=prefix + key, owner=owner, key=key)


def bind_state(model: nn.Module, graph: fx.Graph) -> State:
    """Find every tensor attribute, of a model and its submodules, that a graph can reach."""
    names = referenced(graph)
    for path, module in _reachable(model, names):
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"submodule {path!r} is a ScriptModule: expected an nn.Module; capture the module"
                " it was made from"
            )
    numbers: dict[int, int] = {}
    tensors: list[Binding] = []
    ties: list[tuple[int, Binding]] = []
    for binding in _places(model, names):
        number = numbers.setdefault(id(binding.read()), len(tensors))
        if number == len(tensors):
            tensors.append(binding)
        else:
            ties.append((number, binding))
    modules = tuple(
        (f"{path}.{key}" if path else key, parent._modules, key, child, child.training, type(child))
        for path, parent in _reachable(model, names)
        for key, child in parent._modules.items()
        if child is not None and (path or key in names)
    )
    return State(
        tensors=tuple(tensors),
        ties=tuple(ties),
        modules=modules,
        settings=(
            Settings.of("", model, names - model._modules.keys()),
            *(Settings.of(name, module) for name, _, _, module, _, _ in modules),
        ),
        names=tuple(
            sorted(
                name
                for name in names
                if name not in vars(model) and any(name in vars(model)[one] for one in TABLES)
            )
        ),
        root=model,
        root_training=model.training,
    )
