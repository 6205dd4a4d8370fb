"""load_dump: a dump comes back as graphs that run, and a replay tells what is not as it was."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
import torch
from functorch.compile import aot_function
from safetensors.torch import load_file, save_file
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

import lazyfx_core
from lazyfx_compilers import (
    DumpFormatError,
    UnknownOptionError,
    dump_graphs,
    find_dumps,
    graph_dumper_aot,
    load_dump,
    nop,
    ts_compile,
)
from lazyfx_compilers.dump import OpaqueSpec, ScalarSpec, TensorSpec
from lazyfx_compilers.dump._environment import random_state


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def dump_of(function, *inputs, folder, example_inputs="data"):
    """The dump of one ATen graph, run once."""
    dumper = graph_dumper_aot("one", folder, example_inputs=example_inputs)
    gm = make_fx(function)(*(x.clone() if isinstance(x, torch.Tensor) else x for x in inputs))
    dumper(gm, inputs)(list(inputs))
    return load_dump(dumper.path)


def trained(function, x, folder, **options):
    dumper = graph_dumper_aot("trained", folder, example_inputs="data")
    compiled = torch.compile(function, backend=dumper, fullgraph=True, **options)
    compiled(x).sum().backward()
    return load_dump(dumper.path)


# --- what replays bit by bit ---------------------------------------------------------------------


@torch.library.custom_op("lazyfx_dump_tests::double_", mutates_args={"x"})
def double_(x: torch.Tensor) -> torch.Tensor:
    x.mul_(2)
    return x + 1


@double_.register_fake
def _(x):
    return torch.empty_like(x)


def cond(x):
    return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))


def nested_cond(x):
    def inner(x):
        return torch.cond(x.max() > 1, lambda x: x * 2, lambda x: x / 2, (x,))

    return torch.cond(x.sum() > 0, inner, lambda x: x.cos(), (x,))


def while_loop(x):
    from torch._higher_order_ops.while_loop import while_loop

    start = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 1.5), (start, x))[1]


def mapped(x):
    from functorch.experimental.control_flow import map as control_flow_map

    return control_flow_map(lambda row: row.sin() + 1, x)


def checkpointed(x):
    return checkpoint(lambda x: nn.functional.dropout(x.sin(), 0.5).cos(), x, use_reentrant=False)


def without_gradient(x):
    with torch.no_grad():
        y = x.sin()
    return y * x


def random(x):
    return torch.bernoulli(torch.sigmoid(x)) * x + torch.randn_like(x) + nn.functional.dropout(x)


def constants(x):
    return x + torch.tensor([1.0, 2.0, 3.0]) + torch.arange(3)


def of_data(x):
    return x[x > 0].sin()


def complex_numbers(x):
    return torch.view_as_real(torch.complex(x, x.cos()) * 1j).square().sum(-1)


def through_a_custom_operator(x):
    y = x.detach().clone()
    return double_(y) + y + x


TRAINED = {
    f.__name__: f
    for f in (
        *(cond, nested_cond, mapped, checkpointed, without_gradient, random, constants, of_data),
        *(complex_numbers, through_a_custom_operator),
    )
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_training_graphs_replay_bit_by_bit(name, dynamic, tmp_path):
    x = torch.randn(4, 3, requires_grad=True)
    with torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True
    ):
        dump = trained(TRAINED[name], x, tmp_path, dynamic=dynamic)
    assert [graph.phase for graph in dump] == ["joint", "forward", "backward"]
    for graph in dump:
        assert graph.run() is not None
        if graph.phase != "joint":
            replay = graph.replay()
            assert replay.exact
            assert replay.bit_equal, str(replay)
            assert replay.compared
            assert not replay.skipped


def test_loops_replay_bit_by_bit(tmp_path):
    dumper = graph_dumper_aot("loop", tmp_path, example_inputs="data")
    torch.compile(while_loop, backend=dumper, fullgraph=True)(torch.randn(4, 3))
    (graph,) = load_dump(dumper.path)
    assert graph.replay().bit_equal


def test_inputs_that_the_graph_changes_are_compared_too(tmp_path):
    def update(x, y):
        x.add_(y)
        y[0].mul_(3)
        return x.sum()

    x, y = torch.randn(3), torch.randn(3)
    (graph,) = dump_of(update, x, y, folder=tmp_path)
    replay = graph.replay()
    assert replay.bit_equal
    assert replay.compared == 3
    assert not torch.equal(graph.inputs()[0], x), "the inputs are those from before the run"


def test_sharing_and_strides_of_inputs_and_outputs_are_compared(tmp_path):
    base = torch.randn(12)
    one, other = base.as_strided((2, 3), (1, 4), 1), base[2:6]
    (graph,) = dump_of(lambda a, b: (a.t(), a + 1, b), one, other, folder=tmp_path)
    assert graph.replay().bit_equal
    again = graph.inputs()
    assert again[0].untyped_storage().data_ptr() == again[1].untyped_storage().data_ptr()


def test_random_numbers_are_those_of_the_first_run_and_the_global_state_is_left_alone(tmp_path):
    torch.manual_seed(17)
    torch.rand(5)
    dumper = graph_dumper_aot("one", tmp_path, example_inputs="data")
    x = torch.randn(20)
    (first,) = dumper(make_fx(lambda x: (nn.functional.dropout(x),))(x), [x])([x])
    torch.manual_seed(99)
    before = torch.get_rng_state()
    (graph,) = load_dump(dumper.path)
    assert torch.equal(graph.run()[0], first)
    assert graph.replay(seed=5, repeat=2).bit_equal
    assert torch.equal(before, torch.get_rng_state())


def test_the_recorded_number_of_threads_is_used_and_put_back(tmp_path):
    threads = torch.get_num_threads()
    (graph,) = dump_of(torch.sin, torch.randn(3), folder=tmp_path)
    file = graph.folder / "outputs.json"
    file.write_text(file.read_text().replace(f'"threads": {threads}', f'"threads": {threads + 2}'))
    seen = []

    def spying(gm, inputs):
        seen.append(torch.get_num_threads())
        return nop(gm, inputs)

    assert graph.replay(compiler=spying).ok
    assert seen == [threads + 2]
    assert torch.get_num_threads() == threads


# --- what a replay finds -------------------------------------------------------------------------


def test_another_value_in_the_record_is_found_and_named(tmp_path):
    (graph,) = dump_of(lambda x: (x.sin(), x.cos()), torch.randn(3), folder=tmp_path)
    file = graph.folder / "outputs.safetensors"
    contents = load_file(file)
    names = [name for name in contents if name.startswith("storage")]
    contents[names[1]] = contents[names[1]] ^ 1  # the lowest bit of each byte
    save_file(contents, file)
    replay = graph.replay()
    assert not replay.ok
    assert not replay.bit_equal
    assert len(replay.differences) == 1
    assert replay.differences[0].startswith("cos")
    assert "DIFFERS" in str(replay)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda x: x.sin().to(torch.float64), "dtype"),
        (lambda x: x.sin()[:2], "shape"),
        (lambda x: x.sin().t().contiguous().t(), "strides"),
        (lambda x: x.sin() + 1e-3, "not close"),
    ],
)
def test_a_compiler_that_is_wrong_is_found(fault, said, tmp_path):
    (graph,) = dump_of(lambda x: (x.sin(),), torch.randn(3, 4), folder=tmp_path)
    assert graph.replay(compiler=nop).ok
    replay = graph.replay(compiler=lambda gm, inputs: lambda x: (fault(x),))
    assert not replay.ok
    assert said in replay.differences[0]


def test_a_dropped_write_is_found(tmp_path):
    (graph,) = dump_of(lambda x: (x.add_(1).sum(),), torch.zeros(3), folder=tmp_path)
    replay = graph.replay(compiler=lambda gm, inputs: lambda x: ((x + 1).sum(),))
    assert [each.split(":")[0] for each in replay.differences] == ["x_1"]


def test_without_a_record_a_compiler_is_held_against_the_graph_itself(tmp_path):
    (graph,) = dump_of(lambda x: (x.sin(),), torch.randn(3), folder=tmp_path, example_inputs="spec")
    assert graph.replay().reference is None
    assert "nothing is recorded" in str(graph.replay())
    good = graph.replay(compiler=ts_compile)
    assert (good.reference, good.ok, good.exact) == ("eager", True, False)
    bad = graph.replay(compiler=lambda gm, inputs: lambda x: (x.cos(),))
    assert [each.split(":")[0] for each in bad.differences] == ["sin"]


def test_random_numbers_drawn_in_another_way_are_no_fault_and_the_replay_says_so(tmp_path):
    def drawing_once_more(gm, inputs):
        return lambda *inputs: (torch.rand(1), gm(*inputs))[1]

    x = torch.randn(30)
    gm = make_fx(lambda x: (nn.functional.dropout(x),))(x)
    dumper = graph_dumper_aot("one", tmp_path, example_inputs="data", compiler=drawing_once_more)
    dumper(gm, [x])([x])
    (graph,) = load_dump(dumper.path)
    assert graph.replay(compiler=drawing_once_more).bit_equal
    replay = graph.replay()
    assert replay.random
    assert replay.ok
    assert not replay.bit_equal
    assert replay.reference is None
    assert "draws random numbers" in str(replay)


def test_what_a_compiler_may_do_with_memory_is_no_fault(tmp_path):
    """Inductor saves convolutions channels last and writes over what the backward was given."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with dump_graphs("conv", tmp_path, example_inputs="data") as dumper:
        torch.compile(net)(torch.rand(2, 3, 8, 8)).sum().backward()
    joint, forward, backward = load_dump(dumper.path)
    replay = forward.replay()
    assert replay.differences == ()
    assert len(replay.skipped) == 0
    assert replay.compared > 10
    replay = backward.replay()
    assert replay.differences == ()
    assert set(replay.skipped) <= {spec.name for spec in backward.specs}
    for name in replay.skipped:
        assert name in str(replay), "what was not compared is said"
    # the joint graph takes the weights, not the copies of them that the forward saved
    assert joint.replay().ok


