"""Pickles, threads, forks, memory, and what a compiled graph says about itself."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _harness import Case, Pair, add, same, scaled, tensors_of
from torch import fx, nn

import lazyfx_ltc as ltc

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
CASES: dict[str, Case] = {}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


def pickled(compiled: ltc.CompiledGraph) -> ltc.CompiledGraph:
    loaded = pickle.loads(pickle.dumps(compiled))
    assert isinstance(loaded, ltc.CompiledGraph)
    return loaded


def after_pickling(
    name: str, model: Any, *args: Any, others: Any = (), how: str = "symbolic"
) -> None:
    """Load, then call with every kind that was captured."""

    @add(CASES, f"pickled, {name}")
    def _() -> None:
        pair = Pair(model() if isinstance(model, type) else model, args, how=how)
        kinds = [args, *others]
        for given in kinds:
            pair.both(given, seed=1)
        loaded = pickled(pair.compiled)
        assert loaded.captures == pair.compiled.captures
        for given in kinds:
            for seed in range(2):
                ours, theirs = copy.deepcopy(given), copy.deepcopy(given)
                with torch.no_grad():
                    torch.manual_seed(seed)
                    got = loaded(*ours)
                    torch.manual_seed(seed)
                    want = pair.eager(*theirs)
                same([*tensors_of((got, ours))], [*tensors_of((want, theirs))], exact=True)
        assert loaded.captures == pair.compiled.captures


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0.0))

    def forward(self, x: Any) -> Any:
        self.count.add_(1)
        return x * self.count


after_pickling("pointwise", lambda a, b: a - b * 2, X, Y)
after_pickling("a model with dropout", net(), X)
after_pickling("several kinds", lambda a: a * 2 + 1, X, others=[(X.double(),), (X[:1],)])
after_pickling("python values", lambda a, n, s: a * n, X, 3, "text", others=[(X, 0.5, "other")])
after_pickling("a written argument", lambda a, b: a.add_(b), X, Y)
after_pickling("a nested argument", lambda d: {"y": d["x"] * 2}, {"x": X})
after_pickling("a counter", Counts, X, how="leaf")
after_pickling(
    "shared memory", lambda a, b: (a.add_(1), b * 2)[1], *(lambda one: (one, one.t()))(X.clone())
)


@add(CASES, "pickled twice")
def _() -> None:
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a * 3), (X,))
    again = pickled(pickled(compiled))
    torch.testing.assert_close(again(X), X * 3)
    torch.testing.assert_close(again(X.double()), X.double() * 3)


@add(CASES, "pickled, weights of its own")
def _() -> None:
    gm = fx.symbolic_trace(nn.Linear(4, 4))
    compiled = ltc.extract_compiled_graph(gm, (X,))
    loaded = pickled(compiled)
    with torch.no_grad():
        before = gm(X)
        gm.weight.add_(1)
        torch.testing.assert_close(loaded(X), before)
        torch.testing.assert_close(compiled(X), gm(X))


@add(CASES, "pickled, strictness and bound are kept")
def _() -> None:
    gm = fx.symbolic_trace(lambda a: a * 3)
    strict = pickled(ltc.extract_compiled_graph(gm, (X,), on_mismatch="error"))
    with pytest.raises(ltc.GuardError, match="float64"):
        strict(X.double())
    small = pickled(ltc.extract_compiled_graph(gm, (X,), max_captures=2))
    for n in range(1, 5):
        small(torch.ones(n))
    assert small.captures == 2


@add(CASES, "deep copies")
def _() -> None:
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a * 3), (X,))
    torch.testing.assert_close(copy.deepcopy(compiled)(X), X * 3)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@add(CASES, "threads that capture and call")
def _() -> None:
    models = [fx.symbolic_trace(lambda a, n=n: (a * n).tanh() + n) for n in range(6)]

    def work(number: int) -> None:
        for _ in range(4):
            compiled = ltc.extract_compiled_graph(models[number], (X,))
            for _ in range(5):
                torch.testing.assert_close(compiled(X), models[number](X))

    in_threads(6, work)


@add(CASES, "threads that call one with the same kind")
def _() -> None:
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: (a.add_(1), a * 2)), (X,))

    def work(number: int) -> None:
        for step in range(50):
            mine = torch.full((3, 4), float(number + step))
            got = compiled(mine)
            assert got[0] is mine
            assert torch.equal(got[1], torch.full((3, 4), 2.0 * (number + step + 1)))

    in_threads(6, work)


@add(CASES, "threads that call one with kinds of their own")
def _() -> None:
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a.sum() * 2), (X,))

    def work(number: int) -> None:
        for step in range(20):
            mine = torch.ones(number % 3 + 1, step % 4 + 1)
            assert compiled(mine).item() == 2 * mine.numel()

    in_threads(6, work)
    assert compiled.captures == 8


@add(CASES, "a thread that is refused does not fail the others")
def _() -> None:
    good = fx.symbolic_trace(lambda a: a * 2 + 1)
    bad = fx.symbolic_trace(lambda a: scaled(a) + a)

    def work(number: int) -> None:
        for _ in range(10):
            if number % 2:
                with pytest.raises(ltc.FallbackError) as caught:
                    ltc.extract_compiled_graph(bad, (X,))
                assert caught.value.ops == ("lazyfx_ltc_cases::scaled",)
                continue
            torch.testing.assert_close(ltc.extract_compiled_graph(good, (X,))(X), good(X))

    in_threads(4, work)


@add(CASES, "threads with modes of their own")
def _() -> None:
    gm = fx.symbolic_trace(lambda a: a @ a)
    x = torch.randn(4, 4)
    compiled = ltc.extract_compiled_graph(gm, (x,))

    def work(number: int) -> None:
        for _ in range(20):
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(number % 2)):
                torch.testing.assert_close(compiled(x), gm(x))

    in_threads(4, work)
    assert compiled.captures == 2


@add(CASES, "a fork after the capture")
def _() -> None:
    gm = fx.symbolic_trace(lambda a: a * 2 + 1)
    compiled = ltc.extract_compiled_graph(gm, (X,))
    pid = os.fork()
    if not pid:
        same = torch.equal(compiled(X), gm(X)) and torch.equal(compiled(X.double()), gm(X.double()))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    torch.testing.assert_close(compiled(X), gm(X))


@add(CASES, "deleting it frees the model and the constants")
def _() -> None:
    gm = fx.symbolic_trace(net())
    weight = weakref.ref(getattr(gm, "0").weight)
    model = weakref.ref(gm)
    compiled = ltc.extract_compiled_graph(gm, (X,))
    with torch.no_grad():
        compiled(X)
        compiled(X[:1])
    held = weakref.ref(compiled)
    del gm, compiled
    gc.collect()
    assert held() is None
    assert model() is None
    assert weight() is None


@add(CASES, "arguments and results are not kept")
def _() -> None:
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: (a * 2, a[0])), (X,))
    mine = X.clone()
    got = compiled(mine)
    watched = [weakref.ref(mine), *map(weakref.ref, got)]
    del mine, got
    gc.collect()
    assert [one() for one in watched] == [None] * 3


@add(CASES, "the graph that was captured is the one that is run")
def _() -> None:
    gm = fx.symbolic_trace(lambda a: a * 2)
    compiled = ltc.extract_compiled_graph(gm, (X,))
    for node in gm.graph.nodes:
        if node.op == "call_function":
            node.args = (node.args[0], 5)
    gm.recompile()
    torch.testing.assert_close(compiled(X), X * 2)
    torch.testing.assert_close(compiled(X.double()), X.double() * 2)


@add(CASES, "writing to a result does not change the next one")
def _() -> None:
    gm = fx.symbolic_trace(lambda a: (a.new_ones(3), a.new_full((), 2.0), a + 1))
    compiled = ltc.extract_compiled_graph(gm, (X,))
    for _ in range(4):
        for got, want in zip(compiled(X), gm(X), strict=True):
            torch.testing.assert_close(got, want)
            got.add_(1)


@add(CASES, "it says what it does")
def _() -> None:
    gm = fx.symbolic_trace(lambda a, b, n: (a.add_(b) * n, b))
    compiled = ltc.extract_compiled_graph(gm, (X.clone(), Y, 3))
    told = compiled.explain()
    assert told.mutated == ("argument 0",)
    assert [one.split(":")[0] for one in told.inputs] == ["argument 0", "argument 1", "argument 2"]
    assert told.fallbacks == ()
    assert told.operators["aten::mul"] == 1
    assert "argument 1 itself" in told.outputs
    assert "argument 2" in str(told)
    assert "CompiledGraph(" in repr(compiled)
    assert "aten::mul" in compiled.ir()
    assert "aten::mul" in compiled.backend_ir()
    assert "digraph" in compiled.dot()
    assert [node.op for node in compiled.graph.nodes][:3] == ["placeholder"] * 3


@add(CASES, "an unused draw keeps its place after pickling")
def _() -> None:
    gm = fx.symbolic_trace(lambda a: (torch.rand_like(a), F.dropout(a, 0.5))[1])
    loaded = pickled(ltc.extract_compiled_graph(gm, (X,)))
    torch.manual_seed(1)
    want = gm(X)
    torch.manual_seed(1)
    torch.testing.assert_close(loaded(X), want, rtol=0, atol=0)
