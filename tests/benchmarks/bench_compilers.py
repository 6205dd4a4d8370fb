"""memory_efficient_fusion beside eager and torch.compile: forward and backward."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from interleave import medians, show

from lazyfx_compilers import memory_efficient_fusion

if TYPE_CHECKING:
    from collections.abc import Callable


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


def step(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    torch.autograd.grad(function(x).sum(), x)


def main() -> None:
    warnings.filterwarnings("ignore")  # TorchScript's deprecation
    torch.set_num_threads(1)
    rows = {}
    for function in (tanh_gelu, layer_norm):
        x = torch.randn(512, 1024, requires_grad=True)
        contenders = {
            "eager": function,
            "ours, inductor": memory_efficient_fusion(function),
            "ours, ts": memory_efficient_fusion(function, codegen="ts"),
            "torch.compile": torch.compile(function),
        }
        rows[function.__name__] = medians(
            {name: (lambda f=f, x=x: step(f, x)) for name, f in contenders.items()}
        )
    show("memory_efficient_fusion, forward and backward", rows, baseline="eager")


if __name__ == "__main__":
    main()