def test_a_result_of_a_compiler_that_lies_in_another_order_is_still_a_fault(tmp_path):
    def transposing(gm, inputs):
        def run(*inputs):
            return tuple(
                each.t().contiguous().t()
                if isinstance(each, torch.Tensor) and each.dim() == 2
                else each
                for each in gm(*inputs)
            )

        return run

    dumper = graph_dumper_aot("one", tmp_path, example_inputs="data", compiler=transposing)
    x = torch.randn(3, 4, requires_grad=True)
    aot_function(
        lambda x: (x.sin() * 2).exp(), dumper.fw_compiler, dumper.bw_compiler, dumper.partition_fn
    )(x).sum().backward()
    forward = load_dump(dumper.path).graphs[1]
    replay = forward.replay()
    assert [each.split()[1] for each in replay.differences] == ["strides"]
    assert replay.compared > 2, "the saved ones have other strides, too"


def test_a_backward_that_forgets_to_write_or_writes_too_much_is_found(tmp_path):
    """Recorded by the graph itself, so that every write of another compiler counts."""
    dumper = graph_dumper_aot("one", tmp_path, example_inputs="data")
    x = torch.randn(3, 4, requires_grad=True)
    torch.compile(lambda x: x.sin().exp(), backend=dumper)(x).sum().backward()
    backward = load_dump(dumper.path).graphs[2]

    def writing(gm, inputs):
        return lambda *inputs: (gm(*inputs), inputs[0].add_(1))[0]

    assert backward.replay(compiler=nop).ok
    assert not backward.replay(compiler=writing).ok


