"""What memory_efficient_fusion notices, and what it refuses to trace."""

import copy
import functools
import gc
import logging
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.torch_version import TorchVersion

from lazyfx_compilers import NotCompilableError, memory_efficient_fusion, nop
from lazyfx_core import LazyGraphModule


class Acting(nn.Module):
    """A linear layer, then whatever function or module is set."""

    def __init__(self, act):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.act = act
        self.settings = {"scale": [1.0]}

    def forward(self, x):
        return self.act(self.linear(x)) * self.settings["scale"][0]


def check(fused, model, x):
    torch.testing.assert_close(fused(x), model(x))


def test_submodules_that_come_and_go_are_never_mistaken_for_one_another():
    # A removed submodule's address is soon taken over by its successor.
    model = Acting(nn.ReLU())
    fused = memory_efficient_fusion(model, codegen=nop)
    x = torch.randn(3, 2)
    for kind in [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU] * 8:
        del model.act
        model.act = kind()
        check(fused, model, x)


def test_functions_in_attributes_are_noticed():
    model = Acting(F.relu)
    fused = memory_efficient_fusion(model, codegen=nop)
    x = torch.randn(3, 2)
    check(fused, model, x)
    model.act = torch.sigmoid
    check(fused, model, x)
    model.forward = lambda x: x * 0
    check(fused, model, x)


def test_values_in_containers_are_noticed():
    model = Acting(F.relu)
    fused = memory_efficient_fusion(model, codegen=nop)
    x = torch.randn(3, 2)
    check(fused, model, x)
    model.settings["scale"][0] = 4.0
    check(fused, model, x)


def test_a_hook_in_another_hooks_place_is_noticed():
    model = nn.Linear(2, 2)
    fused = memory_efficient_fusion(model, codegen=nop)
    x = torch.randn(3, 2)
    for shift in (1, 2):
        hook = model.register_forward_hook(lambda module, args, out, shift=shift: out + shift)
        check(fused, model, x)
        hook.remove()
    gc.collect()
    check(fused, model, x)


@pytest.mark.parametrize("lazy", [False, True])
def test_an_edited_graph_module_is_noticed(lazy):
    gm = torch.fx.symbolic_trace(lambda x: torch.sin(x))
    if lazy:
        gm = LazyGraphModule.from_graphmodule(gm)
    fused = memory_efficient_fusion(gm, codegen=nop)
    x = torch.ones(2)
    torch.testing.assert_close(fused(x), x.sin())
    for node in gm.graph.nodes:
        if node.target is torch.sin:
            node.target = torch.cos
    gm.recompile()
    torch.testing.assert_close(fused(x), x.cos())


SCALE = 2.0


def test_what_a_function_reads_besides_its_arguments_is_noticed(monkeypatch):
    offset = 1.0

    def f(x, power=2):
        return (x * SCALE + offset) ** power

    fused = memory_efficient_fusion(f, codegen=nop)
    x = torch.full((2,), 3.0)
    check(fused, f, x)
    offset = 5.0
    check(fused, f, x)
    monkeypatch.setitem(f.__globals__, "SCALE", 7.0)
    check(fused, f, x)
    f.__defaults__ = (3,)
    check(fused, f, x)


def test_what_callable_objects_and_wrapped_functions_read_is_noticed():
    class Scaled:
        def __init__(self):
            self.scale = 1.0

        def __call__(self, x):
            return x * self.scale

        def method(self, x):
            return x + self.scale

    scaled, offset = Scaled(), 0.0

    def shifted(x, by):
        return x + by + offset

    @functools.wraps(shifted)
    def decorated(x):
        return shifted(x, 2.0)

    x = torch.ones(2)
    ways = [scaled, scaled.method, functools.partial(shifted, by=1.0), decorated]
    fused = [memory_efficient_fusion(way, codegen=nop) for way in ways]
    for value in (1.0, 5.0):
        scaled.scale = offset = value
        for mine, theirs in zip(fused, ways, strict=True):
            check(mine, theirs, x)


def test_arguments_of_every_plain_kind_are_told_apart():
    def f(x, dtype=None, where=None, scale=1j, memory=None):
        y = x.to(dtype or x.dtype)
        if where is not None:
            y = y[where]
        return y * scale.imag

    fused = memory_efficient_fusion(f, codegen=nop)
    x = torch.arange(4.0)
    for arguments in (
        {"dtype": torch.float64},
        {"dtype": torch.float32},
        {"where": slice(0, 2)},
        {"where": slice(0, 3)},
        {"scale": 2j},
        {"memory": torch.device("cpu")},
    ):
        torch.testing.assert_close(fused(x, **arguments), f(x, **arguments))


def test_an_argument_that_is_also_a_parameter_is_told_from_another_one():
    model = nn.Linear(2, 2, bias=False)
    fused = memory_efficient_fusion(model, codegen=nop)
    for x in (model.weight, torch.randn(2, 2, requires_grad=True), model.weight):
        held = [x, model.weight]
        expected = torch.autograd.grad(model(x).sum(), held)
        torch.testing.assert_close(torch.autograd.grad(fused(x).sum(), held), expected)


