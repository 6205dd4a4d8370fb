"""What a training step keeps and peaks at: the report's numbers are those of the step itself."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_workloads import made

from lazyfx_compilers import (
    CompilerError,
    MissingDependencyError,
    NotCompilableError,
    memory_efficient_fusion,
    memory_report,
    nop,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        hidden = self.linear(x).sin().exp()
        return self.norm(F.dropout(hidden, 0.5)).tanh()


def net():
    torch.manual_seed(0)
    return Net(), torch.randn(32, 16, requires_grad=True)


def small_gpt(name="GPT, explicit attention, dropout"):
    """With an input long enough for the activations to outweigh the gradients of weights."""
    model, x = made(name)
    return model, torch.randn(4, 64, x.shape[-1], requires_grad=True)


def test_what_is_measured_is_what_was_simulated_where_nothing_is_fused():
    model, x = small_gpt("GPT, SDPA")  # no operator in it that needs memory of its own
    for budget in (None, 0.3, 0.1):
        report = memory_report(model, x, codegen=nop, budget=budget)
        assert report.compiled.peak == pytest.approx(report.simulation.peak, abs=32)
        assert report.compiled.live_after_forward == pytest.approx(report.saved_bytes, abs=8)
        assert report.saved_bytes < report.eager.live_after_forward
        steps = itertools.pairwise(report.compiled.milliseconds)
        assert all(earlier <= later for earlier, later in steps)


def test_a_budget_shows():
    model, x = small_gpt()
    whole = memory_report(model, x, codegen=nop)
    part = memory_report(model, x, codegen=nop, budget=0.3)
    assert part.saved_bytes <= 0.3 * whole.saved_bytes
    assert part.simulation.peak < whole.simulation.peak
    assert part.recompute_seconds > whole.recompute_seconds
    assert len(part.recomputed) > len(whole.recomputed)
    assert "budget 0.3" in str(part)


def test_every_saved_value_says_what_it_is_why_and_where_from():
    model, x = net()
    report = memory_report(model, x, codegen=nop)
    mask = next(one for one in report.saved if one.dtype == "bool")
    assert mask.why.startswith("random")
    assert mask.seconds is None
    assert mask.shape == (32, 16)
    assert mask.nbytes == 32 * 16
    assert "F.dropout(hidden, 0.5)" in mask.user_line
    assert "test_memory_report.py" in mask.user_line
    product = next(one for one in report.saved if "addmm" in one.target)
    assert "compute it again" in product.why
    assert product.seconds > 0
    assert "self.linear(x)" in product.user_line
    free = [one for one in report.saved if "it is there anyway" in one.why]
    assert free
    assert not any(one.nbytes for one in free)
    text = str(report)
    for expected in (product.name, "live after the forward", "test_memory_report.py", "eager"):
        assert expected in text


def test_what_is_computed_again_has_a_line_too():
    model, x = net()
    report = memory_report(model, x, codegen=nop, budget=0.6)
    sine = next(one for one in report.recomputed if "sin" in one.target)
    assert "self.linear(x).sin().exp()" in sine.user_line
    assert sine.nbytes == 32 * 16 * 4


def test_nothing_is_changed():
    model, x = net()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    memory_report(model, x, codegen=nop)
    torch.testing.assert_close(torch.rand(3), expected)
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert all((one.grad == 1).all() for one in model.parameters())
    assert x.grad is None


def test_functions_arguments_by_name_and_inputs_that_are_written():
    def scaled(x, *, total, by):
        total.add_(x.detach())
        return {"scaled": (x.exp() * by).sin(), "total": total * 1}

    x, total = torch.ones(8, requires_grad=True), torch.zeros(8)
    report = memory_report(scaled, x, kwargs={"total": total, "by": 2.0}, codegen=nop)
    assert report.name.endswith("scaled")
    assert not total.any()
    assert report.eager.live_after_forward > 0


def test_without_measuring_nothing_but_the_graphs_is_known():
    model, x = net()
    report = memory_report(model, x, codegen="ts", measure=False)
    assert report.eager is None
    assert report.compiled is None
    assert report.simulation.peak > 0
    (peak,) = (line for line in str(report).splitlines() if line.startswith("peak"))
    assert peak.split()[1:3] == ["-", "-"]


def test_inductor_needs_less_than_node_by_node():
    model, x = made("tanh-gelu", large=True)
    report = memory_report(model, x)
    assert report.compiled.peak < 0.5 * report.eager.peak
    assert report.compiled.peak < report.simulation.peak


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    model, x = net()
    report = memory_report(model, x, codegen=nop, budget=0.5)
    report.plot(tmp_path / "memory.svg")
    assert "<svg" in (tmp_path / "memory.svg").read_text()
    memory_report(model, x, codegen=nop, measure=False).plot(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model, x = net()
    report = memory_report(model, x, codegen=nop, measure=False)
    with pytest.raises(MissingDependencyError, match=r"lazyfx-compilers\[plot\]"):
        report.plot(tmp_path / "memory.svg")


def test_what_cannot_be_reported_is_refused():
    model, x = net()
    with pytest.raises(NotCompilableError, match="expected a function or an nn.Module"):
        memory_report(3)
    with pytest.raises(NotCompilableError, match="compiled already"):
        memory_report(memory_efficient_fusion(model), x)
    with pytest.raises(NotCompilableError, match="compiled already"):
        memory_report(memory_efficient_fusion(torch.sin), x)
    with pytest.raises(NotCompilableError, match="nothing is saved"):
        memory_report(torch.sin, torch.ones(3), codegen=nop)
    with pytest.raises(CompilerError, match="expected at least one tensor"):
        memory_report(lambda x: 3, x, codegen=nop)


class Averages(nn.Module):
    """Rebinds a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.mean = self.mean * 0.9 + x.detach().mean(0)
        return self.linear(x).sin() + self.mean


def test_a_buffer_that_is_bound_anew_is_put_back():
    model = Averages()
    mean = model.mean
    memory_report(model, torch.ones(3, 8), codegen=nop)
    assert model.mean is mean
    assert not mean.any()


def test_errors_name_the_users_module():
    class Counts(Averages):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(x)

    with pytest.raises(NotCompilableError, match="Counts changes"):
        memory_report(Counts(), torch.ones(3, 8), codegen=nop)
