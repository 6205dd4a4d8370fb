"""What may go wrong on a GPU only: each way into the package, where ``--device`` says.

On a GPU eager may choose a kernel of cuDNN's where a program calls torch's own, so that sums come
in another order: such results are compared closely. Random numbers and writes are exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import lazyfx_ltc as ltc
from lazyfx_ltc import _fallback, _freeze, _torch_lazy, backend
from lazyfx_ltc._batch_norm import BATCH_NORMS
from lazyfx_ltc._rewrite import LazyDevices
from lazyfx_ltc._text import parse_written

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class Block(nn.Module):
    """Embedding, attention with a mask that the model makes, dropout, layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.qkv, self.norm, self.head = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.words(words)
        q, k, v = self.qkv(x).chunk(3, -1)
        mask = torch.ones(5, 5, dtype=torch.bool, device=x.device).triu(1)
        weights = (q @ k.transpose(-1, -2)).masked_fill(mask, float("-inf")).softmax(-1)
        return self.head(self.norm(x + F.dropout(weights, 0.2, self.training) @ v))


def images() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 3))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "words": (Block, lambda: torch.randint(11, (4, 5))),
    "images": (images, lambda: torch.randn(4, 3, 6, 6)),
    "perceptron": (perceptron, lambda: torch.randn(6, 4)),
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    backend._made.clear()
    yield
    torch._dynamo.reset()


def made(name: str, device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, make_input = MODELS[name]
    return make().to(device), make_input().to(device)


def drawn(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The next random numbers of the CPU's generator and of the device's."""
    return torch.rand(3), torch.rand(3, device=device)


def whole(model: nn.Module) -> fx.GraphModule:
    """A graph that calls the model as it is, python code and all."""

    class Everything(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    around = nn.Sequential(model)
    return fx.GraphModule(around, Everything().trace(around))


def results_of(run: Callable[..., Any], x: torch.Tensor, device: torch.device) -> tuple[Any, Any]:
    """What three calls give, and the random numbers that come next."""
    torch.manual_seed(1)
    with torch.no_grad():
        given = [run(x) for _ in range(3)]
    return given, drawn(device)


def test_the_session_is_on_the_device_of_the_tests(device: torch.device) -> None:
    assert ltc.initialize() == device.type
    other = "cpu" if device.type == "cuda" else "cuda"
    with pytest.raises(ltc.SessionError, match=f"expected '{device.type}', seen '{other}'"):
        ltc.initialize(other)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_eagers_numbers_and_draws_eagers(
    name: str, training: bool, device: torch.device
) -> None:
    theirs, x = made(name, device)
    ours = copy.deepcopy(theirs)
    theirs.train(training)
    ours.train(training)
    compiled = ltc.extract_compiled_graph(whole(ours), (x,))
    want, want_next = results_of(theirs, x, device)
    got, got_next = results_of(compiled, x, device)
    torch.testing.assert_close(got, want, **CLOSE)
    assert all(map(torch.equal, got_next, want_next))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **CLOSE)
    assert {one.device for one in got} == {x.device}


def test_capturing_draws_nothing(device: torch.device) -> None:
    model, x = made("perceptron", device)
    torch.manual_seed(4)
    want = drawn(device)
    torch.manual_seed(4)
    ltc.extract_compiled_graph(whole(model), (x,))
    assert all(map(torch.equal, drawn(device), want))


@pytest.mark.parametrize("name", ["images", "perceptron"])
def test_frozen_weights_agree_and_a_change_is_seen(name: str, device: torch.device) -> None:
    model, x = made(name, device)
    model.eval()
    compiled = ltc.extract_compiled_graph(whole(model), (x,), freeze=True)
    want, _ = results_of(model, x, device)
    got, _ = results_of(compiled, x, device)
    torch.testing.assert_close(got, want, **CLOSE)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(ltc.FrozenError):
        compiled(x)


@pytest.mark.parametrize("name", MODELS)
def test_three_steps_of_training_under_torch_compile(name: str, device: torch.device) -> None:
    theirs, x = made(name, device)
    ours = copy.deepcopy(theirs)
    seen = []
    for module, run in (
        (theirs, theirs),
        (ours, torch.compile(ours, backend="lazyfx_ltc", fullgraph=True)),
    ):
        steps = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        torch.manual_seed(1)
        for _ in range(3):
            steps.zero_grad()
            run(x).square().mean().backward()
            steps.step()
        seen.append((module.state_dict(), drawn(device)))
    torch.testing.assert_close(seen[1][0], seen[0][0], **CLOSE)
    assert all(map(torch.equal, seen[1][1], seen[0][1]))


def test_a_model_without_a_trace(device: torch.device) -> None:
    model, x = made("words", device)
    compiled = ltc.compile(model.eval())
    for words in (x, x[:2], x.flip(0)):
        with torch.no_grad():
            torch.testing.assert_close(compiled(words), model(words), **CLOSE)


def test_autocast_of_the_device(device: torch.device) -> None:
    model, x = made("perceptron", device)
    model.eval()
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(model), (x,))
    with torch.no_grad():
        assert compiled(x).dtype is torch.float32
        with torch.autocast(device.type, torch.bfloat16):
            got, want = compiled(x), model(x)
        assert got.dtype is torch.bfloat16
        torch.testing.assert_close(got, want)
        assert compiled(x).dtype is torch.float32


def test_arguments_on_another_device_are_refused_before_anything_runs(
    device: torch.device,
) -> None:
    written: list[torch.Tensor] = [torch.zeros(4, device=device)]

    def add(a: Any, b: Any) -> Any:
        return a.add_(1) + b

    gm = fx.symbolic_trace(add)
    a, b = torch.zeros(4, device=device), torch.ones(4, device=device)
    compiled = ltc.extract_compiled_graph(gm, (a, b), on_mismatch="error")
    other = torch.ones(4, device="cpu" if device.type == "cuda" else "meta")
    with pytest.raises(ltc.LtcError, match=f"{device.type}.*{other.device.type}"):
        compiled(written[0], other)
    assert not written[0].any()
    with pytest.raises(ltc.InputError, match=f"on {device.type}.*seen {other.device.type}"):
        ltc.extract_compiled_graph(gm, (a, other))


def test_a_default_device_that_is_the_sessions_changes_nothing(device: torch.device) -> None:
    compiled = ltc.extract_compiled_graph(
        fx.symbolic_trace(lambda a: a.new_ones(4) + a), (torch.zeros(4, device=device),)
    )
    with torch.device(device):
        torch.testing.assert_close(compiled(torch.zeros(4)), torch.ones(4))


def test_what_a_model_without_arguments_makes(device: torch.device) -> None:
    graph = fx.Graph()
    ones = graph.call_function(torch.ones, (4,), {"device": device})
    table = graph.call_function(torch.arange, (4,), {"device": device})
    graph.output(graph.call_function(torch.add, (ones, table)))
    compiled = ltc.extract_compiled_graph(fx.GraphModule(nn.Module(), graph), ())
    for _ in range(8):  # enough to try all ways of running, where there are several
        torch.testing.assert_close(compiled(), torch.arange(1.0, 5.0, device=device))


# What can be seen without a GPU.


def test_a_dropout_is_one_operator_as_it_is_on_a_gpu() -> None:
    """There eager has one kernel for it, which draws other numbers than its parts would."""
    ltc.initialize()
    x = torch.ones(4).to("lazy")
    with LazyDevices():
        dropped = F.dropout(x, 0.5)
    assert "aten::native_dropout" in _torch_lazy.backend_text([dropped])


def test_a_batch_norm_on_a_gpu_is_merged_into_a_convolution_there() -> None:
    text = """graph(%x : Tensor, %w : Tensor, %g : Tensor, %m : Tensor, %v : Tensor):
  %none : NoneType = prim::Constant()
  %one : int = prim::Constant[value=1]()
  %zero : int = prim::Constant[value=0]()
  %two : int[] = prim::ListConstruct(%one, %one)
  %pad : int[] = prim::ListConstruct(%zero, %zero)
  %no : bool = prim::Constant[value=0]()
  %tenth : float = prim::Constant[value=0.1]()
  %c : Tensor = aten::convolution(%x, %w, %none, %two, %pad, %two, %no, %pad, %one)
  %n : Tensor, %a : Tensor, %b : Tensor = aten::native_batch_norm(%c, %g, %none, %m, %v, %no, \
%tenth, %tenth)
  return (%n)
"""
    _, instructions, outputs = parse_written(text)
    with FakeTensorMode():
        known = {name: torch.empty(4, device="cuda") for name in "gmv"}
        known["w"] = torch.empty(4, 3, 3, 3, device="cuda")
        _, merged, aliases = _freeze._without_batch_norms(instructions, known, outputs)
    assert aliases == {"n": "c"}
    added = {name: one for name, one in merged.items() if name not in known}
    assert sorted(tuple(one.shape) for one in added.values()) == [(4,), (4, 3, 3, 3)]
    assert {one.device.type for one in added.values()} == {"cuda"}


class Called(TorchDispatchMode):
    """Notes the operators that are called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))


