"""Autoencoders, a denoising network, a Fourier operator and a radiance field."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Autoencoders.


class Autoencoder(nn.Module):
    def __init__(self, latent: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ELU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.PReLU(16),
            nn.Flatten(),
            nn.Linear(16 * 8 * 8, latent),
        )
        self.expand = nn.Linear(latent, 16 * 8 * 8)
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (16, 8, 8)),
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(8, affine=True),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(8, 3, 3, stride=2, padding=1, output_padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.decoder(self.expand(z)), z


class Vae(nn.Module):
    """The variational autoencoder (Kingma and Welling 2013), which draws in eval mode too."""

    def __init__(self, latent: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(8, 16, 4, stride=2, padding=1),
            nn.SiLU(),
        )
        self.moments = nn.Linear(16 * 8 * 8, 2 * latent)
        self.expand = nn.Linear(latent, 16 * 4 * 8 * 8)
        self.decoder = nn.Sequential(
            nn.PixelShuffle(2),
            nn.Conv2d(16, 12, 3, padding=1),
            nn.SiLU(),
            nn.PixelShuffle(2),
            nn.Conv2d(3, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mu, logvar = self.moments(self.encoder(x).flatten(1)).chunk(2, dim=1)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        out = self.decoder(self.expand(z).view(-1, 64, 8, 8))
        divergence = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)
        return {"reconstruction": torch.tanh(out), "divergence": divergence}


class VectorQuantizer(nn.Module):
    """VQ-VAE (van den Oord et al. 2017): the nearest code word, straight-through gradients."""

    def __init__(self, codes: int = 16, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, width, 4, stride=4)
        self.codebook = nn.Embedding(codes, width)
        self.decoder = nn.ConvTranspose2d(width, 3, 4, stride=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, z.shape[-1])
        weight = self.codebook.weight
        distance = (
            flat.pow(2).sum(1, keepdim=True)
            + weight.pow(2).sum(1)
            - 2 * torch.matmul(flat, weight.t())
        )
        index = torch.argmin(distance, dim=1)
        hot = torch.zeros(index.shape[0], weight.shape[0], device=x.device)
        hot.scatter_(1, index.unsqueeze(1), 1)
        quantized = torch.matmul(hot, weight).view(z.shape)
        loss = F.mse_loss(quantized.detach(), z) + 0.25 * F.mse_loss(quantized, z.detach())
        quantized = z + (quantized - z).detach()
        share = hot.mean(dim=0)
        perplexity = torch.exp(-torch.sum(share * torch.log(share + 1e-10)))
        return self.decoder(quantized.permute(0, 3, 1, 2).contiguous()), loss, perplexity


# A denoising network as in Stable Diffusion (Ho et al. 2020, Rombach et al. 2021).


def timestep_embedding(steps: Tensor, width: int, period: int = 10000) -> Tensor:
    half = width // 2
    counted = torch.arange(half, dtype=torch.float32, device=steps.device)
    freqs = torch.exp(-math.log(period) * counted / half)
    args = steps[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


class TimeBlock(nn.Module):
    """A residual block that scales and shifts by the time embedding."""

    def __init__(self, inside: int, outside: int, time: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.time = nn.Linear(time, 2 * outside)
        self.norm2 = nn.GroupNorm(8, outside)
        self.drop = nn.Dropout(0.1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.drop(F.silu(h)))


class CrossAttention(nn.Module):
    def __init__(self, width: int, context: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(context, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.to_q(x).reshape(b, n, self.heads, -1)
        k, v = self.to_kv(context).chunk(2, dim=-1)
        k = k.reshape(b, k.shape[1], self.heads, -1)
        v = v.reshape(b, v.shape[1], self.heads, -1)
        sim = torch.einsum("bihd,bjhd->bhij", q, k) * self.scale
        out = torch.einsum("bhij,bjhd->bihd", sim.softmax(dim=-1), v)
        return self.to_out(out.reshape(b, n, -1))


class SpatialTransformer(nn.Module):
    """Self-attention, cross-attention and a gated feed-forward over the pixels."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.self_attention = CrossAttention(width, width)
        self.cross_attention = CrossAttention(width, context)
        self.geglu = nn.Linear(width, 4 * width)
        self.ff = nn.Linear(2 * width, width)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(b, h * w, c)
        normed = self.norms[0](y)
        y = y + self.self_attention(normed, normed)
        y = y + self.cross_attention(self.norms[1](y), context)
        value, gate = self.geglu(self.norms[2](y)).chunk(2, dim=-1)
        y = y + self.ff(value * F.gelu(gate))
        return x + self.proj_out(y.reshape(b, h, w, c).permute(0, 3, 1, 2))


