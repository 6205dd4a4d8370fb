"""memory_efficient_fusion: right for every call, not only for the first."""

import copy
import shutil
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lazyfx_compilers import (
    CodegenError,
    MissingDependencyError,
    NotCompilableError,
    NoTensorOutputError,
    UnknownOptionError,
    default_decompositions,
    memory_efficient_fusion,
    nop,
)

CODEGENS = ["inductor", "ts", nop]
ids = ["inductor", "ts", "nop"]


@pytest.mark.parametrize("codegen", CODEGENS, ids=ids)
def test_a_module_trains_like_eager(codegen, case, train_step):
    model, x = case
    twin = copy.deepcopy(model)
    fused = memory_efficient_fusion(twin, codegen=codegen)
    for _ in range(2):
        expected = train_step(model, model, x)
        torch.testing.assert_close(train_step(fused, twin, x), expected, atol=1e-5, rtol=1e-4)


def test_as_a_torch_compile_backend_by_name(case, train_step):
    model, x = case
    twin = copy.deepcopy(model)
    fused = torch.compile(twin, backend="lazyfx_fusion")
    expected = train_step(model, model, x)
    torch.testing.assert_close(train_step(fused, twin, x), expected, atol=1e-5, rtol=1e-4)


def test_an_optimizer_moves_both_modules():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    twin = copy.deepcopy(model)
    fused = memory_efficient_fusion(twin, codegen=nop)
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    for run in (model, fused):
        optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            F.mse_loss(run(x), y).backward()
            optimizer.step()
    torch.testing.assert_close(fused.state_dict(), model.state_dict())
    assert fused.state_dict().keys() == model.state_dict().keys()


def test_fewer_bytes_are_saved_for_the_backward():
    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.044715 * x * x * x)))

    def saved(function):
        total = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (total.append(t.numel() * t.element_size()), t)[1], lambda t: t
        ):
            function(torch.randn(64, 64, requires_grad=True))
        return sum(total)

    fused = memory_efficient_fusion(gelu, codegen=nop)
    fused(torch.randn(64, 64, requires_grad=True))
    assert saved(fused) * 3 <= saved(gelu)


CHANGES = {
    "eval": lambda m, x: (m.eval(), x)[1],
    "train again": lambda m, x: (m.train(), x)[1],
    "another shape": lambda m, x: torch.randn(5, 4),
    "another dtype": lambda m, x: (m.to(torch.float64), x.double())[1],
    "an attribute": lambda m, x: (setattr(m, "scale", 3.0), x)[1],
    "a frozen weight": lambda m, x: (m.linear.weight.requires_grad_(False), x)[1],
    "another submodule": lambda m, x: (setattr(m, "linear", nn.Linear(4, 4)), x)[1],
    "a hook": lambda m, x: (
        m.linear.register_forward_hook(lambda mod, a, out: out + 1),
        x,
    )[1],
    "another weight": lambda m, x: (setattr(m.linear, "weight", nn.Parameter(torch.ones(4, 4))), x)[
        1
    ],
}


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = 2.0

    def forward(self, x):
        return F.dropout(self.norm(self.linear(x)) * self.scale, 0.0, self.training)


@pytest.mark.parametrize("change", CHANGES)
def test_no_stale_graph_is_replayed_after(change):
    torch.manual_seed(0)
    model = Plain()
    fused = memory_efficient_fusion(model, codegen=nop)
    x = torch.randn(3, 4)
    fused(x)
    x = CHANGES[change](model, x)
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(fused(x), expected)


def test_the_reference_replays_a_stale_graph_and_ours_does_not():
    from functorch.compile import memory_efficient_fusion as theirs
    from torch._functorch.compilers import nop as their_nop

    for fuse, is_right in (
        (lambda m: theirs(m, fw_compiler=their_nop, bw_compiler=their_nop), False),
        (lambda m: memory_efficient_fusion(m, codegen=nop), True),
    ):
        model = Plain()
        fused = fuse(model)
        x = torch.randn(3, 4)
        fused(x)
        model.eval()
        assert torch.allclose(fused(x), model(x), atol=1e-6) is is_right


@pytest.mark.parametrize(
    ("first", "second"), [(2, 3), (2, 2.0), (True, 1), (0.0, -0.0), ("a", "b")]
)
def test_python_arguments_are_told_apart(first, second):
    def f(x, value):
        return x + 1 if isinstance(value, str) else x * value + torch.ones(1)

    fused = memory_efficient_fusion(f, codegen=nop)
    x = torch.ones(1)
    for value in (first, second):
        result, expected = fused(x, value), f(x, value)
        torch.testing.assert_close(result, expected)


