"""Calls unlike the capture: refused by name where asked for, else captured as well; the bound."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from _harness import Case, Pair, add, agree, case, refusing
from torch import fx, nn

import lazyfx_ltc as ltc

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))


class Tagged(torch.Tensor):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


def writes(a: Any, b: Any) -> Any:
    return a.add_(1) * b


def plain(a: Any) -> Any:
    return a * 2 - 1


def other(reason: str, *args: Any, first: Any = None) -> Case:
    """One kind of call, then another one."""
    return case(plain, X if first is None else first, others=[(reason, args)])


CASES: dict[str, Case] = {
    "another shape": other(r"argument 0: expected float32\[3, 4\].*seen float32\[4, 3\]", X.t()),
    "more dimensions": other(r"seen float32\[1, 3, 4\]", X[None]),
    "no elements": other(r"seen float32\[0, 4\]", X[:0]),
    "a scalar tensor": other(r"seen float32\[\]", X[0, 0].clone()),
    "one element after a scalar": other(
        r"expected float32\[\].*seen float32\[1\]", X[0, :1].clone(), first=torch.tensor(1.5)
    ),
    "another dtype": other("expected float32.*seen float64", X.double()),
    "integers": other("seen int64", torch.arange(12).view(3, 4)),
    "other strides": other("strides", torch.randn(4, 3).t()),
    "an expanded tensor": other("strides", torch.randn(4).expand(3, 4)),
    "every second column": other("strides", torch.randn(3, 8)[:, ::2]),
    "channels last": other("strides", IMAGE.to(memory_format=torch.channels_last), first=IMAGE),
    "strides of size one do not matter": case(plain, torch.randn(1, 4), others=[], captures=1),
    "a number where a tensor was": other("expected a torch.Tensor.*seen int", 3),
    "a tensor where a number was": case(lambda a, b: a * b, X, 3, others=[("expected 3", (X, Y))]),
    "a list where a tensor was": case(
        lambda a: a, X, others=[("expected", ([X, Y],)), ("expected", ({"a": X},))]
    ),
    "many kinds": case(
        plain,
        X,
        others=[("seen", (torch.randn(n, 2),)) for n in range(1, 7)],
    ),
    "eleven kinds, eight are kept": case(
        plain, X, others=[("seen", (torch.randn(n, 2),)) for n in range(1, 12)], captures=8
    ),
    "one kind is kept": case(
        plain, X, others=[("seen", (X.double(),)), ("seen", (X[:1],))], captures=1, max_captures=1
    ),
    "another number of arguments by default": case(
        fx.symbolic_trace(lambda a, b=2: a * b), X, others=[("expected", (X, 3))]
    ),
    "an argument that is written": case(
        writes,
        *(X, Y),
        others=[("argument 0", (X[:2].clone(), Y[:2])), ("shares memory", (lambda a: (a, a))(X))],
    ),
    "a write to other strides": case(
        writes, X, Y, others=[("strides", (torch.randn(4, 3).t(), Y))]
    ),
}


def refused_call(name: str, reason: str, *args: Any) -> None:
    """A call that cannot be captured either: refused whatever ``on_mismatch`` says."""

    @add(CASES, name, refused=reason)
    def _() -> None:
        pair = Pair(writes, (X, Y))
        pair.refuses(args)
        before = [one.clone() for one in args[:1] if type(one) is torch.Tensor]
        with refusing():
            try:
                pair.compiled(*args)
            finally:
                for one, was in zip(args, before, strict=False):
                    assert one.is_meta or torch.equal(one, was)


refused_call("too few arguments", "expected a value, seen none", X.clone())
refused_call("too many arguments", "expected at most 2", X.clone(), Y, X)
refused_call("a subclass", "argument 1: .*subclass Tagged", X.clone(), Y.as_subclass(Tagged))
refused_call("a sparse tensor", "argument 1: .*sparse", X.clone(), Y.to_sparse())
refused_call("a meta tensor", "argument 0: .*seen meta", X.to("meta"), Y)
refused_call("shapes that do not fit", "node 'mul'.*RuntimeError", X.clone(), Y[:, :3].clone())
refused_call("a string", "node 'mul'", X.clone(), "text")
refused_call("a conjugate", "resolve_conj", X.clone(), torch.complex(X, Y).conj())
refused_call("an expanded tensor that is written", "expanded", torch.randn(4).expand(3, 4), Y)


@add(CASES, "an unknown keyword", refused="takes no such argument")
def _() -> None:
    pair = Pair(writes, (X, Y))
    pair.refuses((X,), {"c": Y}, reason="expected")
    with refusing():
        pair.compiled(X.clone(), c=Y)


@add(CASES, "an argument given twice", refused="given twice")
def _() -> None:
    with refusing():
        Pair(writes, (X, Y)).compiled(X.clone(), Y, a=X)


@add(CASES, "strides of dimensions of size one")
def _() -> None:
    pair = Pair(plain, (torch.randn(1, 4),))
    pair.both((torch.randn(4, 1).t(),))
    pair.both((torch.randn(4).as_strided((1, 4), (99, 1)),))
    assert pair.compiled.captures == 3


@add(CASES, "grad mode that the model asks for")
def _() -> None:
    class Asks(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 if torch.is_grad_enabled() else x * 3

    pair = Pair(Asks(), (X,), how="leaf", capture_mode=torch.enable_grad, mode=torch.enable_grad)
    pair.both((X,))
    pair.mode = torch.no_grad
    pair.refuses((X,), reason="grad mode: expected on")
    pair.both((X,))
    pair.mode = torch.enable_grad
    pair.both((X,))


@add(CASES, "grad mode that makes no difference")
def _() -> None:
    pair = Pair(plain, (X,), capture_mode=torch.no_grad, mode=torch.enable_grad)
    pair.both((X,))
    pair.mode = torch.no_grad
    pair.both((X,))
    assert pair.compiled.captures == 1


@add(CASES, "a default dtype")
def _() -> None:
    class Makes(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2, torch.ones(2), torch.tensor(0.1) * 3

    pair = Pair(Makes(), (X,), how="leaf")
    pair.both((X,))
    torch.set_default_dtype(torch.float64)
    pair.refuses((X,), reason="default dtype: expected torch.float32")
    pair.both((X,))
    torch.set_default_dtype(torch.float32)
    pair.both((X,))


@add(CASES, "a refused call leaves the captures as they were")
def _() -> None:
    pair = Pair(writes, (X, Y))
    for bad in (("a", Y), (X.clone(), Y.to_sparse()), ()):
        with contextlib.suppress(ltc.LtcError):
            pair.compiled(*bad)
    assert pair.compiled.captures == 1
    pair.both((X, Y))


@add(CASES, "kinds that come and go")
def _() -> None:
    pair = Pair(plain, (X,), max_captures=2)
    for n in (1, 2, 3, 1, 2, 3, 2, 2, 1):
        pair.both((torch.randn(n),))
        assert pair.compiled.captures == 2


@add(CASES, "values that change at every call")
def _() -> None:
    pair = Pair(lambda a, n: a * n, (X, 0))
    for n in range(30):
        pair.both((X, n))
    assert pair.compiled.captures == 8


@add(CASES, "arguments of extract_compiled_graph")
def _() -> None:
    gm = fx.symbolic_trace(plain)
    for options in ({"on_mismatch": "ignore"}, {"max_captures": 0}, {"max_captures": True}):
        try:
            ltc.extract_compiled_graph(gm, (X,), **options)
        except ValueError as error:
            said = str(error)
        else:
            said = ""
        assert next(iter(options)) in said


@add(CASES, "calls that alternate")
def _() -> None:
    for _ in range(2):
        agree(plain, X, others=[("seen", (X.half(),)), ("seen", (X.bfloat16(),))])
