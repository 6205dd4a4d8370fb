"""The ways to run a program: each agrees with TorchScript's interpreter, or is not used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lazyfx_ltc as ltc
from lazyfx_ltc import _runners, _torch_lazy
from lazyfx_ltc._direct import direct
from lazyfx_ltc._lean import lean
from lazyfx_ltc._program import Program
from lazyfx_ltc._runners import _ROUNDS, Runners

MLP = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def captured(model: Any, *args: torch.Tensor) -> tuple[ltc.CompiledGraph, Program]:
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(model), args)
    program = compiled._captures[-1].program
    assert program is not None
    return compiled, program


def only(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Let one way win whenever it agrees, however long it takes."""
    monkeypatch.setattr(_runners, "_GAIN", 1e9)
    built = Runners._built

    def one(self: Runners, inputs: Any) -> dict[str, Callable[..., Any]]:
        ways = built(self, inputs)
        return {name: ways[name] for name in ways if name == way}

    monkeypatch.setattr(Runners, "_built", one)
    decide = Runners._decide

    def timed(self: Runners) -> None:
        self._times["interpreter"] = [1.0]
        decide(self)

    monkeypatch.setattr(Runners, "_decide", timed)


@pytest.mark.parametrize("way", ["static runtime", "python"])
@torch.no_grad()
def test_each_way_gives_ordinary_results(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    only(monkeypatch, way)
    model = MLP if way == "static runtime" else nn.Sequential(nn.Tanh(), nn.Sigmoid())
    compiled, program = captured(model, torch.randn(2, 4))
    kept = []
    for _ in range(3 * _ROUNDS):
        x = torch.randn(2, 4)
        got = compiled(x)
        torch.testing.assert_close(got, model(x))
        kept.append((got, got.clone()))
    assert program.runners.way == way
    last = kept[-1][0]
    assert not last.is_inference()
    assert last._version <= 1
    last.resize_(7, 9).fill_(1.0)
    weight = torch.ones(2, 4, requires_grad=True)
    with torch.enable_grad():
        (weight * kept[-2][0]).sum().backward()
    assert torch.equal(weight.grad, kept[-2][0])
    for got, copy in kept[:-1]:  # later calls have not written to them
        assert torch.equal(got, copy)


@torch.no_grad()
def test_inference_mode_returns_what_eager_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "static runtime")
    compiled, program = captured(MLP, torch.randn(2, 4))
    for _ in range(_ROUNDS + 3):
        compiled(torch.randn(2, 4))
    assert program.runners.way == "static runtime"
    with torch.inference_mode():
        x = torch.randn(2, 4)
        for _ in range(3):
            assert compiled(x).is_inference()
        torch.testing.assert_close(compiled(x), MLP(x))
    assert not compiled(torch.randn(2, 4)).is_inference()


@torch.no_grad()
def test_changed_weights_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "static runtime")
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    traced = fx.symbolic_trace(model)
    compiled = ltc.extract_compiled_graph(traced, (torch.randn(2, 4),))
    for _ in range(_ROUNDS + 3):
        compiled(torch.randn(2, 4))
    x = torch.randn(2, 4)
    model[0].weight.add_(1.0)
    torch.testing.assert_close(compiled(x), model(x))
    model[0].weight.data = torch.randn(8, 4)
    torch.testing.assert_close(compiled(x), model(x))
    traced.get_submodule("2").weight = nn.Parameter(torch.randn(4, 8))
    torch.testing.assert_close(compiled(x), traced(x))


@torch.no_grad()
def test_a_way_that_differs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial can fail: a way with a planted error is found, and eager's values returned."""
    for plant in (
        lambda way: lambda *inputs: way(*inputs) * 1.001,
        lambda way: lambda *inputs: way(*inputs).double(),
        lambda way: lambda *inputs: way(*inputs).t().contiguous().t(),
        lambda way: lambda *inputs: inputs[0],
        lambda way: lambda *inputs: 1 / 0,
    ):
        built = Runners._built

        def planted(
            self: Runners, inputs: Any, plant: Any = plant, built: Any = built
        ) -> dict[str, Callable[..., Any]]:
            return {name: plant(way) for name, way in built(self, inputs).items()}

        with monkeypatch.context() as patch:
            patch.setattr(Runners, "_built", planted)
            patch.setattr(_runners, "_GAIN", 1e9)
            compiled, program = captured(MLP, torch.randn(4, 4))
            for _ in range(_ROUNDS + 3):
                x = torch.randn(4, 4)
                torch.testing.assert_close(compiled(x), MLP(x))
            assert program.runners.way == "interpreter"