def test_one_result_in_a_storage_of_its_own_is_one_difference(tmp_path):
    (graph,) = dump_of(lambda x: (x.view(-1), x + 1, x + 2), torch.randn(3, 4), folder=tmp_path)
    replay = graph.replay(compiler=lambda gm, inputs: lambda x: (x.flatten().clone(), x + 1, x + 2))
    assert [each.split(":")[0] for each in replay.differences] == ["view"]


def test_results_that_cannot_be_compared_are_said(tmp_path):
    x = torch.eye(3)
    dumper = graph_dumper_aot("one", tmp_path, example_inputs="data")
    gm = fx.symbolic_trace(lambda x: (x + 1, x.to_sparse()))
    dumper(gm, [x])([x])
    (graph,) = load_dump(dumper.path)
    replay = graph.replay()
    assert replay.skipped == ("to_sparse",)
    assert "not compared: to_sparse" in str(replay)


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 10), reason="up to torch 2.9 float4 cannot be copied"
)
def test_packed_formats_that_torch_cannot_calculate_with_are_compared(tmp_path):
    x = torch.arange(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    dumper = graph_dumper_aot("one", tmp_path, example_inputs="data")
    dumper(fx.symbolic_trace(lambda x: x.clone()), [x])([x])
    (graph,) = load_dump(dumper.path)
    assert graph.replay().bit_equal
    wrong = x.view(torch.uint8).add(1).view(x.dtype)
    replay = graph.replay(compiler=lambda gm, inputs: lambda x: wrong)
    assert "not bit-equal" in replay.differences[0]


def test_generators_of_devices_that_are_not_involved_are_not_seeded(tmp_path, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    (graph,) = dump_of(torch.sin, torch.randn(3), folder=tmp_path, example_inputs="spec")
    before = torch.get_rng_state()
    assert torch.equal(graph.run(seed=4), graph.run(seed=4))
    graph.replay(repeat=1)
    assert seeded == []
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 9),
    reason="torch.backends.mkldnn.fp32_precision came after torch 2.6",
)
def test_a_setting_that_is_not_recorded_stays_as_it_is(tmp_path, monkeypatch):
    (graph,) = dump_of(torch.sin, torch.randn(3), folder=tmp_path)
    file = graph.folder / "outputs.json"
    file.write_text(file.read_text().replace('"mkldnn": true', '"mkldnn": false'))
    seen = []

    def spying(gm, inputs):
        seen.append((torch.backends.mkldnn.enabled, torch.backends.mkldnn.matmul.fp32_precision))
        return nop(gm, inputs)

    monkeypatch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)
    precision = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.set_flags(True, _fp32_precision="ieee")
    try:
        graph.replay(compiler=spying)
        seen.append((torch.backends.mkldnn.enabled, torch.backends.mkldnn.matmul.fp32_precision))
    finally:
        torch.backends.mkldnn.set_flags(True, _fp32_precision=precision)
    assert seen == [(False, "ieee"), (True, "ieee")]