class DiffusionUNet(nn.Module):
    def __init__(self, width: int = 16, context: int = 24) -> None:
        super().__init__()
        self.width = width
        time = 4 * width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.down1 = TimeBlock(width, width, time)
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.down2 = TimeBlock(width, 2 * width, time)
        self.attn = SpatialTransformer(2 * width, context)
        self.middle = TimeBlock(2 * width, 2 * width, time)
        self.up2 = TimeBlock(4 * width, 2 * width, time)
        self.upsample = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up1 = TimeBlock(3 * width, width, time)
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor, steps: Tensor, context: Tensor) -> Tensor:
        t = self.time(timestep_embedding(steps, self.width))
        skip1 = self.down1(self.conv_in(x), t)
        skip2 = self.attn(self.down2(self.downsample(skip1), t), context)
        h = self.up2(torch.cat([self.middle(skip2, t), skip2], dim=1), t)
        h = self.upsample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.up1(torch.cat([h, skip1], dim=1), t)
        return self.conv_out(F.silu(self.norm_out(h)))


# Others.


class Fourier(nn.Module):
    """The Fourier neural operator (Li et al. 2020): a few frequencies, with complex weights."""

    def __init__(self, width: int = 12, modes: int = 4) -> None:
        super().__init__()
        self.modes = modes
        self.lift = nn.Conv2d(1, width, 1)
        weight = torch.randn(2, width, width, modes, modes, dtype=torch.cfloat) / width
        self.weight = nn.Parameter(torch.view_as_real(weight))
        self.local = nn.Conv2d(width, width, 1)
        self.project = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        b, c, h, w = x.shape
        weight = torch.view_as_complex(self.weight)
        freq = torch.fft.rfft2(x)
        out = torch.zeros(b, c, h, w // 2 + 1, dtype=torch.cfloat, device=x.device)
        m = self.modes
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", freq[:, :, :m, :m], weight[0])
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", freq[:, :, -m:, :m], weight[1])
        return self.project(F.gelu(torch.fft.irfft2(out, s=(h, w)) + self.local(x)))


class RadianceField(nn.Module):
    """NeRF (Mildenhall et al. 2020): positional encoding, and the volume rendered along rays."""

    freqs: Tensor

    def __init__(self, bands: int = 4, samples: int = 16) -> None:
        super().__init__()
        self.samples = samples
        self.register_buffer("freqs", 2.0 ** torch.arange(bands))
        inside = 3 + 6 * bands
        self.first = nn.Linear(inside, 48)
        self.second = nn.Linear(48 + inside, 48)
        self.sigma = nn.Linear(48, 1)
        self.color = nn.Sequential(nn.Linear(48 + 3, 24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        depth = torch.linspace(2.0, 6.0, self.samples, device=origins.device)
        points = origins[:, None, :] + directions[:, None, :] * depth[None, :, None]
        bands = (points[..., None] * self.freqs).flatten(-2)
        encoded = torch.cat([points, bands.sin(), bands.cos()], dim=-1)
        h = F.relu(self.first(encoded))
        h = F.relu(self.second(torch.cat([h, encoded], dim=-1)))
        view = F.normalize(directions, dim=-1)[:, None, :].expand_as(points)
        rgb = torch.sigmoid(self.color(torch.cat([h, view], dim=-1)))
        sigma = F.softplus(self.sigma(h).squeeze(-1))
        delta = torch.cat([depth[1:] - depth[:-1], torch.full_like(depth[:1], 1e10)])
        alpha = 1.0 - torch.exp(-sigma * delta)
        ones = torch.ones_like(alpha[:, :1])
        seen = torch.cumprod(torch.cat([ones, 1.0 - alpha + 1e-10], -1), -1)[:, :-1]
        weights = alpha * seen
        return (weights[..., None] * rgb).sum(-2), (weights * depth).sum(-1)