def test_statistics_that_cudnn_would_write_unseen_are_written_in_so_many_words() -> None:
    operator = torch.ops.aten.cudnn_batch_norm.default
    normalize = BATCH_NORMS[operator]
    with Called() as called:
        x = torch.empty(4, 3, 5, 5, device="meta")
        weight, bias, mean, var = (torch.empty(3, device="meta") for _ in range(4))
        results = normalize(x, weight, bias, mean, var, True, 0.1, 1e-5)
        assert normalize(x, weight, bias, mean, var, False, 0.1, 1e-5) is NotImplemented
    assert len(results) == 4
    (given,) = (args for name, args in called.calls if name == str(operator))
    assert given[3:5] == (None, None)
    written = [args[0] for name, args in called.calls if name == "aten.copy_.default"]
    assert [one is each for one, each in zip(written, (mean, var), strict=True)] == [True, True]


def test_what_a_composite_operator_draws_on_a_gpu_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = torch.zeros(16, dtype=torch.uint8)
    put_back = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put_back.append)
    counts = iter(range(100))
    monkeypatch.setattr(_fallback, "is_composite", lambda op: True)
    monkeypatch.setattr(_fallback, "fallback_counts", lambda: {"aten::gone": next(counts)})
    before = torch.get_rng_state()
    _, left = _fallback.calls_that_leave(lambda: torch.rand(2), "aten::any", "cuda")
    assert left == {"aten::gone"}
    assert put_back == [state]
    assert torch.equal(torch.get_rng_state(), before)
