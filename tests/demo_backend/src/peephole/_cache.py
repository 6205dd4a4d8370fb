"""Optimized graphs on disk, keyed by what they compute and by what they are called with."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

import lazyfx_core


class GraphCache:
    """A folder of archives. Several processes may share it: files appear whole or not at all.

    Args:
        folder: Made if it is not there.

    Attributes:
        hits: How many graphs were found.
        misses: How many were made.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hits = self.misses = 0

    def get(
        self,
        gm: fx.GraphModule,
        example_inputs: Sequence[Any],
        make: Callable[[fx.GraphModule], fx.GraphModule],
    ) -> fx.GraphModule:
        """The stored result of ``make(gm)``, or else a new one, which is stored.

        A file that is damaged, or written by a newer lazyfx, is made again. A graph that cannot be
        stored (it calls a function without a name, say) is made each time.
        """
        try:
            path = self.folder / f"{self.key(gm, example_inputs)}.safetensors"
        except lazyfx_core.SerializationError:
            self.misses += 1
            return make(gm)
        try:
            found = lazyfx_core.load_graph(path)
        except (FileNotFoundError, lazyfx_core.GraphFormatError):
            self.misses += 1
            made = make(gm)
            with contextlib.suppress(lazyfx_core.SerializationError):
                lazyfx_core.save_graph(made, path, warn=False)
            return made
        self.hits += 1
        return found

    def key(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> str:
        """Equal for graphs that one archive may serve: same operators, constants and examples."""
        examples = hashlib.sha256("\n".join(map(_describe, example_inputs)).encode()).hexdigest()
        return f"{lazyfx_core.graph_hash(gm, values=True)}-{examples}"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"
    return f"{type(value).__name__} {value}"
