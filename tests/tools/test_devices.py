"""What differs between devices: generators, memory that nobody writes, names with numbers.

Most tests of the tools run on the device of ``--device`` as they are. Here is what is about devices
themselves. What needs two of them uses descriptions of CUDA tensors, which need no GPU.
"""

import itertools
import operator
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import nop
from lazyfx_tools import (
    compare_compiled,
    compare_graph,
    diff_graphs,
    differs,
    graph_view,
    minify,
    render_html,
)
from lazyfx_tools.compare._reference import RandomState
from lazyfx_tools.compare._torch_compare import is_uninitialized, unwritten_results
from lazyfx_tools.minimize._search import seeded

aten = torch.ops.aten


# --- generators ----------------------------------------------------------------------------------


def draws(device):
    return torch.rand(4, device=device)


def test_what_is_drawn_is_the_same_each_time_and_nothing_has_happened_afterwards(device):
    draws(device)  # now the device's generator is in use
    torch.manual_seed(5)
    expected = [draws(device), draws(device)]
    torch.manual_seed(5)
    seen = [draws(device)]
    inside = []
    for _ in range(2):
        with seeded():
            inside.append(draws(device))
    seen.append(draws(device))
    assert torch.equal(inside[0], inside[1])
    assert not torch.equal(inside[0], expected[1])
    assert all(map(torch.equal, seen, expected))


def test_a_random_state_is_put_back_on_every_device(device):
    draws(device)
    state = RandomState.now()
    before = draws("cpu"), draws(device)
    state.restore()
    assert all(map(torch.equal, (draws("cpu"), draws(device)), before))


_FIRST_USE = """
import sys
import torch
from lazyfx_tools.minimize._search import seeded
torch.manual_seed(5)
with seeded():
    if sys.argv[2] == "inside":
        torch.rand(4, device=sys.argv[1])
print(torch.rand(4, device=sys.argv[1]).tolist())
"""


@pytest.mark.parametrize("first_use", ["inside", "afterwards"])
def test_a_generator_that_was_not_in_use_before_is_as_the_user_has_seeded_it(device, first_use):
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_USE, str(device), first_use],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    torch.manual_seed(5)
    assert done.stdout.strip() == str(torch.rand(4, device=device).tolist())


