"""Models of sequences of numbers: recurrent, convolutional, state spaces, sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class LstmTagger(nn.Module):
    """Two bidirectional layers, and an additive attention that pools over time."""

    def __init__(self, words: int = 50, width: int = 24, tags: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.lstm = nn.LSTM(
            width, width, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1
        )
        self.attend = nn.Linear(2 * width, 2 * width)
        self.query = nn.Linear(2 * width, 1, bias=False)
        self.fc = nn.Linear(2 * width, tags)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embed(ids))
        score = self.query(torch.tanh(self.attend(hidden))).squeeze(-1)
        share = score.masked_fill(ids == 0, float("-inf")).softmax(dim=1)
        return self.fc(torch.bmm(share.unsqueeze(1), hidden).squeeze(1))


class GruLanguageModel(nn.Module):
    """A word-level language model with tied embeddings that hands its state on."""

    def __init__(self, words: int = 60, width: int = 32) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(words, width)
        self.gru = nn.GRU(width, width, num_layers=2)
        self.decoder = nn.Linear(width, words)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.3, 0.3)

    def forward(self, ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        output, hidden = self.gru(self.drop(self.encoder(ids)), hidden)
        return F.log_softmax(self.decoder(self.drop(output)), dim=-1), hidden


class AttentionSeq2Seq(nn.Module):
    """Bahdanau attention (2014) over an encoder, decoded step by step with a cell."""

    def __init__(self, words: int = 30, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.w_query = nn.Linear(width, width)
        self.w_key = nn.Linear(width, width)
        self.energy = nn.Linear(width, 1)
        self.cell = nn.LSTMCell(2 * width, width)
        self.out = nn.Linear(width, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        keys, last = self.encoder(self.embed(source))
        projected = self.w_key(keys)
        hidden, cell = last[0], torch.zeros_like(last[0])
        steps = []
        for word in self.embed(target).unbind(dim=1):
            scores = self.energy(torch.tanh(self.w_query(hidden).unsqueeze(1) + projected))
            context = (scores.softmax(dim=1) * keys).sum(dim=1)
            hidden, cell = self.cell(torch.cat([word, context], dim=1), (hidden, cell))
            steps.append(self.out(hidden))
        return torch.stack(steps, dim=1)


# Dilated convolutions.


class WaveNet(nn.Module):
    """Gated causal convolutions with residual and skip paths (van den Oord et al. 2016)."""

    def __init__(self, classes: int = 32, width: int = 16, layers: int = 4) -> None:
        super().__init__()
        self.classes = classes
        self.embed = nn.Conv1d(1, width, 2)
        self.gates = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(layers)
        )
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.end1 = nn.Conv1d(width, width, 1)
        self.end2 = nn.Conv1d(width, classes, 1)

    def forward(self, wave: Tensor) -> Tensor:
        mu = torch.tensor(self.classes - 1, dtype=wave.dtype, device=wave.device)
        x = torch.sign(wave) * torch.log1p(mu * torch.abs(wave)) / torch.log1p(mu)
        x = self.embed(F.pad(x.unsqueeze(1), (1, 0)))
        total = torch.zeros_like(x)
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            filtered, opened = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, dim=1)
            h = torch.tanh(filtered) * torch.sigmoid(opened)
            total += skip(h)
            x = x + residual(h)
        return self.end2(F.relu(self.end1(F.relu(total))))


class Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, inside: int, outside: int, dilation: int) -> None:
        super().__init__()
        pad = 2 * dilation
        layers: list[nn.Module] = []
        for first in (inside, outside):
            conv = nn.Conv1d(first, outside, 3, padding=pad, dilation=dilation)
            layers += [parametrizations.weight_norm(conv), Chomp(pad), nn.ReLU(), nn.Dropout(0.2)]
        self.net = nn.Sequential(*layers)
        self.downsample = nn.Conv1d(inside, outside, 1) if inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


class Tcn(nn.Module):
    """A temporal convolutional network (Bai et al. 2018), its weights normalized."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.tcn = nn.Sequential(
            TemporalBlock(3, 16, 1), TemporalBlock(16, 16, 2), TemporalBlock(16, 16, 4)
        )
        self.linear = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.tcn(x)[:, :, -1])


