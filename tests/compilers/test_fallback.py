"""``fallback="eager"``: what a compiler cannot take runs as it is, and that is said once."""

import warnings

import pytest
import torch

from lazyfx_compilers import (
    CodegenError,
    FallbackWarning,
    NotCompilableError,
    NoTensorOutputError,
    TorchScriptUnsupportedError,
    UnknownOptionError,
    memory_efficient_fusion,
    nop,
)


def refuses(gm, example_inputs):
    raise TorchScriptUnsupportedError("node 'sin' (call_function sin): no")


def function(x):
    return (x.sin() * x).exp()


def gradient(run, x):
    result = run(x)
    return result.detach(), *torch.autograd.grad(result.sum(), x)


def test_without_it_the_error_names_the_node():
    with pytest.raises(TorchScriptUnsupportedError, match="node 'sin'"):
        memory_efficient_fusion(function, codegen=refuses)(torch.ones(3, requires_grad=True))


def test_with_it_results_and_gradients_are_eagers_and_one_warning_says_why():
    x = torch.rand(3, requires_grad=True)
    run = memory_efficient_fusion(function, codegen=refuses, fallback="eager")
    with pytest.warns(FallbackWarning, match="forward graph runs eagerly.*node 'sin'") as seen:
        found = gradient(run, x)
    assert len(seen) == 1
    torch.testing.assert_close(found, gradient(function, x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(run(torch.ones(4)), function(torch.ones(4)))


def test_only_the_part_that_fails_runs_eagerly():
    compiled = []

    def forward_only(gm, example_inputs):
        if any("tangents" in node.name for node in gm.graph.nodes):
            raise RuntimeError("no backward here")
        compiled.append(gm)
        return nop(gm, example_inputs)

    x = torch.rand(3, requires_grad=True)
    run = memory_efficient_fusion(function, codegen=forward_only, fallback="eager")
    with pytest.warns(FallbackWarning, match="backward graph runs eagerly.*no backward here"):
        torch.testing.assert_close(gradient(run, x), gradient(function, x))
    assert len(compiled) == 1


def test_inductor_failing_half_way_leaves_a_graph_that_runs(monkeypatch):
    from lazyfx_compilers import _torch_inductor

    def broken(phase):
        def compile_and_fail(gm, example_inputs):
            for node in gm.graph.nodes:
                if node.op == "call_function":
                    node.target = torch.ops.aten.neg.default
            gm.recompile()
            raise CodegenError("inductor cannot compile this graph: because; use nop")

        return compile_and_fail

    monkeypatch.setattr(_torch_inductor, "compiler", broken)
    x = torch.rand(3, requires_grad=True)
    run = memory_efficient_fusion(function, fallback="eager")
    with pytest.warns(FallbackWarning, match="because$"):
        torch.testing.assert_close(gradient(run, x), gradient(function, x))


def test_as_an_option_of_the_backend():
    x = torch.rand(3, requires_grad=True)
    options = {"codegen": refuses, "fallback": "eager"}
    run = torch.compile(function, backend="lazyfx_fusion", options=options)
    with pytest.warns(FallbackWarning, match="forward graph"):
        torch.testing.assert_close(gradient(run, x), gradient(function, x))


def test_an_unknown_fallback_is_named():
    with pytest.raises(UnknownOptionError, match="fallback='slow': expected None or 'eager'"):
        memory_efficient_fusion(function, fallback="slow")


def test_a_function_fused_twice_is_refused():
    for twice in (torch.nn.Linear(2, 2), function):
        with pytest.raises(NotCompilableError, match="is fused already"):
            memory_efficient_fusion(memory_efficient_fusion(twice))


def test_results_that_are_no_tensors_or_cannot_be_differentiated():
    x = torch.rand(3, requires_grad=True)
    with pytest.raises(NoTensorOutputError, match="returned a dict without a tensor"):
        memory_efficient_fusion(lambda x: {"n": 3}, codegen=nop)(x)
    run = memory_efficient_fusion(lambda x: (x.argmax(), x > 0, x.detach() * 2, x.sin()))
    index, signs, detached, sine = run(x)
    assert not index.requires_grad
    assert not signs.requires_grad
    assert not detached.requires_grad
    torch.testing.assert_close(torch.autograd.grad(sine.sum(), x)[0], x.detach().cos())


@pytest.mark.parametrize("half", ["forward", "backward"])
def test_a_collective_that_a_graph_would_not_wait_for_is_refused_all_the_same(half):
    if not hasattr(torch.ops.c10d, "allreduce_"):
        pytest.skip("this torch has no torch.distributed")
    from lazyfx_compilers.fusion import make_recipe

    graph = torch.fx.Graph()
    x = graph.placeholder("tangents_1")
    graph.output(graph.call_function(torch.ops.c10d.allreduce_.default, ([x], None, None)))
    gm = torch.fx.GraphModule({}, graph)
    recipe = make_recipe(nop, budget=None, fallback="eager", overrides={})
    compiler = {"forward": recipe.fw_compiler, "backward": recipe.bw_compiler}[half]
    with pytest.raises(NotCompilableError, match="a collective"):
        compiler(gm, [torch.ones(2)])
