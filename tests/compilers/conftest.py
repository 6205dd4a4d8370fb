"""Small real models, and one training step that returns everything it changed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).flatten(1))


class Attention(nn.Module):
    """Layer norm, an explicit causal mask made of constants, dropout, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        position = torch.arange(x.shape[1], device=x.device)
        scores = q @ k.transpose(-1, -2) / 8**0.5
        scores = scores.masked_fill(position[None] > position[:, None], float("-inf"))
        return x + self.out(F.dropout(scores.softmax(-1), 0.1, self.training) @ v)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict:
        hidden = self.linear(x)
        return {"hidden": hidden, "pair": (hidden.sin(), None, x.mean())}


MODELS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)),
        lambda: torch.randn(3, 4),
    ),
    "conv and batch norm": (ConvNet, lambda: torch.randn(2, 1, 8, 8)),
    "masked attention with dropout": (Attention, lambda: torch.randn(2, 5, 8)),
    "nested outputs": (TwoOutputs, lambda: torch.randn(3, 4)),
}


@pytest.fixture(params=MODELS)
def case(request, device):
    """A model in train mode and an input for it."""
    make, make_input = MODELS[request.param]
    torch.manual_seed(0)
    return make().to(device), make_input().to(device)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()


@pytest.fixture
def train_step():
    """Outputs, gradients and buffers after one step from a fixed seed."""

    def step(function, module, x):
        torch.manual_seed(3)
        x = x.clone().requires_grad_()
        module.zero_grad()
        outputs = [t for t in torch.utils._pytree.tree_leaves(function(x)) if t is not None]
        sum(t.square().sum() for t in outputs).backward()
        return {
            "outputs": [t.detach() for t in outputs],
            "input": x.grad,
            "parameters": [p.grad.clone() for p in module.parameters()],
            "buffers": [b.clone() for b in module.buffers()],
        }

    return step