@torch.no_grad()
def test_a_result_that_is_used_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that hands out one piece of memory call after call is not used."""
    memory = torch.empty(2, 4)

    def planted(self: Runners, inputs: Any) -> dict[str, Callable[..., Any]]:
        return {"python": lambda *inputs: memory.copy_(self._plain(*inputs))}

    monkeypatch.setattr(Runners, "_built", planted)
    monkeypatch.setattr(_runners, "_GAIN", 1e9)
    compiled, program = captured(MLP, torch.randn(2, 4))
    for _ in range(_ROUNDS + 3):
        compiled(torch.randn(2, 4))
    assert program.runners.way == "interpreter"


@torch.no_grad()
def test_what_fails_later_runs_by_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "static runtime")
    table = nn.Embedding(5, 3)
    compiled, program = captured(nn.Sequential(table, nn.Tanh()), torch.tensor([1, 2]))
    for _ in range(_ROUNDS + 3):
        compiled(torch.tensor([1, 4]))
    assert program.runners.way == "static runtime"
    with pytest.raises(ltc.ProgramError, match="index out of range"):
        compiled(torch.tensor([1, 5]))
    assert program.runners.way == "interpreter"
    torch.testing.assert_close(compiled(torch.tensor([3, 4])), table(torch.tensor([3, 4])).tanh())


def test_threads_share_a_program(
    monkeypatch: pytest.MonkeyPatch, at_once: Callable[..., None]
) -> None:
    only(monkeypatch, "static runtime")
    compiled, _ = captured(MLP, torch.randn(2, 4))

    def work() -> None:
        generator = torch.Generator().manual_seed(threading.get_ident())
        with torch.no_grad():
            for _ in range(200):
                x = torch.randn(2, 4, generator=generator)
                torch.testing.assert_close(compiled(x), MLP(x))

    at_once(*[work] * 4)


class _Counts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_dispatch_mode_sees_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static Runtime calls kernels behind the dispatcher's back: not while somebody looks on."""
    only(monkeypatch, "static runtime")
    compiled, program = captured(lambda x: (x + 1).tanh(), torch.randn(2, 4))
    for _ in range(_ROUNDS + 3):
        compiled(torch.randn(2, 4))
    assert program.runners.way == "static runtime"
    x = torch.randn(2, 4)
    with _Counts() as mode:
        got = compiled(x)
    assert any("tanh" in name for name in mode.seen)
    assert any("add" in name for name in mode.seen)
    torch.testing.assert_close(got, (x + 1).tanh())


def test_draws_and_effects_are_never_tried() -> None:
    _, program = captured(lambda x: torch.dropout(x, 0.5, True), torch.randn(2, 4))
    assert program.runners.run == program.function


def test_python_form_of_a_program() -> None:
    text = """graph(%a : Tensor, %b : Tensor):
  %two : int = prim::Constant[value=2]()
  %sum : Tensor = aten::add(%a, %b, %two)
  %out : Tensor = aten::relu(%sum)
  %packed : (Tensor, Tensor) = prim::TupleConstruct(%out, %sum)
  return (%packed)
"""
    run = direct(text, {1: torch.tensor(3.0)})
    assert run is not None
    x = torch.tensor([-9.0, 1.0])
    out, total = run(x)
    assert torch.equal(total, x + 6)
    assert torch.equal(out, (x + 6).relu())
    for _ in range(2):
        text = text.replace("  %out :", "  %sum2 : Tensor = aten::relu(%sum)\n  %out :", 1)
    assert direct(text.replace("%sum2", "%sum3", 1), {}) is None  # more than a few operators


def test_lean_programs_leave_out_what_changes_nothing() -> None:
    text = """graph(%x : Tensor, %w : Tensor):
  %zero : int = prim::Constant[value=0]()
  %six : int = prim::Constant[value=6]()
  %size : int[] = prim::ListConstruct(%six)
  %dense : Tensor = aten::contiguous(%x, %zero)
  %product : Tensor = aten::matmul(%dense, %w)
  %flat : Tensor = aten::reshape(%product, %size)
  %turned : Tensor = aten::t(%product)
  %mixed : Tensor = aten::reshape(%turned, %size)
  %sum : Tensor = aten::add(%flat, %mixed, %six)
  return (%sum)
"""
    x, w = torch.randn(2, 4), torch.randn(4, 3)
    leaner = lean(text, {}, (x, w))
    assert "contiguous" not in leaner
    assert (leaner.count("aten::view"), leaner.count("aten::reshape")) == (1, 1)
    run = [_torch_lazy.build_function(_torch_lazy.bound_graph(one)) for one in (text, leaner)]
    assert torch.equal(run[0](x, w), run[1](x, w))
    turned = torch.randn(4, 2).t()
    assert "contiguous" in lean(text, {}, (turned, w))
