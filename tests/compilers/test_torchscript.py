"""What is special about the compilers that go through TorchScript."""

import pytest
import torch
from functorch.compile import aot_function
from torch import fx
from torch._functorch import compilers as theirs
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import TorchScriptUnsupportedError, nnc_jit, simple_ts_compile, ts_compile


def test_nnc_jit_agrees_forward_and_backward():
    x = torch.randn(4, requires_grad=True)
    out = nnc_jit(lambda x: x.sin() * 2)(x)
    torch.testing.assert_close(out, x.sin() * 2)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, 2 * x.cos())


def test_constants_are_not_frozen_as_fake_tensors():
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(Exception):  # whatever it is, it is not an answer
        aot_function(lambda x: x + torch.arange(4.0), theirs.ts_compile)(x)
    out = aot_function(lambda x: x + torch.arange(4.0), ts_compile)(x)
    torch.testing.assert_close(out, x + torch.arange(4.0))


@pytest.mark.parametrize("compiler", [ts_compile, simple_ts_compile])
def test_numbers_among_the_inputs(compiler):
    def f(x, n, s):
        return x * n + s

    function = aot_function(f, compiler)
    x = torch.randn(4)
    torch.testing.assert_close(function(x, 3, 0.5), f(x, 3, 0.5))


@pytest.mark.parametrize("compiler", [ts_compile, simple_ts_compile])
def test_devices_and_dtypes_in_keywords(compiler):
    def f(x):
        return x.to(torch.float64) + torch.zeros(4, dtype=torch.float64, device=x.device)

    x = torch.randn(4)
    gm = make_fx(f)(x)
    torch.testing.assert_close(compiler(gm, [x])([x]), f(x))


def test_a_node_torchscript_cannot_take_is_named():
    x = torch.randn(4)

    def f(x):
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    gm = make_fx(f, tracing_mode="fake")(x)
    with pytest.raises(TorchScriptUnsupportedError, match="TorchScript cannot take node 'cond'"):
        ts_compile(gm, [x])


def unknown_to_torchscript(x, *more):
    return x


def test_what_torchscript_said_is_the_cause():
    graph = fx.Graph()
    graph.output(graph.call_function(unknown_to_torchscript, (graph.placeholder("x"),)))
    with pytest.raises(TorchScriptUnsupportedError, match="TorchScript cannot take") as caught:
        ts_compile(fx.GraphModule({}, graph), [torch.ones(2)])
    assert caught.value.__cause__ is not None
    assert "another compiler" in str(caught.value)


def test_a_call_that_fits_no_overload_is_named():
    graph = torch.fx.Graph()
    y = graph.placeholder("y")
    bad = graph.create_node("call_function", torch.ops.aten.sin.default, (y, y, y), name="too_many")
    graph.output(bad)
    gm = torch.fx.GraphModule({}, graph)
    with pytest.raises(TorchScriptUnsupportedError, match=r"node 'too_many'.*aten\.sin"):
        ts_compile(gm, [torch.ones(2)])


@pytest.mark.parametrize("compiler", [ts_compile, simple_ts_compile])
def test_a_copy_to_the_same_dtype_stays_a_copy(compiler):
    x = torch.zeros(4)
    gm = make_fx(lambda x: torch.ops.aten._to_copy.default(x, dtype=torch.float32))(x)
    run = compiler(gm, [x])
    for _ in range(3):
        run([x]).add_(1)
    assert not x.any()
