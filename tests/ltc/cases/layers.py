"""Reductions, products, convolutions, norms, pooling, embeddings, attention, and small models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from _harness import Case, case
from torch import nn

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
SEQUENCE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
IDS = torch.tensor([[1, 2, 0], [4, 3, 3]])


class Attention(nn.Module):
    """As written by hand: a scaled product, a mask, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Any, mask: Any) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / 8**0.5
        return self.out((scores + mask).softmax(-1) @ v)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 16) for _ in range(3))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            value, gate = layer(x).chunk(2, -1)
            x = x + value * torch.sigmoid(gate)
        return x


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.second = nn.Conv2d(4, 8, 1, stride=2)

    def forward(self, x: Any) -> Any:
        return self.second(F.relu(self.first(x) + x)).mean((2, 3))


CASES: dict[str, Case] = {
    "sums": case(lambda a: (a.sum(), a.sum(0), a.sum(-1, keepdim=True), a.sum((0, 1))), X),
    "means": case(lambda a: (a.mean(), a.mean(1), a.mean((0, 1), keepdim=True)), X),
    "sum of integers and of bools": case(
        lambda a: (a.sum(), (a > 2).sum(), (a > 2).sum(1), a.sum(dtype=torch.int32)),
        torch.arange(6).reshape(2, 3),
    ),
    "sum over no elements": case(lambda a: (a.sum(), a.sum(0), a.mean(0)), torch.randn(0, 3)),
    "max and min": case(lambda a: (a.max(), a.min(), a.max(1)), X),
    "max with its place": case(lambda a: a.max(-1).indices + a.max(-1).values, X),
    "topk and sort": case(lambda a: (a.topk(2), a.sort(1, descending=True)), X),
    "cumsum": case(lambda a: (a.cumsum(0), a.cumsum(1, dtype=torch.float64)), X),
    "argmax": case(lambda a: a.argmax(1), X),
    "amax": case(lambda a: a.amax(1), X),
    "variance": case(lambda a: a.var(1), X),
    "variance, decomposed": case(lambda a: (a.var(1), a.std(0)), X, how="decomposed"),
    "norms": case(lambda a: (a.norm(), F.normalize(a, dim=-1)), X, how="decomposed"),
    "all and any": case(lambda a: (a.all(), a.any()), X > 0),
    "softmax": case(lambda a: (a.softmax(0), a.log_softmax(-1)), X),
    "logsumexp inside": case(lambda a: a.logsumexp(1), X),
    "logsumexp, decomposed": case(lambda a: a.logsumexp(1), X, how="decomposed"),
    "softmax to another dtype": case(lambda a: a.softmax(-1, dtype=torch.float32), X.half()),
    "products": case(lambda a, b: (a @ b.t(), a.t() @ b, torch.mm(a.t(), b)), X, X * 2),
    "product with a vector": case(lambda a, v: (a @ v, torch.mv(a, v)), X, torch.randn(4)),
    "product of two vectors": case(lambda v: v @ v, X[0]),
    "product of two vectors, decomposed": case(lambda v: v @ v, X[0], how="decomposed"),
    "batched products": case(
        lambda a, b: (torch.bmm(a, b), a @ b[0], torch.einsum("bij,bjk->bki", a, b)),
        torch.randn(2, 3, 4),
        torch.randn(2, 4, 5),
    ),
    "product with no elements": case(lambda a, b: a @ b, torch.randn(2, 0), torch.randn(0, 3)),
    "products in bfloat16": case(lambda a: a @ a.t(), X.bfloat16()),
    "addmm with factors": case(
        lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), torch.randn(3, 3), X, X.t()
    ),
    "linear without bias": case(nn.Linear(4, 2, bias=False), X),
    "linear, three dimensions": case(nn.Linear(8, 3), SEQUENCE),
    "bilinear": case(nn.Bilinear(4, 4, 2), X, X * 2, how="decomposed"),
    "conv1d": case(nn.Conv1d(5, 3, 3, padding=1), SEQUENCE),
    "conv2d, strided, dilated, groups": case(
        nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), IMAGE
    ),
    "conv2d, padding by name": case(nn.Conv2d(4, 6, 3, padding="same"), IMAGE),
    "conv3d": case(nn.Conv3d(2, 3, 2), torch.randn(1, 2, 4, 4, 4)),
    "transposed convolution": case(
        nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), IMAGE, how="leaf"
    ),
    "an image without a batch": case(nn.Conv2d(4, 6, 3), IMAGE[0]),
    "max pooling": case(lambda a: F.max_pool2d(a, 2, stride=1, padding=1), IMAGE),
    "average pooling": case(lambda a: (F.avg_pool2d(a, 2), F.adaptive_avg_pool2d(a, 1)), IMAGE),
    "adaptive pooling": case(lambda a: F.adaptive_avg_pool2d(a, (3, 5)), IMAGE),
    "upsampling": case(lambda a: F.interpolate(a, scale_factor=2, mode="nearest"), IMAGE),
    "bilinear upsampling": case(
        lambda a: F.interpolate(a, size=(5, 7), mode="bilinear", align_corners=False), IMAGE
    ),
    "padding": case(lambda a: F.pad(a, (1, 2, 0, 1), value=0.5), X),
    "layer norm": case(nn.LayerNorm(8), SEQUENCE),
    "layer norm, two dimensions, no affine": case(
        nn.LayerNorm((5, 8), elementwise_affine=False, eps=1e-3), SEQUENCE
    ),
    "group norm": case(nn.GroupNorm(2, 4), IMAGE),
    "group norm, decomposed": case(lambda a: F.group_norm(a, 2), IMAGE, how="decomposed"),
    "instance norm": case(lambda a: F.instance_norm(a), IMAGE),
    "rms norm": case(lambda a: F.rms_norm(a, (8,)), SEQUENCE),
    "batch norm in eval mode": case(nn.BatchNorm2d(4).eval(), IMAGE, how="leaf"),
    "embedding": case(nn.Embedding(5, 3), IDS),
    "embedding with padding": case(nn.Embedding(5, 3, padding_idx=0), IDS),
    "gather": case(lambda a, i: a.gather(1, i), torch.randn(2, 5), IDS),
    "index_select": case(lambda a, i: a.index_select(0, i), torch.randn(5, 2), IDS[0]),
    "indexing by a tensor": case(lambda a, i: a[i], torch.randn(5, 2), IDS),
    "indexing by a tensor, decomposed": case(
        lambda a, i: a[i], torch.randn(5, 2), IDS, how="decomposed"
    ),
    "triangles": case(lambda a: (a.tril(), a.triu(1)), X),
    "attention by hand": case(
        Attention(), SEQUENCE, torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1) > 0, -1e9)
    ),
    "scaled dot product attention": case(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v), *(torch.randn(1, 2, 3, 4),) * 3
    ),
    "scaled dot product attention, causal": case(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        *(torch.randn(1, 2, 3, 4) for _ in range(3)),
    ),
    "scaled dot product attention, causal, decomposed": case(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        *(torch.randn(1, 2, 3, 4) for _ in range(3)),
        how="decomposed",
    ),
    "losses": case(
        lambda a, t: (F.cross_entropy(a, t), F.nll_loss(a, t, reduction="sum")),
        torch.randn(3, 5),
        torch.tensor([1, 0, 4]),
    ),
    "more losses, decomposed": case(
        lambda a, b: (F.mse_loss(a, b), F.smooth_l1_loss(a, b), F.l1_loss(a, b)),
        X,
        X + 1,
        how="decomposed",
    ),
    "a gated model": case(Gated(), SEQUENCE),
    "a residual model in eval mode": case(Residual().eval(), IMAGE),
    "an encoder layer in eval mode": case(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(),
        SEQUENCE,
        how="leaf",
    ),
    "an LSTM": case(nn.LSTM(8, 4, batch_first=True), SEQUENCE, how="leaf"),
    "an LSTM cell": case(nn.LSTMCell(8, 4), SEQUENCE[0], how="leaf"),
    "a GRU cell": case(nn.GRUCell(8, 4), SEQUENCE[0], how="leaf"),
}
