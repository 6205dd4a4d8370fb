"""Operators that a program calls as they are: numbers exactly, in eager's order, never left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lazyfx_ltc as ltc

X = torch.tensor([-1.5, 2.0, 0.0])
SMALL = 5e-324
NUMBERS: dict[str, tuple[Callable[[Any], Any], torch.Tensor]] = {
    "the sign of nan": (lambda a: torch.copysign(a, math.nan), X),
    "the sign of minus nan": (lambda a: torch.copysign(a, -math.nan), X),
    "minus infinity": (lambda a: torch.where(a > 0, a, -math.inf), X),
    "the smallest number": (lambda a: torch.sinc(a) + SMALL, X.double()),
    "a power of it": (lambda a: a**SMALL, X),
    "a bool against it": (lambda a: a == SMALL, X > 0),
    "bytes against it": (lambda a: a == SMALL, torch.tensor([0, 1], dtype=torch.uint8)),
    "ints and nan": (lambda a: a + math.nan, torch.tensor([1, 2])),
    "bool to the power of a bool": (lambda a: a**True, X > 0),
    "complex to the power of a bool": (lambda a: a**True, torch.complex(X, X)),
    "complex float_power": (lambda a: torch.float_power(a, 2), torch.complex(X, X)),
    "a complex number": (lambda a: torch.sin(a * 2j) + (1 + 2j), X),
    "a bool for a number": (lambda a: a & True, X > 0),
    "an int below zero": (lambda a: torch.clamp(a, -1), X),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_mean_what_they_mean_in_eager(name: str) -> None:
    model, x = NUMBERS[name]
    got = ltc.extract_compiled_graph(fx.symbolic_trace(model), (x,))(x)
    want = model(x)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    if want.is_floating_point():
        assert torch.equal(torch.signbit(got), torch.signbit(want))


@pytest.fixture(scope="module")
def own() -> Iterator[Any]:
    library = torch.library.Library("lazyfx_ltc_called", "DEF")
    library.define("noisy(Tensor x) -> Tensor")  # draws, and does not say so
    library.impl("noisy", lambda x: x + torch.rand_like(x), "CompositeExplicitAutograd")
    library.define("pair(Tensor x) -> (Tensor, Tensor[])")
    library.impl("pair", lambda x: (x + 1, [x + 2, x + 3]), "CompositeExplicitAutograd")
    yield torch.ops.lazyfx_ltc_called
    library._destroy()


def agree(model: Any, *args: Any) -> ltc.CompiledGraph:
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(model), args)
    for seed in range(2):
        torch.manual_seed(seed)
        want, state = model(*args), torch.get_rng_state()
        torch.manual_seed(seed)
        torch.testing.assert_close(compiled(*args), want)
        assert torch.equal(torch.get_rng_state(), state)
    return compiled


def test_operators_of_the_users_keep_their_place_and_are_never_left_out(own: Any) -> None:
    agree(lambda a: (own.noisy(a), torch.rand_like(a)), X)
    agree(lambda a: (torch.rand_like(a), own.noisy(a), torch.rand_like(a)), X)
    agree(lambda a: (own.noisy(a), torch.rand_like(a))[1], X)


def test_lists_of_results(own: Any) -> None:
    agree(lambda a: own.pair(a)[0] * own.pair(a)[1][1] + own.pair(a)[1][0], X)


def written(a: Any) -> Any:
    made = torch.sin(a)
    made[0] = 5
    rest = made[1:]
    rest.mul_(2)
    return made, rest, torch.cos(made)


fx.wrap("written")


def test_results_that_are_written_and_viewed() -> None:
    agree(lambda a: written(a), X)


def test_operators_that_torch_lowers_wrongly_are_called() -> None:
    """torch's lazy kernel of pixel_shuffle gives memory that nobody has written."""
    image = torch.randn(1, 4, 2, 2)
    compiled = agree(lambda a: torch.pixel_shuffle(a * 2, 2) + 1, image)
    assert compiled.explain().operators["aten::pixel_shuffle"] == 1
    agree(lambda a: torch.pixel_unshuffle(a, 2) * 2, image)


def test_kernels_that_count_on_contiguous_operands_get_them() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(4, 3, batch_first=True).eval().requires_grad_(False)
    gm = make_fx(lambda a: layer(a)[0])(torch.randn(2, 5, 4))
    compiled = ltc.extract_compiled_graph(gm, (torch.randn(2, 5, 4),))
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(compiled(x), gm(x))


def both_doubled(a: Any) -> Any:
    parts = [a + 1, a * 2]
    torch._foreach_add_(parts, 2)
    return parts[0] * parts[1]


fx.wrap("both_doubled")


def test_operators_that_write_and_return_nothing() -> None:
    agree(lambda a: both_doubled(a), X)


TAKEN_APART = (
    "this torch (2.6 and 2.9) takes composite operators apart on the lazy device: eager's numbers"
    " but for rounding"
)
WHOLE: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...], str]] = {
    "group norm": (
        lambda a: F.group_norm(a, 2),
        (torch.randn(2, 4, 9).bfloat16(),),
        "aten::group_norm",
    ),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        tuple(torch.randn(2, 2, 5, 4) for _ in range(3)),
        "aten::scaled_dot_product_attention",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_eager_has_one_kernel_for_is_one_call(
    name: str, below_autograd_is_whole: bool
) -> None:
    model, args, operator = WHOLE[name]
    compiled = agree(model, *args)
    if not below_autograd_is_whole:
        pytest.skip(TAKEN_APART)
    assert compiled.explain().operators[operator] == 1
    torch.testing.assert_close(compiled(*args), model(*args), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recurrent_layers_are_one_call_unless_they_draw(
    kind: Any, dropout: float, below_autograd_is_whole: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 3, num_layers=2, dropout=dropout, batch_first=True))
    gm, x = fx.symbolic_trace(model.requires_grad_(False)), torch.randn(2, 5, 4)
    compiled = ltc.extract_compiled_graph(gm, (x,))
    for seed in range(2):
        torch.manual_seed(seed)
        want = gm(x)
        torch.manual_seed(seed)
        torch.testing.assert_close(compiled(x), want)
    if not below_autograd_is_whole:
        pytest.skip(TAKEN_APART)
    few = sum(compiled.explain().operators.values()) < 40
    assert few is (dropout == 0)
