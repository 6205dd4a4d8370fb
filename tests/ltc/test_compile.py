"""``lazyfx_ltc.compile``: no trace, no Dynamo; whatever the python code may ask is guarded."""

from __future__ import annotations

import logging
import threading
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


def test_gradients_are_refused() -> None:
    compiled = ltc.compile(Model())
    with torch.no_grad():
        compiled(X)
    with pytest.raises(ltc.GradientError, match="requires grad"):
        compiled(X)


def test_threads() -> None:
    model, wrong = Model(), []
    compiled = ltc.compile(model)

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for step in range(40):
                x = torch.randn(2 + 3 * (step % 2), 4, generator=generator)
                if not torch.allclose(compiled(x)["value"], model(x)["value"], atol=1e-6):
                    wrong.append(x)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bad_input() -> None:
    with pytest.raises(ltc.InputError, match="expected a module or function, seen int"):
        ltc.compile(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fallback: expected 'eager' or 'error', seen 'no'"):
        ltc.compile(Model(), fallback="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_captures"):
        ltc.compile(Model(), max_captures=0)
    with pytest.raises(TypeError, match="freeze"):
        ltc.compile(Model(), freeze=1)  # type: ignore[arg-type]
