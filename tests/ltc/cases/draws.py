"""Random numbers: those of eager for the same seed, fresh at every call; the state afterwards."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from _harness import Case, add, case
from torch import fx, nn

import lazyfx_ltc as ltc

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.drop = nn.Dropout(0.4)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        return self.drop(self.second(self.drop(self.first(x).relu()))) + x


def reversed_use(a: Any) -> Any:
    p, q, r = torch.rand_like(a), torch.rand_like(a), torch.rand_like(a)
    return r - q * p


def one_unused(a: Any) -> Any:
    torch.rand_like(a)
    return torch.rand_like(a) + a


def none_used(a: Any) -> Any:
    torch.rand_like(a)
    return a + 1


def in_place(a: Any) -> Any:
    return (a + 0).uniform_(), (a * 1).normal_(), torch.empty(3).uniform_(-1, 1)


CASES: dict[str, Case] = {
    "dropout": case(lambda a: F.dropout(a, 0.3), X),
    "dropout in eval mode": case(lambda a: F.dropout(a, 0.3, training=False), X),
    "dropout of nothing and of all": case(lambda a: (F.dropout(a, 0.0), F.dropout(a, 1.0)), X),
    "two dropouts": case(lambda a: F.dropout(a, 0.5) * F.dropout(a * 2, 0.1), X),
    "dropout of what is not contiguous": case(
        lambda a: F.dropout(a, 0.5), X.t(), refused="random numbers for a tensor that is not contig"
    ),
    "dropout of a contiguous copy": case(lambda a: F.dropout(a.t().contiguous(), 0.5), X),
    "dropout in place": case(lambda a: (F.dropout(a, 0.5, inplace=True), a)[1], X),
    "dropout of channels": case(lambda a: F.dropout2d(a, 0.5), torch.randn(2, 3, 4, 4)),
    "alpha dropout": case(lambda a: F.alpha_dropout(a, 0.5, training=True), X),
    "a model with dropout": case(Noisy(), X),
    "a model with dropout in eval mode": case(Noisy().eval(), X),
    "rand_like": case(lambda a: torch.rand_like(a) + a, X),
    "randn_like": case(lambda a: torch.randn_like(a) + a, X),
    "randint_like": case(lambda a: torch.randint_like(a, 5) + a, X),
    "rand": case(lambda a: (torch.rand(2, 3), torch.rand(4) + a), X, how="make_fx"),
    "randn": case(lambda a: torch.randn(3, 4) * a, X, how="make_fx"),
    "randint": case(lambda a: torch.randint(0, 9, (3, 4)) + a, X, how="make_fx"),
    "randperm": case(lambda a: torch.randperm(4) + a, X, how="make_fx"),
    "bernoulli": case(lambda a: torch.bernoulli(a.sigmoid()) + a, X),
    "bernoulli of a number": case(lambda a: torch.bernoulli(a, 0.3) + a, X),
    "bernoulli_": case(lambda a: torch.empty_like(a).bernoulli_(0.3) + a, X, how="make_fx"),
    "uniform_ and normal_": case(in_place, X, how="make_fx"),
    "an argument filled": case(lambda a: a.uniform_(), X),
    "an argument filled with normal numbers": case(lambda a: a.normal_(2.0, 3.0), X),
    "random_": case(lambda a: torch.empty_like(a).random_() + a, X, how="make_fx"),
    "random_ up to a number": case(lambda a: torch.empty_like(a).random_(7) + a, X, how="make_fx"),
    "exponential_": case(lambda a: torch.empty_like(a).exponential_(), X),
    "normal of tensors": case(lambda a: torch.normal(a, a.abs()), X),
    "multinomial": case(lambda a: torch.multinomial(a.softmax(-1), 2), X),
    "draws used in reverse": case(reversed_use, X),
    "a draw nobody uses": case(one_unused, X),
    "only draws nobody uses": case(none_used, X),
    "draws in half": case(lambda a: F.dropout(a, 0.5) + torch.rand_like(a), X.half()),
    "draws of no elements": case(lambda a: torch.rand_like(a) + 1, torch.randn(0, 3)),
    "draws of another stride order": case(
        lambda a: torch.rand_like(a), X.t(), refused="not contiguous"
    ),
    "attention with dropout": case(
        lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.3),
        torch.randn(1, 2, 3, 4),
    ),
    "randomized relu": case(lambda a: F.rrelu(a, training=True), X),
    "many draws of different kinds": case(
        lambda a: F.dropout(torch.randn(3, 4) + torch.rand_like(a), 0.5) * torch.bernoulli(a * 0),
        X,
        how="make_fx",
    ),
}


@add(CASES, "fresh at every call, and equal again under the same seed")
def _() -> None:
    gm = fx.symbolic_trace(lambda a: (F.dropout(a, 0.5), torch.rand_like(a)))
    compiled = ltc.extract_compiled_graph(gm, (torch.ones(100),))
    seen = []
    for _ in range(2):
        torch.manual_seed(3)
        seen.append([compiled(torch.ones(100)) for _ in range(3)])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.equal(seen[0][0][0], seen[0][1][0])
    assert not torch.equal(seen[0][0][1], seen[0][1][1])


@add(CASES, "capture and calls of another kind leave the random state alone")
def _() -> None:
    gm = fx.symbolic_trace(lambda a: F.dropout(a, 0.5))
    torch.manual_seed(5)
    want = [gm(torch.ones(n)) for n in (4, 6, 4)]
    after = torch.get_rng_state()
    torch.manual_seed(5)
    compiled = ltc.extract_compiled_graph(gm, (torch.ones(4),))
    got = [compiled(torch.ones(n)) for n in (4, 6, 4)]
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert torch.equal(after, torch.get_rng_state())
