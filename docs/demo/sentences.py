"""Part (a): the MiniLM sentence encoder, eager and captured on torch's lazy device."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lazyfx_ltc import CompiledGraph, extract_compiled_graph
from minilm import SENTENCES, SentenceEncoder, tokenize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import fx


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Embeddings of the same sentences in two ways, and what a call costs in each."""

    pairs: list[tuple[str, str, float]]
    same_neighbors: bool
    largest_difference: float
    eager_ms: float
    replay_ms: float
    compiled: CompiledGraph


def nearest(embeddings: torch.Tensor) -> torch.Tensor:
    """Index of the most similar other sentence, for each of them."""
    similarity = embeddings @ embeddings.T
    similarity.fill_diagonal_(-1)
    return similarity.argmax(1)


def compare(encoder: SentenceEncoder, folder: Path, graph: fx.GraphModule) -> Comparison:
    """Capture ``graph`` and run it beside ``encoder``."""
    ids, mask = tokenize(folder, SENTENCES)
    with torch.no_grad():
        compiled = extract_compiled_graph(graph, (ids, mask))
        eager, replayed = encoder(ids, mask), compiled(ids, mask)
        eager_ms, replay_ms = _milliseconds(lambda: encoder(ids, mask), lambda: compiled(ids, mask))
    neighbors = nearest(replayed)
    similarity = replayed @ replayed.T
    return Comparison(
        pairs=[
            (SENTENCES[i], SENTENCES[j], similarity[i, j].item())
            for i, j in enumerate(neighbors.tolist())
            if i < j or neighbors[j] != i  # two that choose each other are shown once
        ],
        same_neighbors=torch.equal(neighbors, nearest(eager)),
        largest_difference=(eager - replayed).abs().max().item(),
        eager_ms=eager_ms,
        replay_ms=replay_ms,
        compiled=compiled,
    )


def _milliseconds(*functions: Callable[[], object]) -> list[float]:
    """Median of each function's calls, taken in turns."""
    samples: list[list[float]] = [[] for _ in functions]
    for _ in range(25):
        for function, times in zip(functions, samples, strict=True):
            start = time.perf_counter()
            function()
            times.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(times[3:]) for times in samples]
