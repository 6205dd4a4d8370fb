"""DebugInterpreter, debug_nop and debug_compile."""

import gc
import logging
import subprocess
import sys
import weakref

import pytest
import torch
from functorch.compile import aot_function
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import (
    DebugInterpreter,
    MetadataMismatchError,
    NotCompilableError,
    debug_compile,
    debug_nop,
    nop,
)


def traced(function, *inputs, **settings):
    return make_fx(function, tracing_mode="fake", **settings)(*inputs)


def node_of(gm, target):
    return next(n for n in gm.graph.nodes if n.target is target)


aten = torch.ops.aten


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="measured on torch 2.13")
def test_the_reference_runs_on_no_aot_graph_and_ours_does():
    from torch._functorch import compilers as theirs

    x = torch.randn(3, requires_grad=True)
    with pytest.raises(AssertionError, match="shape_env"):
        aot_function(lambda x: x.sin(), theirs.debug_nop)(x)
    out = aot_function(lambda x: x.sin(), debug_nop)(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, x.cos())


FAULTS = {
    "dtype": (lambda x: (x.sin() + 1).cos(), lambda: torch.randn(3, 4), aten.add.Tensor,
              lambda n: setattr(n, "target", aten.eq.Tensor)),
    "size": (lambda x: (x.sin().sum(0)).cos(), lambda: torch.randn(3, 4), aten.sum.dim_IntList,
             lambda n: setattr(n, "args", (n.args[0], [1]))),
    "stride": (lambda x: x.sin().t().contiguous(), lambda: torch.randn(3, 4), aten.clone.default,
               lambda n: setattr(n, "kwargs", {})),
    "number of results": (lambda x: x.sin().split(1)[0], lambda: torch.randn(4, 2),
                          aten.split.Tensor, lambda n: setattr(n, "args", (n.args[0], 2))),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_a_planted_fault_is_named(what):
    function, make_input, target, plant = FAULTS[what]
    x = make_input()
    gm = traced(function, x)
    torch.testing.assert_close(debug_nop(gm, [x])([x]), function(x))
    node = node_of(gm, target)
    plant(node)
    gm.recompile()
    with pytest.raises(MetadataMismatchError, match=rf"'{node.name}'.*{what}.*tracing recorded"):
        debug_nop(gm, [x])([x])


def test_the_users_line_is_in_the_message():
    def user_function(x):
        return x.sin() + 1

    seen = []

    def planting(gm, inputs):
        for node in gm.graph.nodes:
            if node.target is aten.add.Tensor:
                node.args = (node.args[0], torch.float64)
                node.target = aten._to_copy.default
                node.args, node.kwargs = node.args[:1], {"dtype": torch.float64}
        gm.recompile()
        seen.append(gm)
        return debug_nop(gm, inputs)

    from torch._dynamo.backends.common import aot_autograd

    with pytest.raises(MetadataMismatchError, match=r"from File .*test_debug\.py.*x\.sin\(\) \+ 1"):
        torch.compile(user_function, backend=aot_autograd(fw_compiler=planting))(torch.randn(3))
    assert seen


def test_an_input_of_another_shape_is_named():
    gm = traced(lambda x: x.sin(), torch.randn(3, 4))
    with pytest.raises(MetadataMismatchError, match=r"placeholder.*size of dimension 1"):
        debug_nop(gm, [])([torch.randn(3, 5)])


def test_symbolic_sizes_are_bound_from_the_inputs():
    gm = make_fx(lambda x: x.sin().sum(0), tracing_mode="symbolic")(torch.randn(3, 4))
    for shape in ((3, 4), (5, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(debug_nop(gm, [x])([x]), x.sin().sum(0))


def test_a_symbolic_size_used_twice_must_be_the_same():
    gm = make_fx(lambda x, y: x + y, tracing_mode="symbolic")(torch.randn(3), torch.randn(3))
    with pytest.raises(MetadataMismatchError, match="size of dimension 0"):
        debug_nop(gm, [])([torch.randn(3), torch.randn(4)])


def test_nonzero_is_no_false_alarm():
    def f(x):
        return x.nonzero().sum()

    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    try:
        compiled = torch.compile(f, backend=debug_nop)
        for x in (torch.tensor([0, 1, 2]), torch.tensor([0, 0, 5])):
            torch.testing.assert_close(compiled(x), f(x))
    finally:
        torch._dynamo.config.capture_dynamic_output_shape_ops = False


def test_nothing_is_kept_alive():
    gm = traced(lambda x: x.sin() + 1, torch.randn(3))
    run = debug_nop(gm, [])
    x = torch.randn(3)
    inputs = [x]
    out = run(inputs)
    references = [weakref.ref(x), weakref.ref(out)]
    del x, out, inputs
    gc.collect()
    assert [r() for r in references] == [None, None]


def test_the_interpreter_can_be_used_by_itself():
    gm = traced(lambda x: x.sin(), torch.randn(3))
    x = torch.randn(3)
    torch.testing.assert_close(DebugInterpreter(gm).run(x), x.sin())
    with pytest.raises(NotCompilableError):
        DebugInterpreter(torch.nn.Linear(1, 1))


def broken_compiler(gm, example_inputs):
    raise ZeroDivisionError("broken")


def run_program(path):
    return subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)


def test_the_program_reproduces_the_compilation_in_a_fresh_process(tmp_path, caplog):
    constant = torch.arange(3.0)

    def f(x, n):
        return (x + constant).sin() * n, x.sum()

    x = torch.randn(2, 3)
    gm = make_fx(f)(x, 2)
    with caplog.at_level(logging.WARNING, "lazyfx_compilers.debug"):
        run = debug_compile(folder=tmp_path)(gm, [x, 2])
    torch.testing.assert_close(run([x, 2]), f(x, 2))
    program = tmp_path / "000" / "repro.py"
    assert str(program) in caplog.text
    moved = tmp_path / "moved"
    program.parent.rename(moved)
    done = run_program(moved / "repro.py")
    assert done.returncode == 0, done.stderr
    assert "agree" in done.stdout
    assert not list(moved.glob("*.pkl"))


def test_a_failing_compiler_says_where_the_program_is(tmp_path):
    import test_debug

    gm = traced(lambda x: x.sin(), torch.randn(3))
    compiler = debug_compile(folder=tmp_path, compiler=nop)
    compiler(gm, [torch.randn(3)])
    compiler(gm, [torch.randn(3)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000", "001"]
    failing = debug_compile(folder=tmp_path, compiler=test_debug.broken_compiler)
    with pytest.raises(ZeroDivisionError) as caught:
        failing(gm, [torch.randn(3)])
    assert str(tmp_path / "002" / "repro.py") in caught.value.__notes__[0]


def test_a_compiler_without_a_name_is_refused():
    with pytest.raises(NotCompilableError, match="top level of an importable module"):
        debug_compile(compiler=lambda gm, inputs: gm)
