"""Parameters and buffers: read anew at each call, written where eager writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _harness import Case, Pair, add, case
from torch import nn

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("seen", torch.zeros(4), persistent=False)

    def forward(self, x: Any) -> Any:
        self.count.add_(1)
        self.seen.mul_(0.9).add_(x.mean(0))
        return x * self.count, self.seen


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Any) -> Any:
        return self.head(self.embed(ids))


class Returns(nn.Module):
    """Returns its parameter, a view of it, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Any) -> Any:
        return self.weight, self.weight[0], self.table, x @ self.weight


class WritesParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: Any) -> Any:
        self.weight.add_(x.mean(0))
        return x * self.weight


class WritesView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ring", torch.zeros(3, 4))

    def forward(self, x: Any) -> Any:
        self.ring[1:].copy_(self.ring[:-1] * 1)
        self.ring[0].copy_(x[0])
        return self.ring.sum(0)


class SharedBuffers(nn.Module):
    """Two buffers in one memory, one of which is written."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.zeros(8)
        self.register_buffer("whole", memory)
        self.register_buffer("part", memory[4:])

    def forward(self, x: Any) -> Any:
        self.part.add_(x.mean(0))
        return self.whole * 2


class PlainTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((4,), 2.0)

    def forward(self, x: Any) -> Any:
        return x * self.scale


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(
            {
                "one": nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4))),
                "two": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]),
            }
        )
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(1))])

    def forward(self, x: Any) -> Any:
        x = self.blocks["one"](x)
        for block in self.blocks["two"]:
            x = block(x) * self.scales[0]
        return x + self.scales[1]


class Scalars(nn.Module):
    """Zero-dimensional parameters and buffers of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(2.0))
        self.b = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("c", torch.tensor(2.0))

    def forward(self, x: Any) -> Any:
        self.c.mul_(1.5)
        return x * self.a - self.b / self.c


def in_place(gm: Any) -> None:
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter.mul_(1.5).add_(0.25)


def replaced_data(gm: Any) -> None:
    for parameter in gm.parameters():
        parameter.data = torch.full_like(parameter, 0.5) + parameter.data.flip(0)


def new_parameters(gm: Any) -> None:
    for module in gm.modules():
        for name, parameter in list(module._parameters.items()):
            setattr(module, name, nn.Parameter(parameter.detach() * 2))


def loaded(gm: Any) -> None:
    gm.load_state_dict({name: value * 3 + 1 for name, value in gm.state_dict().items()})


def assigned(gm: Any) -> None:
    states = {name: value * 3 + 1 for name, value in gm.state_dict().items()}
    gm.load_state_dict(states, assign=True)


def stepped(gm: Any) -> None:
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.1)
    gm(X).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def adam(gm: Any) -> None:
    optimizer = torch.optim.AdamW(gm.parameters(), lr=0.1)
    gm(X).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def buffer_replaced(gm: Any) -> None:
    gm.get_submodule("0").seen = torch.full((4,), 3.0)


