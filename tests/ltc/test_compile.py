"""``lazyfx_ltc.compile``: no trace, no Dynamo; whatever the python code may ask is guarded."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import pickle
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lazyfx_ltc as ltc

FACTOR: Any = 2.0
SETTINGS = {"factor": 1.0}


def helper(x: Any) -> Any:
    return x * FACTOR


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.negative = False
        self.activation: Any = torch.tanh

    def forward(self, x: Any, *, scale: float = 1.0) -> Any:
        if x.shape[0] > 3:  # python that fx cannot trace
            x = x + 1
        found = helper(self.activation(self.linear(x))) * scale
        return {"value": -found if self.negative else found, "rows": x.shape[0]}


X, LONG = torch.randn(2, 4), torch.randn(5, 4)


def same(compiled: Any, model: Any, *args: Any, **kwargs: Any) -> None:
    for _ in range(3):
        got, want = compiled(*args, **kwargs), model(*args, **kwargs)
        assert got["rows"] == want["rows"]
        torch.testing.assert_close(got["value"], want["value"])


@torch.no_grad()
def test_python_code_is_followed() -> None:
    model = Model()
    compiled = ltc.compile(model)
    for x in (X, LONG, X):
        same(compiled, model, x)
        same(compiled, model, x, scale=3.0)
        same(compiled, model, x, scale=-0.5)
    assert compiled.fallbacks == ()
    assert compiled.captures == 6
    assert len(compiled.graphs) == 2
    assert compiled.model is model


@torch.no_grad()
def test_attributes_globals_and_closures_are_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    compiled = ltc.compile(model)
    same(compiled, model, X)
    model.negative = True
    same(compiled, model, X)
    model.activation = torch.sigmoid
    same(compiled, model, X)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    same(compiled, model, X)
    monkeypatch.setitem(globals(), "helper", lambda x: x - FACTOR)
    same(compiled, model, X)
    assert compiled.fallbacks == ()

    power = 2

    def closed(x: Any) -> Any:
        return x**power

    function = ltc.compile(closed)
    torch.testing.assert_close(function(X), X**2)
    power = 3
    torch.testing.assert_close(function(X), X**3)


@torch.no_grad()
def test_methods_and_nested_functions_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Calls(nn.Module):
        def forward(self, x: Any) -> Any:
            return self.inner(x)

        def inner(self, x: Any) -> Any:
            return (lambda y: helper(y))(x)

    model = Calls()
    compiled = ltc.compile(model)
    torch.testing.assert_close(compiled(X), model(X))
    monkeypatch.setitem(globals(), "FACTOR", -1.0)
    torch.testing.assert_close(compiled(X), model(X))


@torch.no_grad()
def test_what_cannot_be_captured_runs_in_eager(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def reads(x: Any) -> Any:
        calls.append(1)
        return x * x.sum().item()

    compiled = ltc.compile(reads)
    with caplog.at_level(logging.WARNING, logger="lazyfx_ltc"):
        for _ in range(10):
            x = torch.randn(3)
            torch.testing.assert_close(compiled(x), x * x.sum().item())
    assert len(caplog.records) == 1
    assert "reads the value of a tensor" in compiled.fallbacks[0]
    strict = ltc.compile(reads, fallback="error")
    with pytest.raises(ltc.HostReadError, match="reads the value"):
        strict(X)


@torch.no_grad()
def test_calls_that_fit_are_replayed_where_others_are_not() -> None:
    def sometimes(x: Any) -> Any:
        return x * x.sum().item() if x.dim() == 1 else x * 2

    compiled = ltc.compile(sometimes)
    for _ in range(3):
        torch.testing.assert_close(compiled(X), X * 2)
        for size in range(2, 7):
            x = torch.randn(size)
            torch.testing.assert_close(compiled(x), sometimes(x))
    assert compiled.captures == 1


@torch.no_grad()
def test_writes_draws_and_structure() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, pair: Any, flag: bool = False) -> Any:
            self.count.add_(1)
            left, right = pair["left"], pair["right"]
            return [torch.rand_like(left) + right, None, flag], left

    model, pair = Odd(), {"left": torch.randn(3), "right": torch.randn(3)}
    compiled = ltc.compile(model)
    for count in range(1, 8):
        torch.manual_seed(count)
        (drawn, nothing, flag), left = compiled(pair, flag=True)
        torch.manual_seed(count)
        torch.testing.assert_close(drawn, torch.rand(3) + pair["right"])
        assert (nothing, flag) == (None, True)
        assert left is pair["left"]
        assert float(model.count) == count


class Holder:
    """An object with a method and a call of its own."""

    def __init__(self) -> None:
        self.factor = 2.0

    def method(self, x: Any) -> Any:
        return x * self.factor

    def __call__(self, x: Any) -> Any:
        return x + self.factor


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(x: Any) -> Any:
        return function(x) * FACTOR

    return wrapper


def defaults(x: Any, factor: float = 2.0, *, shift: float = 1.0) -> Any:
    return x * factor + shift


def replaced_defaults() -> None:
    defaults.__defaults__ = (3.0,)
    defaults.__kwdefaults__ = {"shift": 5.0}


def in_a_list(x: Any) -> Any:
    for function in FUNCTIONS:
        x = function(x)
    return x


def by_name(x: Any) -> Any:
    return x * settings.factor + settings.inner(x)


def late(x: Any) -> Any:
    return abs(x)


HOLDER, SLOPE = Holder(), nn.LeakyReLU(0.1)
FUNCTIONS: list[Any] = [helper, torch.sin]
settings: Any = types.ModuleType("settings")
settings.factor, settings.inner = 2.0, helper
KINDS: dict[str, tuple[Any, Any]] = {
    "a method of an object": (HOLDER.method, lambda: setattr(HOLDER, "factor", 7.0)),
    "an object that is called": (HOLDER, lambda: setattr(HOLDER, "factor", 8.0)),
    "a decorated function": (decorated(lambda x: x), lambda: globals().update(FACTOR=-2.0)),
    "a partial": (
        functools.partial(lambda x, k: helper(x) * k, k=3.0),
        lambda: globals().update(FACTOR=11.0),
    ),
    "defaults": (defaults, replaced_defaults),
    "a list of functions": (in_a_list, lambda: FUNCTIONS.append(torch.cos)),
    "a function in a list": (in_a_list, lambda: globals().update(FACTOR=13.0)),
    "a module's attribute": (by_name, lambda: setattr(settings, "factor", 3.0)),
    "a module's function": (by_name, lambda: setattr(settings, "inner", torch.exp)),
    "a module that is no part": (lambda x: SLOPE(-x), lambda: setattr(SLOPE, "negative_slope", 9)),
    "a builtin that is hidden": (late, lambda: globals().update(abs=lambda x: x * 100)),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_whatever_the_code_reads_is_guarded(kind: str) -> None:
    function, change = KINDS[kind]
    compiled = ltc.compile(function)
    x = torch.rand(3) - 0.5
    before = dict(globals())
    try:
        for _ in range(3):
            torch.testing.assert_close(compiled(x), function(x))
        old = function(x)
        change()
        assert not torch.equal(function(x), old)
        for _ in range(3):
            torch.testing.assert_close(compiled(x), function(x))
        assert compiled.fallbacks == ()
        assert compiled.captures == 1
    finally:
        globals().pop("abs", None)
        globals().update(before)


@torch.no_grad()
def test_names_that_are_bound_later() -> None:
    compiled = ltc.compile(lambda x: x * BOUND_LATER)  # type: ignore[name-defined]  # noqa: F821
    try:
        for value in (2.0, 3.0):
            globals()["BOUND_LATER"] = value
            assert torch.equal(compiled(X), X * value)
    finally:
        del globals()["BOUND_LATER"]


COUNT, LAST, LIST, CACHE = 0, 0, [1], {}  # type: ignore[var-annotated]


def counts(x: Any) -> Any:
    global COUNT
    COUNT += 1
    return x + COUNT


def grows(x: Any) -> Any:
    LIST.append(1)
    return x * len(LIST)


def remembers(x: Any) -> Any:
    global LAST
    LAST = LAST + x.shape[0]
    return x * 2


def notes(x: Any) -> Any:
    LIST.append(x.shape)
    return x * 2


def clocked(x: Any) -> Any:
    return x * time.perf_counter()


@functools.lru_cache
def table(size: int) -> torch.Tensor:
    return torch.arange(size).float()


def cached(x: Any) -> Any:
    return x + table(4)


def filled(x: Any) -> Any:
    if 4 not in CACHE:
        CACHE[4] = torch.ones(4)
    return x + CACHE[4]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (counts, "computes with other numbers"),
        (remembers, "remembers binds the global 'LAST'"),
        (notes, "notes changes a list outside of it"),
        (grows, "computes with other numbers"),
        (clocked, "computes with other numbers"),
        (cached, ""),
        (filled, ""),
    ],
)
@torch.no_grad()
def test_what_a_replay_would_not_do_runs_in_eager(function: Any, reason: str) -> None:
    compiled = ltc.compile(function)
    seen = [compiled(X) for _ in range(5)]
    assert reason in compiled.fallbacks[0]
    assert compiled.captures == 0
    if function in (cached, filled):  # nothing without data is left in a cache
        torch.testing.assert_close(seen[-1], function(X))
        assert type(table(4)) is torch.Tensor
        assert all(type(one) is torch.Tensor for one in CACHE.values())
    torch.testing.assert_close(ltc.compile(lambda x: x * 2)(X), X * 2)


COLLECTIONS = 0


def collected(phase: str, info: Any) -> None:
    global COLLECTIONS
    COLLECTIONS += 1


@torch.no_grad()
def test_what_others_do_meanwhile_does_not_count() -> None:
    """The garbage collector's callbacks run in between, on the same thread."""

    def collects(x: Any) -> Any:
        gc.collect()
        return x * 2

    gc.callbacks.append(collected)
    try:
        compiled = ltc.compile(collects)
        torch.testing.assert_close(compiled(X), X * 2)
    finally:
        gc.callbacks.remove(collected)
    assert COLLECTIONS
    assert compiled.fallbacks == ()


