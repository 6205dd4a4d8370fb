"""``torch.compile(model, backend="lazyfx_ltc")``: inference, training, dynamic shapes, options."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.torch_version import TorchVersion

import lazyfx_ltc as ltc
from lazyfx_ltc import backend


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    backend._made.clear()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.dropout(self.norm(self.first(x)).relu(), 0.3, self.training)
        return self.last(hidden)


def twins() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = Net()
    return net, copy.deepcopy(net)


def test_inference_agrees_with_eager() -> None:
    eager, other = (one.eval() for one in twins())
    compiled = torch.compile(other, backend="lazyfx_ltc", fullgraph=True)
    with torch.no_grad():
        for rows in (3, 3, 5):
            x = torch.randn(rows, 8)
            torch.testing.assert_close(compiled(x), eager(x))


def test_ten_steps_of_training_end_with_eagers_parameters() -> None:
    eager, other = twins()
    compiled = torch.compile(other, backend="lazyfx_ltc", fullgraph=True)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=1e-2) for one in (eager, other)]
    for step in range(10):
        x, y = torch.randn(6, 8), torch.randint(4, (6,))
        for model, optimizer in zip((eager, compiled), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for name, value in eager.state_dict().items():
        assert (value - other.state_dict()[name]).abs().max() <= 1e-5, name


def test_dynamic_shapes_are_captured_for_each_size() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return (x.sin() @ x.t()).softmax(-1) * x.shape[0]

    compiled = torch.compile(model, backend="lazyfx_ltc", fullgraph=True, dynamic=True)
    for rows in (3, 5, 9, 3):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(compiled(x), model(x))
    assert any(one.captures >= 3 for one in backend._made)


def test_writes_to_arguments_and_buffers() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.add_(1)
            self.seen += x.sum(0)
            return x * self.seen

    eager, other = Counter(), Counter()
    compiled = torch.compile(other, backend="lazyfx_ltc", fullgraph=True)
    for _ in range(3):
        ours = torch.randn(3, 4)
        theirs = ours.clone()
        torch.testing.assert_close(compiled(ours), eager(theirs))
        assert torch.equal(ours, theirs)
    assert torch.equal(eager.seen, other.seen)


def test_autocast_is_part_of_the_graph() -> None:
    eager, other = (one.eval() for one in twins())
    compiled = torch.compile(other, backend="lazyfx_ltc", fullgraph=True)
    x = torch.randn(3, 8)
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float16):
            if dtype == torch.float16 and TorchVersion(torch.__version__) < (2, 7):
                torch._dynamo.reset()  # Dynamo of torch 2.6 has no guard for autocast's dtype
            with torch.autocast("cpu", dtype=dtype):
                got, want = compiled(x), eager(x)
            assert got.dtype == want.dtype == dtype
            torch.testing.assert_close(got, want)


def test_operators_outside_any_program_run_between_pieces(strange: Any) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return strange.named(x.sin(), 'a"b').cos()

    compiled = torch.compile(model, backend="lazyfx_ltc", fullgraph=True)
    x = torch.randn(3)
    torch.testing.assert_close(compiled(x), model(x))
    (held,) = [one for one in backend._made if isinstance(one, ltc.PartitionedGraph)]
    assert len(held.fallbacks) == 1
    strict = torch.compile(model, backend="lazyfx_ltc", options={"fallback": "error"})
    torch._dynamo.reset()
    with pytest.raises(Exception, match="can be no part of a captured program"):
        strict(x)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"speed": 11}}, "unknown option 'speed'; it takes fallback, max_captures"),
        ({"mode": "max-autotune"}, "no modes, seen mode='max-autotune'"),
        ({"options": {"fallback": "eager"}}, "'fallback': expected 'partition' or 'error'"),
        ({"options": {"max_captures": 0}}, "'max_captures': expected a number from 1 up, seen 0"),
    ],
)
def test_unknown_options_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ltc.OptionError, match=message):
        backend.lazyfx_ltc(None, (), **given)  # type: ignore[arg-type]


def test_reset_forgets_what_was_captured() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.tanh() + 1

    compiled = torch.compile(model, backend="lazyfx_ltc")
    x = torch.randn(3)
    compiled(x)
    (held,) = [one for one in backend._made if isinstance(one, ltc.CompiledGraph)]
    assert held.captures == 1
    torch._dynamo.reset()
    assert held.captures == 0
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 10),
    reason="Dynamo counts in one place for all threads, and fails at the second, up to torch 2.9",
)
def test_threads_train_at_once(at_once: Callable[..., None]) -> None:
    def work() -> None:
        eager, other = twins()
        compiled = torch.compile(other, backend="lazyfx_ltc")
        eager.eval(), other.eval()
        x = torch.randn(4, 8)
        compiled(x).square().mean().backward()
        eager(x).square().mean().backward()
        for ours, theirs in zip(other.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)

    # Dynamo looks a backend up by its name at the first use, which two threads must not do at once.
    torch.compile(torch.sin, backend="lazyfx_ltc")(torch.ones(2))
    at_once(work, work, work)
