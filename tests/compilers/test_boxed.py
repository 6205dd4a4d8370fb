"""Inputs are freed as soon as they were used for the last time."""

import weakref

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import (
    draw_graph_compile,
    nop,
    print_compile,
    simple_ts_compile,
    ts_compile,
)


def probed_graph(probe):
    """``sin(a)``, then ``probe``, then ``+ b``."""
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("_inputs")
    sine = graph.call_function(torch.sin, (a,))
    graph.output(graph.call_function(torch.add, (graph.call_function(probe, (sine,)), b)))
    return fx.GraphModule({}, graph)


@pytest.mark.parametrize("compiler", ["nop", "print_compile", "draw_graph_compile"])
def test_an_input_is_gone_after_its_last_use(compiler, tmp_path, capsys):
    alive = []

    def probe(x):
        alive.append([reference() is not None for reference in references])
        return x

    make = {
        "nop": nop,
        "print_compile": print_compile,
        "draw_graph_compile": draw_graph_compile(tmp_path / "graph.svg"),
    }
    run = make[compiler](probed_graph(probe), [])
    inputs = [torch.ones(2), torch.ones(2)]
    references = [weakref.ref(each) for each in inputs]
    torch.testing.assert_close(run(inputs), torch.ones(2).sin() + 1)
    assert alive == [[False, True]]


def test_an_unusual_graph_module_is_called_as_it_is():
    x = torch.ones(2)
    nested = fx.symbolic_trace(lambda x: {"y": x["a"] + 1}, concrete_args={"x": {"a": fx.PH}})
    torch.testing.assert_close(nop(nested, [])({"a": x})["y"], x + 1)
    hooked = fx.symbolic_trace(lambda x: x + 1)
    hooked.register_forward_hook(lambda module, args, out: out * 10)
    torch.testing.assert_close(nop(hooked, [])([x]), (x + 1) * 10)
    replaced = fx.symbolic_trace(lambda x: x + 1)
    replaced.forward = lambda x: x * 7
    torch.testing.assert_close(nop(replaced, [])(x), x * 7)
    graph = fx.Graph()
    graph.output((graph.placeholder("a", default_value=3),))
    assert nop(fx.GraphModule({}, graph), [])() == (3,)


def test_what_the_graph_refers_to_is_looked_up_when_called():
    gm = fx.symbolic_trace(torch.nn.Linear(2, 2, bias=False))
    run = nop(gm, [])
    gm.weight = torch.nn.Parameter(torch.zeros(2, 2))
    assert not run(torch.ones(1, 2)).any()


@pytest.mark.parametrize(
    "name", ["nop", "print_compile", "draw_graph_compile", "ts_compile", "simple_ts_compile"]
)
def test_memory_of_inputs_goes_with_their_last_use(name, tmp_path, capsys, most_bytes_at_a_time):
    compilers = {
        "draw_graph_compile": draw_graph_compile(tmp_path / "graph.svg"),
        **{each.__name__: each for each in (nop, print_compile, simple_ts_compile, ts_compile)},
    }
    gm = make_fx(lambda a, b: (a.sin().cos().exp() + b).tan())(torch.ones(2), torch.ones(2))
    run = compilers[name](gm, [torch.ones(2), torch.ones(2)])
    nbytes = 4 * 100_000
    for _ in range(3):  # TorchScript compiles again after the first calls
        inputs = []

        def call(inputs=inputs):
            inputs += [torch.ones(100_000), torch.ones(100_000)]
            run(inputs)

        assert most_bytes_at_a_time(call) == 3 * nbytes  # one result, beside both or one beside b
        assert not inputs
