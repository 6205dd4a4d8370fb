"""Budgets for what the forward saves: kept, right at every fraction, and never a higher peak."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.torch_version import TorchVersion

from lazyfx_compilers import (
    BudgetError,
    BudgetWarning,
    budget_partitioner,
    memory_efficient_fusion,
    nop,
    partition,
)
from lazyfx_compilers._budget import Budget

BUDGETS = (1, 0.9, 0.5, 0.25, 0.1, 0.01, 0)
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::lazyfx_compilers.BudgetWarning"),
]


class Block(nn.Module):
    def __init__(self, width=16, dropout=0.2):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(self.norms[0](x)).view(batch, length, 3, 2, width // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        weights = (q @ k.transpose(-1, -2)).masked_fill(mask, float("-inf")).softmax(-1)
        weights = F.dropout(weights, self.dropout, self.training)
        mixed = (weights @ v).transpose(1, 2).reshape(x.shape)
        x = x + F.dropout(self.out(mixed), self.dropout, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.norms[1](x)))), self.dropout)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *[nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3)],
            *[nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Dropout2d(0.3)],
        )

    def forward(self, x):
        return self.layers(x)


class Counting(nn.Module):
    """Writes to a buffer that what is saved depends on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x):
        moved = ((x + self.shift).sin() * self.linear(x)).exp()
        self.shift.mul_(2.0)
        return moved * self.shift.sum()


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        noise = torch.randn_like(x) * torch.rand(x.shape, dtype=x.dtype, device=x.device)
        x = F.rrelu((x @ self.weight).sin(), training=True) + noise.cos()
        return (torch.bernoulli(torch.full_like(x, 0.5)) * x.exp()).tanh() * noise


RELEASE = TorchVersion(torch.__version__)
MODELS = {
    "blocks": (lambda: nn.Sequential(Block(), Block(), Block()), (2, 5, 16)),
    "convolutions": (Convolutions, (2, 3, 8, 8)),
    "a buffer that is written": (Counting, (3, 8)),
    "random operators": (Random, (4, 6)),
}


def step(module, run, x):
    """Result, gradients, buffers, and the random stream afterwards."""
    torch.manual_seed(7)
    module.zero_grad()
    x = x.clone().requires_grad_()
    result = run(x)
    result.square().sum().backward()
    return {
        "result": result.detach(),
        "input": x.grad,
        "gradients": [one.grad.clone() for one in module.parameters()],
        "buffers": [one.clone() for one in module.buffers()],
        "stream": torch.rand(1, device=x.device),
    }


def made(name, device="cpu"):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return make().double().to(device), torch.randn(shape, dtype=torch.float64).to(device)


