"""Autocast, grad mode and inference mode, at the capture and at a call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _harness import Case, Pair, add, case
from torch import nn

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))


def brain() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def half() -> Any:
    return torch.autocast("cpu", torch.float16)


def frozen(mode: Callable[[], Any]) -> Callable[[], Any]:
    @contextlib.contextmanager
    def both() -> Any:
        with torch.no_grad(), mode():
            yield

    return both


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4))


def products(a: Any) -> Any:
    return a @ a.t(), (a @ a).softmax(-1), a + 1, F.mse_loss(a, a * 2)


def under(mode: Callable[[], Any], model: Any, *args: Any, **options: Any) -> Case:
    return case(model, *args, mode=frozen(mode), capture_mode=mode, **options)


class Inner(nn.Module):
    """Switches autocast off inside."""

    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            y = x @ x
        return y + x @ x


class Detaches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            y = x @ self.weight
        return y.detach() * 2


CASES: dict[str, Case] = {
    "autocast, a product": under(brain, lambda a: a @ a.t(), X),
    "autocast, products and sums": under(brain, lambda a: (a @ a.t(), a + 1, (a @ a).sum()), X),
    "autocast, a softmax of a product": under(brain, lambda a: (a @ a).softmax(-1), X),
    "autocast, a model": under(brain, net(), X),
    "autocast, a convolution": under(
        brain, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 5, 5)
    ),
    "autocast, nothing to cast": under(brain, lambda a: (a * 2, a.sum()), X),
    "autocast, already cast": under(brain, lambda a: a @ a, X.bfloat16()),
    "autocast, doubles": under(brain, lambda a: a @ a, X.double()),
    "autocast to half": under(half, lambda a: (a @ a, a + 1), X),
    "autocast, a write": under(brain, lambda a: (a.add_(1), a @ a), X),
    "autocast, a write of what was cast": under(brain, lambda a: a.copy_(a @ a), X),
    "autocast, views of arguments": under(brain, lambda a: (a, a.t(), a[0], a @ a), X),
    "autocast, dropout": under(brain, lambda a: F.dropout(a @ a, 0.5), X),
    "autocast, a nested structure": under(brain, lambda d: {"y": d["x"] @ d["x"]}, {"x": X}),
    "autocast switched off inside": case(
        Inner(), X, how="leaf", mode=frozen(brain), capture_mode=frozen(brain)
    ),
    "autocast, batch norm in train mode": under(
        brain,
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        torch.randn(2, 3, 5, 5),
        how="leaf",
    ),
    "inference mode around all": case(
        net(), X, mode=torch.inference_mode, capture_mode=torch.inference_mode
    ),
    "inference mode at the call": case(net(), X, mode=torch.inference_mode),
    "inference mode at the capture": case(net(), X, capture_mode=torch.inference_mode),
    "inference mode, a write": case(lambda a: (a.add_(1), a[0]), X, mode=torch.inference_mode),
    "no_grad around all": case(net(), X, capture_mode=torch.no_grad),
    "grad mode, nothing requires grad": case(lambda a: (a * 2, a.t()), X, mode=torch.enable_grad),
    "grad mode, an argument requires grad": case(
        lambda a: a * 2,
        X.clone().requires_grad_(),
        mode=torch.enable_grad,
        refused="GradientError: argument 0 requires grad",
    ),
    "grad mode, a parameter requires grad": case(
        net(), X, mode=torch.enable_grad, refused=r"GradientError: model tensor '\d\.\w+' requires"
    ),
    "no_grad, an argument requires grad": case(
        lambda a: (a * 2, a, a[0], a.detach()), X.clone().requires_grad_()
    ),
    "grad mode, only returned": case(
        lambda a, b: (a, b * 2),
        *(X.clone().requires_grad_(), X),
        mode=torch.enable_grad,
    ),
    "grad mode, not used": case(
        lambda a, b: b * 2, X.clone().requires_grad_(), X, mode=torch.enable_grad
    ),
    "grad mode, a view of what requires grad": case(
        lambda a: a[0],
        X.clone().requires_grad_(),
        mode=torch.enable_grad,
    ),
    "grad mode, a detached view": case(
        lambda a: (a.detach(), a.detach()[0]), X.clone().requires_grad_(), mode=torch.enable_grad
    ),
    "no_grad inside the model": case(
        Detaches(), X, how="leaf", mode=torch.enable_grad, refused="GradientError|no_grad"
    ),
    "an integer result under grad mode": case(
        lambda a: a > 0, X.clone().requires_grad_(), mode=torch.enable_grad, refused="GradientError"
    ),
    "a leaf that requires grad is written": case(lambda a: a.add_(1), X.clone().requires_grad_()),
}


@add(CASES, "autocast switched on after the capture")
def _() -> None:
    pair = Pair(net(), (X,))
    pair.both((X,))
    pair.mode = frozen(brain)
    pair.refuses((X,), reason="autocast: expected off")
    pair.both((X,))
    pair.mode = frozen(half)
    pair.both((X,))
    pair.mode = torch.no_grad
    pair.both((X,))
    assert pair.compiled.captures == 3


@add(CASES, "autocast switched off after the capture")
def _() -> None:
    pair = Pair(net(), (X,), capture_mode=brain)
    pair.refuses((X,), reason="autocast: expected torch.bfloat16.*seen off")
    pair.both((X,))
    pair.mode = frozen(brain)
    pair.both((X,))


@add(CASES, "inference tensors kept for later")
def _() -> None:
    with torch.inference_mode():
        x = torch.randn(4, 4)
    pair = Pair(lambda a: a @ a, (X,))
    torch.testing.assert_close(pair.compiled(x), x @ x)


@add(CASES, "autocast and weights that change")
def _() -> None:
    pair = Pair(net(), (X,), capture_mode=brain, mode=frozen(brain))
    for seed in range(3):
        pair.both((X,), seed=seed)
        with torch.no_grad():
            for gm in (pair.gm, pair.eager):
                for parameter in gm.parameters():
                    parameter.add_(0.5)
