"""Tensors the model makes itself, literal or by a factory, and the devices they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _harness import Case, case
from torch import nn

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)

    def forward(self, x: Any) -> Any:
        return x + self.table(torch.arange(x.shape[0], device=x.device))


class Mask(nn.Module):
    def forward(self, scores: Any) -> Any:
        n = scores.shape[-1]
        mask = torch.full((n, n), -1e9, device=scores.device).triu(1)
        return (scores + mask).softmax(-1)


def writes_what_it_made(a: Any) -> Any:
    made = torch.zeros(3, 4)
    made[1].add_(a[0])
    made[:, 0:2].fill_(2.0)
    return made, made.t() + 1


def literal(a: Any) -> Any:
    return a + torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([[True, False]])


FACTORIES: dict[str, Callable[[Any], Any]] = {
    "zeros and ones": lambda a: (a + torch.zeros(4), a * torch.ones(3, 1)),
    "returned as they are": lambda a: (torch.zeros(2), torch.ones(2, dtype=torch.int32)),
    "new by hand": lambda a: (
        a.new_zeros(2),
        a.new_ones(2),
        a.new_full((2,), 3.0),
        a.new_tensor([1, 2]),
    ),
    "new, scalar": lambda a: (a.new_full((), 2.0), a + a.new_tensor(3.0)),
    "like": lambda a: (torch.zeros_like(a), torch.ones_like(a), torch.full_like(a, 2)),
    "like, of another dtype": lambda a: (
        torch.zeros_like(a, dtype=torch.int32),
        torch.full_like(a, 1, dtype=torch.bool),
    ),
    "full": lambda a: (torch.full((2, 2), 7), torch.full((2,), 0.5) + 1, a + 1),
    "arange": lambda a: (a + torch.arange(4), torch.arange(2, 8, 2), torch.arange(0, 1, 0.25)),
    "linspace": lambda a: a + torch.linspace(0, 1, 4),
    "eye": lambda a: (a @ torch.eye(4), torch.eye(2, 3)),
    "a literal": literal,
    "a literal, scalar": lambda a: (a * torch.tensor(2), torch.tensor(5)),
    "a literal of one element": lambda a: (a * torch.tensor([2.5]), torch.tensor([[7]])),
    "a literal of no elements": lambda a: (a + 1, torch.tensor([])),
    "a literal of complex numbers": lambda a: a + torch.tensor([1j, 2, 3, 4]),
    "empty, filled": lambda a: (torch.empty(3).fill_(2.0), torch.empty_like(a).zero_()),
    "empty, strided, filled": lambda a: a + torch.empty_strided((3, 4), (1, 3)).fill_(1.0),
    "empty, copied into": lambda a: torch.empty(3, 4).copy_(a),
    "triangles of a factory": lambda a: a[:, :3] + torch.ones(3, 3).tril(),
    "scalar_tensor": lambda a: a + torch.scalar_tensor(2.0),
    "a device by name": lambda a: a + torch.ones(4, device="cpu"),
    "a device by object": lambda a: a + torch.ones(4, device=torch.device("cpu")),
    "to the same device": lambda a: (a.to("cpu"), a.cpu() + 1, a.to("cpu", torch.half)),
    "sizes of an argument": lambda a: a + torch.arange(a.shape[1]),
    "meshes": lambda a: torch.meshgrid(torch.arange(2.0), a[0], indexing="ij"),
    "a default dtype": lambda a: (torch.ones(2) + a[0, :2], torch.tensor(0.1), torch.arange(3.0)),
}
CASES: dict[str, Case] = {
    "like, strides": case(lambda a: (torch.zeros_like(a), torch.ones_like(a) + a), X.t()),
    "a literal of halves": case(lambda a: a + torch.tensor([1.5], dtype=torch.float16), X.half()),
    "one made is written": case(writes_what_it_made, X),
    "positions": case(Positions(), X),
    "a mask": case(Mask(), torch.randn(2, 3, 3)),
    "one hot by comparison": case(
        lambda i: (i.unsqueeze(-1) == torch.arange(4)).float(), torch.tensor([0, 3, 1])
    ),
}
# symbolic_trace calls a factory once and keeps the tensor; make_fx writes the call down.
for _name, _function in FACTORIES.items():
    CASES[_name] = case(_function, X)
    CASES[f"{_name}, make_fx"] = case(_function, X, how="make_fx")
