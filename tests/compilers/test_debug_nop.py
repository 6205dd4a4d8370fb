"""debug_nop: agrees with eager, names what does not fit, keeps nothing alive."""

from __future__ import annotations

import gc
import operator
import threading
import weakref
from typing import Any

import pytest
import torch
from functorch.compile import aot_function, aot_module
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import DebugInterpreter, MetadataMismatchError, NotCompilableError, debug_nop


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        shape = (*x.shape[:2], 4, 4)
        q, k, v = (each.view(shape).transpose(1, 2) for each in (q, k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.drop(self.out(mixed.transpose(1, 2).reshape(x.shape)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))


MODELS = {
    "mlp": (mlp, (5, 6)),
    "conv and batch norm in train mode": (conv, (2, 3, 8, 8)),
    "transformer block with dropout": (Block, (2, 5, 16)),
}

ROUTES = {
    "aot_module": lambda m: aot_module(m, debug_nop),
    "torch.compile": lambda m: torch.compile(m, backend=debug_nop),
    "torch.compile, by name": lambda m: torch.compile(m, backend="lazyfx_debug"),
    "torch.compile, dynamic": lambda m: torch.compile(m, backend=debug_nop, dynamic=True),
    "aot_autograd": lambda m: torch.compile(
        m, backend=aot_autograd(fw_compiler=debug_nop, bw_compiler=debug_nop)
    ),
    "aot_autograd, dynamic": lambda m: torch.compile(
        m, backend=aot_autograd(fw_compiler=debug_nop, bw_compiler=debug_nop), dynamic=True
    ),
}


def train(module: nn.Module, run: Any, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    result = run(x)
    result.square().sum().backward()
    assert x.grad is not None
    return [result.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("model", MODELS)
def test_agrees_with_eager_forward_and_backward(model, route):
    build, shape = MODELS[model]
    module, twin = build(), build()
    twin.load_state_dict(module.state_dict())
    x = torch.randn(shape)
    expected = train(twin, twin, x)
    torch.testing.assert_close(train(module, ROUTES[route](module), x), expected)
    torch.testing.assert_close(module.state_dict(), twin.state_dict())


@pytest.mark.parametrize("dynamic", [False, True])
def test_pointwise_through_aot_function(dynamic):
    def f(x, y):
        return (x.sin() * y).cos(), y.exp()

    compiled = aot_function(f, debug_nop, dynamic=dynamic)
    args = [torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True)]
    ours = torch.autograd.grad(sum(o.sum() for o in compiled(*args)), args)
    eager = torch.autograd.grad(sum(o.sum() for o in f(*args)), args)
    torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize(
    "backend", [debug_nop, "lazyfx_debug", aot_autograd(fw_compiler=debug_nop)]
)
def test_sizes_that_data_decides_are_no_false_alarm(backend):
    def f(x):
        where = x.nonzero()
        total = where.sum().item()
        return where * 2, x * total, where.shape[0]

    with torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True
    ):
        compiled = torch.compile(f, backend=backend, fullgraph=True)
        for values in ([1.0, 0.0, 2.0], [1.0, 3.0, 2.0], [0.0, 0.0, 0.0]):
            x = torch.tensor(values)
            torch.testing.assert_close(compiled(x), f(x))


def test_in_place_view_and_autocast_and_grad_mode_in_a_dynamo_graph_are_no_false_alarm():
    def f(x, k):
        a = x.sin()
        a.t_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            b = a @ x
        with torch.no_grad():
            c = b + k
        return c.unsqueeze_(0), b

    x = torch.randn(2, 3)
    torch.testing.assert_close(torch.compile(f, backend=debug_nop)(x, 3), f(x, 3))


def test_higher_order_operators_run():
    def f(x):
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    compiled = torch.compile(f, backend=aot_autograd(fw_compiler=debug_nop), fullgraph=True)
    for sign in (1.0, -1.0):
        x = torch.full((3,), sign)
        torch.testing.assert_close(compiled(x), f(x))


def test_the_reference_fails_on_every_aot_graph_and_ours_does_not():
    from torch._functorch.compilers import debug_nop as reference

    x = torch.randn(3, requires_grad=True)
    # torch 2.6 does not get as far as its assertion
    with pytest.raises((AssertionError, AttributeError), match="shape_env"):
        aot_function(torch.sin, reference)(x)
    torch.testing.assert_close(aot_function(torch.sin, debug_nop)(x), x.sin())


# --- planted faults ----------------------------------------------------------------------------


def traced(f, *args):
    return make_fx(f, tracing_mode="fake")(*args)


def node_named(gm, name):
    return next(node for node in gm.graph.nodes if node.name == name)


def fake(*shape, stride=None, dtype=torch.float32, device="cpu"):
    with FakeTensorMode():
        if stride is not None:
            return torch.empty_strided(shape, stride, dtype=dtype, device=device)
        return torch.empty(shape, dtype=dtype, device=device)


FAULTS = {
    "dtype": (fake(3, 4, dtype=torch.float64), "torch.float64", "torch.float32"),
    "size": (fake(3, 5), "(3, 5)", "(3, 4)"),
    "size, other rank": (fake(12), "(12,)", "(3, 4)"),
    "strides": (fake(3, 4, stride=(1, 3)), "(1, 3)", "(4, 1)"),
    "device": (fake(3, 4, device="meta"), "meta", "cpu"),
    "kind": (None, "None", "a tensor"),
    "number of outputs": ((fake(3, 4), fake(3, 4)), "2", "1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault):
    value, expected, seen = FAULTS[fault]
    gm = traced(lambda x: x.sin().cos().exp(), torch.randn(3, 4))
    node_named(gm, "cos").meta["val"] = value
    node_named(gm, "cos").meta["stack_trace"] = (
        '  File "lib.py", line 1, in wrapper\n    return f(x)\n'
        '  File "model.py", line 7, in forward\n    y = y.cos()\n'
    )
    with pytest.raises(MetadataMismatchError) as caught:
        debug_nop(gm, [])(torch.randn(3, 4))
    error = caught.value
    assert error.node == "cos"
    assert error.target == "aten.cos.default"
    assert error.checked == fault.split(",")[0]
    assert error.user_line == "model.py:7 in forward: y = y.cos()"
    for part in ("'cos'", "aten.cos.default", error.checked, expected, seen, "model.py:7"):
        assert part in str(error)


aten = torch.ops.aten
EDITS = {
    "dtype": (lambda x: (x.sin() + 1).cos(), "add", lambda n: setattr(n, "target", aten.eq.Scalar)),
    "size": (lambda x: x.sin().sum(0), "sum_1", lambda n: setattr(n, "args", (n.args[0], [1]))),
    "strides": (lambda x: x.t().clone(memory_format=torch.contiguous_format), "clone",
                lambda n: setattr(n, "kwargs", {})),
    "number of outputs": (lambda x: x.split(1)[0], "split",
                          lambda n: setattr(n, "args", (n.args[0], 2))),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_a_pass_that_edits_the_graph_wrongly_is_caught_at_the_node(what):
    f, name, edit = EDITS[what]
    gm, x = traced(f, torch.randn(4, 3)), torch.randn(4, 3)
    torch.testing.assert_close(debug_nop(gm, [])(x), f(x))
    edit(node_named(gm, name))
    with pytest.raises(MetadataMismatchError, match=rf"node '{name}' .*the {what} is .*recorded"):
        debug_nop(gm, [])(x)


def test_the_users_line_is_found_under_torch_compile():
    def a_users_function(x):
        return x.sin() + 1

    def planting(gm, inputs):
        for node in gm.graph.nodes:
            if node.target is aten.add.Tensor:
                node.target = aten.eq.Scalar
        return debug_nop(gm, inputs)

    compiled = torch.compile(a_users_function, backend=aot_autograd(fw_compiler=planting))
    with pytest.raises(
        MetadataMismatchError, match=r"test_debug_nop\.py:\d+ in a_users_function: .*sin\(\) \+ 1"
    ):
        compiled(torch.randn(3))


def test_a_symbol_used_twice_must_stand_for_one_number():
    gm = make_fx(lambda x, y: x + y, tracing_mode="symbolic")(torch.randn(3), torch.randn(3))
    with pytest.raises(MetadataMismatchError, match=r"'y_1' .*size is \(4,\)"):
        debug_nop(gm, [])(torch.randn(3), torch.randn(4))


def test_the_faulty_one_of_several_outputs_is_named():
    gm = traced(lambda x: x.max(1), torch.randn(3, 4))
    node = next(n for n in gm.graph.nodes if "max" in n.name)
    values, _ = node.meta["val"]
    node.meta["val"] = (values, fake(4, dtype=torch.int64))
    with pytest.raises(MetadataMismatchError, match=r"size of output 1 of 2 is \(3,\)"):
        debug_nop(gm, [])(torch.randn(3, 4))


def test_a_symbolic_size_is_worked_out_and_compared():
    gm = make_fx(lambda x: torch.cat([x, x]) * 2, tracing_mode="symbolic")(torch.randn(3, 4))
    run = debug_nop(gm, [])
    for rows in (3, 7):
        x = torch.randn(rows, 5)
        torch.testing.assert_close(run(x), torch.cat([x, x]) * 2)
    cat = next(n for n in gm.graph.nodes if "cat" in n.name)
    placeholder = next(iter(gm.graph.nodes))
    cat.meta["val"] = placeholder.meta["val"]
    with pytest.raises(MetadataMismatchError, match=r"'cat.*size is \(14, 5\).*recorded \(7, 5\)"):
        debug_nop(gm, [])(torch.randn(7, 5))


def test_strides_of_dimensions_of_one_and_of_empty_tensors_do_not_count():
    gm = traced(lambda x, y: (x.sin(), y.sin()), torch.randn(1, 4), torch.randn(0, 4))
    node_named(gm, "sin").meta["val"] = fake(1, 4, stride=(99, 1))
    node_named(gm, "sin_1").meta["val"] = fake(0, 4, stride=(7, 7))
    debug_nop(gm, [])(torch.randn(1, 4), torch.randn(0, 4))


def test_a_changed_python_argument_of_aot_function_is_an_error_and_not_a_replay():
    compiled = aot_function(lambda x, k: x * k, debug_nop)
    x = torch.randn(3, requires_grad=True)
    torch.testing.assert_close(compiled(x, 2), x * 2)
    with pytest.raises(MetadataMismatchError, match="value is 3, tracing recorded 2.*other inputs"):
        compiled(x, 3)


def test_another_shape_than_traced_names_the_placeholder():
    compiled = aot_function(torch.sin, debug_nop)
    compiled(torch.randn(3, requires_grad=True))
    with pytest.raises(MetadataMismatchError, match=r"placeholder.*size is \(4,\).*\(3,\)"):
        compiled(torch.randn(4, requires_grad=True))


def test_a_wrong_number_of_inputs_is_refused_before_anything_runs():
    gm = traced(lambda x, y: x.add_(y), torch.randn(3), torch.randn(3))
    x = torch.zeros(3)
    with pytest.raises(MetadataMismatchError, match=r"takes 2 inputs \(x_1, y_1\), got 1"):
        debug_nop(gm, [])(x)
    assert x.eq(0).all()


def test_an_error_of_the_operator_itself_says_which_node_ran():
    gm = torch.fx.symbolic_trace(lambda x: x.sin() @ x)
    with pytest.raises(RuntimeError) as caught:
        debug_nop(gm, [])(torch.randn(2, 3))
    assert "while running node 'matmul' (call_function operator.matmul)" in caught.value.__notes__


def test_what_is_no_graph_module_is_refused():
    with pytest.raises(NotCompilableError, match="debug_nop"):
        debug_nop(lambda x: x, [])
    with pytest.raises(NotCompilableError, match="DebugInterpreter"):
        DebugInterpreter(nn.Linear(1, 1))


def test_graphs_without_records_run_unchecked():
    gm = torch.fx.symbolic_trace(lambda x, *rest: (x.sin(), operator.add(x, 1), rest))
    x = torch.randn(3)
    torch.testing.assert_close(debug_nop(gm, [])(x, 1, 2), gm(x, 1, 2))


# --- memory and threads ------------------------------------------------------------------------


def _alive_at_each_node(run_boxed: bool, collect: bool = True) -> tuple[list[int], Any]:
    class Spy(DebugInterpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                refs.append(weakref.ref(result))
            alive.append(sum(ref() is not None for ref in refs))
            return result

    refs: list[weakref.ref] = []
    alive: list[int] = []
    gm = traced(lambda x, y: x.sin().cos().exp().tan(), torch.randn(3), torch.randn(3))
    spy = Spy(gm, collect)
    args = [torch.randn(3), torch.randn(3)]
    if run_boxed:
        result = spy.boxed_run(args)
        assert args == []
    else:
        result = spy.run(*args)
    del result, args
    gc.collect()
    alive.append(sum(ref() is not None for ref in refs))
    return alive, spy


def test_values_are_freed_at_their_last_use_and_none_stays():
    # x, y (unused, freed at once), then two at a time: an argument and its result
    alive, spy = _alive_at_each_node(run_boxed=True)
    assert alive[:1] == [1]
    assert max(alive[2:]) <= 2
    assert alive[-1] == 0
    assert spy.env == {}


def test_an_unboxed_run_keeps_nothing_afterwards():
    assert _alive_at_each_node(run_boxed=False)[0][-1] == 0


def test_garbage_collect_values_false_keeps_them_for_inspection():
    alive, spy = _alive_at_each_node(run_boxed=True, collect=False)
    assert alive[-1] == alive[-2] == len(spy.graph.nodes)
    assert len(spy.env) == len(spy.graph.nodes)


def test_the_compiled_callable_keeps_no_input_and_no_output():
    gm = traced(lambda x: (x.sin(), x * 2), torch.randn(3))
    run = debug_nop(gm, [])
    inputs = [torch.randn(3)]
    before = weakref.ref(inputs[0])
    outputs = run(inputs)
    assert inputs == []
    after = weakref.ref(outputs[0])
    del outputs
    gc.collect()
    assert before() is None
    assert after() is None


def test_the_reference_keeps_its_last_outputs():
    gm = torch.fx.symbolic_trace(lambda x: x.sin())
    interpreter = torch.fx.Interpreter(gm)
    kept = weakref.ref(interpreter.run(torch.randn(3)))
    gc.collect()
    assert kept() is not None


def test_several_threads_may_call_one_compiled_graph():
    gm = make_fx(lambda x: torch.cat([x, x]).sin() * 2, tracing_mode="symbolic")(torch.randn(3, 4))
    run = debug_nop(gm, [])
    wrong: list[Any] = []

    def work(rows: int) -> None:
        for _ in range(30):
            x = torch.randn(rows, 4)
            try:
                torch.testing.assert_close(run([x]), torch.cat([x, x]).sin() * 2)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (2, 3, 5, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