def test_flags_that_torch_has_frozen_are_set_all_the_same(tmp_path, monkeypatch):
    (graph,) = dump_of(torch.sin, torch.randn(3), folder=tmp_path)
    file = graph.folder / "outputs.json"
    changed = file.read_text().replace('"mkldnn": true', '"mkldnn": false')
    file.write_text(changed.replace('"cudnn_benchmark": false', '"cudnn_benchmark": true'))
    # what torch.testing does to whoever imports its internals
    monkeypatch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", False)
    seen = []

    def spying(gm, inputs):
        seen.append((torch.backends.mkldnn.enabled, torch.backends.cudnn.benchmark))
        return nop(gm, inputs)

    assert graph.replay(compiler=spying).ok
    assert seen == [(False, True)]
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.benchmark) == (True, False)


def test_another_torch_is_named_where_results_differ(tmp_path):
    (graph,) = dump_of(torch.sin, torch.randn(3), folder=tmp_path)
    file = tmp_path / "one" / "index.json"
    document = json.loads(file.read_text())
    document["environment"]["torch"] = "2.0.0"
    file.write_text(json.dumps(document))
    (graph,) = load_dump(file)
    replay = graph.replay()
    assert replay.environment["torch"] == ("2.0.0", torch.__version__)


def test_times_are_taken_if_asked(tmp_path):
    (graph,) = dump_of(torch.sin, torch.randn(3), folder=tmp_path)
    assert graph.replay().seconds == ()
    replay = graph.replay(repeat=3)
    assert len(replay.seconds) == 3
    assert "median of 3" in str(replay)


# --- inputs --------------------------------------------------------------------------------------


def test_integers_lie_in_the_range_of_the_first_run_even_without_data(tmp_path):
    table, rows = torch.randn(50, 4), torch.tensor([[7, 41], [13, 9]])
    dumper = graph_dumper_aot("ints", tmp_path)
    compiled = torch.compile(
        lambda table, rows: nn.functional.embedding(rows, table), backend=dumper
    )
    compiled(table, rows)
    (graph,) = load_dump(dumper.path)
    assert not graph.has_data
    ranged = next(s for s in graph.specs if isinstance(s, TensorSpec) and s.range is not None)
    assert ranged.range == (7, 41)
    for seed in range(5):
        made = next(x for x in graph.inputs(seed=seed) if x.dtype == torch.int64)
        assert 7 <= made.min() <= made.max() <= 41
        assert graph.run(seed=seed) is not None