def test_a_seed_that_waits_for_cuda_is_the_users(monkeypatch):
    """torch.manual_seed seeds CUDA, too; where CUDA is not in use, that waits until it is."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(5)
    torch.rand(3)
    with seeded():
        pass
    compare_compiled(lambda x: F.dropout(x), (torch.ones(3),), nop)
    gm = make_fx(lambda x: x.sin().cos())(torch.ones(3))
    assert minify(gm, [torch.ones(3)], lambda gm, _: "cos" in gm.code, verify=False).nodes_after
    assert seeds == [5]


# --- memory that nobody writes -------------------------------------------------------------------

_RUNS = itertools.count(1)


@pytest.fixture(scope="module")
def attend():
    """Attention as CUDA has it: without dropout the generator's state is left unwritten.

    What happens to be in memory is another number each time here.
    """
    library = torch.library.Library("lazyfx_devices_test", "FRAGMENT")
    library.define(
        "attend(Tensor query, float dropout_p=0.0)"
        " -> (Tensor output, Tensor rng_state, Tensor unused)",
        tags=torch.Tag.nondeterministic_seeded,
    )

    def states(query):
        number = next(_RUNS)
        return query.new_full((2,), number, dtype=torch.int64), query.new_full((), -number)

    def run(query, dropout_p=0.0):
        return (F.dropout(query.softmax(-1), dropout_p), *states(query))

    def describe(query, dropout_p=0.0):
        return torch.empty_like(query), query.new_empty(2, dtype=torch.int64), query.new_empty(())

    library.impl("attend", run, "CompositeExplicitAutograd")
    torch.library.register_fake("lazyfx_devices_test::attend", describe, lib=library)
    yield torch.ops.lazyfx_devices_test.attend.default
    library._destroy()


def test_memory_that_attention_leaves_unwritten_is_not_compared(attend, device):
    x = torch.randn(4, 4).to(device)

    def saved(x):
        output, state, unused = attend(x)
        return output.sin(), state, unused

    gm = make_fx(saved, tracing_mode="fake")(x)
    for reference in ("eager", "float64"):
        report = compare_graph(gm, [x], nop, reference, check_determinism=True)
        assert report.agrees, report
        assert not report.nondeterministic

    def wrong(gm, example_inputs):
        for node in gm.graph.find_nodes(op="call_function", target=aten.sin.default):
            node.target = aten.cos.default
        gm.recompile()
        return nop(gm, example_inputs)

    assert compare_graph(gm, [x], wrong).divergence.target == "aten.sin.default"
    found = minify(gm, [x], differs(wrong), verify=False)
    assert [n.target for n in found.graph.graph.nodes if n.op == "call_function"] == [
        aten.sin.default
    ]

    def changes_attention(gm, inputs):
        return any(node.target is attend for node in gm.graph.nodes)

    kept = minify(gm, [x], changes_attention, verify=False).graph
    assert differs(lambda gm, inputs: gm)(kept, [x]) is False


def test_what_a_dropout_in_attention_draws_is_compared(attend, device):
    x = torch.randn(256, 64).to(device)
    gm = make_fx(lambda x: (attend(x, 0.5)[0],), tracing_mode="fake")(x)

    def drops_less(gm, example_inputs):
        for node in gm.graph.find_nodes(op="call_function", target=attend):
            node.args = (node.args[0], 0.25)
        gm.recompile()
        return nop(gm, example_inputs)

    assert compare_graph(gm, [x], nop).agrees
    assert compare_graph(gm, [x], drops_less).divergence.node == "attend"


ATTENTION = [
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
]


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_results_that_torchs_attention_leaves_unwritten_are_known(name, dropout):
    target = getattr(aten, name).default
    arguments = {one.name: None for one in target._schema.arguments} | {"dropout_p": dropout}
    graph = torch.fx.Graph()
    node = graph.call_function(target, (), arguments)
    returned = [one.name for one in target._schema.returns]
    unwritten = {returned[place] for place in unwritten_results(node)}
    assert "output" not in unwritten
    assert not any("sum" in one for one in unwritten)
    states = {one for one in returned if one in ("philox_seed", "philox_offset", "rng_state")}
    assert states
    assert unwritten >= (states if dropout == 0 else set())
    assert not (dropout and unwritten & states)
    for place, one in enumerate(returned):
        item = graph.call_function(operator.getitem, (node, place))
        assert is_uninitialized(item) is (one in unwritten)


class Attention(nn.Module):
    """Heads, torch's own attention, a residual; which kernel it is depends on the device."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (2, 16)).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        held = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(held.transpose(1, 2).flatten(-2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_training_step_through_torchs_own_attention_agrees(dtype, device):
    model = Attention().to(device, dtype)
    x = torch.randn(2, 8, 32).to(device, dtype)
    report = compare_compiled(model, (x,), nop, check_determinism=True)
    assert report.agrees, report
    assert [one.phase for one in report.graphs] == ["forward", "backward"]
    assert not any(graph.unseen for graph in report.graphs)


# --- names of devices ----------------------------------------------------------------------------


def on(device):
    """A graph described as on ``device``, with factories that name it."""

    def run(x, weight):
        scale = torch.full((), 2.0)  # on the CPU, which is legal beside CUDA tensors
        held = (x.softmax(-1) * weight + torch.arange(4, device=device)) * scale
        return held.to("cpu")

    with FakeTensorMode():
        return make_fx(run)(torch.empty(2, 4, device=device), torch.empty(4, device=device))


def test_graphs_on_cuda_are_drawn_and_compared_without_a_gpu(many_gpus):
    one, other, plain = on("cuda:0"), on("cuda:1"), on("cpu")
    assert diff_graphs(one, other).identical
    assert diff_graphs(on("cuda"), one).identical
    assert not diff_graphs(one, plain).identical
    view = graph_view(other, name="other")
    assert {value.device for value in view.values} - {""} == {"cuda:1", "cpu"}
    assert render_html([view, graph_view(one, name="one")], title="devices")


def test_a_result_on_another_device_is_named(cuda):
    def strays(gm, example_inputs):
        run = nop(gm, example_inputs)
        wrong = any(one.target is aten.sin.default for one in gm.graph.nodes)
        return lambda *inputs: [one.cpu() for one in run(*inputs)] if wrong else run(*inputs)

    x = torch.ones(3, device=cuda)
    found = compare_compiled(lambda x: (x * 2.0).sin() + 1.0, (x,), strays).divergence
    assert found.what == "device"
    assert (found.expected.type, found.seen.type) == ("cuda", "cpu")
