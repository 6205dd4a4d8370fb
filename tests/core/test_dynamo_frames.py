"""Dynamo and the descriptors of a stale module: who compiles what, and how often."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import fx
from torch._dynamo.testing import CompileCounter

from lazyfx_core import LazyGraphModule

OPS = [torch.sin, torch.cos, torch.tan, torch.exp]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def sine():
    graph = fx.Graph()
    graph.output(graph.call_function(torch.sin, (graph.placeholder("x"),)))
    return LazyGraphModule({}, graph)


def turn(gm, old, new):
    for node in gm.graph.find_nodes(op="call_function", target=old):
        node.target = new
    gm.recompile()


EDITS = """
import torch
from torch import fx
from lazyfx_core import LazyGraphModule
ops = [torch.sin, torch.cos, torch.tan, torch.exp]
graph = fx.Graph()
graph.output(graph.call_function(torch.sin, (graph.placeholder("x"),)))
gm = LazyGraphModule({}, graph)
compiled = torch.compile(gm, backend="eager", fullgraph=FULL)
x = torch.full((3,), 0.5)
compiled(x)
for old, new in zip(ops, ops[1:]):
    for node in gm.graph.find_nodes(op="call_function", target=old):
        node.target = new
    gm.recompile()
    for _ in range(3):
        torch.testing.assert_close(compiled(x), new(x))
print("alive")
"""


@pytest.mark.parametrize("full", [False, True])
def test_a_compiled_module_survives_one_edit_after_another(full):
    """The descriptor's own frame, compiled, generated new code while its guards were checked, and
    so freed the code those guards belonged to: a segmentation fault."""
    script = EDITS.replace("FULL", str(full))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr[-2000:]


def test_each_edit_compiles_one_frame():
    gm, x = sine(), torch.full((3,), 0.5)
    counter = CompileCounter()
    compiled = torch.compile(gm, backend=counter, fullgraph=True)
    compiled(x)
    assert counter.frame_count == 1
    for made, (old, new) in enumerate(itertools.pairwise(OPS), start=2):
        turn(gm, old, new)
        for _ in range(2):
            torch.testing.assert_close(compiled(x), new(x))
        assert counter.frame_count == made


@pytest.mark.parametrize("later", ["module", "forward", "function"])
def test_a_module_first_looked_at_while_dynamo_compiles_can_be_compiled_afterwards(later):
    gm, x = sine(), torch.full((3,), 0.5)
    torch.compile(lambda x: gm(x), backend="eager", fullgraph=True)(x)
    assert not gm.needs_recompile
    what = {"module": gm, "forward": gm.forward, "function": lambda x: gm(x) + 1}[later]
    counter = CompileCounter()
    result = torch.compile(what, backend=counter, fullgraph=True)(x)
    assert counter.frame_count == 1
    torch.testing.assert_close(result, x.sin() + (later == "function"))


def test_graphs_that_dynamo_makes_are_not_compiled_again():
    """As with plain modules: what is generated for Dynamo itself stays marked."""
    made = []

    def keep(gm, inputs):
        lazy = LazyGraphModule.from_graphmodule(gm)
        made.append(lazy)
        return lazy.forward

    x = torch.ones(3)
    torch.compile(lambda x: x.sin() + 1, backend=keep)(x)
    counter = CompileCounter()
    torch.compile(made[0].forward, backend=counter)(x)
    assert counter.frame_count == 0
