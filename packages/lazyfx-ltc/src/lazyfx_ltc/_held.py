"""What captured models have in common: the model they stand for, and how AOTAutograd calls them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import fx

from lazyfx_core import LazyGraphModule


def check_options(max_captures: object, freeze: object) -> None:
    """Raise ValueError or TypeError for options that no captured model takes."""
    if type(max_captures) is not int or max_captures < 1:
        raise ValueError(f"max_captures: expected a number from 1 up, seen {max_captures!r}")
    if not isinstance(freeze, bool):
        raise TypeError(f"freeze: expected True or False, seen {freeze!r}")


class Held(ABC):
    """A model and its graph on one device; the base of what is called in its place."""

    __slots__ = ("_device", "_graph", "_model")

    def __init__(self, model: fx.GraphModule, graph: fx.Graph, device: str) -> None:
        self._model = model
        self._graph = graph
        self._device = device

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""

    @property
    def graph(self) -> fx.Graph:
        """A copy of the graph that was captured; not to be changed."""
        return self._graph

    @property
    def device(self) -> str:
        """The device type it computes on."""
        return self._device

    @property
    def boxed(self) -> Callable[[list[Any]], Any]:
        """It as a function of one list of arguments, which it empties, as AOTAutograd calls it."""
        return Boxed(self)

    def _for_pickle(self) -> LazyGraphModule:
        """The model with the graph. Lazy ones pickle it as it is; a plain one is traced again."""
        model = LazyGraphModule(self._model, self._graph, type(self._model).__name__)
        model.training = self._model.training  # of itself: the submodules are the user's
        return model


class Boxed:
    """Calls a captured model with a list, which is emptied so that nothing keeps its tensors."""

    def __init__(self, held: Held) -> None:
        self._boxed_call = True  # of the instance: Dynamo's wrapper copies nothing else
        self._held = held

    def __call__(self, args: list[Any]) -> Any:
        taken = tuple(args)
        args.clear()
        return self._held(*taken)
