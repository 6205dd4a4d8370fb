"""Mixtures of experts, attention with relative positions, torch's own transformer, CLIP."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mixtures of experts with dense dispatch.


class TopKExperts(nn.Module):
    """Every expert sees every token, what was not routed to it is weighted 0 (Mixtral, 2024)."""

    def __init__(self, width: int = 32, experts: int = 4, k: int = 2, hidden: int = 48) -> None:
        super().__init__()
        self.experts, self.k = experts, k
        self.gate = nn.Linear(width, experts, bias=False)
        self.w13 = nn.Parameter(torch.randn(experts, width, 2 * hidden) / width**0.5)
        self.w2 = nn.Parameter(torch.randn(experts, hidden, width) / hidden**0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b, t, c = x.shape
        flat = x.view(-1, c)
        share = F.softmax(self.gate(flat), dim=1, dtype=torch.float)
        weights, chosen = torch.topk(share, self.k, dim=-1)
        weights /= weights.sum(dim=-1, keepdim=True)
        combine = torch.zeros_like(share).scatter_(1, chosen, weights)
        gate, up = torch.einsum("td,edh->teh", flat, self.w13).chunk(2, dim=-1)
        out = torch.einsum("teh,ehd->ted", F.silu(gate) * up, self.w2)
        out = torch.einsum("ted,te->td", out, combine.type_as(out))
        routed = (combine > 0).float().mean(dim=0)
        balance = self.experts * torch.sum(routed * share.mean(dim=0))
        return out.view(b, t, c), balance


class CapacityExperts(nn.Module):
    """One expert a token and so many places an expert, counted by cumsum (Switch, 2021)."""

    def __init__(self, width: int = 32, experts: int = 4, capacity: int = 5) -> None:
        super().__init__()
        self.experts, self.capacity = experts, capacity
        self.gate = nn.Linear(width, experts)
        self.wi = nn.Parameter(torch.randn(experts, width, 2 * width) / width**0.5)
        self.wo = nn.Parameter(torch.randn(experts, 2 * width, width) / (2 * width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        probability, expert = F.softmax(self.gate(tokens), dim=-1).max(dim=-1)
        mask = (expert.unsqueeze(-1) == torch.arange(self.experts, device=x.device)).long()
        place = torch.cumsum(mask, dim=0) * mask - 1
        kept = (place >= 0) & (place < self.capacity)
        slots = torch.arange(self.capacity, device=x.device)
        hot = (place.unsqueeze(-1) == slots) & kept.unsqueeze(-1)
        dispatch = hot.to(x.dtype)
        combine = dispatch * probability[:, None, None]
        inputs = torch.einsum("sec,sd->ecd", dispatch, tokens)
        hidden = F.relu(torch.bmm(inputs, self.wi))
        outputs = torch.bmm(hidden, self.wo)
        out = torch.einsum("sec,ecd->sd", combine, outputs)
        # a token for which there was no place passes unchanged
        passed = torch.where(kept.any(dim=-1, keepdim=True), out, tokens)
        return passed.view(x.shape)


class MixtureOfExperts(nn.Module):
    def __init__(self, words: int = 50, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.top_k = TopKExperts(width)
        self.capacity = CapacityExperts(width)
        self.head = nn.Linear(width, words)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(ids)
        out, balance = self.top_k(self.norm1(x))
        x = x + out
        x = x + self.capacity(self.norm2(x))
        return self.head(x), balance


# torch's own transformer, and attention with relative positions.


class TorchTransformer(nn.Module):
    """nn.TransformerEncoder and nn.TransformerDecoder with their masks."""

    def __init__(self, words: int = 40, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Embedding(words, width)
        self.transformer = nn.Transformer(width, 4, 1, 1, 2 * width, dropout=0.1, batch_first=True)
        self.out = nn.Linear(width, words)

    def positions(self, length: int) -> Tensor:
        place = torch.arange(length).unsqueeze(1)
        step = torch.exp(torch.arange(0, self.width, 2) * (-math.log(10000.0) / self.width))
        table = torch.zeros(length, self.width)
        table[:, 0::2] = torch.sin(place * step)
        table[:, 1::2] = torch.cos(place * step)
        return table

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        x = self.embed(source) * math.sqrt(self.width) + self.positions(source.shape[1])
        y = self.embed(target) * math.sqrt(self.width) + self.positions(target.shape[1])
        return self.out(self.transformer(x, y, tgt_mask=causal, tgt_is_causal=True))


class RelativeAttention(nn.Module):
    """Transformer-XL (Dai et al. 2019): the shift by padding, and a memory before the segment."""

    def __init__(self, width: int = 32, heads: int = 4, words: int = 40) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.embed = nn.Embedding(words, width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.r = nn.Linear(width, width, bias=False)
        self.u = nn.Parameter(torch.randn(heads, self.dim) * 0.1)
        self.v = nn.Parameter(torch.randn(heads, self.dim) * 0.1)
        self.o = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.AdaptiveLogSoftmaxWithLoss(width, words, cutoffs=[10, 20])

    def shift(self, x: Tensor) -> Tensor:
        b, h, q, k = x.shape
        return F.pad(x, (1, 0)).view(b, h, k + 1, q)[:, :, 1:].reshape(b, h, q, k)

    def forward(self, ids: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(ids)
        b, t, width = x.shape
        whole = torch.cat([memory, x], dim=1)
        length = whole.shape[1]
        back = torch.arange(length - 1, -1, -1.0, device=x.device)
        even = torch.arange(0.0, width, 2.0, device=x.device)
        angles = torch.outer(back, 1 / (10000 ** (even / width)))
        r = self.r(torch.cat([angles.sin(), angles.cos()], dim=-1)).view(length, self.heads, -1)
        q = self.q(x).view(b, t, self.heads, self.dim)
        k, v = torch.chunk(self.kv(whole), 2, dim=-1)
        k, v = k.view(b, length, self.heads, -1), v.view(b, length, self.heads, -1)
        content = torch.einsum("bind,bjnd->bnij", (q + self.u, k))
        place = self.shift(torch.einsum("bind,jnd->bnij", (q + self.v, r)))
        future = torch.triu(torch.ones(t, length, device=x.device), diagonal=1 + length - t).bool()
        score = (content + place).mul(self.dim**-0.5).masked_fill(future, -torch.inf)
        mixed = torch.einsum("bnij,bjnd->bind", (F.softmax(score, dim=3), v))
        x = self.norm(x + self.o(mixed.contiguous().view(b, t, width)))
        return self.head.log_prob(x.reshape(b * t, width)), x.detach()


# CLIP (Radford et al. 2021).


class ClipBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = self.c_fc(self.ln_2(x))
        return x + self.c_proj(y * torch.sigmoid(1.702 * y))


class Clip(nn.Module):
    def __init__(self, words: int = 49, context: int = 8, width: int = 32, joint: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, stride=8, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.visual_positions = nn.Parameter(width**-0.5 * torch.randn(17, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.visual = nn.ModuleList(ClipBlock(width, 4) for _ in range(2))
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, joint))
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(context, width))
        self.text = nn.ModuleList(ClipBlock(width, 4) for _ in range(2))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, joint))
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))

    def encode_image(self, image: Tensor) -> Tensor:
        x = self.conv1(image)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        empty = torch.zeros(x.shape[0], 1, x.shape[-1], dtype=x.dtype, device=x.device)
        x = torch.cat([self.class_embedding.to(x.dtype) + empty, x], dim=1)
        x = self.ln_pre(x + self.visual_positions).permute(1, 0, 2)
        for block in self.visual:
            x = block(x, None)
        return self.ln_post(x.permute(1, 0, 2)[:, 0, :]) @ self.proj

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text) + self.positional_embedding
        mask = torch.empty(text.shape[1], text.shape[1], device=text.device)
        mask.fill_(float("-inf"))
        mask.triu_(1)
        x = x.permute(1, 0, 2)
        for block in self.text:
            x = block(x, mask)
        x = self.ln_final(x.permute(1, 0, 2))
        # the end of a text is its highest token
        rows = torch.arange(x.shape[0], device=x.device)
        return x[rows, text.argmax(dim=-1)] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        images, texts = self.encode_image(image), self.encode_text(text)
        images = images / images.norm(dim=1, keepdim=True)
        texts = texts / texts.norm(dim=1, keepdim=True)
        logits = self.logit_scale.exp() * images @ texts.t()
        return logits, logits.t()