@torch.no_grad()
def test_a_later_kind_of_call_that_cannot_be_replayed_runs_once() -> None:
    """What only some calls do outside of the model is noticed before the call has written."""

    class Notes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.calls.add_(1)
            if x.shape[0] > 3:
                LIST.append(x.shape)
            return x * 2

    model = Notes()
    compiled = ltc.compile(model)
    for count, x in enumerate((X, X, LONG, LONG, X, LONG), start=1):
        before = len(LIST)
        torch.testing.assert_close(compiled(x), x * 2)
        assert float(model.calls) == count
        assert (len(LIST) > before) == (x is LONG)
    assert "changes a list outside of it" in compiled.fallbacks[0]


@torch.no_grad()
def test_compiled_within_compiled() -> None:
    inner = ltc.compile(lambda x: x * 2)
    outer = ltc.compile(lambda x: inner(x) + 1)
    for _ in range(9):
        torch.testing.assert_close(outer(X), X * 2 + 1)
    torch.testing.assert_close(inner(X), X * 2)
    assert outer.fallbacks == inner.fallbacks == ()


@torch.no_grad()
def test_copies_pickles_and_odd_names() -> None:
    model = Model()
    for again in (
        copy.deepcopy(ltc.compile(model)),
        pickle.loads(pickle.dumps(ltc.compile(model))),
    ):
        same(again, model, X)
    assert torch.equal(ltc.compile(lambda x, self: x + self)(X, self=X), X + X)
    double = ltc.compile(lambda x: x * 2)
    with torch.device("meta"):
        torch.testing.assert_close(double(X), X * 2)


