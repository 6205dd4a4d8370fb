"""memory_efficient_fusion: what is more than the values of tensors is never lost without a word."""

import itertools
import threading

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import NotCompilableError, memory_efficient_fusion, nop

CODEGENS = ["inductor", "ts", nop]
ids = ["inductor", "ts", "nop"]


def gate(x):
    return torch.sin(x) * x


class Gate(nn.Module):
    def forward(self, x):
        return gate(x)


def fused_gates(**options):
    yield memory_efficient_fusion(gate, **options)
    yield memory_efficient_fusion(Gate(), **options)


@pytest.mark.filterwarnings("ignore:Unable to find the path of the module")  # torch 2.6, symbolic
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("codegen", CODEGENS, ids=ids)
def test_whoever_records_operators_sees_those_of_the_function(codegen, warm):
    x, other = torch.randn(3, 4), torch.randn(3, 4)
    for fused in fused_gates(codegen=codegen):
        if warm:
            fused(x)
        traced = [
            make_fx(fused)(x),
            make_fx(fused, pre_dispatch=True)(x),
            make_fx(fused, tracing_mode="symbolic")(x),
            torch.jit.trace(fused, (x,), check_trace=False),
        ]
        if isinstance(fused, nn.Module):
            traced.append(torch.export.export(fused, (x,), strict=False).module())
        for each in traced:
            torch.testing.assert_close(each(other), gate(other))
        with FakeTensorMode() as mode:
            assert fused(mode.from_tensor(x)).shape == x.shape


def test_a_fused_function_inside_of_another_is_traced_with_it():
    inner = memory_efficient_fusion(gate, codegen=nop)
    outer = memory_efficient_fusion(lambda x: inner(x) + 1, codegen=nop)
    x, other = torch.randn(3, 4), torch.randn(3, 4)
    inner(x)
    for each in (x, other):
        torch.testing.assert_close(outer(each), gate(each) + 1)


@pytest.mark.parametrize(
    "transform",
    [
        torch.vmap,
        lambda fn: torch.func.grad(lambda x: fn(x).sum()),
        lambda fn: lambda x: torch.func.jvp(fn, (x,), (x,))[1],
        torch.func.functionalize,
    ],
    ids=["vmap", "grad", "jvp", "functionalize"],
)
def test_a_transform_is_applied_first(transform):
    x = torch.randn(3, 4)
    for fused in fused_gates(codegen=nop):
        for _ in range(2):
            with pytest.raises(NotCompilableError, match=r"argument 0 .*transform.*fuse what"):
                transform(fused)(x)
            fused(x)  # and again with a graph that would fit
    fused = memory_efficient_fusion(transform(gate), codegen=nop)
    torch.testing.assert_close(fused(x), transform(gate)(x))


def test_a_tangent_is_not_dropped():
    x = torch.randn(3, 4)
    for fused in fused_gates(codegen=nop):
        fused(x)
        with forward_ad.dual_level():
            fused(x)  # has none
            with pytest.raises(NotCompilableError, match=r"argument 0 .*a tangent"):
                fused(forward_ad.make_dual(x, torch.ones_like(x)))
    double = memory_efficient_fusion(lambda s: s * 2, codegen=nop)
    with forward_ad.dual_level():  # a sparse tensor cannot be asked for one
        torch.testing.assert_close(double(x.to_sparse()).to_dense(), x * 2)


def test_without_guard_neither():
    x = torch.randn(3)
    fused = memory_efficient_fusion(gate, codegen=nop, guard=False)
    fused(x)
    with pytest.raises(NotCompilableError, match="transform"):
        torch.func.grad(lambda x: fused(x).sum())(x)  # was zero
    with forward_ad.dual_level(), pytest.raises(NotCompilableError, match="a tangent"):
        fused(forward_ad.make_dual(x, torch.ones_like(x)))


