"""Lazy modules at work on a device: training, compilation, streams, captures, test tools.

What is stored and loaded is in ``serialization/test_devices.py``.
"""

import copy
import functools
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from lazyfx_core import (
    LazyGraphModule,
    StaleGraphError,
    assert_max_recompiles,
    make_graph_module,
    recompile_stats,
    use_lazy_graph_module,
    verify_graphs,
)


class Net(nn.Module):
    """Words, a convolution over them, batch norm, attention without bias, dropout.

    No parameter has a gradient that is zero but for rounding: Adam would make a step of that.
    """

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(13, 8)
        self.conv, self.norm = nn.Conv1d(8, 8, 3, padding=1, bias=False), nn.BatchNorm1d(8)
        self.qkv, self.drop = nn.Linear(8, 24, bias=False), nn.Dropout(0.3)
        self.last = nn.Linear(8, 13)

    def forward(self, words):
        x = self.norm(self.conv(self.words(words).transpose(1, 2))).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.drop((q @ k.transpose(-1, -2) * 0.35).softmax(-1) @ v)
        return self.last(F.gelu(x))


def made(device):
    """A plain module and a lazy one with equal state of their own, and inputs."""
    torch.manual_seed(0)
    plain = fx.symbolic_trace(Net().to(device))
    root = copy.deepcopy(plain)
    lazy = LazyGraphModule(root, root.graph)
    assert lazy.needs_recompile
    return plain, lazy, torch.randint(13, (4, 6)).to(device)


def swap(gm, old, new):
    for node in gm.graph.find_nodes(op="call_function", target=old):
        node.target = new
    gm.recompile()


def step(gm, words, optimizer, number):
    torch.manual_seed(number)  # what the dropout draws, on every device
    optimizer.zero_grad()
    loss = F.cross_entropy(gm(words).flatten(0, 1), words.flatten())
    loss.backward()
    optimizer.step()
    return loss.detach()


OPTIMIZERS = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW, one tensor at a time": functools.partial(torch.optim.AdamW, lr=0.01, foreach=False),
    "AdamW, all tensors at a time": functools.partial(torch.optim.AdamW, lr=0.01, foreach=True),
    "Adam, fused": functools.partial(torch.optim.Adam, lr=0.01, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_gives_what_it_gives_with_a_plain_module(name, device):
    plain, lazy, words = made(device)
    losses = []
    for gm in (plain, lazy):
        optimizer = OPTIMIZERS[name](gm.parameters())
        losses.append([step(gm, words, optimizer, number) for number in range(2)])
        swap(gm, F.gelu, F.relu)
        losses[-1] += [step(gm, words, optimizer, number) for number in range(2, 5)]
    assert all(one.device == words.device for one in losses[1])
    # the same kernels run; some of those for CUDA add up in no fixed order
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        dict(lazy.state_dict()), dict(plain.state_dict()), rtol=1e-3, atol=1e-4
    )
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_applies_when_the_module_is_called(dtype, device):
    plain, lazy, words = made(device)
    with torch.autocast(device.type, dtype):
        expected, seen = plain.eval()(words), lazy.eval()(words)
    assert seen.dtype is dtype
    assert torch.equal(seen, expected)
    assert lazy(words).dtype is torch.float32


def test_a_module_that_moves_to_the_device_stays_lazy_and_its_code_stays_good(device):
    plain, lazy, words = made("cpu")
    lazy.to(device)
    assert lazy.needs_recompile
    with recompile_stats() as stats:
        lazy.eval()(words.to(device))
        lazy.to("cpu").double().to(device).float()
        seen = lazy(words.to(device))
    assert stats.snapshot().done == 1
    torch.testing.assert_close(seen, plain.eval().to(device)(words.to(device)))
    assert {one.device.type for one in lazy.parameters()} == {device.type}