def chunks(x: Any) -> Any:
    h = x * 2
    h.add_(1)
    return h.chunk(3, -1), h.split([1, 2, 3], 1), h.tensor_split(4), h.tensor_split((1, -2), 1)


def rows(x: Any) -> Any:
    h = x.clone()
    first, *_, last = h.unbind(0)
    first.add_(1)
    h.relu_()
    return [row * 2 for row in h], last, torch.split(h, 4)


def halves(x: Any) -> Any:
    h = x.clone()
    left, right = h.chunk(2)
    h.add_(1)
    return left.t().contiguous(), right, torch.hsplit(h, 2)


@pytest.mark.parametrize("function", [chunks, rows, halves])
@torch.no_grad()
def test_views_that_come_together_follow_their_base(function: Any) -> None:
    """torch's lazy device ends the process for some of these."""
    compiled = ltc.compile(function)
    for _ in range(9):
        x = torch.randn(6, 6)
        torch.testing.assert_close(compiled(x), function(x))


@torch.no_grad()
def test_one_result_returned_twice_is_one_object_at_every_call() -> None:
    def twice(x: Any) -> Any:
        copied, turned = x.clone(), x.t().contiguous()
        return copied, copied, {"a": turned, "b": turned}

    compiled = ltc.compile(twice)
    for _ in range(9):
        first, second, both = compiled(torch.randn(1, 4))
        assert first is second
        assert both["a"] is both["b"]