def norm(make: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    return make(*args, **options)


NORMS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "1d": (nn.BatchNorm1d(4), X),
    "1d, sequences": (nn.BatchNorm1d(4), IMAGE.flatten(2)),
    "2d": (nn.BatchNorm2d(4), IMAGE),
    "3d": (nn.BatchNorm3d(4), torch.randn(2, 4, 3, 3, 3)),
    "momentum 0.5": (nn.BatchNorm2d(4, momentum=0.5), IMAGE),
    "momentum 0 and another eps": (nn.BatchNorm2d(4, momentum=0.0, eps=0.1), IMAGE),
    "momentum 1": (nn.BatchNorm2d(4, momentum=1.0), IMAGE),
    "no affine": (nn.BatchNorm2d(4, affine=False), IMAGE),
    "no statistics": (nn.BatchNorm2d(4, track_running_stats=False), IMAGE),
    "double": (nn.BatchNorm1d(4).double(), X.double()),
    "bfloat16": (nn.BatchNorm2d(4).bfloat16(), IMAGE.bfloat16()),
    "bfloat16 input, float statistics": (nn.BatchNorm2d(4), IMAGE.bfloat16()),
    "half": (nn.BatchNorm2d(4).half(), IMAGE.half()),
    "channels last": (nn.BatchNorm2d(4), IMAGE.to(memory_format=torch.channels_last)),
    "in a model": (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), IMAGE),
    "the same one twice": ((lambda one: nn.Sequential(one, nn.ReLU(), one))(nn.BatchNorm1d(4)), X),
}
CASES: dict[str, Case] = {
    f"batch norm in train mode, {name}": case(module, x, how="leaf")
    for name, (module, x) in NORMS.items()
}
CASES |= {
    "batch norm, cumulative average": case(
        nn.BatchNorm2d(4, momentum=None),
        IMAGE,
        how="leaf",
        refused="reads the value of a tensor|momentum",
    ),
    "batch norm in eval mode": case(nn.BatchNorm2d(4).eval(), IMAGE, how="leaf"),
    "instance norm with statistics": case(
        nn.InstanceNorm2d(4, track_running_stats=True),
        IMAGE,
        how="leaf",
        refused="statistics of a batch normalization",
    ),
    "F.batch_norm on arguments": case(
        lambda x, m, v: F.batch_norm(x, m, v, training=True), X, torch.zeros(4), torch.ones(4)
    ),
    "batch norm of one value": case(
        lambda x, m, v: F.batch_norm(x, m, v, training=True),
        *(X[:1], torch.zeros(4), torch.ones(4)),
        refused="more than 1 value",
    ),
    "parameters changed in place": case(net(), X, between=in_place),
    "parameters get new data": case(net(), X, between=replaced_data),
    "parameters are set anew": case(net(), X, between=new_parameters),
    "load_state_dict": case(net(), X, between=loaded),
    "load_state_dict with assign": case(net(), X, between=assigned),
    "steps of SGD": case(net(), X, between=stepped),
    "steps of AdamW": case(net(), X, between=adam),
    "a counter": case(Counter(), X, how="leaf"),
    "a counter whose buffer is replaced": case(Counter(), X, how="leaf", between=buffer_replaced),
    "tied weights": case(Tied(), torch.tensor([[1, 2], [0, 6]])),
    "tied weights, changed": case(Tied(), torch.tensor([[1, 2], [0, 6]]), between=in_place),
    "parameters returned": case(Returns(), X),
    "parameters returned, changed": case(Returns(), X, between=in_place),
    "a parameter that is written": case(WritesParameter(), X),
    "a buffer written through views": case(WritesView(), X, how="leaf"),
    "buffers in one memory": case(SharedBuffers(), X, how="leaf"),
    "a tensor that is no buffer": case(PlainTensor(), X),
    "deeply nested modules": case(Deep(), X, between=in_place),
    "zero-dimensional state of equal values": case(Scalars(), X, how="leaf", between=in_place),
    "half weights": case(net().half(), X.half()),
    "frozen weights": case(net().requires_grad_(False), X, mode=torch.enable_grad),
    "shared with an argument": case(
        lambda a, b: (a.add_(1), b)[1] * 2, *(lambda one: (one[0], one))(X.clone())
    ),
}


@add(CASES, "an argument that is a parameter of the model")
def _() -> None:
    pair = Pair(WritesParameter(), (X,), how="symbolic")
    pair.both((X,))
    for gm, run in ((pair.gm, pair.compiled), (pair.eager, pair.eager)):
        with torch.no_grad():
            run(gm.weight.data.view(1, 4))
    torch.testing.assert_close(pair.gm.weight, pair.eager.weight)


@add(CASES, "tied weights that were untied")
def _() -> None:
    pair = Pair(Tied(), (torch.tensor([1, 2]),))
    for gm in (pair.gm, pair.eager):
        gm.head.weight = nn.Parameter(gm.head.weight.detach() * 2)
    pair.refuses((torch.tensor([1, 2]),), reason="expected one tensor with")
    pair.both((torch.tensor([1, 2]),))
    with torch.no_grad():
        for gm in (pair.gm, pair.eager):
            gm.embed.weight.add_(1)
    pair.both((torch.tensor([1, 2]),))


@add(CASES, "a submodule that was replaced")
def _() -> None:
    pair = Pair(net(), (X,))
    torch.manual_seed(7)
    other = nn.Linear(4, 4)
    for gm in (pair.gm, pair.eager):
        setattr(gm, "0", copy.deepcopy(other))
    pair.refuses((X,), reason="submodule '0'")
    pair.both((X,))
    pair.both((X,), seed=1)


@add(CASES, "a parameter of another shape")
def _() -> None:
    pair = Pair(net(), (X,))
    for gm in (pair.gm, pair.eager):
        getattr(gm, "2").weight = nn.Parameter(torch.ones(3, 4))
        getattr(gm, "2").bias = nn.Parameter(torch.ones(3))
    pair.refuses((X,), reason=r"model tensor '2\.\w+': expected")
    pair.both((X,))


@add(CASES, "train and eval mode")
def _() -> None:
    pair = Pair(nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)), (X,), how="leaf")
    for training in (True, False, True, False):
        for gm in (pair.gm, pair.eager):
            gm.train(training)
        if not training:
            pair.refuses((X,), reason="expected train mode")
        pair.both((X,), seed=3)
    assert pair.compiled.captures == 2


@add(CASES, "no second copy of the weights")
def _() -> None:
    pair = Pair(net(), (X,))
    held = {parameter.data_ptr() for parameter in pair.gm.parameters()}
    for capture in pair.compiled._captures:
        assert capture.program is not None
        for constant in capture.program.constants:
            assert constant is None or constant.numel() <= 4
    pair.both((X,))
    assert held == {parameter.data_ptr() for parameter in pair.gm.parameters()}