def test_none_writes_no_inputs_and_they_come_from_the_graph(tmp_path):
    dumper = graph_dumper_aot("none", tmp_path, example_inputs="none")
    x = torch.randn(3, 4).t()
    torch.compile(lambda x: x.sin() * x.shape[0], backend=dumper, dynamic=True)(x)
    (graph,) = load_dump(dumper.path)
    assert not list(graph.folder.glob("inputs*"))
    assert any(isinstance(spec, ScalarSpec) for spec in graph.specs)
    made = next(each for each in graph.inputs() if isinstance(each, torch.Tensor))
    assert (made.shape, made.stride()) == (x.shape, x.stride())
    assert graph.run() is not None


def test_an_input_that_the_graph_does_not_describe_is_named_and_not_made_up(tmp_path):
    gm = make_fx(lambda x, y: (x.sin(), y * 2), tracing_mode="fake")(torch.ones(2), torch.ones(3))
    node = next(iter(gm.graph.nodes))
    del node.meta["val"]
    dumper = graph_dumper_aot("none", tmp_path, example_inputs="none")
    dumper(gm, [torch.ones(2), torch.ones(3)])([torch.ones(2), torch.ones(3)])
    (graph,) = load_dump(dumper.path)
    assert isinstance(graph.specs[0], OpaqueSpec)
    assert graph.specs[0].name == node.name
    assert isinstance(graph.specs[1], TensorSpec)
    with pytest.raises(DumpFormatError, match=f"input '{node.name}' is a value that the graph"):
        graph.run()
    assert torch.equal(graph.run([torch.ones(2), torch.ones(3)])[1], torch.full((3,), 2.0))


def test_a_generator_without_a_recorded_state_gets_the_seed(monkeypatch):
    """As on cuda:0, for a graph that was recorded on cuda:1; the device is made up."""
    log = []

    class Module:
        get_rng_state = staticmethod(lambda device: torch.zeros(1, dtype=torch.uint8))
        set_rng_state = staticmethod(lambda state, device: log.append(f"put back {device}"))
        is_available = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 2)
        manual_seed = staticmethod(lambda seed: log.append(f"seed {seed}"))

    monkeypatch.setattr(torch, "get_device_module", lambda device=None: Module)
    recorded = {
        "random_cpu": torch.Generator().manual_seed(3).get_state(),
        "random_cuda:1": torch.ones(1, dtype=torch.uint8),
    }
    before = torch.get_rng_state()
    with random_state(recorded, 4, [torch.device("cuda:0")]):
        log.append(float(torch.rand(())))
    expected = float(torch.rand((), generator=torch.Generator().manual_seed(3)))
    assert log == ["seed 4", expected, "put back cuda:0"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_joint_graph_takes_the_values_of_its_halves(tmp_path):
    x = torch.randn(4, 3, requires_grad=True)
    joint, forward, backward = trained(lambda x: (x.sin() * x).tanh(), x, tmp_path)
    results, gradients = forward.run(), backward.run()
    whole = joint.run()
    torch.testing.assert_close(whole[0], results[0])
    torch.testing.assert_close(whole[1], gradients[0])


# --- any backend ---------------------------------------------------------------------------------


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))


BACKENDS = ["aot_eager", "aot_eager_decomp_partition", "inductor", "lazyfx_ts", "lazyfx_nop"]