@torch.no_grad()
def test_the_sign_of_zero() -> None:
    compiled = ltc.compile(lambda x: 1 / torch.relu(x).sin().sin())
    for _ in range(9):
        compiled(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.tensor([1.0, -0.0, 0.0])
    assert torch.equal(compiled(x), 1 / torch.relu(x).sin().sin())


@torch.no_grad()
def test_what_changes_all_the_time_is_left_to_eager_with_one_reason() -> None:
    factor = 0.0

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * factor

    compiled = ltc.compile(scaled)
    for factor in range(40):
        assert torch.equal(compiled(X), X * factor)
    assert len(compiled.fallbacks) == 1
    assert "change all the time" in compiled.fallbacks[0]
    compiled.clear()
    assert torch.equal(compiled(X), X * factor)
    assert (compiled.captures, compiled.fallbacks) == (1, ())


@torch.no_grad()
def test_what_changes_all_the_time_is_an_error_where_one_is_asked_for() -> None:
    factor = 0.0

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * factor

    compiled = ltc.compile(scaled, fallback="error")
    for factor in range(33):
        assert torch.equal(compiled(X), X * factor)
    for factor in range(50, 53):  # noqa: B007
        with pytest.raises(ltc.CaptureError, match="scaled reads change all the time"):
            compiled(X)
    factor = 32  # as it was at the last capture
    assert torch.equal(compiled(X), X * factor)
    compiled.clear()
    factor = 7
    assert torch.equal(compiled(X), X * factor)


def test_gradients_are_refused() -> None:
    compiled = ltc.compile(Model())
    with torch.no_grad():
        compiled(X)
    with pytest.raises(ltc.GradientError, match="requires grad"):
        compiled(X)


def test_threads(at_once: Callable[..., None]) -> None:
    model = Model()
    compiled = ltc.compile(model)

    def work() -> None:
        generator = torch.Generator().manual_seed(threading.get_ident())
        with torch.no_grad():
            for step in range(40):
                x = torch.randn(2 + 3 * (step % 2), 4, generator=generator)
                torch.testing.assert_close(compiled(x)["value"], model(x)["value"])

    at_once(*[work] * 4)


def test_bad_input() -> None:
    with pytest.raises(ltc.InputError, match="expected a module or function, seen int"):
        ltc.compile(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fallback: expected 'eager' or 'error', seen 'no'"):
        ltc.compile(Model(), fallback="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_captures"):
        ltc.compile(Model(), max_captures=0)
    with pytest.raises(TypeError, match="freeze"):
        ltc.compile(Model(), freeze=1)  # type: ignore[arg-type]
