"""``freeze=True``: constants are folded, and a changed weight is an error."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

import lazyfx_ltc as ltc


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Any) -> Any:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(x) * (self.scale + 1)


def made() -> Net:
    net = Net()
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 2.0)
        net.norm.weight.normal_()
        net.norm.bias.normal_()
    return net.eval()


X = torch.randn(2, 3, 8, 8)


@torch.no_grad()
def test_batch_norm_becomes_part_of_the_convolution() -> None:
    net = made()
    frozen = ltc.extract_compiled_graph(fx.symbolic_trace(net), (X,), freeze=True)
    for _ in range(10):
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(frozen(x), net(x))
    operators = frozen.explain().operators
    assert "aten::native_batch_norm" not in operators
    assert operators["aten::convolution"] == 1
    assert "aten::add" not in operators  # scale + 1
    program = frozen._captures[-1].program
    assert program is not None
    assert program.inputs == (0,)


@pytest.mark.parametrize("where", ["used twice", "train mode", "no statistics", "transposed"])
@torch.no_grad()
def test_batch_norms_that_cannot_be_folded(where: str) -> None:
    conv: Any = nn.Conv2d(3, 4, 3, bias=False)
    norm = nn.BatchNorm2d(4, track_running_stats=where != "no statistics")
    if where == "transposed":
        conv = nn.ConvTranspose2d(3, 4, 3)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x: Any) -> Any:
            found = self.conv(x)
            return self.norm(found) + (found if where == "used twice" else 1.0)

    model = Odd().train(where == "train mode")
    twin = copy.deepcopy(model)
    frozen = ltc.extract_compiled_graph(fx.symbolic_trace(model), (X,), freeze=True)
    for _ in range(3):
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(frozen(x), twin(x))
    if where == "train mode":
        torch.testing.assert_close(norm.running_mean, twin.norm.running_mean)
    assert frozen.explain().operators.get("aten::native_batch_norm") == 1


class Chain(nn.Module):
    """Normalizations after each other, of which a result is used twice, and side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
        for norm in self.norms:
            norm.running_mean.data.normal_()
            norm.running_var.data.uniform_(0.5, 2.0)

    def forward(self, x: Any) -> Any:
        once = self.norms[0](self.convs[0](x))
        left, right = self.convs[1](once), self.convs[2](once)
        return self.norms[1](once) + once, self.norms[2](left) - self.norms[3](right)


@torch.no_grad()
def test_batch_norms_in_chains() -> None:
    model = Chain().eval()
    frozen = ltc.extract_compiled_graph(fx.symbolic_trace(model), (X,), freeze=True)
    for _ in range(9):
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(frozen(x), model(x))
    assert frozen.explain().operators["aten::native_batch_norm"] == 1


def written(net: Net) -> None:
    net.head.weight.add_(1.0)


def replaced(net: Net) -> None:
    net.head.weight = nn.Parameter(torch.randn(2, 5))


def other_memory(net: Net) -> None:
    net.head.weight.data = torch.randn(2, 5)


def loaded(net: Net) -> None:
    net.load_state_dict(made().state_dict())


def stepped(net: Net) -> None:
    with torch.enable_grad():
        net(X).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()


def statistics(net: Net) -> None:
    net.norm.running_mean.zero_()


def removed(net: Net) -> None:
    del net.scale


@pytest.mark.parametrize(
    "change", [written, replaced, other_memory, loaded, stepped, statistics, removed]
)
@pytest.mark.parametrize("calls", [0, 1, 10])
def test_a_changed_weight_is_an_error(change: Callable[[Net], None], calls: int) -> None:
    net = made()
    frozen = ltc.compile(net, freeze=True)
    with torch.no_grad():
        frozen(X)
        for _ in range(calls):
            frozen(X)
        change(net)
        for _ in range(2):
            with pytest.raises(ltc.FrozenError, match=r"model tensor .*frozen"):
                frozen(X)
        frozen.clear()
        if change is not removed:
            torch.testing.assert_close(frozen(X), net(X))


@torch.no_grad()
def test_a_new_kind_of_call_is_captured() -> None:
    net = made()
    frozen = ltc.extract_compiled_graph(fx.symbolic_trace(net), (X,), freeze=True)
    other = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(frozen(other), net(other))
    assert frozen.captures == 2


@torch.no_grad()
def test_what_is_written_or_returned_is_not_frozen() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.calls.add_(1)
            return self.linear(x) + self.calls, self.linear.bias

    model = Counts()
    frozen = ltc.compile(model, freeze=True)  # fx would run the write while it traces
    for count in range(1, 9):
        x = torch.randn(2, 3)
        got, bias = frozen(x)
        assert float(model.calls) == count
        assert bias is model.linear.bias
        torch.testing.assert_close(got, model.linear(x) + count)


def test_gradients_are_refused_as_ever() -> None:
    net = made()
    frozen = ltc.extract_compiled_graph(fx.symbolic_trace(net), (X,), freeze=True)
    with torch.no_grad():
        for _ in range(8):
            frozen(X)
    with pytest.raises(ltc.GradientError, match="requires grad"):
        frozen(X)
    net.requires_grad_(False)
    for _ in range(3):
        torch.testing.assert_close(frozen(X), net(X))
    net.head.weight.requires_grad_()
    with pytest.raises(ltc.GradientError, match="requires grad"):
        frozen(X)


@torch.no_grad()
def test_large_constants_are_not_folded() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.column = nn.Parameter(torch.randn(2000, 1))

        def forward(self, x: Any) -> Any:
            return x + self.column @ self.column.t()

    model = Wide()
    x = torch.randn(2000, 2000)
    frozen = ltc.extract_compiled_graph(fx.symbolic_trace(model), (x,), freeze=True)
    torch.testing.assert_close(frozen(x), model(x))
    program = frozen._captures[-1].program
    assert program is not None
    assert max(one.numel() for one in program.constants) == 2000


@torch.no_grad()
def test_it_survives_pickle() -> None:
    net = made()
    frozen = ltc.extract_compiled_graph(fx.symbolic_trace(net), (X,), freeze=True)
    again = pickle.loads(pickle.dumps(frozen))
    torch.testing.assert_close(again(X), net(X))
    program = again._captures[-1].program
    assert program.inputs == (0,)


@torch.no_grad()
def test_pieces_are_frozen_too() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            x = self.first(x)
            return self.last(x * x.sum().item())

    model = Reads()
    x = torch.randn(2, 3)
    frozen = ltc.extract_compiled_graph(
        fx.symbolic_trace(model), (x,), freeze=True, fallback="partition"
    )
    torch.testing.assert_close(frozen(x), model(x))
    model.last.weight.add_(1)
    with pytest.raises(ltc.FrozenError, match=r"'last\.weight'"):
        frozen(x)


@torch.no_grad()
def test_weights_whose_writes_nobody_counts_are_not_frozen() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 4, bias=False)

    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Any) -> Any:
            return x + self.inner.weight.exp()

    held = Holds()
    frozen = ltc.compile(held, freeze=True)
    x = torch.randn(4, 4)
    for _ in range(9):
        torch.testing.assert_close(frozen(x), held(x))
    with torch.inference_mode():
        model.weight.mul_(2)
    torch.testing.assert_close(frozen(x), held(x))


def test_freeze_must_be_a_bool() -> None:
    with pytest.raises(TypeError, match="freeze: expected True or False, seen 'yes'"):
        ltc.extract_compiled_graph(fx.symbolic_trace(made()), (X,), freeze="yes")  # type: ignore[call-overload]