def test_a_lazy_module_is_compiled_in_whole_and_trains(device):
    torch.compiler.reset()
    plain, lazy, words = made(device)
    compiled = torch.compile(lazy, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (6, 4):
        results = []
        for gm, run in ((plain, plain), (lazy, compiled)):
            torch.manual_seed(length)
            gm.zero_grad()
            run(words[:, :length]).square().sum().backward()
            results.append({name: value.grad for name, value in gm.named_parameters()})
        assert results[1].keys() == results[0].keys()
        torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_graphs_that_torch_makes_of_a_training_step_are_lazy_and_right(device):
    torch.compiler.reset()
    plain, _, words = made(device)
    expected = plain.eval()(words)
    with use_lazy_graph_module(True), recompile_stats() as stats:
        seen = torch.compile(plain, backend="aot_eager")(words)
    assert stats.snapshot().avoided > 0
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


def test_old_code_is_found_out_on_the_device(device):
    _, lazy, words = made(device)
    with verify_graphs(lazy):
        lazy(words)
        for node in lazy.graph.find_nodes(op="call_function", target=F.gelu):
            node.target = F.relu
        with pytest.raises(StaleGraphError, match="gelu"):
            lazy(words)


def test_many_threads_call_a_stale_module_at_once(device):
    plain, lazy, words = made(device)
    expected = plain.eval()(words)
    lazy.eval()
    seen = []

    def call():
        with torch.no_grad():
            seen.append(lazy(words))

    threads = [threading.Thread(target=call) for _ in range(8)]
    with assert_max_recompiles(1):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seen) == 8
    for one in seen:
        torch.testing.assert_close(one, expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_stale_module_can_be_captured_in_a_cuda_graph(cuda):
    plain, lazy, words = made(cuda)
    plain.eval()
    lazy.eval()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        plain(words)  # libraries set themselves up in the first call
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = lazy(words)  # generates code while the stream is captured
    words.copy_(words.flip(0))
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(result, plain(words), rtol=1e-4, atol=1e-5)


def test_constants_beside_the_device_are_as_in_eager(device):
    def run(x):
        return x * torch.tensor(2.0) + x.new_ones(3) * 3

    traced = fx.symbolic_trace(run)
    with use_lazy_graph_module(True):
        gm = make_graph_module(traced, traced.graph)
    assert isinstance(gm, LazyGraphModule)
    x = torch.randn(2, 3).to(device)
    assert torch.equal(gm(x), run(x))


def test_an_argument_on_another_device_is_eagers_error_and_leaves_the_module_usable(cuda):
    plain, lazy, words = made(cuda)
    messages = []
    for gm in (plain, lazy):
        with pytest.raises(RuntimeError, match="same device") as caught:
            gm(words.cpu())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert torch.equal(lazy.eval()(words), plain.eval()(words))


# --- the test tools ------------------------------------------------------------------------------


def test_two_runs_draw_the_same_and_nothing_has_happened_afterwards(device):
    from lazyfx_core.testing._pair import gives_the_same_every_time, run

    def draw():
        return torch.rand(3, device=device)

    draw()  # now the device's generator is in use
    torch.manual_seed(5)
    expected = [draw(), draw()]
    torch.manual_seed(5)
    seen = [draw()]
    assert torch.equal(run(draw).value, run(draw).value)
    _, lazy, words = made(device)
    torch.manual_seed(5)
    assert torch.equal(draw(), seen[0])
    assert not gives_the_same_every_time(lazy, (words,))
    assert gives_the_same_every_time(lazy.eval(), (words,))
    seen.append(draw())
    assert all(map(torch.equal, seen, expected))


_FIRST_USE = """
import sys
import torch
from lazyfx_core.testing._pair import run
torch.manual_seed(5)
if sys.argv[2] == "inside":
    run(lambda: torch.rand(3, device=sys.argv[1]))
else:
    run(lambda: None)
print(torch.rand(3, device=sys.argv[1]).tolist())
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
    assert done.stdout.strip() == str(torch.rand(3, device=device).tolist())


def test_a_seed_that_waits_for_cuda_is_the_users(monkeypatch):
    """torch.manual_seed seeds CUDA, too; where CUDA is not in use, that waits until it is."""
    from lazyfx_core.testing._pair import run

    seeds = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(5)
    run(lambda: torch.rand(3))
    assert seeds == [5]


def on_device(case, device):
    """A drawn case with all that it has, and names, on ``device``."""
    from lazyfx_core.testing import GraphCase
    from lazyfx_core.testing._case import copy_graph
    from lazyfx_core.testing._torch_values import tree_map

    def moved(value):
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return device if value in ("cpu", torch.device("cpu")) else value

    graph = copy_graph(case.graph)
    for node in graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": moved(node.kwargs["device"])}
    root = copy.deepcopy(case.root).to(device)
    return GraphCase(root=root, graph=graph, inputs=tree_map(moved, case.inputs))


def test_the_state_machine_walks_on_the_device(device):
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    from lazyfx_core.testing import GraphModuleMachine, graph_cases

    class OnDevice(GraphModuleMachine):
        module_class = LazyGraphModule
        cases = graph_cases(max_nodes=6, higher_order=False).map(
            functools.partial(on_device, device=device)
        )

    quick = settings(
        max_examples=4,
        stateful_step_count=12,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OnDevice, settings=quick)
    assert OnDevice.executed.total() > 20
