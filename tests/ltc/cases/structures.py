"""What goes in and what comes out: nested containers, dataclasses, keywords, defaults, numbers."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any, NamedTuple

import torch
from _harness import Case, Pair, add, case, refusing
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import lazyfx_ltc as ltc

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
Point = namedtuple("Point", ["x", "y"])


class Named(NamedTuple):
    left: Any
    right: Any = None


@dataclasses.dataclass
class Record:
    hidden: Any
    extra: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    hidden: Any
    names: tuple[str, ...] = ()


def nested(a: Any) -> Any:
    return {"x": a + 1, "y": [a * 2, None, (3, 0.5, "s", True)], "z": {}}


def from_dict(d: Any) -> Any:
    return d["x"] - d["y"] * d["scale"]


def from_nested(args: Any, more: Any) -> Any:
    return args[0] - args[1][0], more["deep"]["er"][1] * 2


def with_defaults(a: Any, b: Any = 3, scale: float = 2.0, *, bias: Any = 1) -> Any:
    return (a - b) * scale + bias


def by_kind(a: Any, value: Any) -> Any:
    return a * value + (a - value)


def options(a: Any, dtype: Any, how: str, flag: bool) -> Any:
    return torch.div(a, 3, rounding_mode=how).to(dtype), flag, how, dtype


def record_in(record: Any) -> Any:
    return record.hidden * 2


def write_to_dict(d: Any) -> Any:
    d["x"].add_(d["y"])
    return d["x"]


class Passes(fx.Tracer):
    """What python builds is called, not traced into."""

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return True


class Maker(torch.nn.Module):
    """Returns what ``make`` makes of its arguments."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = [make]

    def forward(self, *args: Any) -> Any:
        return self.make[0](*args)


def made(make: Any, count: int = 1) -> fx.GraphModule:
    graph = fx.Graph()
    places = [graph.placeholder(f"arg{index}") for index in range(count)]
    graph.output(graph.call_module("make", tuple(places)))
    return fx.GraphModule({"make": Maker(make)}, graph)


