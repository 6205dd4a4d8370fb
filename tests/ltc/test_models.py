"""Whole small models: traced symbolically and with make_fx, in eval mode and with dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lazyfx_ltc as ltc


class Block(nn.Module):
    """A transformer block as BERT has it."""

    def __init__(self, width: int = 16, heads: int = 4, drop: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, t, w = 2, 5, 16
        parts = self.qkv(x).split(w, dim=-1)
        q, k, v = (parts[i].view(b, t, self.heads, -1).transpose(1, 2) for i in range(3))
        scores = q @ k.transpose(-1, -2) / 2.0 + mask
        mixed = (self.drop(scores.softmax(-1)) @ v).transpose(1, 2).reshape(b, t, w)
        x = self.norms[0](x + self.drop(self.out(mixed)))
        return self.norms[1](x + self.mlp(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 16)
        self.places = nn.Embedding(5, 16)
        self.order: torch.Tensor
        self.register_buffer("order", torch.arange(5))
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.tokens(ids) + self.places(self.order)
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e9
        for block in self.blocks:
            x = block(x, bias)
        weights = mask.unsqueeze(-1).to(x.dtype)
        pooled = (x * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return {"hidden": x, "embedding": F.normalize(pooled, dim=-1)}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 4))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.LogSoftmax(-1),
    ).eval()


IDS = torch.randint(0, 11, (2, 5))
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "mlp": lambda: (mlp(), (torch.randn(5, 8),)),
    "convolutional": lambda: (convolutional(), (torch.randn(2, 3, 8, 8),)),
    "channels last": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).to(memory_format=torch.channels_last),
        (torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),),
    ),
    "transformer block": lambda: (Block(), (torch.randn(2, 5, 16), torch.zeros(2, 1, 1, 5))),
    "encoder": lambda: (Encoder().eval(), (IDS, MASK)),
    "double precision": lambda: (mlp().double(), (torch.randn(5, 8).double(),)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_a_symbolically_traced_model_agrees_with_eager(
    make: Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]], agrees: Callable[..., Any]
) -> None:
    model, inputs = make()
    agrees(fx.symbolic_trace(model), *inputs)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_a_decomposed_make_fx_graph_agrees_with_eager(
    make: Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]],
    agrees: Callable[..., Any],
    device: torch.device,
) -> None:
    model, inputs = make()
    inputs = tuple(one.to(device) for one in inputs)
    with torch.no_grad():
        gm = make_fx(model.to(device), decomposition_table=ltc.decompositions())(*inputs)
        agrees(gm, *inputs)


def test_a_block_with_dropout_draws_as_eager_does(agrees: Callable[..., Any]) -> None:
    agrees(fx.symbolic_trace(Block(drop=0.2)), torch.randn(2, 5, 16), torch.zeros(2, 1, 1, 5))


UNSUPPORTED: dict[str, Callable[[torch.Tensor], Any]] = {
    "where": lambda a: torch.where(a > 0, a, a / 0),
    "where with numbers": lambda a: torch.where(a > 0, 1.0, 0.0),
    "logic": lambda a: torch.logical_and(a > 0, ~(a > 1)) | torch.logical_not(a),
    "indexing": lambda a: a[torch.tensor([2, -1, 0], device=a.device)],
    "var": lambda a: a.var(1),
    "group norm": lambda a: F.group_norm(a[:, :, None], 2),
    "mean squared error": lambda a: F.mse_loss(a, a * 2),
    "hardswish and mish": lambda a: F.hardswish(a) + F.mish(a) + F.relu6(a),
    "attention": lambda a: F.scaled_dot_product_attention(a[None], a[None], a[None]),
    "roll and flip": lambda a: a.roll(1, 0) + a.flip(1),
}


@pytest.mark.parametrize("case", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_decompositions_bring_operators_without_a_kernel_in_reach(
    case: Callable[[torch.Tensor], Any], agrees: Callable[..., Any], device: torch.device
) -> None:
    x = torch.randn(4, 4, device=device)
    agrees(make_fx(case, decomposition_table=ltc.decompositions())(x), x)


def test_the_table_takes_nothing_apart_that_the_backend_lowers() -> None:
    table = ltc.decompositions()
    aten = torch.ops.aten
    assert aten.where.self in table
    for op in (aten.native_layer_norm.default, aten.gelu.default, aten._softmax.default):
        assert op not in table
