"""The demonstration backend, by its name: what it computes, saves and refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import peephole
import pytest
import torch
from peephole import GraphCache, _passes
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import MetadataMismatchError, UnknownOptionError
from lazyfx_core import LazyGraphModule, recompile_stats

aten = torch.ops.aten


def wasteful(x, w):
    """Eleven operators, of which the passes leave three."""
    y = (x * 1 - 0).neg().neg()
    return (y @ w.t().t()).sin() + (y @ w).sin()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("scale", torch.arange(6.0))

    def forward(self, x):
        return wasteful(x * self.scale, self.linear.weight).relu() - 0


def gradients(function, *args):
    args = [arg.clone().requires_grad_() for arg in args]
    result = function(*args)
    result.sin().sum().backward()
    return [result.detach(), *(arg.grad for arg in args)]


def traced(function, *args):
    return make_fx(function, tracing_mode="fake")(*args)


def targets(gm):
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 1 / (x + 0),
        lambda x: 1 / (x - 0),
        lambda x: 1 / (x + -0.0),
        lambda x: 1 / (x - -0.0),
    ],
)
def test_signed_zeros_are_those_of_eager(function):
    x = torch.tensor([-0.0, 0.0, 2.0])
    assert torch.equal(torch.compile(function, backend="peephole")(x), function(x))


@pytest.mark.parametrize("options", [{}, {"debug": True}, {"codegen": "ts"}])
@pytest.mark.parametrize("dynamic", [False, True])
def test_results_and_gradients_are_those_of_eager(options, dynamic):
    compiled = torch.compile(wasteful, backend="peephole", dynamic=dynamic, options=options)
    for size in (4, 5, 4):
        args = torch.randn(size, 6), torch.randn(6, 6)
        torch.testing.assert_close(gradients(compiled, *args), gradients(wasteful, *args))


@pytest.mark.parametrize("options", [{}, {"debug": True}, {"codegen": "ts"}])
def test_without_dynamo_too(options):
    args = torch.randn(4, 6), torch.randn(6, 6)
    fused = peephole.fuse(wasteful, **options)
    torch.testing.assert_close(gradients(fused, *args), gradients(wasteful, *args))


def test_a_vision_transformer_of_transformers_infers_and_trains():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
    )
    model = ViTForImageClassification(config)
    pixels = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, backend="peephole", options={"debug": True})
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits)
    expected = torch.autograd.grad(model(pixels).logits.sum(), list(model.vit.parameters())[:5])
    seen = torch.autograd.grad(compiled(pixels).logits.sum(), list(model.vit.parameters())[:5])
    torch.testing.assert_close(seen, expected)


def test_all_passes_together_generate_code_once():
    args = torch.randn(4, 6), torch.randn(6, 6)
    gm = traced(wasteful, *args)
    assert len(targets(gm)) == 11
    with recompile_stats() as stats:
        made = peephole.optimize(gm)
        assert isinstance(made, LazyGraphModule)
        assert made.needs_recompile
        torch.testing.assert_close(made(*args), wasteful(*args))
    assert targets(made) == [aten.mm.default, aten.sin.default, aten.add.Tensor]
    assert stats.snapshot().asked > 5
    assert stats.snapshot().done == 1


def test_random_operators_are_not_shared():
    def noise(x):
        return torch.rand_like(x), torch.rand_like(x)

    made = peephole.optimize(traced(noise, torch.ones(3)))
    one, other = made(torch.ones(3))
    assert not torch.equal(one, other)


def test_what_is_returned_is_memory_of_its_own():
    compiled = torch.compile(lambda x: x * 1, backend="peephole")
    x = torch.ones(3)
    compiled(x).zero_()
    assert torch.equal(x, torch.ones(3))


def test_numbers_that_are_equal_but_of_another_type_are_not_shared():
    def mixed(x):
        return x + 1, x + 1.0, x * 0.0, x * -0.0

    x = torch.arange(3)
    made = peephole.optimize(traced(mixed, x))
    for seen, expected in zip(made(x), mixed(x), strict=True):
        torch.testing.assert_close(seen, expected)
        assert torch.equal(torch.signbit(seen), torch.signbit(expected))


def test_the_debug_mode_names_the_node_that_a_wrong_pass_made(monkeypatch):
    def wrong(gm):
        """Sine by cumulative sum in float64: another dtype than what was traced."""
        found = gm.graph.find_nodes(op="call_function", target=aten.sin.default)
        for node in found:
            node.target = aten.to.dtype
            node.args = (node.args[0], torch.float64)
        gm.recompile()
        return bool(found)

    monkeypatch.setattr(_passes, "PASSES", (wrong,))
    compiled = torch.compile(lambda x: x.sin() + 1, backend="peephole", options={"debug": True})
    with pytest.raises(MetadataMismatchError, match=r"'sin'.*float64"):
        compiled(torch.ones(3))


PROGRAM = """
import json, sys
import torch
from peephole import GraphCache
from torch import nn
sys.path.insert(0, sys.argv[2])
from test_demo_backend import Net, gradients

torch.manual_seed(0)
net, cache = Net(), GraphCache(sys.argv[1])
compiled = torch.compile(net, backend="peephole", options={"cache": cache, "debug": True})
x = torch.randn(4, 6)
torch.testing.assert_close(gradients(compiled, x), gradients(net, x))
print(json.dumps([cache.hits, cache.misses]))
"""


def run_with_cache(folder):
    here = str(Path(__file__).parent)
    arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), here]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_graphs_are_found_by_another_process_and_a_damaged_one_is_made_again(tmp_path):
    assert run_with_cache(tmp_path) == [0, 2]
    first, second = sorted(tmp_path.iterdir())
    assert run_with_cache(tmp_path) == [2, 0]
    first.write_bytes(first.read_bytes()[:-7])
    assert run_with_cache(tmp_path) == [1, 1]
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_another_constant_or_another_shape_is_another_graph(tmp_path):
    cache = GraphCache(tmp_path)

    def key(constant, size):
        gm = make_fx(lambda x: x + constant)(torch.ones(size))
        return cache.key(gm, [torch.ones(size)])

    one = torch.tensor(2.0)
    assert key(one, 3) == key(one.clone(), 3)
    assert len({key(one, 3), key(one + 1, 3), key(one, 4), key(2.0, 3), key(2, 3)}) == 5


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = Path(__file__).parents[1] / "demo_backend" / "README.md"
    (example,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    x = torch.randn(3, 4)
    for compiled in (names["compiled"], names["fused"]):
        torch.testing.assert_close(compiled(x), names["model"](x))
    assert list((tmp_path / "graphs").iterdir())


def test_options_that_nobody_knows_are_refused_by_name():
    compiled = torch.compile(torch.sin, backend="peephole", options={"chache": "x"})
    with pytest.raises(BackendCompilerFailed, match="unknown option 'chache'"):
        compiled(torch.ones(2))
    with pytest.raises(UnknownOptionError, match="codegen='inductor'"):
        peephole.fuse(wasteful, codegen="inductor")