# State spaces.


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class MambaBlock(nn.Module):
    """The selective scan as a loop over time (Gu and Dao 2023)."""

    def __init__(self, width: int = 24, state: int = 8, rank: int = 4, kernel: int = 4) -> None:
        super().__init__()
        inner = 2 * width
        self.rank, self.state = rank, state
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel, padding=kernel - 1, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        steps = torch.arange(1, state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(torch.log(steps.repeat(inner, 1)))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x, res = self.in_proj(x).chunk(2, dim=-1)
        x = self.conv1d(x.transpose(1, 2))[:, :, :length].transpose(1, 2)
        y = self.scan(F.silu(x))
        return self.out_proj(y * F.silu(res))

    def scan(self, u: Tensor) -> Tensor:
        a = -torch.exp(self.A_log.float())
        delta, b, c = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        decay = torch.exp(torch.einsum("bld,dn->bldn", delta, a))
        drive = torch.einsum("bld,bln,bld->bldn", delta, b, u)
        x = torch.zeros_like(drive[:, 0])
        ys = []
        for i in range(u.shape[1]):
            x = decay[:, i] * x + drive[:, i]
            ys.append(torch.einsum("bdn,bn->bd", x, c[:, i]))
        return torch.stack(ys, dim=1) + u * self.D


class Mamba(nn.Module):
    def __init__(self, words: int = 40, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.norms = nn.ModuleList(RmsNorm(width) for _ in range(2))
        self.mixers = nn.ModuleList(MambaBlock(width) for _ in range(2))
        self.norm_f = RmsNorm(width)
        self.lm_head = nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.lm_head(self.norm_f(x))


def segment_sums(x: Tensor) -> Tensor:
    """The sums of ``x`` over every segment that ends at a row and begins behind a column."""
    t = x.size(-1)
    x = x.unsqueeze(-1).expand(*x.shape, t)
    mask = torch.tril(torch.ones(t, t, device=x.device, dtype=torch.bool), diagonal=-1)
    x = torch.cumsum(x.masked_fill(~mask, 0), dim=-2)
    mask = torch.tril(torch.ones(t, t, device=x.device, dtype=torch.bool), diagonal=0)
    return x.masked_fill(~mask, -torch.inf)


class Mamba2(nn.Module):
    """State space duality, in chunks (Dao and Gu 2024): cumulative sums and five-letter einsums."""

    def __init__(self, width: int = 32, heads: int = 4, state: int = 8, chunk: int = 4) -> None:
        super().__init__()
        self.heads, self.state, self.chunk = heads, state, chunk
        self.in_proj = nn.Linear(width, 2 * width + 2 * state + heads, bias=False)
        conv = width + 2 * state
        self.conv1d = nn.Conv1d(conv, conv, 4, groups=conv, padding=3)
        self.dt_bias = nn.Parameter(torch.linspace(-3.0, 0.0, heads))
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, heads + 1)))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RmsNorm(width)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        batch, length, width = u.shape
        sizes = [width, width + 2 * self.state, self.heads]
        z, xbc, dt = torch.split(self.in_proj(u), sizes, dim=-1)
        dt = F.softplus(dt + self.dt_bias)
        xbc = F.silu(self.conv1d(xbc.transpose(1, 2)).transpose(1, 2)[:, :length, :])
        x, b, c = torch.split(xbc, [width, self.state, self.state], dim=-1)
        x = x.reshape(batch, length, self.heads, -1)
        y = self.scan(x * dt.unsqueeze(-1), -torch.exp(self.A_log) * dt, b, c)
        y = (y + x * self.D.unsqueeze(-1)).reshape(batch, length, width)
        return self.out_proj(self.norm(y * F.silu(z)))

    def scan(self, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        batch, length, heads, _ = x.shape
        parts = length // self.chunk
        x = x.view(batch, parts, self.chunk, heads, -1)
        a = a.view(batch, parts, self.chunk, heads).permute(0, 3, 1, 2)
        b, c = (
            v.reshape(batch, parts, self.chunk, 1, -1).expand(-1, -1, -1, heads, -1) for v in (b, c)
        )
        total = torch.cumsum(a, dim=-1)
        decay = torch.exp(segment_sums(a))
        inside = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", c, b, decay, x)
        states = torch.einsum("bclhn,bhcl,bclhp->bchpn", b, torch.exp(total[..., -1:] - total), x)
        states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
        between = torch.exp(segment_sums(F.pad(total[:, :, :, -1], (1, 0))))
        states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
        across = torch.einsum("bclhn,bchpn,bhcl->bclhp", c, states, torch.exp(total))
        return (inside + across).reshape(batch, length, heads, -1)


# Sound.


class Wav2Vec(nn.Module):
    """wav2vec 2.0 (Baevski et al. 2020): strided convolutions, convolved positions, one layer."""

    def __init__(self, width: int = 32, classes: int = 12) -> None:
        super().__init__()
        shapes = ((1, 10, 5), (24, 3, 2), (24, 3, 2), (24, 2, 2))
        self.convs = nn.ModuleList(nn.Conv1d(i, 24, k, s, bias=False) for i, k, s in shapes)
        self.group_norm = nn.GroupNorm(24, 24)
        self.layer_norm = nn.LayerNorm(24)
        self.projection = nn.Linear(24, width)
        self.pos_conv = parametrizations.weight_norm(
            nn.Conv1d(width, width, 8, padding=4, groups=4), name="weight", dim=2
        )
        self.dropout = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(width)
        self.layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True
        )
        self.lm_head = nn.Linear(width, classes)

    def forward(self, wave: Tensor) -> Tensor:
        wave = (wave - wave.mean(-1, keepdim=True)) / torch.sqrt(wave.var(-1, keepdim=True) + 1e-7)
        x = wave.unsqueeze(1)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if i == 0:
                x = self.group_norm(x)
            x = F.gelu(x)
        x = self.projection(self.layer_norm(x.transpose(1, 2)))
        positions = F.gelu(self.pos_conv(x.transpose(1, 2))[:, :, :-1])
        x = self.dropout(self.norm(x + positions.transpose(1, 2)))
        return F.log_softmax(self.lm_head(self.layer(x)), dim=-1)


class SpectrogramNet(nn.Module):
    """A log-mel front end written with stft, and a small convolutional classifier behind it."""

    window: Tensor
    filters: Tensor

    def __init__(self, bands: int = 16, classes: int = 8) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.register_buffer("filters", torch.rand(bands, 33))
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * (bands // 2), classes)

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(wave, 64, 16, window=self.window, return_complex=True)
        power = spectrum.abs() ** 2
        mel = torch.clamp(self.filters @ power, min=1e-10).log10()
        mel = torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - 8.0)
        x = F.max_pool2d(F.relu(self.norm(self.conv(((mel + 4.0) / 4.0).unsqueeze(1)))), 2)
        return self.fc(x.mean(dim=3).flatten(1))