def test_a_first_call_without_gradients_does_not_break_training():
    fused = memory_efficient_fusion(lambda x: x.sin(), codegen=nop)
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert not fused(x).requires_grad
    (grad,) = torch.autograd.grad(fused(x).sum(), x)
    torch.testing.assert_close(grad, x.cos())


def test_autocast_compiles_a_graph_of_its_own():
    model = nn.Linear(4, 4)
    fused = memory_efficient_fusion(model, codegen=nop)
    x = torch.randn(3, 4)
    assert fused(x).dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(x).dtype is torch.bfloat16
        torch.testing.assert_close(fused(x), model(x))
    assert fused(x).dtype is torch.float32


def test_arguments_that_alias_are_told_apart():
    def f(a, b):
        return (a * b).sum()

    fused = memory_efficient_fusion(f, codegen=nop)
    a = torch.randn(3, requires_grad=True)
    b = torch.randn(3, requires_grad=True)
    for args in ((a, b), (a, a), (a, b)):
        grads = torch.autograd.grad(fused(*args), args)
        torch.testing.assert_close(grads, torch.autograd.grad(f(*args), args))


def test_a_mutated_argument_is_mutated():
    def f(x, total):
        total.add_(x)
        return total * 2

    fused = memory_efficient_fusion(f, codegen=nop)
    for _ in range(2):
        x, mine, theirs = torch.randn(3), torch.zeros(3), torch.zeros(3)
        torch.testing.assert_close(fused(x, mine), f(x, theirs))
        torch.testing.assert_close(mine, theirs)


def test_the_number_of_graphs_is_bounded():
    from lazyfx_compilers._graphs import MAX_GRAPHS

    fused = memory_efficient_fusion(nn.Linear(4, 4), codegen=nop)
    for n in range(1, MAX_GRAPHS + 5):
        fused(torch.randn(n, 4))
    assert len(fused._graphs) == MAX_GRAPHS


def test_without_guard_the_first_graph_is_replayed():
    model = Plain()
    model.norm = nn.Identity()
    fused = memory_efficient_fusion(model, codegen=nop, guard=False)
    x = torch.randn(3, 4)
    before = fused(x)
    model.scale = 100.0
    torch.testing.assert_close(fused(x), before)


def test_eight_concurrent_first_calls_agree():
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    fused = memory_efficient_fusion(model, codegen=nop)
    x = torch.randn(3, 4)
    results, errors = [], []

    def call():
        try:
            results.append(fused(x).detach())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(results) == 8
    for result in results:
        torch.testing.assert_close(result, model(x))


def test_the_fused_module_is_the_module_with_another_way_to_run_it():
    model = Plain()
    fused = memory_efficient_fusion(model, codegen=nop)
    assert fused.state_dict().keys() == model.state_dict().keys()
    assert fused.scale == 2.0
    fused.eval()
    assert not model.training
    assert not model.norm.training
    assert not fused.training
    fused.train()
    assert model.training
    state = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    fused.load_state_dict(state)
    assert not model.linear.weight.any()
    twin = copy.deepcopy(fused)
    twin.linear.weight.data.fill_(1.0)
    assert not model.linear.weight.any()


def test_the_references_overrides_are_taken():
    seen = []

    def compiler(gm, inputs):
        seen.append("compiled")
        return nop(gm, inputs)

    def partition(joint, inputs, **settings):
        from functorch.compile import default_partition

        seen.append("partitioned")
        return default_partition(joint, inputs, **settings)

    x = torch.randn(3, requires_grad=True)
    for overrides, times in (
        ({"fw_compiler": compiler}, 1),
        ({"bw_compiler": compiler}, 1),
        ({"fw_compiler": compiler, "bw_compiler": compiler, "decompositions": {}}, 2),
    ):
        seen.clear()
        fused = memory_efficient_fusion(lambda x: x.sin(), partition_fn=partition, **overrides)
        (grad,) = torch.autograd.grad(fused(x).sum(), x)
        torch.testing.assert_close(grad, x.cos())
        assert seen == ["partitioned", *["compiled"] * times]


def test_default_decompositions_is_a_mapping_filled_on_first_use():
    from functorch.compile import aot_function

    from lazyfx_compilers.decompositions import _Decompositions

    fresh = _Decompositions()
    assert "_table" not in vars(fresh)
    assert torch.ops.aten.tanh_backward.default in fresh
    assert torch.ops.aten.masked_fill.Scalar not in fresh
    assert {**fresh} == dict(default_decompositions)
    assert len(default_decompositions) > 15
    assert not hasattr(default_decompositions, "__setitem__")
    x = torch.randn(3, requires_grad=True)
    out = aot_function(torch.tanh, nop, decompositions=default_decompositions)(x)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], 1 - x.tanh() ** 2)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("codegen", CODEGENS, ids=ids)
