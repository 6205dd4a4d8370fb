"""Each compiler, in each place it can stand, against eager: outputs, gradients, buffers."""

import copy

import pytest
import torch
from functorch.compile import aot_function, aot_module

import lazyfx_compilers
from lazyfx_core import LazyGraphModule, use_lazy_graph_module

COMPILERS = ["nop", "print_compile", "ts_compile", "simple_ts_compile", "debug_nop"]
BACKENDS = ["lazyfx_nop", "lazyfx_print", "lazyfx_ts", "lazyfx_debug", "lazyfx_dump"]


def configured(tmp_path):
    return {
        "draw_graph_compile": lambda: lazyfx_compilers.draw_graph_compile(tmp_path / "graph.svg"),
        "debug_compile": lambda: lazyfx_compilers.debug_compile(folder=tmp_path / "repro"),
        "graph_dumper_aot": lambda: lazyfx_compilers.graph_dumper_aot("model", tmp_path / "dump"),
    }


def make_compiler(name, tmp_path):
    if name in COMPILERS:
        return getattr(lazyfx_compilers, name)
    return configured(tmp_path)[name]()


ALL = [*COMPILERS, "draw_graph_compile", "debug_compile", "graph_dumper_aot"]


def pointwise(x):
    return (x.sin() + torch.arange(4.0, device=x.device)) * x.cos()


def agree(train_step, wrap, model, x):
    twin = copy.deepcopy(model)
    function = wrap(twin)
    for _ in range(2):  # the second step replays
        expected = train_step(model, model, x)
        torch.testing.assert_close(train_step(function, twin, x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_in_aot_module(name, case, train_step, tmp_path):
    compiler = make_compiler(name, tmp_path)
    agree(train_step, lambda m: aot_module(m, compiler, compiler), *case)


@pytest.mark.parametrize("name", ALL)
def test_as_a_torch_compile_backend(name, case, train_step, tmp_path):
    compiler = make_compiler(name, tmp_path)
    agree(train_step, lambda m: torch.compile(m, backend=compiler), *case)


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_a_backend_by_name(backend, case, train_step, tmp_path):
    options = {"folder": str(tmp_path)} if backend == "lazyfx_dump" else {}
    agree(train_step, lambda m: torch.compile(m, backend=backend, options=options), *case)


@pytest.mark.parametrize("name", ALL)
def test_in_aot_function(name, tmp_path, device):
    compiler = make_compiler(name, tmp_path)
    function = aot_function(pointwise, compiler, compiler)
    for _ in range(2):
        x = torch.randn(3, 4, device=device, requires_grad=True)
        (expected,) = torch.autograd.grad(pointwise(x).sum(), x)
        out = function(x)
        torch.testing.assert_close(out, pointwise(x))
        torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], expected)


@pytest.mark.parametrize("name", ALL)
def test_under_lazy_modules(name, case, train_step, tmp_path):
    compiler = make_compiler(name, tmp_path)
    seen = []

    def looking(gm, inputs):
        seen.append(isinstance(gm, LazyGraphModule))
        return compiler(gm, inputs)

    with use_lazy_graph_module(True):
        agree(train_step, lambda m: aot_module(m, looking, looking), *case)
    assert seen == [True, True]


@pytest.mark.parametrize("name", ALL)
def test_without_gradients(name, case, tmp_path):
    compiler = make_compiler(name, tmp_path)
    model, x = case
    model.eval()
    with torch.no_grad():
        result = torch.compile(model, backend=compiler)(x)
        torch.testing.assert_close(result, model(x))


@pytest.mark.parametrize("name", [n for n in ALL if n != "graph_dumper_aot"])
def test_the_callers_graph_is_not_changed(name, tmp_path):
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.randn(3, 4)
    gm = make_fx(lambda x: x.to(torch.float64).sin() + torch.arange(4, device="cpu"))(x)
    before = [(n.op, n.target, n.args, n.kwargs, n.type) for n in gm.graph.nodes]
    run = make_compiler(name, tmp_path)(gm, [x])
    assert [(n.op, n.target, n.args, n.kwargs, n.type) for n in gm.graph.nodes] == before
    torch.testing.assert_close(run([x]), gm(x))


@pytest.mark.parametrize("name", ALL)
def test_results_are_boxed_and_take_positional_arguments_too(name, tmp_path):
    from torch.fx.experimental.proxy_tensor import make_fx

    x, y = torch.randn(3), torch.randn(3)
    gm = make_fx(lambda x, y: x * y + 1)(x, y)
    run = make_compiler(name, tmp_path)(gm, [x, y])
    assert run._boxed_call
    inputs = [x, y]
    torch.testing.assert_close(run(inputs), x * y + 1)
    assert inputs == []
    torch.testing.assert_close(run(x, y), x * y + 1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("wrong", [torch.nn.Linear(1, 1), None, 3, torch.sin])
def test_what_is_not_a_graph_module_is_refused(name, wrong, tmp_path):
    compiler = make_compiler(name, tmp_path)
    with pytest.raises(
        lazyfx_compilers.NotCompilableError, match=r"takes a torch\.fx\.GraphModule"
    ):
        compiler(wrong, [])


@pytest.mark.parametrize("name", ALL)
def test_a_graph_that_does_not_lint_is_refused_and_its_node_named(name, tmp_path):
    from torch.fx.experimental.proxy_tensor import make_fx

    gm = make_fx(lambda x: x.sin().cos())(torch.randn(3))
    nodes = {n.name: n for n in gm.graph.nodes}
    nodes["cos"].append(nodes["sin"])
    with pytest.raises(lazyfx_compilers.InvalidGraphError, match="'cos'.*'sin'.*only later"):
        make_compiler(name, tmp_path)(gm, [])


@pytest.mark.parametrize("backend", [*BACKENDS, "lazyfx_fusion"])
def test_unknown_options_and_modes_are_refused_by_name(backend):
    from torch._dynamo.backends.registry import lookup_backend

    function = lookup_backend(backend)
    gm = torch.fx.symbolic_trace(lambda x: x + 1)
    with pytest.raises(lazyfx_compilers.UnknownOptionError, match=f"'{backend}'.*'optoins'"):
        function(gm, [torch.ones(1)], options={"optoins": 1})
    with pytest.raises(lazyfx_compilers.UnknownOptionError, match="mode='max-autotune'"):
        function(gm, [torch.ones(1)], mode="max-autotune")
