"""Parameters and buffers are bound by reference: what happens to them later is seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import fx, nn

import lazyfx_ltc as ltc

X = torch.randn(3, 4)


def extracted(
    model: nn.Module, on_mismatch: Literal["capture", "error"] = "capture"
) -> tuple[fx.GraphModule, ltc.CompiledGraph]:
    gm = fx.symbolic_trace(model)
    return gm, ltc.extract_compiled_graph(gm, (X,), on_mismatch=on_mismatch)


def same(gm: fx.GraphModule, compiled: ltc.CompiledGraph) -> None:
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), gm(X))


def _inplace(gm: fx.GraphModule) -> None:
    with torch.no_grad():
        gm.get_parameter("0.weight").add_(1)


def _load(gm: fx.GraphModule) -> None:
    gm.load_state_dict({name: value + 1 for name, value in gm.state_dict().items()})


def _data(gm: fx.GraphModule) -> None:
    gm.get_parameter("0.weight").data = torch.randn(4, 4)


def _rebind(gm: fx.GraphModule) -> None:
    gm.get_submodule("0").weight = nn.Parameter(torch.randn(4, 4))


def _optimizer(gm: fx.GraphModule) -> None:
    gm(X).sum().backward()
    torch.optim.SGD(gm.parameters(), 0.5).step()


@pytest.mark.parametrize("change", [_inplace, _load, _data, _rebind, _optimizer])
def test_changed_weights_are_seen(change: Callable[[fx.GraphModule], None]) -> None:
    gm, compiled = extracted(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    same(gm, compiled)
    change(gm)
    same(gm, compiled)


def test_weights_are_not_kept_twice() -> None:
    _, compiled = extracted(nn.Sequential(nn.Linear(4, 4)))
    program = compiled._captures[0].program
    assert program is not None
    constants = [value for value in program.constants if value is not None]
    assert all(value.numel() <= 1 for value in constants)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x - self.mean


class Everything(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def test_buffers_that_the_model_writes_accumulate() -> None:
    model = nn.Sequential(Counter())
    # A leaf: symbolic_trace would run what touches only buffers while it traces.
    gm = fx.GraphModule(model, Everything().trace(model))
    twin = copy.deepcopy(gm)
    compiled = ltc.extract_compiled_graph(gm, (X,))
    for _ in range(3):
        torch.testing.assert_close(compiled(X), twin(X))
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(gm.get_buffer(name), buffer)
    assert gm.get_buffer("0.calls") == 3
    assert len(compiled.explain().mutated) == 2


def test_the_model_is_not_changed_by_extraction() -> None:
    model = nn.Sequential(Counter(), nn.Linear(4, 4))
    gm = fx.GraphModule(model, Everything().trace(model))
    code, state = gm.code, {k: v.clone() for k, v in gm.state_dict().items()}
    objects = {k: id(v) for k, v in gm.named_parameters()}
    ltc.extract_compiled_graph(gm, (X,))
    assert gm.code == code
    assert {k: id(v) for k, v in gm.named_parameters()} == objects
    for name, value in gm.state_dict().items():
        assert torch.equal(value, state[name])


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    gm, compiled = extracted(model)
    strict = ltc.extract_compiled_graph(gm, (X,), on_mismatch="error")
    same(gm, compiled)
    with torch.no_grad():
        gm.get_parameter("0.weight").mul_(2)
    same(gm, compiled)
    gm.get_submodule("1").weight = nn.Parameter(torch.randn(4, 4))
    with pytest.raises(ltc.GuardError, match=r"'1\.weight': expected one tensor with '0\.weight'"):
        strict(X)
    same(gm, compiled)
    assert compiled.captures == 2


def test_a_returned_parameter_is_the_parameter() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x: Any) -> Any:
            return x + 1, self.weight, self.weight[1:]

    gm, compiled = extracted(Returns())
    with torch.no_grad():
        _, weight, view = compiled(X)
    assert weight is gm.weight
    assert view.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


def test_train_and_eval_mode_are_guarded() -> None:
    gm, compiled = extracted(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    strict = ltc.extract_compiled_graph(gm, (X,), on_mismatch="error")
    gm.eval()
    with pytest.raises(ltc.GuardError, match=r"expected train mode.*seen eval mode.*\.train\(\)"):
        strict(X)
    same(gm, compiled)


def test_a_replaced_submodule_is_noticed() -> None:
    gm, compiled = extracted(nn.Sequential(nn.Linear(4, 4)))
    strict = ltc.extract_compiled_graph(gm, (X,), on_mismatch="error")
    gm.add_module("0", nn.Linear(4, 4))
    with pytest.raises(ltc.GuardError, match="submodule '0'"), torch.no_grad():
        strict(X)
    same(gm, compiled)


def test_a_weight_of_another_type_is_noticed() -> None:
    gm, strict = extracted(nn.Sequential(nn.Linear(4, 4)), "error")
    compiled = ltc.extract_compiled_graph(gm, (X,))
    gm.double()
    with pytest.raises(ltc.GuardError, match=r"'0\.(weight|bias)': expected float32.*seen float64"):
        strict(X)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X.double()), gm(X.double()))


def test_a_leaf_that_binds_a_buffer_anew_is_refused() -> None:
    class Rebinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.seen + x.sum(0)
            return x + self.seen

    model = nn.Sequential(Rebinds())
    gm = fx.GraphModule(model, Everything().trace(model))
    with pytest.raises(ltc.CaptureError, match=r"submodule '0' binds its attribute 'seen' anew"):
        ltc.extract_compiled_graph(gm, (X,))


class Functional(nn.Module):
    """Batch normalization as tracing into it leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.batch_norm(x, self.mean, self.var, training=True, momentum=0.3)


def test_batch_norm_in_train_mode_moves_its_statistics_as_eager_does() -> None:
    for model in (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), Functional()):
        gm = fx.symbolic_trace(model)
        twin = copy.deepcopy(gm)
        compiled = ltc.extract_compiled_graph(gm, (X,))
        with torch.no_grad():
            for _ in range(3):
                x = torch.randn(3, 4)
                torch.testing.assert_close(compiled(x), twin(x))
                torch.testing.assert_close(gm.state_dict(), twin.state_dict())
        gm.eval()
        twin.eval()
        with torch.no_grad():
            torch.testing.assert_close(compiled(X), twin(X))


def test_instance_norm_with_statistics_is_refused() -> None:
    model = nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True))
    gm = fx.symbolic_trace(model)
    with pytest.raises(ltc.CaptureError, match=r"node '_0'.*track_running_stats=False"):
        ltc.extract_compiled_graph(gm, (torch.randn(2, 4, 5),))
