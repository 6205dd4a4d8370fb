"""Convolutional networks at the size of CIFAR, and a multilayer perceptron."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Batch norm, dropout and a residual path: the multilayer perceptron of tabular baselines."""

    def __init__(self, width: int = 20, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.stem = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden),
                nn.Linear(hidden, 2 * hidden),
                nn.ReLU(),
                nn.Dropout(0.1),
                nn.Linear(2 * hidden, hidden),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.norm(x))
        for block in self.blocks:
            x = x + block(x)
        return F.log_softmax(self.head(F.relu(x)), dim=-1)


def kaiming(model: nn.Module) -> None:
    """What torchvision starts its convolutional networks with."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# Residual networks (He et al. 2015), with batch norm and with group norm.


class BasicBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    """The eight blocks of ResNet-18 behind the CIFAR stem, a quarter as wide."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        layers: list[nn.Module] = []
        inside = width
        for stage in range(4):
            outside = width * 2**stage
            layers.append(BasicBlock(inside, outside, 1 if stage == 0 else 2))
            layers.append(BasicBlock(outside, outside, 1))
            inside = outside
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inside, classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.layers(x))
        return self.fc(torch.flatten(x, 1))


class StandardizedConv2d(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019): the weights are normalized at each call."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PreActivation(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inside)
        self.conv1 = StandardizedConv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, outside)
        self.conv2 = StandardizedConv2d(outside, outside, 3, 1, 1, bias=False)
        self.shortcut = StandardizedConv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(x))
        residual = self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(F.relu(self.norm2(out))) + residual


class GroupNormNet(nn.Module):
    """Big Transfer's ResNet (Kolesnikov et al. 2019): group norm and standardized weights."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            StandardizedConv2d(3, 16, 3, 1, 1, bias=False),
            nn.ZeroPad2d(1),
            nn.MaxPool2d(3, stride=2),
        )
        self.body = nn.Sequential(PreActivation(16, 32, 1), PreActivation(32, 64, 2))
        self.norm = nn.GroupNorm(8, 64)
        self.head = nn.Conv2d(64, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.body(self.stem(x))))
        return self.head(x.mean(dim=(2, 3), keepdim=True))[..., 0, 0]


# MobileNetV3 (Howard et al. 2019).


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.relu(self.fc1(self.pool(x)))
        return x * F.hardsigmoid(self.fc2(scale))


class InvertedResidual(nn.Module):
    def __init__(
        self, inside: int, wide: int, outside: int, kernel: int, stride: int, *, late: bool
    ) -> None:
        super().__init__()
        act: type[nn.Module] = nn.Hardswish if late else nn.ReLU
        self.residual = stride == 1 and inside == outside
        self.block = nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False),
            nn.BatchNorm2d(wide, eps=0.001, momentum=0.01),
            act(inplace=True),
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide, eps=0.001, momentum=0.01),
            act(inplace=True),
            SqueezeExcite(wide, wide // 4),
            nn.Conv2d(wide, outside, 1, bias=False),
            nn.BatchNorm2d(outside, eps=0.001, momentum=0.01),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        return x + out if self.residual else out


class MobileNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16, eps=0.001, momentum=0.01),
            nn.Hardswish(inplace=True),
            InvertedResidual(16, 32, 16, 3, 1, late=False),
            InvertedResidual(16, 48, 24, 5, 2, late=True),
            InvertedResidual(24, 96, 24, 5, 1, late=True),
            nn.Conv2d(24, 96, 1, bias=False),
            nn.BatchNorm2d(96, eps=0.001, momentum=0.01),
            nn.Hardswish(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Linear(96, 64), nn.Hardswish(inplace=True), nn.Dropout(0.2), nn.Linear(64, classes)
        )
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


# U-Nets (Ronneberger et al. 2015).


def double_conv(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
        nn.Conv2d(outside, outside, 3, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class Up(nn.Module):
    """Upsampling, padding to the size of the skip connection, and the join of both."""

    def __init__(self, inside: int, outside: int, *, learned: bool) -> None:
        super().__init__()
        self.up: nn.Module
        if learned:
            self.up = nn.ConvTranspose2d(inside, inside // 2, 2, stride=2)
        else:
            self.up = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
                nn.Conv2d(inside, inside // 2, 1),
            )
        self.conv = double_conv(inside, outside)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        down = skip.size(2) - x.size(2)
        across = skip.size(3) - x.size(3)
        x = F.pad(x, [across // 2, across - across // 2, down // 2, down - down // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    def __init__(self, width: int = 8, *, learned: bool = True) -> None:
        super().__init__()
        self.inc = double_conv(3, width)
        self.downs = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), double_conv(width * 2**i, width * 2 ** (i + 1)))
            for i in range(3)
        )
        self.ups = nn.ModuleList(
            Up(width * 2 ** (i + 1), width * 2**i, learned=learned) for i in reversed(range(3))
        )
        self.out = nn.Conv2d(width, 2, 1)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.inc(x)]
        for down in self.downs:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.ups:
            x = up(x, skips.pop())
        return self.out(x)


class FeaturePyramid(nn.Module):
    """A feature pyramid (Lin et al. 2016) with class and box heads, joined over its levels."""

    def __init__(self, width: int = 16, anchors: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.classes = classes
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.GroupNorm(4, o), nn.LeakyReLU(0.1))
            for i, o in ((3, 16), (16, 24), (24, 32))
        )
        self.laterals = nn.ModuleList(nn.Conv2d(i, width, 1) for i in (16, 24, 32))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.score = nn.Conv2d(width, anchors * classes, 3, padding=1)
        self.box = nn.Conv2d(width, anchors * 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        levels = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]
        for i in (1, 0):
            up = F.interpolate(levels[i + 1], size=levels[i].shape[-2:], mode="nearest")
            levels[i] = levels[i] + up
        scores, boxes = [], []
        for smooth, level in zip(self.smooth, levels, strict=True):
            p = smooth(level)
            batch = p.shape[0]
            scores.append(self.score(p).permute(0, 2, 3, 1).reshape(batch, -1, self.classes))
            boxes.append(self.box(p).permute(0, 2, 3, 1).reshape(batch, -1, 4))
        joined = torch.cat(boxes, dim=1)
        center, size = joined[..., :2].sigmoid(), joined[..., 2:].clamp(max=4.0).exp()
        corners = torch.cat([center - size / 2, center + size / 2], dim=-1)
        return {"scores": torch.cat(scores, dim=1), "boxes": corners}


class SpatialTransformerNet(nn.Module):
    """A spatial transformer (Jaderberg et al. 2015): the image is resampled at learned places."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.localization = nn.Sequential(
            nn.Conv2d(1, 4, 7), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 6, 5), nn.AvgPool2d(2)
        )
        self.fc_loc = nn.Sequential(nn.Linear(6 * 4 * 4, 16), nn.ReLU(True), nn.Linear(16, 6))
        with torch.no_grad():
            self.fc_loc[2].weight.mul_(0.1)
            self.fc_loc[2].bias.copy_(torch.tensor([1.0, 0.0, 0.1, 0.0, 1.0, -0.1]))
        self.conv = nn.Conv2d(1, 8, 5)
        self.drop = nn.Dropout2d(0.2)
        self.fc = nn.Linear(8 * 7 * 7, classes)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.fc_loc(self.localization(x).view(-1, 6 * 4 * 4)).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        x = F.relu(F.max_pool2d(self.drop(self.conv(x)), 4))
        return F.log_softmax(self.fc(x.flatten(1)), dim=1)