def test_a_trace_in_another_thread_is_none_here():
    x, entered, leave = torch.randn(3), threading.Event(), threading.Event()
    calls = itertools.count()

    def counted(x):
        next(calls)
        return gate(x)

    def traced(x):
        entered.set()
        leave.wait(60)
        return x + 1

    fused = memory_efficient_fusion(counted, codegen=nop)
    fused(x)
    before = next(calls)
    thread = threading.Thread(target=lambda: make_fx(traced, pre_dispatch=True)(x))
    thread.start()
    try:
        assert entered.wait(60)
        fused(x)
    finally:
        leave.set()
        thread.join()
    assert next(calls) == before + 1


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "no guard"])
def test_generated_code_runs_on_values_alone(guard):
    # the forward is fused, and only its backward is traced, or given more than values
    x, ones = torch.randn(3, 4, requires_grad=True), torch.ones(3, 4)
    fused = memory_efficient_fusion(gate, guard=guard)
    fused(x).sum().backward()  # compiles both
    y = fused(x)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = mode.from_tensor(ones)

    def backward(gradient):
        return torch.autograd.grad(y, x, gradient, retain_graph=True)[0]

    with pytest.raises(NotCompilableError, match="the backward graph runs while"):
        make_fx(backward)(ones)  # kept the gradient as a constant
    with mode, pytest.raises(NotCompilableError, match="the backward graph runs while"):
        backward(fake)  # this and the next ended the process
    with pytest.raises(NotCompilableError, match=r"the backward graph was given a .*FakeTensor"):
        backward(fake)
    with forward_ad.dual_level(), pytest.raises(NotCompilableError, match="a tangent"):
        backward(forward_ad.make_dual(ones, ones))
    torch.testing.assert_close(backward(ones), torch.autograd.grad(gate(x), x, ones)[0])
    if not guard:
        with pytest.raises(NotCompilableError, match=r"graph was given a .*FakeTensor"):
            fused(fake)


class Negating(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return -super().__torch_function__(func, types, args, kwargs or {})


class Named(torch.Tensor):
    pass


class Marked(nn.Parameter):
    mark = 1

    def __repr__(self):
        return "marked"

    def marked(self):
        return self.mark


class Larger(nn.Parameter):
    def __mul__(self, other):
        return torch.Tensor.__mul__(self, other) * 100


@pytest.mark.parametrize("kind", [Negating, Named])
def test_functions_of_a_subclass_are_not_skipped(kind):
    x = torch.randn(3, 4)
    for fused in fused_gates(codegen=nop):
        fused(x)
        with pytest.raises(NotCompilableError, match=rf"argument 0 .*\.{kind.__name__}, whose"):
            fused(x.as_subclass(kind))


def test_fake_tensors_outside_of_their_mode_do_not_reach_generated_code():
    # the process died of reading their memory
    fake = FakeTensorMode().from_tensor(torch.randn(3, 4))
    for fused in fused_gates(codegen=nop):
        with pytest.raises(NotCompilableError, match=r"FakeTensor, whose operators"):
            fused(fake)


def test_a_parameter_of_a_class_of_its_own_is_a_parameter():
    linear = nn.Linear(4, 4)
    linear.weight = Marked(linear.weight.detach())
    x = torch.randn(3, 4)
    torch.testing.assert_close(memory_efficient_fusion(linear, codegen=nop)(x), linear(x))


def test_methods_of_a_parameter_are_not_skipped():
    model = Gate()
    model.weight = Larger(torch.ones(4))
    with pytest.raises(NotCompilableError, match=r"Larger, whose own __mul__ a compiled"):
        memory_efficient_fusion(model, codegen=nop)(torch.randn(3, 4))


def test_what_tracing_takes_for_a_dense_tensor_is_refused():
    fused = memory_efficient_fusion(lambda x: x.to_dense() * 2, codegen=nop)
    x = torch.randn(3, 4)
    with pytest.raises(NotCompilableError, match=r"argument 0 .*oneDNN"):
        fused(x.to_mkldnn())  # what came back was in that layout still
    torch.testing.assert_close(fused(x.to_sparse()), x * 2)


def test_a_parameter_without_a_shape_is_said_to_be_one():
    x, model = torch.randn(3, 4), nn.LazyLinear(2)
    fused = memory_efficient_fusion(model, codegen=nop)
    with pytest.raises(NotCompilableError, match=r"has no shape yet; run the original once"):
        fused(x)
    expected = model(x)
    torch.testing.assert_close(fused(x), expected)


def test_a_parameter_that_cannot_be_compiled_is_named():
    model = Gate()
    model.register_buffer("scale", torch.ones(4).as_subclass(Named))
    with pytest.raises(NotCompilableError, match="parameter or buffer 0 is a "):
        memory_efficient_fusion(model, codegen=nop)(torch.randn(3, 4))
