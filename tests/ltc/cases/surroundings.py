"""What python code in a model may ask or change besides tensors: flags, identities, attributes."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _harness import Case, Pair, add, case, python
from torch import nn

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0

    def forward(self, x: Any) -> Any:
        return x * self.scale


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Any) -> Any:
        return x * self.weight * (2 if self.weight.requires_grad else 3)


CASES: dict[str, Case] = {
    "an enumeration": case(
        python(lambda a, c: a * 2 if c is Color.RED else a * 3, 2),
        *(X, Color.RED),
        others=[("expected <Color.RED", (X, Color.BLUE))],
    ),
    "an enumeration of numbers": case(
        lambda a, n: a * n, X, Level.LOW, others=[("expected <Level.LOW", (X, Level.HIGH))]
    ),
    "a number of numpy": case(lambda a, n: a * n, X, np.float64(0.5), refused="argument 1"),
    "an array of numpy": case(lambda a, n: a * 1, X, np.ones(4), refused="argument 1.*ndarray"),
    "shapes asked for": case(
        python(lambda a: a.view(-1) * a.numel() if a.dim() == 2 else a.sum()),
        X,
        others=[("seen float32", (X[0],)), ("seen float32", (X[:2],))],
    ),
    "dtypes asked for": case(
        python(lambda a: a * 2 if a.dtype == torch.float32 else a * 3),
        X,
        others=[("seen float64", (X.double(),))],
    ),
    "strides as numbers": case(lambda a: a * a.stride(0) + a.stride()[1], X.t()),
    "strides as numbers, of a result": case(lambda a: a * (a.t() + 1).stride(0), X),
    "whether it is contiguous, as a number": case(lambda a: a * a.is_contiguous(), X.t()),
    "an offset as a number": case(
        lambda a: a * a.storage_offset(), X[1:], refused="asks where in memory"
    ),
    "a view's offset as a number": case(
        lambda a: a * a[1:].storage_offset(), X, refused="asks where in memory"
    ),
    "element sizes as numbers": case(lambda a: a * a.element_size() + a.nbytes, X),
    "strides asked for": case(
        python(lambda a: a * 2 if a.is_contiguous() else a * 3), X, others=[("strides", (X.t(),))]
    ),
}


def asks(
    name: str, function: Callable[..., Any], first: tuple[Any, ...], second: tuple[Any, ...]
) -> None:
    """Calls that only differ in something that is no shape, dtype or value."""

    @add(CASES, name)
    def _() -> None:
        pair = Pair(python(function, len(first)), first)
        pair.both(first)
        pair.both(second)
        pair.both(first)


def needs(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().requires_grad_()


asks("requires_grad asked for", lambda a: a * 2 if a.requires_grad else a * 3, (X,), (needs(X),))
asks(
    "requires_grad asked for, the other way round",
    lambda a: a * 2 if a.requires_grad else a * 3,
    *((needs(X),), (X,)),
)
asks("whether two are one", lambda a, b: a * 2 if a is b else a * 3, (X, Y), (X, X))
asks("whether one is two", lambda a, b: a * 2 if a is b else a * 3, (X, X), (X, Y))
asks(
    "whether it is a parameter",
    lambda a: a * 2 if isinstance(a, nn.Parameter) else a * 3,
    *((X,), (nn.Parameter(X.clone()),)),
)


@add(CASES, "inference mode asked for", refused="asks whether inference mode is on")
def _() -> None:
    pair = Pair(python(lambda a: a * 2 if torch.is_inference_mode_enabled() else a * 3), (X,))
    pair.both((X,))
    pair.mode = torch.inference_mode
    pair.both((X,))
    pair.mode = torch.no_grad
    pair.both((X,))


@add(CASES, "autocast asked for")
def _() -> None:
    pair = Pair(python(lambda a: a * 2 if torch.is_autocast_enabled("cpu") else a * 3), (X,))
    pair.both((X,))
    with torch.autocast("cpu", torch.bfloat16):
        pair.both((X,))
    pair.both((X,))


def changes(
    name: str,
    model: Callable[[], nn.Module],
    change: Callable[[Any], None],
    *,
    refused: str | None = None,
) -> None:
    """Something of a leaf module that is no tensor is changed between calls."""

    @add(CASES, name, refused=refused)
    def _() -> None:
        pair = Pair(model(), (X,), how="leaf")
        pair.both((X,))
        for gm in (pair.gm, pair.eager):
            change(gm.get_submodule("0"))
        pair.both((X,), seed=1)
        pair.both((X,), seed=2)


changes("a number of a module", Scaled, lambda one: setattr(one, "scale", 3.0))
changes("the rate of a dropout", lambda: nn.Dropout(0.2), lambda one: setattr(one, "p", 0.9))
changes(
    "the momentum of a batch norm",
    lambda: nn.BatchNorm1d(4),
    lambda one: setattr(one, "momentum", 0.9),
)
changes("the eps of a layer norm", lambda: nn.LayerNorm(4), lambda one: setattr(one, "eps", 1.0))
changes("a frozen parameter", Frozen, lambda one: one.weight.requires_grad_(False))
changes(
    "a hook added after the capture",
    Scaled,
    lambda one: one.register_forward_hook(lambda module, given, result: result * 2),
    refused="has forward hooks",
)
changes(
    "a forward replaced after the capture",
    Scaled,
    lambda one: setattr(one, "forward", lambda x: x * 7),
)


def containers(name: str, function: Callable[..., Any], *args: Any) -> None:
    """The model changes a container that it is given; the caller's would stay as it is."""

    @add(CASES, name, refused="changes.*(argument|container)")
    def _() -> None:
        pair = Pair(python(function, len(args)), args)
        pair.both(args)


containers("a list that grows", lambda items: items.append(items[0] + 1), [X])
containers("a dict that grows", lambda d: d.update(y=d["x"] * 2), {"x": X})
containers("an entry that is replaced", lambda items: items.__setitem__(0, items[0] * 2), [X, Y])


@add(CASES, "a container that is returned")
def _() -> None:
    pair = Pair(python(lambda items: (items, items[0] + 1)), ([X, Y],))
    given = [X, Y]
    assert pair.eager(given)[0] is given
    got = pair.compiled(given)
    assert got[0][0] is X
    assert got[0][1] is Y
