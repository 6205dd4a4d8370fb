"""Arguments that the model writes, plain, through views, and where two of them share memory."""

from __future__ import annotations

from typing import Any

import torch
from _harness import Case, case

BASE = torch.randn(24, generator=torch.Generator().manual_seed(0))
X = BASE[:12].clone().view(3, 4)
Y = BASE[12:].clone().view(3, 4)
TWO = torch.tensor(2.0)
SQUARE = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))


def swap(a: Any, b: Any) -> Any:
    kept = a.clone()
    a.copy_(b)
    b.copy_(kept)
    return a + b


def out_of_order(a: Any, b: Any) -> Any:
    first = b * 2
    b.add_(a)
    a.mul_(b)
    b.sub_(first)
    return a - b


def old_and_new(a: Any) -> Any:
    old = a * 1
    a.add_(1)
    middle = a + old
    a.mul_(2)
    return old, middle, a


def a_row(a: Any) -> Any:
    y = a + 0
    y[0].add_(10)
    return y


def through_views(a: Any) -> Any:
    row = a.narrow(0, 1, 2).t()[0].mul_(3)
    return row, a * 2


def overlapping(a: Any, b: Any) -> Any:
    b.add_(1)
    c = a * 2
    a.mul_(3)
    return c, b - a


def first_then_second(a: Any, b: Any) -> Any:
    a.add_(1)
    b.mul_(2)
    return a + b.sum()


def read_only_second(a: Any, b: Any) -> Any:
    a.add_(1)
    return b * 2


def write_second(a: Any, b: Any) -> Any:
    b.add_(a.sum())
    return a * 1


def by_item(a: Any) -> Any:
    a[1:, ::2] = 7.0
    a[0] = a[1] * 2
    return a.sum(0)


def by_item_of_tensors(a: Any) -> Any:
    a[1:, ::2] = a[:2, 1::2]
    a[0] = a[1] * 2
    return a.sum(0)


def keyword_output(a: Any, b: Any) -> Any:
    return torch.add(a, 1, out=b)


def accumulate(total: Any, a: Any) -> Any:
    for column in range(4):
        total += a[:, column]
    return total


def fills(a: Any, b: Any) -> Any:
    a.zero_()
    b.fill_(3.5)


def returned_view(a: Any) -> Any:
    a.add_(1)
    return a[0], a.t(), a


def written_view_of_result(a: Any) -> Any:
    y = a.relu_()
    y[1].add_(a[0])
    return y, y[1]


def masks(a: Any, b: Any) -> Any:
    a.masked_fill_(b > 0, 0.0)
    a.clamp_(max=1)
    return a.neg_()


def nothing_in_the_end(a: Any) -> Any:
    a.add_(1)
    a.sub_(1)
    return a * 2


