"""Identity, views and memory layout of what goes in and comes out."""

from __future__ import annotations

from typing import Any

import torch
from _harness import Case, case

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
BIG = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
LAST = IMAGE.to(memory_format=torch.channels_last)


def twice(a: Any) -> Any:
    y = a + 1
    return y, y, [y, {"again": y}]


def views_of_a_result(a: Any) -> Any:
    y = a + 1
    return y, y.t(), y[0], y.view(-1)[3:7], y.unsqueeze(0)


def only_views_of_a_result(a: Any) -> Any:
    y = a + 1
    return y[0], y[:, 1]


def view_of_a_view(a: Any) -> Any:
    row = a[1]
    return row, row[2:], row[2:].view(2, 1)


def written_views(a: Any) -> Any:
    y = a * 2
    view = y[:, 1:3]
    view.add_(1)
    return view, y


def shapes(a: Any) -> Any:
    return a.reshape(4, 3), a.flatten(), a.unsqueeze(1).squeeze(), a.view(2, 6), a.reshape(-1)


CASES: dict[str, Case] = {
    "the arguments themselves": case(lambda a, b: (b, a, a), X, Y),
    "one argument, nothing computed": case(lambda a: a, X),
    "a clone is new": case(lambda a: (a.clone(), a), X),
    "one result many times": case(twice, X),
    "equal results stay apart": case(lambda a: (a + 1, a + 1, (a + 1)[1:], (a + 1).t()), X),
    "views of an argument": case(lambda a: (a.t(), a[1], a.view(-1)[2:5], a.detach()), X),
    "views of an argument and a result": case(lambda a: (a[1:], a + 1, a.t()), X),
    "a view of a view": case(view_of_a_view, X),
    "views of a result": case(views_of_a_result, X),
    "only views of a result": case(only_views_of_a_result, X),
    "a written view of a result": case(written_views, X),
    "conversions that do nothing": case(
        lambda a: (a.contiguous(), a.float(), a.to("cpu"), a.reshape(3, 4), a.to(a.dtype)), X
    ),
    "conversions that do something": case(lambda a: (a.contiguous(), a.reshape(-1)), X.t()),
    "reshaping": case(shapes, X),
    "reshaping what is not contiguous": case(lambda a: (a.reshape(3, 4), a.flatten()), X.t()),
    "chunks, split, unbind": case(lambda a: (a.chunk(2, 1), a.split([1, 2]), a.unbind(1)), X),
    "chunks of a result": case(lambda a: (a * 2).chunk(2, 1), X),
    "expanded": case(lambda a: (a[:1].expand(3, 4), (a[:1] + 1).expand(2, 3, 4)), X),
    "an expanded argument": case(lambda a: (a + 1, a * a.t()[0]), torch.randn(1, 3).expand(3, 3)),
    "an expanded argument returned": case(lambda a: (a, a[0]), torch.randn(1, 3).expand(3, 3)),
    "a diagonal": case(lambda a: (a.diagonal(), a.diagonal(1) + 1), X),
    "narrow and select": case(lambda a: (a.narrow(0, 1, 2), a.select(1, -1), a[..., ::2]), X),
    "permuted": case(lambda a: (a.permute(2, 0, 3, 1), a.movedim(0, -1) + 1), IMAGE),
    "unfolded": case(lambda a: a.unfold(1, 2, 1) + 1, X),
    "transposed in": case(lambda a: (a * 2, a @ a.t(), a.sum(0)), X.t()),
    "a slice in": case(lambda a: (a * 2, a, a[1:]), BIG[1:4, 2:6]),
    "a slice with a step in": case(lambda a: (a * 2, a.sum(0)), BIG[::2, ::3]),
    "a view with an offset in": case(lambda a: (a[1:], a + 1), BIG.view(-1)[7:19].view(3, 4)),
    "channels last in": case(lambda a: (a * 2, a.relu(), a.sum(1), a.mean((2, 3))), LAST),
    "channels last through a convolution": case(
        lambda a, w: torch.conv2d(a, w, padding=1).relu(), LAST, torch.randn(5, 3, 3, 3)
    ),
    "to channels last": case(lambda a: a.to(memory_format=torch.channels_last) + 1, IMAGE),
    "to channels last, returned": case(
        lambda a: (a.contiguous(memory_format=torch.channels_last), a), IMAGE
    ),
    "channels last, no-op": case(lambda a: a.contiguous(memory_format=torch.channels_last), LAST),
    "channels last and contiguous together": case(lambda a, b: (a + b, b + a), LAST, IMAGE),
    "dimensions of size one": case(
        lambda a: (a + 1, a.squeeze(), a.t() * 2, a.expand(3, 4)), torch.randn(4, 1).t()
    ),
    "strides that do not matter": case(
        lambda a: (a * 2, a.view(4)), torch.randn(4).as_strided((1, 4), (77, 1))
    ),
    "no elements": case(lambda a: (a + 1, a, a[:, :2], a.sum(0), a.t()), torch.randn(0, 3)),
    "no elements, transposed": case(lambda a: (a * 2, a.t()), torch.randn(3, 0).t()),
    "zero-dimensional in and out": case(
        lambda a: (a, a + 1, a.view(1), a.reshape(()), a.clone()), torch.tensor(2.0)
    ),
    "zero-dimensional out of views": case(lambda a: (a[0, 0], a.sum(), a[1][1] + 1), X),
    "real views of complex numbers": case(
        lambda a: torch.view_as_real(a) * 2,
        torch.complex(X, Y),
    ),
    "read as another dtype": case(lambda a: (a + 1).view(torch.int32) + 1, X),
    "an argument read as another dtype": case(
        lambda a: a.view(torch.int32), X, refused="reinterprets"
    ),
    "broadcast results": case(lambda a, b: torch.broadcast_tensors(a, b[0]), X, Y),
    "two arguments that share memory": case(lambda a, b: (a + b, a, b), X, X[:2].view(2, 4)[:1]),
    "one argument twice": case(lambda a, b: (a - b * 2, a, b), X, X),
    "outputs that only look alike": case(lambda a: (a.t().contiguous(), a.t()), X),
    "an overlapping window": case(
        lambda a: (a + 1, a.sum(1)), torch.arange(6.0).as_strided((4, 3), (1, 1))
    ),
}
