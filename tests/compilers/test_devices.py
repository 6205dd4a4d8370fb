"""What may go wrong on a GPU only: each public feature once, where ``--device`` says.

What is compared bit by bit runs the same kernels both times; what a code generator may put in
another order is compared in double precision, closely.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import aot_function
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint
from training_workloads import Block, SdpaAttention

from lazyfx_compilers import (
    DebugInterpreter,
    NotCompilableError,
    budget_partitioner,
    debug_compile,
    debug_nop,
    default_decompositions,
    draw_graph_compile,
    dump_graphs,
    find_dumps,
    get_inputs,
    graph_dumper_aot,
    load_dump,
    memory_efficient_fusion,
    memory_report,
    nnc_jit,
    nop,
    print_compile,
    ts_compile,
)
from lazyfx_compilers.debug import _node_check
from lazyfx_compilers.debug._checks import settings
from lazyfx_compilers.dump._specs import describe_inputs
from lazyfx_compilers.memory import _TrainingStep


class Words(nn.Module):
    """Embedding, a transformer block with dropout, a table that the model makes, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.block = Block(16, SdpaAttention(16), 0.2)
        self.head = nn.Linear(16, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        return self.head(self.block(self.words(words) + places[:, None] / 10))


def images() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 3))


def perceptron() -> nn.Module:
    layers = [nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(16), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


MODELS = {
    "words": (Words, lambda: torch.randint(11, (4, 5))),
    "images": (images, lambda: torch.randn(4, 3, 6, 6, dtype=torch.float64)),
}
OPTIMIZERS = {
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.AdamW(params, lr=1e-3, foreach=True),
}


def seeded(make):
    torch.manual_seed(0)
    return make()


def drawn(device):
    """The next random numbers of the CPU's generator and of the device's."""
    return torch.rand(3), torch.rand(3, device=device)


# --- training --------------------------------------------------------------------------------


def trainings():
    for codegen in ("inductor", "ts", nop):
        name = codegen if isinstance(codegen, str) else "nop"
        for model, optimizer in (("words", "adam"), ("words", "momentum"), ("images", "momentum")):
            marks = [pytest.mark.slow] if (model, name) == ("words", "inductor") else []
            case = (model, optimizer, codegen)
            yield pytest.param(*case, id=f"{model}-{optimizer}-{name}", marks=marks)


@pytest.mark.filterwarnings("ignore::lazyfx_compilers.BudgetWarning")
@pytest.mark.parametrize(("model", "optimizer", "codegen"), [*trainings()])
def test_training_leaves_eagers_weights_and_eagers_random_numbers(
    model, optimizer, codegen, device
):
    make, make_input = MODELS[model]
    x = make_input().to(device)
    seen = []
    for fuse in (lambda m: m, lambda m: memory_efficient_fusion(m, codegen=codegen, budget=0.6)):
        module = seeded(make).double().to(device)
        run = fuse(module)
        steps = OPTIMIZERS[optimizer](module.parameters())
        torch.manual_seed(1)
        for _ in range(3):
            steps.zero_grad()
            run(x).square().mean().backward()
            steps.step()
        seen.append((dict(module.state_dict()), drawn(device)))
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-6, atol=1e-9)


def test_autocast_and_a_scaler(device):
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    x = torch.randn(8, 6, device=device)
    seen = []
    for fuse in (lambda m: m, lambda m: memory_efficient_fusion(m, codegen=nop)):
        module = seeded(perceptron).to(device)
        run, scaler = fuse(module), torch.amp.GradScaler(device.type, init_scale=16.0)
        steps = torch.optim.SGD(module.parameters(), lr=0.05)
        for _ in range(2):
            torch.manual_seed(1)
            steps.zero_grad()
            with torch.autocast(device.type, half):
                result = run(x)
            assert result.dtype is half
            scaler.scale(result.float().square().mean()).backward()
            scaler.step(steps)
            scaler.update()
        assert run(x).dtype is torch.float32  # outside of autocast it is another graph
        seen.append([one.detach() for one in module.parameters()])
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-2, atol=1e-3)


def test_a_checkpoint_draws_eagers_numbers_and_draws_them_again(device):
    def block(x):
        return F.dropout(x.sin(), 0.5).exp()

    def f(x):
        return checkpoint(block, x, use_reentrant=False) * 2

    x = torch.randn(100, device=device, requires_grad=True)
    options = {"codegen": nop}
    seen = []
    for run in (f, torch.compile(f, backend="lazyfx_fusion", options=options)):
        torch.manual_seed(3)
        out = run(x)
        seen.append((out.detach(), torch.autograd.grad(out.sum(), x)[0], drawn(device)))
    torch.testing.assert_close(seen[1], seen[0])