WINDOW = BASE.clone()
CASES: dict[str, Case] = {
    "add_": case(lambda a: a.add_(1), X),
    "several in place": case(lambda a: a.abs_().sqrt_().mul_(2).sigmoid_(), X),
    "fill and zero, nothing returned": case(fills, X, Y),
    "copy_ with broadcast": case(lambda a, b: a.copy_(b[0]), X, Y),
    "copy_ with conversion": case(lambda a, b: a.copy_(b), X.double(), Y.half()),
    "mul_ and read": case(lambda a, b: (a.mul_(b), b + a)[1], X, Y),
    "swap": case(swap, X, Y),
    "out of order": case(out_of_order, X, Y),
    "old and new": case(old_and_new, X),
    "a row of a result": case(a_row, X),
    "a row of x + 0 by index": case(lambda a: (lambda y: (y[0].add_(10), y))(a + 0), X),
    "through views of an argument": case(through_views, X),
    "by assignment": case(by_item, X, how="make_fx"),
    "by assignment of tensors": case(by_item_of_tensors, X, how="make_fx"),
    "a column": case(lambda a, b: a.select(1, 2).copy_(b.select(1, 0)), X, Y),
    "a diagonal": case(lambda a: (a.diagonal().zero_(), a)[1], SQUARE),
    "a transposed argument": case(lambda a: a.add_(1), X.t()),
    "a slice as an argument": case(lambda a: (a.add_(1), a * 2), torch.randn(5, 6)[1:4, 2:5]),
    "channels last": case(
        lambda a: a.mul_(2),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ),
    "zero-dimensional": case(lambda a, b: (a.add_(b), a * b), TWO, torch.tensor(2.0)),
    "one element": case(lambda a: a.add_(1), torch.tensor([2.0])),
    "no elements": case(lambda a: a.add_(1), torch.randn(0, 3)),
    "integers": case(lambda a: a.mul_(2), torch.arange(4)),
    "integers by bools": case(lambda a, b: a.add_(b), torch.arange(4), torch.arange(4) > 1),
    "bools": case(lambda a: (a.logical_or_(a), a.fill_(False))[1], X > 0),
    "an expanded argument": case(
        lambda a: a.add_(1), torch.randn(1, 4).expand(3, 4), refused="expanded tensor"
    ),
    "by out=": case(keyword_output, X, Y),
    "accumulated": case(accumulate, torch.zeros(3), X),
    "views returned after": case(returned_view, X),
    "relu_ and a view of it": case(written_view_of_result, X),
    "masks": case(masks, X, Y),
    "written and undone": case(nothing_in_the_end, X),
    "half": case(lambda a: a.add_(0.1).mul_(3), X.half()),
    "f(x, x)": case(first_then_second, X, X),
    "f(x, x), the second read only": case(read_only_second, X, X),
    "f(x, x), the second written": case(write_second, X, X),
    "f(x[:4], x[1:5])": case(
        lambda a, b: (b.add_(1), a * 2, a.mul_(3))[1],
        *(lambda memory: (memory[:4], memory[1:5]))(WINDOW.clone()),
    ),
    "f(x, x.t())": case(
        lambda a, b: (a.add_(b * 1), b * 2)[1], *(lambda one: (one, one.t()))(SQUARE.clone())
    ),
    "f(x, x.t()), written through one": case(
        lambda a, b: (a.mul_(2), b + 1)[1], *(lambda one: (one, one.t()))(SQUARE.clone())
    ),
    "f(x[:2], x[1:])": case(overlapping, *(lambda one: (one[:2], one[1:]))(SQUARE.clone())),
    "f(x, x[0])": case(
        lambda a, b: (b.zero_(), a.sum(0))[1], *(lambda one: (one, one[0]))(X.clone())
    ),
    "f(x[0], x)": case(
        lambda a, b: (a.zero_(), b.sum(0))[1], *(lambda one: (one[0], one))(X.clone())
    ),
    "f(x, x.view(-1))": case(
        lambda a, b: (b.narrow(0, 2, 5).mul_(-1), a + 1, a)[1:],
        *(lambda one: (one, one.view(-1)))(X.clone()),
    ),
    "neighbors in one memory": case(
        first_then_second, *(lambda memory: (memory[:4], memory[4:8]))(WINDOW.clone())
    ),
    "even and odd elements of one memory": case(
        first_then_second, *(lambda memory: (memory[::2], memory[1::2]))(WINDOW.clone())
    ),
    "three windows of one memory": case(
        lambda a, b, c: (a.add_(1), b.mul_(2), c.sub_(a), a + b + c)[3],
        *(lambda memory: (memory[0:4], memory[2:6], memory[4:8]))(WINDOW.clone()),
    ),
    "two memories, two arguments each": case(
        lambda a, b, c, d: (a.add_(1), d.mul_(2), b[:2] + c),
        *(lambda one, two: (one, two, one[1:], two[:2]))(X.clone(), Y.clone()),
    ),
    "shared, and nothing is written": case(
        lambda a, b: a @ b, *(lambda one: (one, one.t()))(X.clone())
    ),
    "shared, and another one is written": case(
        lambda a, b, c: (c.add_(1), a @ b)[1], *(lambda one: (one, one.t()))(X.clone()), Y
    ),
    "shared, read as another dtype": case(
        lambda a, b: (a.add_(1), b * 2)[1],
        *(lambda one: (one, one.view(torch.int32)))(X.clone()),
        refused="shares memory with .* as another dtype",
    ),
    "shared with an expanded one that is read": case(
        lambda a, b: (a.add_(1), b * 2)[1],
        *(lambda one: (one, one[:1].expand(3, 4)))(X.clone()),
    ),
    "shared at one call, not at another": case(
        read_only_second,
        *(X.clone(), Y.clone()),
        others=[
            ("shares memory", (lambda one: (one, one))(X.clone())),
            ("shares memory", (lambda one: (one, one.view(4, 3).view(3, 4)))(X.clone())),
        ],
        captures=2,
    ),
    "windows that overlap otherwise": case(
        overlapping,
        *(lambda memory: (memory[:4], memory[1:5]))(WINDOW.clone()),
        others=[
            ("shares memory", (lambda memory: (memory[:4], memory[2:6]))(WINDOW.clone())),
            ("no longer shares", (WINDOW[:4].clone(), WINDOW[1:5].clone())),
        ],
    ),
}