@pytest.mark.parametrize("codegen", ["inductor", "ts", nop], ids=["inductor", "ts", "nop"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_eagers_at_every_budget(name, codegen, device):
    if codegen == "inductor" and name == "random operators":
        pytest.skip("inductor draws in an order of its own where several operators draw")
    if (codegen, name) == ("inductor", "convolutions") and RELEASE < (2, 7):
        pytest.skip("inductor of torch 2.6 draws other numbers for Dropout2d than eager")
    budgets = BUDGETS if codegen is nop else (0.5, 0)
    for budget in budgets:
        theirs, x = made(name, device)
        ours, _ = made(name, device)
        fused = memory_efficient_fusion(ours, codegen=codegen, budget=budget)
        for _ in range(2):
            torch.testing.assert_close(step(ours, fused, x), step(theirs, theirs, x))


@pytest.mark.parametrize("budget", [0.5, 0])
@pytest.mark.parametrize("name", MODELS)
def test_under_torch_compile_too(name, budget, device):
    theirs, x = made(name, device)
    ours, _ = made(name, device)
    options = {"codegen": nop, "budget": budget}
    compiled = torch.compile(ours, backend="lazyfx_fusion", options=options)
    for _ in range(2):
        torch.testing.assert_close(step(ours, compiled, x), step(theirs, theirs, x))


def test_dynamic_shapes(device):
    theirs, _ = made("blocks", device)
    ours, _ = made("blocks", device)
    options = {"codegen": nop, "budget": 0.2}
    compiled = torch.compile(ours, backend="lazyfx_fusion", options=options, dynamic=True)
    for length in (5, 7, 9):
        x = torch.randn(2, length, 16, dtype=torch.float64, device=device)
        torch.testing.assert_close(step(ours, compiled, x), step(theirs, theirs, x))


def saved_bytes(module, run, x):
    """What autograd keeps, inputs and parameters left out.

    The input needs a gradient: torch 2.6 does not say which inputs are written, so that others are
    copied there.
    """
    x = x.clone().requires_grad_()
    owned = {one.untyped_storage().data_ptr() for one in (*module.parameters(), x)}
    owned |= {one.untyped_storage().data_ptr() for one in module.buffers()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run(x)
    assert result.requires_grad
    return sum(size for size, _ in kept.values())


def ways_of(model, x):
    """The ways down that a model's partition may choose from."""
    found = []
    inner = partition.within

    def noted(halves, wanted):
        found.append(Budget(halves))
        return inner(halves, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition, "within", noted)
        memory_efficient_fusion(model, codegen=nop, budget=0.5)(x.requires_grad_())
    (budget,) = found
    return budget


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_what_was_foretold(name):
    ways = ways_of(*made(name))
    model, x = made(name)
    whole = saved_bytes(model, memory_efficient_fusion(model, codegen=nop, budget=1), x)
    before = None
    for budget in (0.75, 0.5, 0.25, 0.1, 0):
        place, _ = ways.within(int(budget * whole))
        model, x = made(name)
        seen = saved_bytes(model, memory_efficient_fusion(model, codegen=nop, budget=budget), x)
        assert seen == place.saved
        assert seen <= max(int(budget * whole), ways.least)
        assert before is None or seen <= before
        before = seen


def six_blocks():
    torch.manual_seed(0)
    return nn.Sequential(*[Block() for _ in range(6)]), torch.randn(4, 32, 16)


def test_a_smaller_budget_never_peaks_higher_if_that_can_be_had():
    ways = ways_of(*six_blocks())
    first = ways.places[0]
    before = first
    for percent in range(95, -1, -5):
        bound = int(percent / 100 * first.saved)
        place, _ = ways.within(bound)
        could = min(one.peak for one in ways.places if one.saved <= max(bound, ways.least))
        assert place.peak <= max(before.peak, could)
        assert place.peak < 1.1 * before.peak
        assert place.saved <= before.saved
        before = place
    assert before.saved < 0.1 * first.saved
    assert before.peak < 0.4 * first.peak


def test_the_peak_is_what_was_foretold(most_bytes_at_a_time):
    model, x = six_blocks()
    x.requires_grad_()
    ways = ways_of(model, x)
    whole = ways.places[0].saved
    wanted = [x, *model.parameters()]
    for budget in (1, 0.6, 0.3, 0.05):
        run = memory_efficient_fusion(model, codegen=nop, budget=budget)
        gradient = torch.ones_like(run(x))
        seen = most_bytes_at_a_time(
            lambda run=run, gradient=gradient: torch.autograd.grad(run(x), wanted, gradient)
        )
        place, _ = ways.within(int(budget * whole))
        assert seen == pytest.approx(place.peak, rel=0.02)


def test_bytes():
    model, x = made("blocks")
    whole = saved_bytes(model, memory_efficient_fusion(model, codegen=nop), x)
    limit = whole // 3
    seen = saved_bytes(model, memory_efficient_fusion(model, codegen=nop, budget=limit), x)
    assert 0 < seen <= limit


def test_what_cannot_be_had_is_said():
    model, x = made("random operators")
    fused = memory_efficient_fusion(model, codegen=nop, budget=10)
    with pytest.warns(BudgetWarning, match=r"budget 10: expected at most 10 bytes .* have to be"):
        fused(x.requires_grad_())
    model, x = made("blocks")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory_efficient_fusion(model, codegen=nop, budget=0.3)(x.requires_grad_())


@pytest.mark.parametrize("budget", [-1, 1.5, "half", True, float("nan"), -0.5])
def test_a_wrong_budget_is_named(budget):
    with pytest.raises(BudgetError, match="budget: expected a fraction"):
        memory_efficient_fusion(torch.sin, budget=budget)
    with pytest.raises(BudgetError, match="budget: expected a fraction"):
        budget_partitioner(budget)


def test_a_budget_and_a_partitioner_contradict_each_other():
    with pytest.raises(BudgetError, match=r"budget=0\.5: expected none besides a partitioner"):
        memory_efficient_fusion(torch.sin, budget=0.5, partitioner=budget_partitioner(0.2))


def test_the_partitioner_stands_alone():
    from functorch.compile import aot_function

    theirs, x = made("blocks")
    ours, _ = made("blocks")
    parameters = dict(ours.named_parameters())
    names = list(parameters)

    def functional(values, x):
        return torch.func.functional_call(ours, dict(zip(names, values, strict=True)), (x,))

    run = aot_function(functional, nop, partition_fn=budget_partitioner(0.3))
    seen = step(ours, lambda x: run(list(parameters.values()), x), x)
    torch.testing.assert_close(seen, step(theirs, theirs, x))


def test_large_graphs():
    def chain(x, w):
        for _ in range(200):
            x = (x @ w).tanh() + x * 0.5
        return x.sum()

    x = torch.randn(4, 4, requires_grad=True, dtype=torch.float64)
    w = torch.randn(4, 4, requires_grad=True, dtype=torch.float64)
    run = memory_efficient_fusion(chain, codegen=nop, budget=0.2)
    seen = torch.autograd.grad(run(x, w), (x, w))
    torch.testing.assert_close(seen, torch.autograd.grad(chain(x, w), (x, w)))