def test_torch_draws_in_a_checkpoint_as_it_does_on_the_cpu(monkeypatch):
    """Otherwise it gives the graph of a GPU a generator of its own, with other numbers."""
    config = torch._functorch.config
    if TorchVersion(torch.__version__) < (2, 7):
        pytest.skip("torch 2.6 has no generators in graphs: they came with a later release")
    import functorch.compile

    original, seen = functorch.compile.min_cut_rematerialization_partition, []

    @functools.wraps(original)
    def spying(*args, **kwargs):
        seen.append(config.graphsafe_rng_functionalization)
        return original(*args, **kwargs)

    monkeypatch.setattr(functorch.compile, "min_cut_rematerialization_partition", spying)
    before = config.graphsafe_rng_functionalization
    aot_function(torch.sin, nop, partition_fn=budget_partitioner())(
        torch.ones(2, requires_grad=True)
    )
    assert seen == [False]
    assert config.graphsafe_rng_functionalization is before


# --- attention -------------------------------------------------------------------------------


def attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attention_inputs(device, dtype=torch.float32):
    return [torch.randn(2, 2, 8, 16).to(device, dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_agrees_and_raises_no_false_alarm(dtype, device):
    inputs = attention_inputs(device, dtype)
    expected = attention(*inputs)
    for compiler in (nop, debug_nop):
        run = memory_efficient_fusion(attention, codegen=compiler)
        torch.testing.assert_close(run(*inputs), expected)
        torch.testing.assert_close(
            torch.autograd.grad(run(*inputs).sum(), inputs),
            torch.autograd.grad(attention(*inputs).sum(), inputs),
            rtol=1e-2,
            atol=1e-3 if dtype is torch.float32 else 5e-2,
        )


def test_which_kernels_of_attention_are_allowed_is_part_of_the_key(device):
    graphs = []

    def compiler(gm, inputs):
        graphs.append({str(node.target) for node in gm.graph.nodes})
        return nop(gm, inputs)

    run = memory_efficient_fusion(attention, codegen=compiler)
    inputs = [each.detach() for each in attention_inputs(device)]
    for _ in range(2):
        run(*inputs)
        with sdpa_kernel(SDPBackend.MATH):
            torch.testing.assert_close(run(*inputs), attention(*inputs))
    fused, plain = graphs
    assert any("scaled_dot_product" in name for name in fused)
    assert not any("flash" in name or "efficient" in name for name in plain)


def test_where_attention_on_a_gpu_leaves_its_seeds_is_not_held_against_it():
    """On the CPU or on the GPU: tracing cannot know, and says that they are on the GPU."""
    operator = torch.ops.aten._scaled_dot_product_efficient_attention.default
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = [torch.empty(2, 2, 8, 16, device="cuda") for _ in range(3)]
        gm = make_fx(lambda *inputs: operator(*inputs, None, True, 0.5))(*fakes)
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    checks = _node_check.of_graph(gm.graph, inputs, fakes, settings(None, "raise", ()))
    (called,) = (node for node in gm.graph.nodes if node.target is operator)
    result, logsumexp, seed, _ = called.meta["val"]
    assert seed.device.type == "cuda"
    here = [torch.zeros((), dtype=torch.int64) for _ in range(2)]

    def wrong(seen):
        env = dict(zip(inputs, fakes, strict=True))
        before = checks[called].before(env)
        return [
            (found.check, where)
            for found, where in checks[called].differences(seen, env, before, {})
        ]

    assert wrong((result, logsumexp, *here)) == []
    elsewhere = torch.empty(result.shape, device="meta")
    found = wrong((elsewhere, logsumexp, *here))
    assert ("device", " of output 0 of 4") in found


# --- where arguments are ----------------------------------------------------------------------


def test_another_device_is_another_graph(device):
    other = torch.device("cpu" if device.type == "cuda" else "meta")
    run = memory_efficient_fusion(lambda x: (x + torch.ones(3, device=x.device)).exp(), codegen=nop)
    for place in (device, other, device):
        x = torch.zeros(3, device=place)
        result = run(x)
        assert result.device == x.device
        if place.type != "meta":
            torch.testing.assert_close(result, torch.full_like(x, torch.e))


def test_a_number_on_the_cpu_may_stand_beside_tensors_elsewhere(device):
    x, scale = torch.randn(4, device=device, requires_grad=True), torch.tensor(3.0)

    def f(x, scale):
        return (x * scale).sin()

    (expected,) = torch.autograd.grad(f(x, scale).sum(), x)
    for codegen in ("inductor", "ts", debug_nop):
        run = memory_efficient_fusion(f, codegen=codegen)
        (grad,) = torch.autograd.grad(run(x, scale).sum(), x)
        torch.testing.assert_close(grad, expected)
    assert memory_report(f, x, scale, codegen=nop).eager.live_after_forward > 0


def test_an_argument_on_the_wrong_device_is_an_error_that_names_both(device):
    model = nn.Linear(4, 4).to(device)
    run = memory_efficient_fusion(model, codegen=nop)
    with pytest.raises(
        (NotCompilableError, RuntimeError), match=rf"meta.*{device.type}|{device.type}.*meta"
    ):
        run(torch.empty(2, 4, device="meta"))
    x = torch.randn(2, 4, device=device)
    torch.testing.assert_close(run(x), model(x))


def test_a_call_on_another_stream(device):
    def f(x):
        return (x.sin() * x).cumsum(0)

    x = torch.randn(1000, device=device)
    run = memory_efficient_fusion(f)
    expected = f(x)
    run(x)
    around = contextlib.nullcontext()
    if device.type == "cuda":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        around = torch.cuda.stream(stream)
    with around:
        result = run(x * 2)
    if device.type == "cuda":
        torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(result, f(x * 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run(x), expected, rtol=1e-4, atol=1e-4)


# --- reports ---------------------------------------------------------------------------------


def test_a_memory_report_is_about_the_device_and_changes_nothing_there(device):
    model, x = seeded(perceptron).to(device), torch.randn(64, 6, device=device)
    torch.manual_seed(5)
    expected = drawn(device)
    torch.manual_seed(5)
    report = memory_report(model, x, codegen=nop)
    torch.testing.assert_close(drawn(device), expected)
    # an allocator may round each of them up
    room = 8 if device.type == "cpu" else 512 * (len(report.saved) + 4)
    assert 0 < report.saved_bytes <= report.compiled.live_after_forward + 8
    assert report.compiled.live_after_forward <= report.saved_bytes + room
    assert report.compiled.peak >= report.compiled.live_after_forward
    assert any(one.why.startswith("random") for one in report.saved)


def test_a_memory_report_starts_no_device_that_has_no_part(monkeypatch):
    read = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *args: read.append(args))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *args: None)
    memory_report(torch.sin, torch.ones(3, requires_grad=True), codegen=nop, measure=False)
    assert read == []


def test_memory_is_counted_where_the_large_tensors_are():
    with FakeTensorMode():
        x = torch.empty(4, device="cuda")
    assert _TrainingStep(torch.mul, (torch.tensor(2.0), x), {})._device == x.device


# --- dumps -----------------------------------------------------------------------------------


def test_a_training_dump_replays_bit_by_bit_with_the_devices_random_numbers(device, tmp_path):
    model, x = seeded(perceptron).to(device), torch.randn(8, 6, device=device)
    torch.manual_seed(17)
    drawn(device)
    with dump_graphs("trained", tmp_path, example_inputs="data"):
        torch.compile(model, backend="aot_eager")(x).square().sum().backward()
    (dump,) = find_dumps(tmp_path)
    torch.manual_seed(5)
    expected = drawn(device)
    torch.manual_seed(5)
    ran = [graph for graph in load_dump(dump) if graph.phase != "joint"]
    assert [graph.phase for graph in ran] == ["forward", "backward"]
    for graph in ran:
        assert str(x.device) in graph.code
        replay = graph.replay(repeat=1)
        assert replay.bit_equal, str(replay)
        assert set(graph.times()) > {"output"}
    torch.testing.assert_close(drawn(device), expected)


def test_a_dump_of_one_device_runs_on_another(device, tmp_path):
    table = torch.arange(6.0, device=device)

    def f(x, w):
        return (x @ w + table + torch.ones(6, device=x.device)).tanh(), x.t()

    x, w = torch.randn(3, 4, device=device), torch.randn(4, 6, device=device)
    dumper = graph_dumper_aot("moved", tmp_path, example_inputs="data")
    dumper(make_fx(f)(x, w), [x, w])([x, w])
    (graph,) = load_dump(dumper.path)
    assert graph.replay().bit_equal
    replay = graph.replay(device="cpu")
    assert replay.ok, str(replay)
    seen = graph.run(device="cpu")
    assert {one.device.type for one in seen} == {"cpu"}
    torch.testing.assert_close(seen[0], f(x, w)[0].cpu())
    assert {one.device.type for one in graph.run(graph.inputs(device="meta"), device="meta")} == {
        "meta"
    }


def test_described_inputs_come_back_on_their_device(device, tmp_path):
    base = torch.arange(12, device=device)
    inputs = [base.as_strided((2, 3), (1, 4), 1), base[2:6], torch.randn(2, 2, device=device).t()]
    dumper = graph_dumper_aot("described", tmp_path, example_inputs="spec")
    dumper(make_fx(lambda *all: [one + 1 for one in all])(*inputs), inputs)(list(inputs))
    (graph,) = load_dump(dumper.path)
    made = get_inputs(graph.folder, seed=0)
    assert describe_inputs([], made)[0].storage == describe_inputs([], made)[1].storage
    for one, want in zip(made, inputs, strict=True):
        assert one.device == want.device
        assert (one.shape, one.stride(), one.dtype) == (want.shape, want.stride(), want.dtype)
    assert 0 <= made[0].min() <= made[0].max() <= 11  # the range that was seen
    moved = get_inputs(graph.folder, seed=0, device="cpu")
    torch.testing.assert_close([one.cpu() for one in made], moved)


def test_devices_that_are_not_here_are_described():
    with FakeTensorMode():
        fakes = [torch.empty(2, 3, device=place) for place in ("cuda", "cuda:3", "cpu", "meta")]
    assert [spec.device for spec in describe_inputs([], fakes)] == [
        str(one.device) for one in fakes
    ]
    assert fakes[0].device.index is not None


# --- what is written and printed ---------------------------------------------------------------


def test_a_program_that_reproduces_runs_there_and_elsewhere(device, tmp_path):
    def f(x):
        return x.to(torch.float64) + torch.ones(3, device=x.device) * x.new_full((3,), 2.0)

    x = torch.randn(3, device=device)
    run = debug_compile(folder=tmp_path, compiler=ts_compile, verify=False)(make_fx(f)(x), [x])
    torch.testing.assert_close(run([x]), f(x))
    for options in ([], ["--device", "cpu"]):
        done = subprocess.run(
            [sys.executable, str(tmp_path / "000" / "repro.py"), *options],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert "the compiled graph agrees with the graph" in done.stdout


def test_printed_drawn_scripted_and_interpreted(device, tmp_path):
    def f(x):
        return (x * torch.arange(4.0, device=x.device)).tanh()

    x = torch.randn(4, device=device, requires_grad=True)
    (expected,) = torch.autograd.grad(f(x).sum(), x)
    stream = io.StringIO()
    compilers = {
        "print": print_compile(stream=stream),
        "draw": draw_graph_compile(tmp_path / "graph.svg"),
    }
    runs = {
        **{name: aot_function(f, compiler, compiler) for name, compiler in compilers.items()},
        "nnc_jit": nnc_jit(f),
        "decomposed": aot_function(f, nop, decompositions=default_decompositions),
    }
    for name, run in runs.items():
        for _ in range(3):  # TorchScript fuses after the first calls
            (grad,) = torch.autograd.grad(run(x).sum(), x)
            torch.testing.assert_close(grad, expected, msg=name)
    assert str(x.device) in stream.getvalue()
    assert "<svg" in (tmp_path / "graph.svg").read_text()
    gm = make_fx(f)(x.detach())
    torch.testing.assert_close(DebugInterpreter(gm, checks=["device"]).run(x.detach()), f(x))


def test_a_twin_of_a_fused_module_can_be_moved(device):
    model = seeded(perceptron).eval()
    fused = memory_efficient_fusion(model, codegen=nop)
    x = torch.randn(2, 6)
    expected = fused(x)
    twin = copy.deepcopy(fused).to(device)
    torch.testing.assert_close(twin(x.to(device)).cpu(), expected)
    assert next(model.parameters()).device.type == "cpu"
    fused.to(device)
    torch.testing.assert_close(fused(x.to(device)).cpu(), expected)
    assert {one.device.type for one in model.parameters()} == {device.type}
