"""What compilers of training steps are measured and tested on: nine workloads, two real ones.

The nine are those that torch's own ``memory_efficient_fusion`` was measured on: chains of pointwise
operators as its notebook has them, normalization, attention, an MLP, two small GPTs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A module and how large its input is, to be quick with and to measure with.

    Attributes:
        make: The module for a width.
        small: Shape of the input of a test; the last number is the width.
        large: Shape of the input of a measurement.
        parts: Names of submodules that ``torch.utils.checkpoint`` would be put around; none
            means around the whole.
        random: Whether it draws random numbers.
    """

    make: Callable[[int], nn.Module]
    small: tuple[int, ...]
    large: tuple[int, ...]
    parts: tuple[str, ...] = ()
    random: bool = False


class GeluBiasDropout(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(F.gelu(x + self.bias), 0.1) + x


class TanhGelu(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


class Mish(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tanh(F.softplus(x))


class LayerNormGelu(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(width)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centered = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt((centered * centered).mean(-1, keepdim=True) + 1e-5)
        return F.gelu(centered * scale * self.weight + self.bias)


class DropoutResidualNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + F.dropout(x, 0.1))


class ExplicitAttention(nn.Module):
    """Attention of eight heads, or as many as the width has room for, with softmax and mask."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = min(8, max(1, width // 8))
        self.dropout = dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
        if self.dropout:
            weights = F.dropout(weights, self.dropout, self.training)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class SdpaAttention(ExplicitAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


def mlp(width: int) -> nn.Module:
    layers = [nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))]
    layers += [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(*layers)


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = attention
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + F.dropout(self.attention(self.norms[0](x)), self.dropout)
        return x + F.dropout(self.down(F.gelu(self.up(self.norms[1](x)))), self.dropout)


class Gpt(nn.Module):
    """A GPT of four blocks over embedded tokens, with a head for 256 bytes."""

    def __init__(self, width: int, attention: Callable[[int], nn.Module], dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(256, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, attention(width), dropout) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


_BLOCKS = tuple(f"blocks.{index}" for index in range(4))
WORKLOADS: dict[str, Workload] = {
    "gelu, bias, dropout, residual": Workload(
        make=GeluBiasDropout, small=(3, 8), large=(4096, 1024), random=True
    ),
    "tanh-gelu": Workload(make=TanhGelu, small=(3, 8), large=(4096, 1024)),
    "mish": Workload(make=Mish, small=(3, 8), large=(4096, 1024)),
    "explicit layer norm, gelu": Workload(make=LayerNormGelu, small=(3, 8), large=(4096, 1024)),
    "dropout, residual, layer norm": Workload(
        make=DropoutResidualNorm, small=(3, 8), large=(4096, 1024), random=True
    ),
    "explicit attention": Workload(make=ExplicitAttention, small=(2, 5, 16), large=(8, 256, 256)),
    "MLP": Workload(make=mlp, small=(3, 8), large=(2048, 512), parts=("0", "1", "2")),
    "GPT, SDPA": Workload(
        make=lambda width: Gpt(width, SdpaAttention, 0.0),
        small=(2, 5, 16),
        large=(4, 256, 256),
        parts=_BLOCKS,
    ),
    "GPT, explicit attention, dropout": Workload(
        make=lambda width: Gpt(width, lambda w: ExplicitAttention(w, 0.1), 0.1),
        small=(2, 5, 16),
        large=(4, 256, 256),
        parts=_BLOCKS,
        random=True,
    ),
}


def made(
    name: str, *, large: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, torch.Tensor]:
    """A workload's module in train mode and an input that requires grad; always the same ones."""
    torch.manual_seed(0)
    workload = WORKLOADS[name]
    shape = workload.large if large else workload.small
    module: Any = workload.make(shape[-1]).to(dtype)
    return module, torch.randn(shape, dtype=dtype, requires_grad=True)