CASES: dict[str, Case] = {
    "a single tensor": case(lambda a: a + 1, X),
    "a tuple of one": case(lambda a: (a + 1,), X),
    "a list": case(lambda a: [a + 1, a * 2], X),
    "nothing": case(lambda a: (), X),
    "none": case(lambda a: None, X),
    "nested out, with constants": case(nested, X),
    "sizes out": case(lambda a: (a + 1, a.shape[0], a.shape), X),
    "a dict out, in order": case(lambda a: {"b": a + 1, "a": a, "c": a * 2}, X),
    "odd keys out": case(lambda a: {1: a + 1, ("t", 2): a, None: a * 2}, X),
    "a named tuple out": case(made(lambda a: Point(a + 1, a * 2)), X),
    "a typed named tuple out": case(made(lambda a: Named(a + 1)), X),
    "an ordered dict out": case(made(lambda a: OrderedDict(z=a + 1, a=a * 2)), X),
    "a dataclass out": case(made(lambda a: Record(a + 1, [a * 2])), X),
    "a frozen dataclass out": case(made(lambda a: Frozen(a + 1, ("x", "y"))), X),
    "nested dataclasses out": case(made(lambda a: {"r": [Record(Frozen(a + 1), a)]}), X),
    "torch.return_types out": case(lambda a: a.max(1), X),
    "a torch.Size out": case(made(lambda a: (a * 1).size()), X),
    "a dict in": case(from_dict, {"x": X, "y": Y, "scale": 2}),
    "a dict in, other orders": case(
        from_dict,
        {"x": X, "y": Y, "scale": 2},
        others=[("expected", ({"y": Y, "scale": 3, "x": X},))],
    ),
    "nested in": case(from_nested, (X, [Y]), {"deep": {"er": (None, X)}}),
    "a dict in, written": case(write_to_dict, {"x": X, "y": Y}),
    "a named tuple in": case(lambda p: p.x - p.y * 2, Point(X, Y)),
    "a dataclass in": case(record_in, Record(X, 3)),
    "a frozen dataclass in": case(record_in, Frozen(X, ("name",))),
    "a dataclass in and out": case(made(lambda r: Record(r.hidden + 1, r)), Record(X, Y)),
    "an ordered dict in": case(from_dict, OrderedDict(x=X, y=Y, scale=3)),
    "lists are not tuples": case(
        lambda pair: pair[0] - pair[1], (X, Y), others=[("expected", ([X, Y],))]
    ),
    "keywords": case(with_defaults, X, kwargs={"b": Y, "bias": 3}, how="symbolic"),
    "defaults": case(with_defaults, X),
    "keywords in another order": case(
        lambda a, b, c: a - b * c,
        kwargs={"c": X, "a": Y, "b": X},
        others=[("expected", (), {"a": X, "b": Y, "c": Y})],
        captures=2,
    ),
    "by place, then by name": case(lambda a, b: a - b, X, Y, others=[("expected", (X,), {"b": Y})]),
    "an int": case(by_kind, X, 3, others=[("expected 3", (X, 4))]),
    "a float": case(by_kind, X, 0.1, others=[("expected 0.1", (X, 0.2))]),
    "a bool": case(lambda a, v: a * v, X, True, others=[("expected True", (X, 1))]),
    "an int and a float of one value": case(
        by_kind, torch.arange(4), 2, others=[("expected 2, .*seen 2.0", (torch.arange(4), 2.0))]
    ),
    "a complex number": case(by_kind, X, 1 + 2j),
    "none in": case(lambda a, b: (a + 1, b), X, None, others=[("expected None", (X, Y))]),
    "strings and dtypes": case(
        options,
        *(X, torch.float64, "floor", True),
        others=[("expected 'floor'", (X, torch.float64, "trunc", True))],
    ),
    "minus zero is not zero": case(
        by_kind, X, 0.0, exact=True, others=[(r"expected 0\.0.*seen -0\.0", (X, -0.0))]
    ),
    "nan is nan": case(by_kind, X, float("nan")),
    "a device and a slice": case(
        lambda a, d, s: a[s].to(d), X, torch.device("cpu"), slice(1, None)
    ),
    "a range and an ellipsis": case(lambda a, r, e: a[e, r[1]], X, range(3), ...),
    "no arguments": case(made(lambda: torch.ones(3) + 1, 0)),
    "only numbers": case(made(lambda a, b: a + b, 2), 1, 2),
    "an object": case(lambda a, o: a + 1, X, object(), refused="argument 1.*seen object"),
    "a set": case(lambda a, o: a + 1, X, {1, 2}, refused="argument 1.*seen set"),
    "an object out": case(made(lambda a: (a + 1, object())), X, refused="output 1 is a object"),
    "fake examples": case(
        lambda a, b: (a - b) @ b.t(),
        *(X, Y),
        examples=((FakeTensorMode().from_tensor(X), FakeTensorMode().from_tensor(Y)), {}),
    ),
}


def symbolic() -> tuple[Any, Any]:
    """A fake tensor with symbolic sizes, and its first size."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fake = mode.from_tensor(torch.randn(3, 4))
    return fake, fake.shape[0]


@add(CASES, "examples with symbolic sizes")
def _() -> None:
    fake, size = symbolic()
    pair = Pair(lambda a, n: a.view(n, -1) * n, (X, 3), examples=((fake, size), {}))
    pair.both((X, 3))
    pair.refuses((X.t().contiguous(), 4), reason=r"expected float32\[3, 4\]")
    pair.both((X.t().contiguous(), 4))


@add(CASES, "a symbolic size without a value", refused="no value")
def _() -> None:
    env = ShapeEnv()
    gm = fx.symbolic_trace(lambda a, n: a * n)
    with refusing():
        ltc.extract_compiled_graph(gm, (X, env.create_unbacked_symint()))


@add(CASES, "a list that contains itself", refused="without end")
def _() -> None:
    endless: list[Any] = [X]
    endless.append(endless)
    with refusing():
        ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a[0] + 1), (endless,))


@add(CASES, "a call with a list that contains itself", refused="without end")
def _() -> None:
    endless: list[Any] = [X]
    endless.append(endless)
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a[0] + 1), ([X, X],))
    with refusing():
        compiled(endless)


@add(CASES, "a call with fake tensors", refused="seen fake ones")
def _() -> None:
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a + 1), (X,))
    with refusing():
        compiled(FakeTensorMode().from_tensor(X))


@add(CASES, "the returned containers are new at every call")
def _() -> None:
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(nested), (X,))
    first, second = compiled(X), compiled(X)
    first["y"].append(1)
    first["z"]["more"] = 1
    assert second["z"] == {}
    assert len(second["y"]) == 3
    assert compiled(X)["z"] == {}
