"""What is captured: a graph, the model it belongs to, and a call of it, with tensors numbered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ._run import Runner, stand_in
from ._structure import Structure, paths, unflatten


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Owns nothing: model and tensors are the user's, and are not changed.

    Attributes:
        model: Holds the attributes that the graph refers to.
        graph: What a call runs.
        structure: How ``leaves`` make up ``(args, kwargs)``.
        leaves: The arguments; tensors among them count for their metadata alone.
        own: The model's tensors.
        own_names: Their names.
        device: The session's device type.
        grad: Whether grad mode is on while the model's code runs.
        python: Whether that is python code of the user's own, which may ask for anything.
    """

    model: nn.Module
    graph: fx.Graph
    structure: Structure
    leaves: tuple[Any, ...]
    own: tuple[torch.Tensor, ...]
    own_names: tuple[str, ...]
    device: str
    grad: bool
    python: bool

    @property
    def sources(self) -> list[torch.Tensor]:
        """The tensors of the call, in the order of their numbers."""
        return [*(leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)), *self.own]

    @property
    def place(self) -> torch.device:
        """The device that its tensors are on."""
        return next((one.device for one in self.sources), torch.device(self.device))

    @property
    def names(self) -> list[str]:
        """The sources in words."""
        named = zip(argument_names(self.structure), self.leaves, strict=True)
        inputs = [name for name, leaf in named if isinstance(leaf, torch.Tensor)]
        return [*inputs, *(f"model tensor {name!r}" for name in self.own_names)]

    def arguments(self, sources: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` with other tensors in the place of the arguments."""
        remaining = iter(sources)
        first: dict[int, torch.Tensor] = {}
        leaves = []
        for leaf in self.leaves:
            if isinstance(leaf, torch.Tensor):
                new = next(remaining)
                # Python code may ask whether two arguments are one object.
                leaves.append(first.setdefault(id(leaf), new) if self.python else new)
            else:
                leaves.append(leaf)
        args, kwargs = unflatten(leaves, self.structure)
        return args, kwargs

    def runner(self, sources: Sequence[torch.Tensor]) -> Runner:
        """A copy of the model with other tensors in the place of its own."""
        first = len(self.sources) - len(self.own)
        replacements = zip(self.own, sources[first : first + len(self.own)], strict=True)
        return stand_in(self.model, self.graph, {id(real): new for real, new in replacements})


def argument_names(structure: Structure) -> list[str]:
    """The leaves of ``(args, kwargs)`` in words: ``argument 0``, ``argument 'scale'['x']``."""
    return [f"argument {path[1][1:-1]}{''.join(path[2:])}" for path in paths(structure)]