def test_results_have_eagers_strides(codegen, grad):
    def f(x):
        return x.permute(2, 0, 1).sin().exp(), x.transpose(0, 1) * 2, x[:, ::2].cos()

    x = torch.randn(3, 4, 5, requires_grad=grad)
    for mine, theirs in zip(memory_efficient_fusion(f, codegen=codegen)(x), f(x), strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.stride() == theirs.stride()


def test_what_inductor_cannot_take_is_an_error_that_says_so():
    def f(x):
        return torch.nn.functional.gelu(x * 2)

    fused = memory_efficient_fusion(f, decompositions={})
    with pytest.raises(CodegenError, match=r"inductor cannot .*gelu.*codegen='ts'"):
        fused(torch.randn(3, requires_grad=True))


def test_bad_input_is_named():
    with pytest.raises(UnknownOptionError, match=r"'fw_complier'.*fw_compiler"):
        memory_efficient_fusion(torch.sin, fw_complier=nop)
    with pytest.raises(UnknownOptionError, match=r"codegen='nvfuser'.*'inductor'"):
        memory_efficient_fusion(torch.sin, codegen="nvfuser")
    with pytest.raises(NotCompilableError, match="a function or an nn.Module"):
        memory_efficient_fusion(3)
    with pytest.raises(NoTensorOutputError, match="<lambda> returned a int without a tensor"):
        memory_efficient_fusion(lambda x: 3, codegen=nop)(torch.ones(1))
    with pytest.raises(NotCompilableError, match=r"argument 1 .*object"):
        memory_efficient_fusion(lambda x, o: x, codegen=nop)(torch.ones(1), object())


def test_a_missing_cxx_compiler_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"g\+\+.*codegen='ts'"):
        memory_efficient_fusion(torch.sin)


class _Writing(nn.Module):
    """Writes to its weight as ``how`` says."""

    def __init__(self, how):
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.ones(3)), how

    def forward(self, x):
        self.how(self.weight)
        return (x * self.weight).sum()


def _half(weight):
    weight.mul_(0.5)


def _half_of_a_view(weight):
    weight[0:2].mul_(0.5)


def _half_unrecorded(weight):
    with torch.no_grad():
        weight.mul_(0.5)


def _half_detached(weight):
    weight.detach().mul_(0.5)


def _half_of_a_copy(weight):
    (weight * 1).mul_(0.5)


@pytest.mark.parametrize("how", [_half, _half_of_a_view])
def test_a_leaf_that_eager_refuses_to_write_to_is_refused(how):
    with pytest.raises(RuntimeError, match="leaf Variable"):
        _Writing(how)(torch.ones(3))
    model = _Writing(how)
    with pytest.raises(NotCompilableError, match=r"leaf that requires grad.*no_grad"):
        memory_efficient_fusion(model, codegen=nop)(torch.ones(3))
    assert torch.equal(model.weight, torch.ones(3))


@pytest.mark.parametrize("how", [_half_unrecorded, _half_detached, _half_of_a_copy])
def test_a_leaf_may_be_written_to_where_eager_allows_it(how):
    expected, model = _Writing(how), _Writing(how)
    fused = memory_efficient_fusion(model, codegen=nop)
    for _ in range(3):
        one, other = expected(torch.ones(3)), fused(torch.ones(3))
        one.backward()
        other.backward()
        assert torch.equal(one, other)
    assert torch.equal(expected.weight, model.weight)
    assert torch.equal(expected.weight.grad, model.weight.grad)


@pytest.mark.parametrize("kind", ["attention", "layer", "encoder"])
def test_attention_that_is_padded_is_what_eager_gives_or_refused(kind):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = {
        "attention": layer.self_attn,
        "layer": layer,
        "encoder": nn.TransformerEncoder(layer, 2),
    }
    x, padded = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False, True, True]])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model[kind].eval()

        def forward(self, x, padded=None):
            if kind == "attention":
                return self.inner(x, x, x, key_padding_mask=padded, need_weights=False)[0]
            return self.inner(x, src_key_padding_mask=padded)

    module = Model().eval()
    fused = memory_efficient_fusion(module, codegen=nop)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), module(x))
        with pytest.raises(NotCompilableError, match="set_fastpath_enabled"):
            fused(x, padded)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            torch.testing.assert_close(fused(x, padded), module(x, padded))
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
