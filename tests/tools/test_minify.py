"""minify: the smallest graph that shows a planted fault, and a program that shows it elsewhere."""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import faulty_compilers as faulty
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import InvalidGraphError, NotCompilableError, ReproError
from lazyfx_compilers._repro import run_fresh
from lazyfx_compilers._torch_standalone import run_eagerly
from lazyfx_tools import crashes, diagnose, differs, minify, raises
from lazyfx_tools.errors import FaultNotFoundError
from lazyfx_tools.minimize._subset import smallest

pytestmark = pytest.mark.once

aten = torch.ops.aten
minify_module = sys.modules["lazyfx_tools.minimize._minify"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.more = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(-1, -2) / 3).softmax(-1) @ v)
        return x + self.down(F.gelu(self.up(F.dropout(self.more(x), 0.25, True))))


@pytest.fixture(scope="module")
def training():
    """The graph of a training step of three blocks, 400 nodes, and its inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(*[Block() for _ in range(3)])
    names = list(dict(net.named_parameters()))
    inputs = [p.detach().requires_grad_() for p in net.parameters()]

    def step(*args):
        params = dict(zip(names, args, strict=False))
        loss = torch.func.functional_call(net, params, args[-1:]).square().mean()
        return [loss, *torch.autograd.grad(loss, args[:-1])]

    gm = make_fx(step)(*inputs, torch.randn(2, 5, 8))
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm, [*inputs, torch.randn(2, 5, 8)]


def targets(gm: fx.GraphModule) -> list:
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


def run_script(script: Path, *arguments: str, **environment: str):
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        check=False,
        timeout=300,
    )


# --- the search ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 4))
def test_a_minimal_choice_is_found_for_every_choice_of_few_things(size):
    things = list(range(24))
    for needed in itertools.islice(itertools.combinations(things, size), 0, None, 29):
        asked = []

        def holds(choice, needed=needed, asked=asked):
            asked.append(choice)
            return set(needed) <= set(choice)

        assert smallest(things, holds) == list(needed)
        assert len(asked) <= 2 * size * math.log2(len(things) / size) + 4 * size


def test_a_property_that_more_things_take_away_still_gives_a_choice_that_has_it():
    things = list(range(16))

    def holds(choice):  # an even number of things, three and eleven among them
        return {3, 11} <= set(choice) and len(choice) % 2 == 0

    def contiguous(choice):
        first, last = choice[0], choice[-1]
        return {5, 9} <= set(choice) and list(choice) == list(range(first, last + 1))

    for asked in (holds, contiguous):
        found = smallest(things, asked)
        assert asked(found)
        assert len(found) < len(things)
        assert not any(asked([one for one in found if one != left]) for left in found)


def test_one_node_of_a_training_step_is_found_in_logarithmically_many_tries(training):
    gm, inputs = training
    found = minify(gm, inputs, faulty.has_gelu, verify=False)
    assert targets(found.graph) == [aten.gelu.default]
    assert found.complete
    assert (found.nodes_before, found.inputs_before) == (len(targets(gm)), len(inputs))
    assert found.tries <= 2 * math.log2(found.nodes_before) + 10
    assert (found.nodes_after, len(found.inputs), found.bytes_after) == (1, 1, 4)


def test_a_path_through_several_nodes_stays_a_path(training):
    gm, inputs = training
    found = minify(gm, inputs, faulty.softmax_into_product, verify=False)
    assert faulty.softmax_into_product(found.graph, found.inputs)
    assert (found.nodes_after, len(found.inputs)) == (4, 1)
    assert targets(found.graph)[0] is aten._softmax.default


def three_apart(gm, inputs):
    wanted = {aten.gelu.default, aten._softmax_backward_data.default, aten.bernoulli_.float}
    return wanted <= set(targets(gm))


def test_three_nodes_far_apart_are_found_where_the_reference_keeps_more(training):
    from functorch.compile import minifier

    gm, inputs = training
    asked = []

    def counted(candidate, values):
        asked.append(candidate)
        return three_apart(candidate, values)

    found = minify(gm, inputs, three_apart, verify=False)
    assert (found.nodes_after, len(found.inputs)) == (3, 1)
    reference, reference_inputs = minifier(gm, inputs, counted, dump_state=lambda *_: None)
    assert len(targets(reference)) > 3
    assert len(reference_inputs) > 1
    assert found.tries < len(asked)


def test_the_result_is_the_same_each_time(training):
    gm, inputs = training
    results = [minify(gm, inputs, three_apart, verify=False) for _ in range(2)]
    assert results[0].graph.code == results[1].graph.code
    assert results[0].tries == results[1].tries
    for one, other in zip(results[0].inputs, results[1].inputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_neither_graph_nor_inputs_nor_random_state_change(training):
    gm, inputs = training
    code, before = gm.code, [one.detach().clone() for one in inputs]

    def greedy(candidate, values):
        for value in values:
            value.detach().zero_()
        held = faulty.has_gelu(candidate, values)
        candidate.graph = fx.Graph()
        torch.manual_seed(77)
        return held

    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = minify(gm, inputs, greedy, verify=False)
    assert targets(found.graph) == [aten.gelu.default]
    assert any(value.abs().sum() > 0 for value in found.inputs)
    assert gm.code == code
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(inputs, before, strict=True):
        assert torch.equal(one, other)


def test_a_graph_that_starts_cuda_is_run_again_with_generators_that_are_seeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, started = torch.Generator().manual_seed(7), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", cuda.manual_seed)

    def draw(x: torch.Tensor) -> torch.Tensor:
        started.append(1)
        return x + torch.rand(2, generator=cuda)

    graph = fx.Graph()
    graph.output((graph.call_function(draw, (graph.placeholder("x"),)),))
    gm = fx.GraphModule({}, graph)
    ((first,), _), ((second,), _) = (run_eagerly(gm, [torch.zeros(2)]) for _ in range(2))
    assert torch.equal(first, second)


def test_every_graph_the_predicate_sees_is_valid_and_runs(training):
    gm, inputs = training

    def valid(candidate, values):
        candidate.graph.lint()
        assert len(values) == sum(n.op == "placeholder" for n in candidate.graph.nodes)
        results = candidate(*values)
        assert all(isinstance(one, torch.Tensor) for one in results)
        return three_apart(candidate, values)

    found = minify(gm, inputs, valid, verify=False)
    assert found.nodes_after == 3
    assert (found.failed_tries, found.first_failure) == (0, None)


def test_values_that_become_inputs_are_those_of_the_whole_graph(device):
    def f(x):
        return (x * 3 + 1).sin().exp()

    x = torch.randn(4).to(device)
    gm = make_fx(f)(x)

    def has_these_values(candidate, values):
        return aten.sin.default in targets(candidate) and torch.equal(values[0], x * 3 + 1)

    def sine_is_first(candidate, values):
        return aten.sin.default in targets(candidate) and (
            len(targets(candidate)) > 2 or has_these_values(candidate, values)
        )

    found = minify(gm, [x], sine_is_first, verify=False)
    assert targets(found.graph) == [aten.sin.default]
    torch.testing.assert_close(found.inputs[0], x * 3 + 1, rtol=0, atol=0)


def test_what_draws_random_numbers_goes_first_since_it_may_differ_for_its_own_reasons(device):
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.GELU(), nn.Dropout(0.5)).to(device)
    fault = differs(faulty.adds_to_gelu_and_draws_otherwise)
    found = minify(net, [torch.randn(3, 4).to(device)], fault, verify=False)
    assert targets(found.graph) == [aten.gelu.default]


def test_what_happens_to_be_in_memory_is_not_compared(device):
    def f(x):
        return (F.gelu(x * torch.empty_like(x).fill_(2.0)),)

    gm = make_fx(f)(x := torch.randn(64).to(device))
    found = minify(gm, [x], differs(faulty.adds_to_gelu), verify=False)
    assert targets(found.graph) == [aten.gelu.default]
    seen = []

    def note(candidate, values):
        (output,) = (node for node in candidate.graph.nodes if node.op == "output")
        seen.extend(node.target for node in output.all_input_nodes)
        return True

    minify(gm, [x], note, verify=False)
    assert aten.empty_like.default not in seen
    assert aten.fill_.Scalar in seen


def test_graphs_of_a_function_can_be_decomposed_first(device):
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU()).to(device)
    table = torch._decomp.get_decompositions([aten.gelu])
    found = minify(net, [torch.randn(3, 4).to(device)], has_erf, verify=False, decompositions=table)
    assert targets(found.graph) == [aten.erf.default]


def has_erf(gm, inputs):
    return aten.erf.default in targets(gm)


def test_an_error_of_another_kind_is_not_taken_for_the_fault(device):
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)).to(device)
    fault = raises(faulty.needs_both, match="gelu of a product")
    found = minify(net, [torch.randn(3, 4).to(device)], fault, verify=False)
    assert set(targets(found.graph)) == {aten.addmm.default, aten.gelu.default}
    assert found.failed_tries > 0
    assert found.first_failure == "RuntimeError: something else"
    assert "the predicate raised" in str(found)
    loose = minify(net, [torch.randn(3, 4).to(device)], raises(faulty.needs_both), verify=False)
    assert targets(loose.graph) == [aten.gelu.default]


# --- programs --------------------------------------------------------------------------------


def test_the_program_shows_the_fault_elsewhere_and_not_when_it_is_mended(tmp_path, caplog, device):
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).to(device)
    with caplog.at_level(logging.INFO, "lazyfx_tools.minify"):
        found = minify(
            net, [torch.randn(3, 4).to(device)], differs(faulty.adds_to_gelu), folder=tmp_path
        )
    assert found.verified
    assert found.script == tmp_path / "000" / "repro.py"
    (said,) = [r for r in caplog.records if r.name == "lazyfx_tools.minify"]
    assert said.levelno == logging.INFO
    before = f"{found.nodes_before} nodes -> 1, {found.inputs_before} inputs -> 1"
    assert before in said.getMessage()
    assert f"{found.script}: in a fresh process it shows the fault" in said.getMessage()
    moved = tmp_path / "moved"
    shutil.copytree(found.folder, moved)
    shutil.rmtree(found.folder)
    done = run_script(moved / "repro.py")
    assert (done.returncode, done.stderr) == (1, "")
    assert "the fault is there: differs: output 0: Tensor-likes are not close" in done.stdout
    mended = run_script(moved / "repro.py", "--device", "cpu", FIXED="1")
    assert (mended.returncode, mended.stderr) == (0, "")
    blocker = tmp_path / "block"
    blocker.mkdir()
    ours = "lazyfx_tools", "lazyfx_compilers", "lazyfx_core"
    for absent in ("faulty_compilers", *ours, "safetensors"):
        (blocker / f"{absent}.py").write_text("raise ImportError('absent')")
    alone = run_script(moved / "repro.py", PYTHONPATH=str(blocker))
    assert (alone.returncode, alone.stderr) == (125, "")
    assert "the graph runs: outputs: 1" in alone.stdout
    assert "the compiler is missing: absent" in alone.stdout
    assert not any("pickle" in file.read_text() for file in moved.glob("*.py"))
    names = {file.suffix for file in moved.iterdir()}
    assert names == {".py", ".json", ".safetensors"}


def test_a_fault_of_the_backward_is_found_from_the_function(tmp_path, device):
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)).to(device)
    fault = raises(faulty.refuses_gelu_backward, match="cannot lower")
    found = minify(net, [torch.randn(3, 4).to(device)], fault, folder=tmp_path)
    assert targets(found.graph) == [aten.gelu_backward.default]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert found.verified
    assert "NotImplementedError: cannot lower node 'gelu_backward'" in found.verification


CASES = {
    "written inputs": (
        lambda x: (x.add_(1), x * 2),
        lambda device: [torch.zeros(3, device=device)],
        differs(faulty.forgets_writes),
        "afterwards",
    ),
    "strides and offsets": (
        lambda x, y: (x.sin() + y,),
        lambda device: [
            torch.randn(5, 7, device=device).t()[2:6, 1:4],
            torch.randn(4, 3, device=device),
        ],
        raises(faulty.wants_no_stride),
        "strides",
    ),
    "shared memory": (
        lambda x, y: (x.sin() + y,),
        lambda device: (lambda both: [both[:3], both[1:4]])(torch.randn(5, device=device)),
        raises(faulty.wants_no_sharing),
        "inputs share memory",
    ),
    "constants": (
        lambda x: (x.cos() + torch.tensor([1.0, 7.0, 2.0], device=x.device), x.sin()),
        lambda device: [torch.randn(3, device=device)],
        raises(faulty.wants_no_large_constant),
        "a seven",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_program_has_what_the_fault_depends_on(name, tmp_path, device):
    function, make, fault, said = CASES[name]
    inputs = make(device)
    gm = make_fx(function)(*inputs)
    found = minify(gm, inputs, fault, folder=tmp_path)
    assert found.verified
    assert said in found.verification or said in run_script(found.script).stdout
    assert found.nodes_after <= 2


def test_sizes_that_are_inputs_stay_inputs_where_the_fault_needs_them(tmp_path, device):
    def f(x):
        return x.sin().view(x.shape[0] * 2, -1).cos() + x.shape[0]

    torch._dynamo.mark_dynamic(x := torch.randn(6, 4).to(device), 0)
    found = minify(f, [x], raises(faulty.wants_no_numbers), folder=tmp_path)
    assert found.verified
    assert [one for one in found.inputs if isinstance(one, int)] == [6]
    free = minify(f, [x], has_cosine, verify=False)
    assert targets(free.graph) == [aten.cos.default]
    assert not any(isinstance(one, int) for one in free.inputs)


def test_a_function_can_be_searched_often_and_is_compiled_by_others_as_before(device):
    def f(x):
        return x.sin().cos()

    for _ in range(10):  # Dynamo gives up on a function that it has compiled eight times
        assert minify(f, [torch.randn(3).to(device)], has_cosine, verify=False).nodes_after == 1
    counter = torch._dynamo.testing.CompileCounter()
    torch.compile(f, backend=counter)(torch.randn(3).to(device))
    assert counter.frame_count == 1


def has_cosine(gm, inputs):
    return aten.cos.default in targets(gm)


def test_higher_order_operators_keep_their_graphs(tmp_path, device):
    def f(x):
        y = torch.cond(x.sum() > 0, lambda x: x.sin() + 1, lambda x: x.cos(), (x.exp(),))
        return y.tanh()

    fault = raises(faulty.wants_no_graphs_in_graphs, match="a graph in a graph")
    found = minify(f, [torch.randn(3).to(device)], fault, folder=tmp_path)
    assert targets(found.graph)[:1] == [torch.ops.higher_order.cond]
    assert found.verified


def test_names_that_are_no_names_in_python_do_no_harm(tmp_path, device):
    graph = fx.Graph()
    x = graph.placeholder("x")
    value = x
    for name in ("torch", "len", "operator", "class", "constants", "graph", "json", "main"):
        value = graph.create_node("call_function", aten.sin.default, (value,), {}, name=name)
        value.name = name  # fx has made another of some
    value.name = "not a name\n'''"
    split = graph.call_function(aten.split.Tensor, (value, 2))
    graph.output((graph.call_function(__import__("operator").getitem, (split, 1)),))
    gm = fx.GraphModule({}, graph)
    found = minify(gm, [torch.randn(4).to(device)], has_all_sines, folder=tmp_path, verify=False)
    assert found.script is not None
    assert found.nodes_after == 8
    assert "the graph runs: outputs: 1" in run_script(found.script).stdout


def test_a_node_called_as_a_function_of_the_program_does_no_harm(tmp_path, device):
    def f(x):
        return torch.cond(x.sum() > 0, lambda x: x.sin() + 1, lambda x: x.cos(), (x,))

    x = torch.randn(3).to(device)
    gm = make_fx(f)(x)
    next(iter(gm.graph.nodes)).name = "build_0"
    gm.recompile()
    fault = raises(faulty.wants_no_graphs_in_graphs, match="a graph in a graph")
    assert minify(gm, [x], fault, folder=tmp_path).verified


def has_all_sines(gm, inputs):
    return targets(gm).count(aten.sin.default) == 8


# --- processes that die ----------------------------------------------------------------------


def test_a_compiler_that_ends_the_process_ends_another_one(tmp_path, device):
    gm = make_fx(lambda x: (F.gelu(x.sin()),))(x := torch.randn(1).to(device))
    found = minify(gm, [x], crashes(faulty.dies_at_gelu), folder=tmp_path)
    assert targets(found.graph) == [aten.gelu.default]
    assert found.verified
    assert "the fault is there: crashes: the process dies with status -9" in found.verification
    assert crashes(faulty.leaves_at_gelu)(gm, [x])  # without a signal, and with status 0


def test_what_is_wrong_is_found_by_looking(device):
    gm = make_fx(lambda x: (F.gelu(x.sin()) + 1,))(x := torch.randn(3).to(device))
    assert diagnose("faulty_compilers:adds_to_gelu", gm, [x]).kind == "differs"
    fault = diagnose(faulty.needs_both, gm, [x])
    assert (fault.kind, fault(gm, [x])) == ("raises", True)
    assert fault.match.startswith("^RuntimeError")
    assert diagnose(faulty.dies_at_gelu, gm, [x]).kind == "crashes"
    assert diagnose("faulty_compilers:refuses_gelu_backward", gm, [x]) is None
    with pytest.raises(ReproError, match="cannot tell.*missing"):
        diagnose("no_such_module:compiler", gm, [x])


def test_a_backend_of_torch_compile_can_be_given_by_name(device):
    gm = make_fx(lambda x: (F.gelu(x.sin()) + 1,))(x := torch.randn(3).to(device))
    assert differs("aot_eager")(gm, [x]) is False
    with pytest.raises(FaultNotFoundError):
        minify(gm, [x], differs("aot_eager"))


# --- what goes wrong -------------------------------------------------------------------------


def test_a_predicate_that_never_holds_is_an_error_that_says_so(training, device):
    gm, inputs = training
    with pytest.raises(FaultNotFoundError, match=r"minify.*no fault to begin with.*does not hold"):
        minify(gm, inputs, lambda gm, inputs: False)

    def broken(gm, inputs):
        raise KeyError("oops")

    with pytest.raises(FaultNotFoundError, match="raises KeyError: 'oops'") as caught:
        minify(gm, inputs, broken)
    assert isinstance(caught.value.__cause__, KeyError)
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU()).to(device)
    with pytest.raises(FaultNotFoundError, match=r"graph 0 \(forward\).*graph 1 \(backward\)"):
        minify(net, [torch.randn(3, 4).to(device)], lambda gm, inputs: False)


def test_a_predicate_that_does_not_always_hold_is_noted_and_asked_again(training):
    gm, inputs = training
    times = itertools.count()

    def sometimes(candidate, values):
        return next(times) % 2 == 0 and faulty.has_gelu(candidate, values)

    found = minify(gm, inputs, sometimes, verify=False)
    assert found.flaky
    assert "does not always say the same" in str(found)
    assert targets(found.graph) == [aten.gelu.default]


def test_a_predicate_without_a_name_gives_a_program_that_says_it_cannot_tell(
    tmp_path, caplog, device
):
    gm = make_fx(lambda x: (F.gelu(x.sin()),))(x := torch.randn(3).to(device))
    with caplog.at_level(logging.INFO, "lazyfx_tools.minify"):
        found = minify(gm, [x], lambda gm, inputs: faulty.has_gelu(gm, inputs), folder=tmp_path)
    assert not found.verified
    assert "has no name that another process can import" in found.verification
    (said,) = [r for r in caplog.records if r.name == "lazyfx_tools.minify"]
    assert said.levelno == logging.WARNING
    assert "does not show the fault" in said.getMessage()
    text = found.script.read_text()
    assert "# the predicate was:" in text
    assert "faulty.has_gelu(gm, inputs)" in text
    assert run_script(found.script).returncode == 125


def test_a_program_that_does_not_show_the_fault_is_said_not_to(
    tmp_path, caplog, monkeypatch, device
):
    gm = make_fx(lambda x: (F.gelu(x.sin()),))(x := torch.randn(3).to(device))
    fault = differs(faulty.adds_to_gelu)
    monkeypatch.setattr(minify_module, "run_fresh", run_where_it_is_mended)
    with caplog.at_level(logging.INFO, "lazyfx_tools.minify"):
        found = minify(gm, [x], fault, folder=tmp_path)
    assert targets(found.graph) == [aten.gelu.default]
    assert not found.verified
    assert "does not show the fault, it shows no fault" in found.verification
    assert "the compiled graph agrees with the graph" in found.verification
    (said,) = [r for r in caplog.records if r.name == "lazyfx_tools.minify"]
    assert said.levelno == logging.WARNING


def run_where_it_is_mended(script):
    os.environ["FIXED"] = "1"
    try:
        return run_fresh(script)
    finally:
        del os.environ["FIXED"]


def test_a_budget_ends_the_search_with_what_was_found(training):
    gm, inputs = training
    found = minify(gm, inputs, faulty.has_gelu, verify=False, max_tries=8)
    assert not found.complete
    assert found.tries == 8
    assert 1 < found.nodes_after < found.nodes_before
    assert "out of tries or time" in str(found)
    at_once = minify(gm, inputs, faulty.has_gelu, verify=False, timeout=0)
    assert (at_once.nodes_after, at_once.complete) == (at_once.nodes_before, False)


def test_an_unwritable_folder_does_not_lose_the_search(tmp_path, device):
    (tmp_path / "file").write_text("")
    gm = make_fx(lambda x: (F.gelu(x.sin()),))(x := torch.randn(3).to(device))
    found = minify(gm, [x], faulty.has_gelu, folder=tmp_path / "file" / "sub")
    assert targets(found.graph) == [aten.gelu.default]
    assert (found.script, found.folder, found.verified) == (None, None, False)
    assert "not written" in found.verification
    assert "cannot be written" in found.verification


def test_wrong_arguments_are_errors(device):
    gm = make_fx(lambda x, y: x + y)(x := torch.randn(3).to(device), x)
    with pytest.raises(NotCompilableError, match=r"takes 2 inputs \(x_1, y_1\), got 1"):
        minify(gm, [x], faulty.has_gelu)
    with (
        torch._subclasses.FakeTensorMode() as mode,
        pytest.raises(NotCompilableError, match="'x_1' is a fake tensor"),
    ):
        minify(gm, [mode.from_tensor(x), x], faulty.has_gelu)
    with pytest.raises(NotCompilableError, match="takes a graph module, a function"):
        minify(3, [x], faulty.has_gelu)
    with pytest.raises(ReproError, match=r"crashes.*importable module"):
        crashes(lambda gm, inputs: gm)
    add = next(node for node in gm.graph.nodes if node.op == "call_function")
    add.target = "no function"
    with pytest.raises(InvalidGraphError):
        minify(gm, [x, x], faulty.has_gelu)


def test_progress_is_told_and_a_pipe_is_not_written_to(training, capsys, monkeypatch):
    gm, inputs = training
    told = []
    found = minify(gm, inputs, faulty.has_gelu, verify=False, progress=told.append)
    assert [one.tries for one in told] == list(range(1, found.tries + 1))
    assert told[0].nodes == found.nodes_before
    assert told[-1].nodes == 1
    minify(gm, inputs, faulty.has_gelu, verify=False)
    assert capsys.readouterr().err == ""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    minify(gm, inputs, faulty.has_gelu, verify=False)
    assert "minify: try 1, " in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith(" \r")


def test_the_reference_says_it_wrote_a_program_and_did_not(tmp_path, monkeypatch, capsys):
    from functorch.compile import minifier

    monkeypatch.chdir(tmp_path)
    gm = make_fx(lambda x: (F.gelu(x.sin()) + 1,))(x := torch.randn(3))
    minifier(gm, [x], faulty.has_gelu)
    assert "Wrote minimal repro out to repro.py" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
