"""Part (b) and (d): a small convolutional net learns to read scanned digits.

The data are scikit-learn's 1,797 handwritten digits, real scans of 8 x 8 grey values that ship
inside the package.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from lazyfx_compilers import graph_dumper_aot, memory_efficient_fusion
from minilm import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Batches = list[tuple[torch.Tensor, torch.Tensor]]

EPOCHS, BATCH = 6, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training run: the loss of each step, what was kept for the backward, how it ended."""

    losses: list[float]
    saved_bytes: int
    accuracy: float
    seconds_per_step: float


class DigitNet(nn.Module):
    """Two convolutions with batch norm and a smooth activation written out, dropout, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.norm2 = nn.BatchNorm2d(64)
        self.head = nn.Linear(64 * 16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of shape (n, 10) for images of shape (n, 1, 8, 8)."""
        x = gelu(self.norm1(self.first(images)))
        x = gelu(self.norm2(self.second(x)))
        x = F.dropout(x.flatten(1), 0.2, self.training)
        return self.head(x)  # type: ignore[no-any-return]


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The tanh form of GELU, operation by operation, as papers print it."""
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def load_digits() -> tuple[Batches, tuple[torch.Tensor, torch.Tensor]]:
    """Training batches, always the same ones, and the held-out test set."""
    need("sklearn", "scikit-learn", "the digits demo")
    from sklearn import datasets

    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:297], order[297:]
    batches = [(images[i], labels[i]) for i in torch.split(train, BATCH) if len(i) == BATCH]
    return batches, (images[test], labels[test])


def train(
    net: nn.Module,
    run: Callable[[torch.Tensor], torch.Tensor],
    batches: Batches,
    test: tuple[torch.Tensor, torch.Tensor],
) -> Iterator[Training]:
    """Train ``net``, calling it through ``run``; yields after each epoch."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses: list[float] = []
    times: list[float] = []
    saved: list[dict[int, int]] = []  # of each step: storage address to bytes, each storage once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            saved[-1][storage.data_ptr()] = storage.nbytes()
        return tensor

    for _ in range(EPOCHS):
        net.train()
        for images, labels in batches:
            start = time.perf_counter()
            optimizer.zero_grad()
            saved.append({})
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                scores = run(images)
            loss = F.cross_entropy(scores, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            times.append(time.perf_counter() - start)
            losses.append(loss.item())
        net.eval()
        with torch.no_grad():
            accuracy = (net(test[0]).argmax(1) == test[1]).float().mean().item()
        yield Training(
            losses=list(losses),
            saved_bytes=max(sum(step.values()) for step in saved),
            accuracy=accuracy,
            seconds_per_step=sorted(times)[len(times) // 2],
        )


def eager_and_fused() -> tuple[nn.Module, nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """The net, a twin with the same weights, and the fused way to run the twin."""
    torch.manual_seed(0)
    net = DigitNet()
    twin = copy.deepcopy(net)
    fused = memory_efficient_fusion(twin)
    return net, twin, fused


def dump_training_graphs(folder: Path) -> Path:
    """Dump the graphs of one training step under ``torch.compile``; the folder they are in."""
    batches, _ = load_digits()
    net = DigitNet()
    dumper = graph_dumper_aot("digits", folder, example_inputs="data")
    images, labels = batches[0]
    F.cross_entropy(torch.compile(net, backend=dumper)(images), labels).backward()  # type: ignore[no-untyped-call]
    assert dumper.path is not None
    return dumper.path