def test_tied_weights_train_and_may_be_tied_and_untied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    fused = memory_efficient_fusion(model, codegen=nop)
    x = torch.randn(2, 3)
    for weight in (model[0].weight, nn.Parameter(torch.ones(3, 3)), model[0].weight):
        model[1].weight = weight
        held = list(model.parameters())
        expected = torch.autograd.grad(model(x).square().sum(), held)
        torch.testing.assert_close(torch.autograd.grad(fused(x).square().sum(), held), expected)


def test_what_is_set_on_the_fused_module_is_set_on_the_original():
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    model = nn.Sequential(Acting(F.relu), Frozen(2))
    fused = memory_efficient_fusion(model, codegen=nop)
    fused.get_submodule("0").act = torch.tanh
    fused.note = "mine"
    assert model.note == "mine"
    del fused.note
    assert not hasattr(model, "note")
    fused.train()
    assert not model[1].training
    fused.double()
    check(fused, model, torch.randn(3, 2, dtype=torch.float64))


def test_as_a_submodule_it_saves_and_loads_what_the_original_would():
    def parent():
        return nn.Sequential(memory_efficient_fusion(nn.BatchNorm1d(3), codegen=nop))

    first, second, plain = parent(), parent(), nn.Sequential(nn.BatchNorm1d(3))
    first(torch.randn(4, 3))
    state = first.state_dict()
    assert state._metadata["0"] == plain.state_dict()._metadata["0"]
    second.load_state_dict(state)
    plain.load_state_dict(state)
    torch.testing.assert_close(second.state_dict(), state)


def test_inside_torch_compile_the_original_is_traced():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    fused = memory_efficient_fusion(model, codegen=nop)
    function = memory_efficient_fusion(torch.sin, codegen=nop)
    whole = torch.compile(lambda x: function(fused(x)), backend="eager", fullgraph=True)
    x = torch.randn(2, 3)
    whole(x).sum().backward()
    assert model[0].weight.grad is not None
    fused.eval()
    torch.testing.assert_close(whole(x), model(x).sin())


@pytest.mark.parametrize("guard", [True, False])
def test_what_tracing_cannot_follow_is_refused_by_name(guard):
    weight = torch.ones(3)

    def refuses(f, match, *args):
        with pytest.raises(NotCompilableError, match=match):
            memory_efficient_fusion(f, codegen=nop, guard=guard)(*args)

    x = torch.ones(3)
    refuses(lambda x: x * weight, r"<lambda> uses a tensor .* neither an argument.*aten\.mul", x)
    refuses(nn.Linear(3, 3).forward, r"Linear\.forward uses a tensor .*the module itself", x)
    refuses(lambda x: x if x.sum() > 0 else -x, r"<lambda> depends on the values of a tensor", x)
    refuses(lambda x: x.nonzero(), r"depends on the values.*nonzero", x)
    refuses(lambda x, s: x, r"argument 1 .*builtins\.object.*functools\.partial", x, object())


def test_a_forward_that_changes_attributes_is_refused_by_name():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    class Keeping(nn.Module):
        def forward(self, x):
            self.kept = x.sin()
            return self.kept * 2

    for model, name in ((Counting(), "calls"), (Keeping(), "kept")):
        with pytest.raises(NotCompilableError, match=f"changes '{name}' when it runs"):
            memory_efficient_fusion(model, codegen=nop)(torch.ones(2))
    seen = []
    with pytest.raises(NotCompilableError, match="changes 'seen'"):
        memory_efficient_fusion(lambda x: (seen.append(x), x * 2)[1], codegen=nop)(torch.ones(2))


def test_compiling_again_and_again_is_said_once(caplog):
    fused = memory_efficient_fusion(torch.sin, codegen=nop)
    with caplog.at_level(logging.WARNING, "lazyfx_compilers"):
        for n in range(1, 13):
            fused(torch.ones(n))
    said = [record for record in caplog.records if "more than 8 kinds" in record.getMessage()]
    assert len(said) == 1


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 10),
    reason="Dynamo counts in one place for all threads, and fails at the second, up to torch 2.9",
)
def test_threads_may_compile_forwards_and_backwards_at_once():
    # torch compiles a backward when it first runs, in the thread that runs it
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU())
    twin = copy.deepcopy(model)
    fused = memory_efficient_fusion(twin, codegen="inductor")
    failures = []

    def work(first):
        try:
            for rows in (1 + first % 3, 1 + (first + 1) % 3):
                x = torch.randn(rows, 4, requires_grad=True)
                (grad,) = torch.autograd.grad(fused(x).square().sum(), x)
                (expected,) = torch.autograd.grad(model(x).square().sum(), x)
                torch.testing.assert_close(grad, expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


class LeavesThings(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("seen", None)
        self.calls = 0

    def forward(self, x):
        hidden = self.linear(x)
        self.seen = hidden.detach()
        self.calls += 1
        return hidden.sin()


def test_a_refused_trace_leaves_nothing_of_its_own_in_the_module():
    model = LeavesThings()
    with pytest.raises(NotCompilableError, match="changes"):
        memory_efficient_fusion(model, codegen=nop)(torch.ones(2, 4))
    assert model.seen is None
    assert model.calls == 0
    model(torch.ones(2, 4))
    assert type(model.seen) is torch.Tensor
