"""Llama written out three times: without a cache, with one in buffers, with one as an argument."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + self.eps)
        return wide.type_as(x) * self.weight


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


# Rotary positions, in the two forms in use.


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class Rotary(nn.Module):
    """The halves of a head are rotated against each other, as in transformers."""

    inv_freq: Tensor

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("inv_freq", freq, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, :, None].float() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return (x * cos) + (rotate_half(x) * sin)


def complex_rotary(dim: int, length: int, base: float = 10000.0) -> Tensor:
    """Numbers on the unit circle of shape (length, dim / 2), as in Meta's llama."""
    freq = 1.0 / (base ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim))
    angles = torch.outer(torch.arange(length).float(), freq)
    return torch.polar(torch.ones_like(angles), angles)


def apply_complex_rotary(x: Tensor, freqs: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    freqs = freqs.view(1, x.shape[1], 1, x.shape[-1] // 2)
    return torch.view_as_real(pairs * freqs).flatten(3).type_as(x)


def apply_pair_rotary(x: Tensor, freqs: Tensor) -> Tensor:
    """As the complex form, on (cos, sin) of shape (length, dim / 2, 2), as in gpt-fast."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    freqs = freqs.view(1, pairs.size(1), 1, pairs.size(3), 2)
    turned = torch.stack(
        [
            pairs[..., 0] * freqs[..., 0] - pairs[..., 1] * freqs[..., 1],
            pairs[..., 1] * freqs[..., 0] + pairs[..., 0] * freqs[..., 1],
        ],
        -1,
    )
    return turned.flatten(3).type_as(x)


# Llama (Touvron et al. 2023) without a cache, over a whole sequence.


class LlamaAttention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, width // heads
        self.q_proj = nn.Linear(width, heads * self.dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(heads * self.dim, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.dim).transpose(1, 2)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).contiguous().view(b, t, -1))


class LlamaLayer(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(width, heads, kv_heads)
        self.mlp = SwiGlu(width, 2 * width)
        self.input_norm, self.post_norm = RmsNorm(width), RmsNorm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_norm(x), cos, sin)
        return x + self.mlp(self.post_norm(x))


class Llama(nn.Module):
    def __init__(self, words: int = 64, width: int = 32, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(words, width)
        self.rotary = Rotary(width // heads)
        self.layers = nn.ModuleList(LlamaLayer(width, heads, kv_heads) for _ in range(2))
        self.norm = RmsNorm(width)
        self.lm_head = nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        cos, sin = self.rotary(x, positions)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


# The same with a cache in buffers that is written at positions given as a tensor (gpt-fast).


class Cache(nn.Module):
    k_cache: Tensor
    v_cache: Tensor

    def __init__(self, batch: int, heads: int, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("k_cache", torch.zeros(batch, heads, length, dim))
        self.register_buffer("v_cache", torch.zeros(batch, heads, length, dim))

    def update(self, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k_out, v_out = self.k_cache, self.v_cache
        k_out[:, :, positions] = k
        v_out[:, :, positions] = v
        return k_out, v_out


class BufferedLayer(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, batch: int, length: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, width // heads
        self.wqkv = nn.Linear(width, (heads + 2 * kv_heads) * self.dim, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.cache = Cache(batch, kv_heads, length, self.dim)
        self.feed_forward = SwiGlu(width, 2 * width)
        self.attention_norm, self.ffn_norm = RmsNorm(width), RmsNorm(width)

    def forward(self, x: Tensor, freqs: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        b, t, width = x.shape
        kv = self.kv_heads * self.dim
        q, k, v = self.wqkv(self.attention_norm(x)).split([width, kv, kv], dim=-1)
        q = apply_pair_rotary(q.view(b, t, self.heads, self.dim), freqs)
        k = apply_pair_rotary(k.view(b, t, self.kv_heads, self.dim), freqs)
        v = v.view(b, t, self.kv_heads, self.dim)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        k, v = self.cache.update(positions, k, v)
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0)
        x = x + self.wo(y.transpose(1, 2).contiguous().view(b, t, width))
        return x + self.feed_forward(self.ffn_norm(x))


class LlamaBuffered(nn.Module):
    causal_mask: Tensor
    freqs: Tensor

    def __init__(self, words: int = 64, width: int = 32, batch: int = 2, length: int = 16) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(words, width)
        self.layers = nn.ModuleList(BufferedLayer(width, 4, 2, batch, length) for _ in range(2))
        self.norm = RmsNorm(width)
        self.output = nn.Linear(width, words, bias=False)
        causal = torch.tril(torch.ones(length, length, dtype=torch.bool))
        self.register_buffer("causal_mask", causal)
        self.register_buffer(
            "freqs", torch.view_as_real(complex_rotary(width // 4, length)).clone()
        )

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        mask = self.causal_mask[None, None, positions]
        freqs = self.freqs[positions]
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x, freqs, mask, positions)
        return self.output(self.norm(x))


# The same with a cache that is an argument, written as a slice from a position that is a number,
# and with rotary positions as complex numbers or as pairs (Meta's llama).


def repeat_kv(x: Tensor, times: int) -> Tensor:
    b, length, heads, dim = x.shape
    return (
        x[:, :, :, None, :]
        .expand(b, length, heads, times, dim)
        .reshape(b, length, heads * times, dim)
    )


class SlicedAttention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, width // heads
        self.wq = nn.Linear(width, heads * self.dim, bias=False)
        self.wk = nn.Linear(width, kv_heads * self.dim, bias=False)
        self.wv = nn.Linear(width, kv_heads * self.dim, bias=False)
        self.wo = nn.Linear(heads * self.dim, width, bias=False)

    def forward(
        self, x: Tensor, start: int, freqs: Tensor, mask: Tensor, cache: tuple[Tensor, Tensor]
    ) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.heads, self.dim)
        k = self.wk(x).view(b, t, self.kv_heads, self.dim)
        v = self.wv(x).view(b, t, self.kv_heads, self.dim)
        turn = apply_complex_rotary if freqs.is_complex() else apply_pair_rotary
        q, k = turn(q, freqs), turn(k, freqs)
        cache_k, cache_v = cache
        cache_k[:b, start : start + t] = k
        cache_v[:b, start : start + t] = v
        keys = repeat_kv(cache_k[:b, : start + t], self.heads // self.kv_heads).transpose(1, 2)
        values = repeat_kv(cache_v[:b, : start + t], self.heads // self.kv_heads).transpose(1, 2)
        scores = torch.matmul(q.transpose(1, 2), keys.transpose(2, 3)) / math.sqrt(self.dim)
        scores = F.softmax((scores + mask).float(), dim=-1).type_as(q)
        out = torch.matmul(scores, values)
        return self.wo(out.transpose(1, 2).contiguous().view(b, t, -1))


class LlamaSliced(nn.Module):
    """``caches`` of shape (layers, 2, batch, length, heads, dim) are written in place."""

    freqs: Tensor

    def __init__(self, *, complex_numbers: bool, words: int = 64, width: int = 32) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(words, width)
        self.attentions = nn.ModuleList(SlicedAttention(width, 4, 2) for _ in range(2))
        self.feed_forwards = nn.ModuleList(SwiGlu(width, 2 * width) for _ in range(2))
        self.norms = nn.ModuleList(RmsNorm(width) for _ in range(5))
        self.output = nn.Linear(width, words, bias=False)
        freqs = complex_rotary(width // 4, 16)
        freqs = freqs if complex_numbers else torch.view_as_real(freqs).clone()
        self.register_buffer("freqs", freqs, persistent=False)

    def forward(self, ids: Tensor, start: int, caches: Tensor) -> Tensor:
        t = ids.shape[1]
        h = self.tok_embeddings(ids)
        freqs = self.freqs[start : start + t]
        mask = torch.full((t, t), float("-inf"), device=ids.device)
        seen = torch.zeros((t, start), device=ids.device)
        mask = torch.hstack([seen, torch.triu(mask, diagonal=1)]).type_as(h)
        for i, (attend, feed) in enumerate(zip(self.attentions, self.feed_forwards, strict=True)):
            cache = (caches[i, 0], caches[i, 1])
            h = h + attend(self.norms[2 * i](h), start, freqs, mask, cache)
            h = h + feed(self.norms[2 * i + 1](h))
        return self.output(self.norms[-1](h)).float()
