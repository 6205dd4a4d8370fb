"""A captured graph gives what eager gives: numbers, types, strides, aliasing, writes, structure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

X = torch.randn(3, 4)
Y = torch.randn(3, 4)
SCALAR = torch.tensor(2.0)
INTS = torch.arange(6).reshape(2, 3)


def swap(a: Any, b: Any) -> Any:
    kept = a.clone()
    a.copy_(b)
    b.copy_(kept)
    return a + b


def write_then_return_old(a: Any) -> Any:
    old = a.t().clone()[0]
    a.mul_(2)
    return old


def write_through_row(a: Any) -> Any:
    y = a + 0
    y[0].add_(10)
    return y


def write_through_views_of_argument(a: Any) -> Any:
    row = a.narrow(0, 1, 2).t()[0].mul_(3)
    return row, a * 2


def write_through_chunk(a: Any) -> Any:
    first = a.chunk(2, 1)[0]
    first.add_(1)
    return first, a * 2


POINTWISE: dict[str, tuple[Any, ...]] = {
    "subtract": (lambda a, b: a - b, X, Y),
    "subtract the other way round": (lambda a, b: b - a, X, Y),
    "matmul": (lambda q, k: q @ k.t(), X, Y),
    "matmul the other way round": (lambda q, k: k @ q.t(), X, Y),
    "python numbers": (lambda a: (a * 0.1 + 0.3) / 7 - 2, X),
    "bfloat16 and numbers": (lambda a: (a * 0.1 + 0.3).sum(), X.to(torch.bfloat16)),
    "half of integers is float32": (lambda a: a * 0.5, INTS),
    "number minus integers is float32": (lambda a: 0.5 - a, INTS),
    "integer division": (lambda a: a / 2, INTS),
    "integers stay integers": (lambda a: (a + 1) * 3, INTS),
    "bool times int": (lambda a: a * 2, X > 0),
    "alpha": (lambda a, b: torch.add(a, b, alpha=3) + torch.sub(a, b, alpha=0.5), X, Y),
    "powers": (lambda a: a**2 + a.abs() ** 0.5, X),
    "comparisons": (lambda a: (a > 0) & (a < 3) | (a == 0.5), X),
    "infinite numbers": (lambda a: a.clamp(-math.inf, 2.0).masked_fill(a > 0, -math.inf), X),
    "not a number": (lambda a: a * math.nan, X),
    "zero-dimensional arguments": (lambda a, b, c: a * b - c, X, SCALAR, torch.tensor(2.0)),
    "equal zero-dimensional arguments": (lambda a, b: a - 3 * b, SCALAR, torch.tensor(2.0)),
    "zero-dimensional double constant": (lambda a: a * torch.tensor(0.5).double(), INTS),
    "sum over": (lambda a: a.to(torch.bfloat16).float().sum(dtype=torch.float64), X),
    "rounding mode": (lambda a: torch.div(a, 3, rounding_mode="floor"), X),
    "complex": (lambda a: a.to(torch.complex64) * 2j, X),
    "view as another dtype inside": (lambda a: (a + 1).view(torch.int32) + 1, X),
    "zero elements": (lambda a: a * 2, torch.randn(0, 3)),
    "input that is not contiguous": (lambda a: a * 2, X.t()),
    "several results of an operator": (lambda a: a.topk(2), X),
    "max along a dimension": (lambda a: a.max(-1), X),
    "einsum": (lambda a: torch.einsum("ij,kj->ik", a, a), X),
    "cat and stack": (lambda a, b: torch.cat([a, b * 2, torch.stack([a, b])[0]], 1), X, Y),
    "embedding": (lambda w, i: F.embedding(i, w), torch.randn(5, 4), INTS),
    "softmax and layer norm": (lambda a: F.layer_norm(a.softmax(-1), (4,), eps=1 / 3), X),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        *(torch.randn(1, 2, 3, 4) for _ in range(3)),
    ),
    "convolution": (
        lambda a, w: F.max_pool2d(F.conv2d(a, w, padding=1).relu(), 2),
        torch.randn(1, 2, 4, 4),
        torch.randn(3, 2, 3, 3),
    ),
    "batch norm without statistics": (lambda a: F.batch_norm(a, None, None, training=True), X),
    "unused arguments": (lambda a, b, c: b + 1, X, Y, SCALAR),
}
STRUCTURES: dict[str, tuple[Any, ...]] = {
    "a single tensor": (lambda a: a + 1, X),
    "a tuple of one": (lambda a: (a + 1,), X),
    "a list": (lambda a: [a + 1, a * 2], X),
    "nested, with constants": (lambda a: {"x": a + 1, "y": [a * 2, None, (3, 0.5, "s")]}, X),
    "sizes": (lambda a: (a + 1, a.shape[0]), X),
    "nothing": (lambda a: (), X),
    "none": (lambda a: None, X),
}
ALIASING: dict[str, tuple[Any, ...]] = {
    "one result twice": (lambda a: (lambda y: (y, y))(a + 1), X),
    "equal results stay apart": (lambda a: (a + 1, a + 1, (a + 1)[1:], (a + 1).t()), X),
    "the arguments themselves": (lambda a, b: (b, a, a), X, Y),
    "a clone is new": (lambda a: a.clone(), X),
    "no-op conversions": (lambda a: (a.contiguous(), a.float(), a.to(a)), X),
    "views of an argument": (lambda a: (a.t(), a[1], a.view(-1)[2:5], a.detach(), a + 1), X),
    "views of a result": (lambda a: (lambda y: (y, y.t(), y[0]))(a + 1), X),
    "chunks of a result": (lambda a: (a + 1).chunk(2, 1), X),
    "chunks of an argument": (lambda a: a.chunk(2, 1), X),
    "unbind": (lambda a: a.unbind(0), X),
    "an expanded result": (lambda a: (a[:1] + 1).expand(3, 4), X),
    "transposed strides": (lambda a: a.t() + 1, X),
    "a copied transpose": (lambda a: a.t().contiguous(), X),
    "a slice of a result": (lambda a: (a + 1)[:, 1], X),
    "a diagonal": (lambda a: a.diagonal(), X),
}


def write_to_a_factory(a: Any) -> Any:
    made = a.new_zeros(3, 4)
    made[1].add_(a[0])
    table = torch.zeros_like(a)
    table[:, 0:2].fill_(2.0)
    return made, table.t() + 1


WRITES: dict[str, tuple[Any, ...]] = {
    "add_": (lambda a: a.add_(1), X),
    "abs_": (lambda a: a.abs_(), X),
    "fill_": (lambda a: a.fill_(3.5), X),
    "zero_": (lambda a: a.zero_(), X),
    "copy_ with broadcast": (lambda a, b: a.copy_(b[0]), X, Y),
    "mul_ and read": (lambda a, b: (a.mul_(b), b + a)[1], X, Y),
    "a zero-dimensional argument": (lambda a, b: (a.add_(b), a * b), SCALAR, torch.tensor(2.0)),
    "a row of a result": (write_through_row, X),
    "views of an argument": (write_through_views_of_argument, X),
    "a chunk of an argument": (write_through_chunk, X),
    "two arguments swapped": (swap, X, Y),
    "something the model made": (write_to_a_factory, X),
    "old values survive": (write_then_return_old, X),
    "integers": (lambda a: a.mul_(2), INTS),
    "an argument that is not contiguous": (lambda a: a.add_(1), X.t()),
}
RANDOM: dict[str, tuple[Any, ...]] = {
    "dropout": (lambda a: F.dropout(a, 0.3), X),
    "dropout of a contiguous copy": (lambda a: F.dropout(a.t().contiguous(), 0.5), Y),
    "dropout of a contiguous copy of an argument": (lambda a: F.dropout(a.contiguous()), X.t()),
    "dropout in eval mode": (lambda a: F.dropout(a, 0.3, training=False), X),
    "two dropouts": (lambda a: F.dropout(a, 0.5) * F.dropout(a * 2, 0.1), X),
    "draws used in reverse": (
        lambda a: (lambda p, q: q - p)(torch.rand_like(a), torch.rand_like(a)),
        X,
    ),
    "a draw nobody uses": (lambda a: (torch.rand_like(a), torch.rand_like(a) + a)[1], X),
    "normal": (lambda a: torch.randn_like(a) + a, X),
    "bernoulli": (lambda a: torch.bernoulli(a.sigmoid()) + a, X),
    "uniform_ and random integers": (lambda a: (a + 0).uniform_() + torch.randint_like(a, 5), X),
}


def table(cases: dict[str, tuple[Any, ...]]) -> Any:
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


@table(POINTWISE)
def test_numbers_and_types_agree(case: tuple[Any, ...], agrees: Callable[..., Any]) -> None:
    agrees(*case)


@table(STRUCTURES)
def test_the_returned_structure_comes_back(
    case: tuple[Any, ...], agrees: Callable[..., Any]
) -> None:
    agrees(*case)


@table(ALIASING)
def test_identity_aliasing_and_strides_agree(
    case: tuple[Any, ...], agrees: Callable[..., Any]
) -> None:
    agrees(*case)


@table(WRITES)
def test_what_eager_writes_is_written(case: tuple[Any, ...], agrees: Callable[..., Any]) -> None:
    agrees(*case)


@table(RANDOM)
def test_random_numbers_are_those_of_eager_for_the_same_seed(
    case: tuple[Any, ...], agrees: Callable[..., Any]
) -> None:
    agrees(*case)


def test_random_numbers_are_fresh_at_every_call(agrees: Callable[..., Any]) -> None:
    compiled = agrees(lambda a: F.dropout(a, 0.5), torch.ones(100))
    assert not torch.equal(compiled(torch.ones(100)), compiled(torch.ones(100)))


def test_only_mutated_arguments_are_outputs_of_the_program(agrees: Callable[..., Any]) -> None:
    compiled = agrees(lambda a, b, c: a.add_(b) * c, X, Y, torch.ones(3, 4))
    assert compiled.explain().mutated == ("argument 0",)
    assert compiled.backend_ir().count("return") == 1
    assert "TupleConstruct(%" in compiled.backend_ir()


def test_writing_to_a_result_does_not_change_the_next_one() -> None:
    import lazyfx_ltc as ltc

    def constants(a: Any) -> Any:
        return a.new_ones(3), a.new_full((), 2.0), a.new_tensor([1.0, 2.0]), a + 1

    gm = fx.symbolic_trace(constants)
    compiled = ltc.extract_compiled_graph(gm, (X,))
    for _ in range(4):
        for got, want in zip(compiled(X), gm(X), strict=True):
            torch.testing.assert_close(got, want)
            got.add_(1)


def test_a_deep_chain_is_captured_and_freed(agrees: Callable[..., Any]) -> None:
    def chain(a: Any) -> Any:
        for _ in range(3000):
            a = a * 1.0001
        return a

    agrees(chain, X)