@pytest.mark.parametrize("example_inputs", ["spec", "data", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_any_backend_compiles_is_dumped_and_stays_as_it_is(backend, example_inputs, tmp_path):
    module, x = model(), torch.randn(5, 4)
    module(x).sum().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    with dump_graphs("any", tmp_path, example_inputs=example_inputs) as dumper:
        torch.compile(module, backend=backend)(x).sum().backward()
    torch.testing.assert_close([p.grad for p in module.parameters()], expected)
    if backend == "lazyfx_nop":  # runs Dynamo's graph: AOTAutograd has no part in it
        assert dumper.path is None
        return
    dump = load_dump(dumper.path)
    assert [graph.phase for graph in dump] == ["joint", "forward", "backward"]
    assert len({graph.compile_id for graph in dump}) == 1
    for graph in dump.graphs[1:]:
        assert graph.replay().ok
        assert graph.has_outputs == (example_inputs == "data")


def test_aot_function_is_seen_and_code_outside_of_the_block_is_not(tmp_path):
    with dump_graphs("in", tmp_path) as dumper:
        aot_function(torch.sin, nop)(torch.randn(3, requires_grad=True)).sum().backward()
    aot_function(torch.cos, nop)(torch.randn(3))
    assert {graph.phase for graph in load_dump(dumper.path)} == {"joint", "forward", "backward"}
    assert "sin" in load_dump(dumper.path).graphs[0].code


def test_a_backward_that_is_compiled_after_the_block_belongs_to_it(tmp_path):
    with dump_graphs("late", tmp_path) as dumper:
        result = torch.compile(model(), backend="aot_eager", dynamic=True)(torch.randn(5, 4))
    result.sum().backward()
    assert [graph.phase for graph in load_dump(dumper.path)] == ["joint", "forward", "backward"]


def test_other_threads_are_not_dumped(tmp_path):
    seen = []

    def elsewhere():
        seen.append(torch.compile(torch.cos, backend="aot_eager")(torch.randn(3)))

    with dump_graphs("mine", tmp_path) as dumper:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        torch.compile(torch.sin, backend="aot_eager")(torch.randn(3))
    assert seen
    assert [dict(graph.ops) for graph in load_dump(dumper.path)] == [{"aten.sin.default": 1}]


def test_blocks_nest_and_torch_is_left_as_it_was(tmp_path):
    import torch._functorch.aot_autograd as torch_module
    import torch._functorch.config as config

    before, cache = dict(vars(torch_module)), config.enable_autograd_cache
    with dump_graphs("outer", tmp_path) as outer:
        with dump_graphs("inner", tmp_path) as inner:
            torch.compile(torch.sin, backend="aot_eager")(torch.randn(3))
        torch.compile(torch.cos, backend="aot_eager")(torch.randn(3))
    assert [len(load_dump(each.path)) for each in (outer, inner)] == [2, 1]
    changed = {k for k, v in vars(torch_module).items() if before.get(k) is not v}
    assert not changed
    assert config.enable_autograd_cache == cache


def test_interleaved_blocks_of_two_threads_leave_nothing_behind(tmp_path):
    import torch._functorch.aot_autograd as torch_module

    before = dict(vars(torch_module))
    config, cache = torch._functorch.config, torch._functorch.config.enable_autograd_cache
    torch._functorch.config.enable_autograd_cache = True
    entered, leave = threading.Event(), threading.Event()

    def other():
        with dump_graphs("other", tmp_path):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    with dump_graphs("main", tmp_path) as dumper:
        thread.start()
        assert entered.wait(20)
    leave.set()
    thread.join()
    seen, config.enable_autograd_cache = config.enable_autograd_cache, cache
    assert seen, "the cache is on again"
    assert {k for k, v in vars(torch_module).items() if before.get(k) is not v} == set()
    assert dumper.path is None


def test_one_block_can_be_open_in_two_threads(tmp_path):
    block = dump_graphs("both", tmp_path)
    entered, leave = threading.Event(), threading.Event()
    errors = []

    def other():
        try:
            with block:
                entered.set()
                leave.wait(20)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    with block as dumper:
        thread.start()
        assert entered.wait(20)
    leave.set()
    thread.join()
    assert errors == []
    torch.compile(torch.sin, backend="aot_eager")(torch.randn(3))
    assert dumper.path is None, "a block is still open"


def test_a_block_can_be_entered_again(tmp_path):
    block = dump_graphs("again", tmp_path)
    for function in (torch.sin, torch.cos):
        with block as dumper:
            torch.compile(function, backend="aot_eager")(torch.randn(3))
    assert len(load_dump(dumper.path)) == 2


def test_off_does_nothing(tmp_path):
    with dump_graphs("off", tmp_path, enabled=False) as dumper:
        torch.compile(torch.sin, backend="aot_eager")(torch.randn(3))
    assert dumper is None
    assert list(tmp_path.iterdir()) == []


def test_off_imports_nothing():
    program = """
import sys
from lazyfx_compilers import dump_graphs
before = set(sys.modules)
with dump_graphs("off", "nowhere", enabled=False):
    pass
assert set(sys.modules) == before, set(sys.modules) - before
assert not {"torch._functorch.aot_autograd", "torch._inductor", "safetensors"} & before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_bad_arguments_of_the_block_are_named(tmp_path):
    with pytest.raises(UnknownOptionError, match=r"dump_graphs\(name=3\)"):
        dump_graphs(3, tmp_path)
    with pytest.raises(UnknownOptionError, match="example_inputs='all'"):
        dump_graphs("x", tmp_path, example_inputs="all")
    with pytest.raises(UnknownOptionError, match="contradict"):
        graph_dumper_aot("x", tmp_path, True, example_inputs="none")


# --- the folder ----------------------------------------------------------------------------------


def test_a_rank_is_in_the_path_and_in_the_index(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    dump = dump_of(torch.sin, torch.randn(3), folder=tmp_path)
    assert dump.folder.name == "one_rank3"
    assert dump.rank == 3
    assert "rank 3" in (dump.folder / "index.md").read_text()


def test_several_dumps_below_a_folder_are_found(tmp_path, monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        dump_of(torch.sin, torch.randn(3), folder=tmp_path / "run")
    assert [p.name for p in find_dumps(tmp_path)] == ["one_rank0", "one_rank1"]


def test_the_overview_shows_names_as_text(tmp_path):
    name = "<script>alert(1)</script> | [x](y) `z`\n# title"
    dumper = graph_dumper_aot(name, tmp_path)
    dumper(make_fx(torch.sin)(torch.randn(3)), [torch.randn(3)])
    text = (dumper.path / "index.md").read_text()
    assert "<script>" not in text
    assert "\n# title" not in text
    assert "](y)" not in text.replace("\\]", "")
    assert "000_inference" in text
    assert "`aten.sin.default` 1" in text


def test_lazy_and_plain_modules_come_back_as_what_they_were(tmp_path):
    plain = make_fx(torch.sin)(torch.randn(3))
    for gm in (plain, lazyfx_core.LazyGraphModule.from_graphmodule(plain)):
        dumper = graph_dumper_aot("kind", tmp_path)
        dumper(gm, [torch.randn(3)])
        (graph,) = load_dump(dumper.path)
        again = graph.module()
        assert isinstance(again, lazyfx_core.LazyGraphModule) == (gm is not plain)
        assert isinstance(again, fx.GraphModule)


def test_a_graph_that_cannot_be_archived_is_still_described_with_one_warning(tmp_path, caplog):
    gm = make_fx(torch.sin)(torch.randn(3))
    gm.register_forward_hook(lambda *args: None)
    dumper = graph_dumper_aot("hooked", tmp_path)
    x = torch.randn(3)
    for _ in range(2):
        torch.testing.assert_close(dumper(gm, [x])(x), x.sin())
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    graph = load_dump(dumper.path).graphs[0]
    assert "hooks" in graph.not_stored
    assert "sin" in graph.code
    assert graph.inputs()[0].shape == (3,)
    with pytest.raises(DumpFormatError, match="could not be stored.*hooks"):
        graph.module()


def test_a_function_of_the_users_needs_to_be_allowed(tmp_path):
    gm = fx.symbolic_trace(model())
    with gm.graph.inserting_after(next(iter(gm.graph.nodes))) as _:
        pass
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(model, (x,)))
    dumper = graph_dumper_aot("mine", tmp_path)
    dumper(fx.GraphModule(nn.Module(), graph), [torch.randn(3)])
    (stored,) = load_dump(dumper.path)
    with pytest.raises(DumpFormatError, match=r"graph\.safetensors.*model"):
        stored.module()
    (stored,) = load_dump(dumper.path, allow=[model])
    assert any(node.target is model for node in stored.module().graph.nodes)


def test_the_device_can_be_another(tmp_path):
    def f(x):
        return x + torch.ones(3, device="cpu") + torch.tensor([1.0, 2.0, 3.0])

    (graph,) = dump_of(f, torch.randn(3), folder=tmp_path)
    moved = graph.module(device="meta")
    out = moved(torch.zeros(3, device="meta"))
    assert out.device.type == "meta"


def test_an_unknown_graph_is_named_beside_those_there_are(tmp_path):
    dump = dump_of(torch.sin, torch.randn(3), folder=tmp_path)
    assert dump["000_inference"] is dump.graphs[0]
    with pytest.raises(KeyError, match="007_forward.*000_inference"):
        dump["007_forward"]
