"""Which argument is which: graphs that differ only in that, and many graphs in one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from _harness import Case, add, agree, case
from torch import fx

import lazyfx_ltc as ltc

A, B, C = (torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
CASES: dict[str, Case] = {
    "x - y": case(lambda x, y: x - y, A, B),
    "y - x": case(lambda x, y: y - x, A, B),
    "q @ k.T": case(lambda q, k: q @ k.T, A, B),
    "k @ q.T": case(lambda q, k: k @ q.T, A, B),
    "results in another order": case(lambda x, y: (y + 1, x + 1), A, B),
    "arguments used backwards": case(lambda x, y, z: (z - y) / (y - x), A, B, C),
    "the first is not used": case(lambda x, y, z: y - z, A, B, C),
    "only the last is used": case(lambda x, y, z: z * 2, A, B, C),
    "none is used": case(lambda x, y: torch.ones(2), A, B),
    "the same one twice": case(lambda x, y: (x - y, x - x), A, B),
    "one of many": case(
        lambda a, b, c, d, e, f, g, h: h - c,
        *(torch.full((2,), float(i)) for i in range(8)),
    ),
    "concatenation": case(lambda x, y: (torch.cat([x, y]), torch.cat([y, x])), A, B),
}


def both_ways(first: Callable[..., Any], second: Callable[..., Any], *args: Any) -> None:
    """Capture two, in both orders, and call them in both orders, several times."""
    for one, other in ((first, second), (second, first)):
        graphs = [fx.symbolic_trace(one), fx.symbolic_trace(other)]
        captured = [ltc.extract_compiled_graph(gm, args) for gm in graphs]
        for _ in range(3):
            for gm, compiled in [*zip(graphs, captured, strict=True)][::-1]:
                torch.testing.assert_close(compiled(*args), gm(*args), rtol=0, atol=0)


PAIRS: dict[str, tuple[Any, ...]] = {
    "x - y and y - x in one process": (lambda x, y: x - y, lambda x, y: y - x, A, B),
    "q @ k.T and k @ q.T in one process": (lambda q, k: q @ k.T, lambda q, k: k @ q.T, A, B),
    "x / y and y / x in one process": (lambda x, y: x / y, lambda x, y: y / x, A, B),
    "three arguments in one process": (
        lambda x, y, z: x * y - z,
        lambda x, y, z: z * y - x,
        *(A, B, C),
    ),
    "two numbers in one process": (lambda x: x * 2 + 3, lambda x: x * 3 + 2, A),
    "two constants in one process": (
        lambda x: x + torch.tensor([1.0]),
        lambda x: x + torch.tensor([2.0]),
        A,
    ),
    "zero-dimensional arguments in one process": (
        lambda x, y: x - y,
        lambda x, y: y - x,
        torch.tensor(1.0),
        torch.tensor(3.0),
    ),
    "equal zero-dimensional arguments in one process": (
        lambda x, y: x - 2 * y,
        lambda x, y: y - 2 * x,
        torch.tensor(1.0),
        torch.tensor(1.0),
    ),
    "slices in one process": (lambda x: x[1:] * 2, lambda x: x[:-1] * 2, A),
    "sizes in one process": (lambda x: x.view(4, 3) + 1, lambda x: x.view(2, 6) + 1, A),
}
for _name, _given in PAIRS.items():
    CASES[_name] = Case(run=lambda given=_given: both_ways(*given))  # type: ignore[misc]


@add(CASES, "all orders of three arguments in one process")
def _() -> None:
    made = []
    for order in itertools.permutations(range(3)):
        gm = fx.symbolic_trace(
            eval(f"lambda a, b, c: ({'abc'[order[0]]} - {'abc'[order[1]]}) / {'abc'[order[2]]}")
        )
        made.append((gm, ltc.extract_compiled_graph(gm, (A, B, C))))
    for gm, compiled in made:
        torch.testing.assert_close(compiled(A, B, C), gm(A, B, C), rtol=0, atol=0)


@add(CASES, "200 captures, the first ones called last")
def _() -> None:
    def scaled(number: int) -> fx.GraphModule:
        return fx.symbolic_trace(lambda a: a * number - 1)

    made = [(gm, ltc.extract_compiled_graph(gm, (A,))) for gm in map(scaled, range(200))]
    for gm, compiled in made:
        torch.testing.assert_close(compiled(A), gm(A), rtol=0, atol=0)


@add(CASES, "a capture after another was deleted")
def _() -> None:
    for number in range(5):
        agree(lambda a, b, n=number: a * n - b, A, B, calls=1)
