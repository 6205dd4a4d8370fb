"""A compiler's first wrong node is named, and a right compiler is not accused."""

import itertools
import random

import planted_faults
import pytest
import torch
import torch.nn.functional as F
from planted_faults import KINDS, MODELS, Fault, Recorder, faulty, made
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.torch_version import TorchVersion

from lazyfx_compilers import nop, ts_compile
from lazyfx_compilers.errors import NotCompilableError, UnknownOptionError
from lazyfx_tools.compare import compare_compiled, compare_graph
from lazyfx_tools.compare._graphs import alone, whole
from lazyfx_tools.errors import DivergenceError
from lazyfx_tools.minimize import minify

pytestmark = pytest.mark.once

aten = torch.ops.aten
REFERENCES = ["eager", "float64"]


# --- planted faults ----------------------------------------------------------------------------


def recorded(name, device):
    """The graphs of a model with their values: forward, backward and inference."""
    for grad in (True, False):
        model, x, dynamic = made(name, device)
        recorder = Recorder()
        with torch.set_grad_enabled(grad):
            compare_compiled(model, (x,), recorder, every_node=False, dynamic=dynamic)
        yield from recorder.graphs


def inputs_of(gm, values):
    return [values[node.name] for node in gm.graph.nodes if node.op == "placeholder"]


def matters(fault, gm, values):
    """Whether a fault makes its node, run by itself, give something else."""
    node = next(one for one in gm.graph.nodes if one.name == fault.node)
    problem = whole(gm, inputs_of(gm, values), [None] * len(inputs_of(gm, values)))
    results = []
    for wrong in (False, True):
        part = alone(problem, node, values)
        if wrong:
            assert fault.plant(part.gm.graph)
            part.gm.recompile()
        inputs = [part.values[one] for one in part.inputs]
        inputs = [one.clone() if isinstance(one, torch.Tensor) else one for one in inputs]
        results.append((part.gm(*inputs), inputs))
    try:
        torch.testing.assert_close(results[1], results[0], equal_nan=True, check_stride=True)
    except AssertionError:
        return True
    return False


def drawn(gm, values, seed):
    """One fault of each kind that can be planted in a graph and matters."""
    generator = random.Random(seed)
    for kind, change in KINDS.items():
        nodes = [one for one in gm.graph.nodes if one.op == "call_function" and change(one)]
        generator.shuffle(nodes)
        faults = (Fault(kind, one.name, str(one.target)) for one in nodes)
        yield from itertools.islice((one for one in faults if matters(one, gm, values)), 1)


CASES = {  # at least so many on the CPU; other devices may have other operators
    ("mlp", "eager"): 20,
    ("mlp", "float64"): 20,
    ("conv and batch norm", "eager"): 18,
    ("conv and batch norm", "float64"): 18,
    ("transformer block", "eager"): 24,
    ("transformer block", "float64"): 24,
    ("in place", "eager"): 22,
    ("in place", "float64"): 22,
    ("mlp, dynamic", "float64"): 20,
    ("transformer block, dynamic", "eager"): 24,
}


@pytest.mark.parametrize(("name", "reference"), CASES)
def test_every_planted_fault_is_named(name, reference, device):
    named = []
    for number, (gm, values) in enumerate(recorded(name, device)):
        inputs = inputs_of(gm, values)
        assert compare_graph(gm, inputs, nop, reference).agrees
        for fault in drawn(gm, values, f"{name} {number} {reference}"):
            report = compare_graph(gm, inputs, faulty(fault.plant), reference)
            assert report.divergence is not None, fault
            assert (report.divergence.node, report.divergence.alone) == (fault.node, True), fault
            named.append(fault.kind)
    assert len(named) >= CASES[name, reference] * (1 if device.type == "cpu" else 0.75)


def test_there_are_more_than_a_hundred_such_cases():
    assert sum(CASES.values()) > 200
    assert {name for name, _ in CASES} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_faults_in_forward_and_backward_are_both_named_in_a_training_step(name, device):
    graphs = list(recorded(name, device))[:2]
    names = [{one.name for one in gm.graph.nodes} for gm, _ in graphs]
    faults = []
    for number, (gm, values) in enumerate(graphs):
        choices = [one for one in drawn(gm, values, name) if one.node not in names[1 - number]]
        faults.append(random.Random(name).choice(choices))

    def plant(graph):
        return [one.plant(graph) for one in faults]

    model, x, dynamic = made(name, device)
    report = compare_compiled(model, (x,), faulty(plant), dynamic=dynamic)
    assert [one.node for one in report.divergences] == [one.node for one in faults]
    assert [one.phase for one in report.divergences] == ["forward", "backward"]
    assert report.divergence is report.divergences[0]
    for divergence in report.divergences:
        assert "planted_faults.py" in divergence.user_line


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("compiler", [nop, ts_compile])
@pytest.mark.parametrize("name", MODELS)
def test_a_right_compiler_agrees(name, compiler, reference, device):
    model, x, dynamic = made(name, device)
    report = compare_compiled(model, (x,), compiler, reference, dynamic=dynamic)
    assert report.agrees, report
    assert [one.phase for one in report.graphs] == ["forward", "backward"]
    assert not report.redrawn
    assert not report.nondeterministic
    assert not any(one.unseen for one in report.graphs)


@pytest.mark.parametrize("backend", ["lazyfx_nop", "lazyfx_ts", "aot_eager"])
def test_a_backend_by_name_agrees(backend, device):
    model, x, _ = made("transformer block", device)
    report = compare_compiled(model, (x,), backend)
    assert report.agrees, report
    assert report.compiler == backend


@pytest.mark.parametrize(
    ("name", "reference"), [("mlp", "float64"), ("transformer block, dynamic", "eager")]
)
def test_inductor_agrees(name, reference, device):
    model, x, dynamic = made(name, device)
    report = compare_compiled(model, (x,), "inductor", reference, dynamic=dynamic)
    assert report.agrees, report
    assert not any(one.unseen for one in report.graphs)


def test_half_precision_and_autocast_agree(device):
    model, x, _ = made("mlp", device)
    assert compare_compiled(model.bfloat16(), (x.bfloat16(),), nop, "float64").agrees
    model, x, _ = made("transformer block", device)

    def autocast(x):
        with torch.autocast(device.type, torch.bfloat16):
            return model(x)

    assert compare_compiled(autocast, (x,), nop, "float64").agrees


# --- the report --------------------------------------------------------------------------------


def double_sine(gm, example_inputs):
    """Wrong in one element of every sine: it is twice as large."""
    for node in list(gm.graph.nodes):
        if node.target is aten.sin.default:
            with gm.graph.inserting_after(node):
                wrong = gm.graph.call_function(first_doubled, (node,))
            node.replace_all_uses_with(
                wrong, delete_user_cb=lambda user, new=wrong: user is not new
            )
    gm.recompile()
    return nop(gm, example_inputs)


def first_doubled(tensor):
    made = tensor.clone()
    made[0, 0] *= 2
    return made


def sines(x):
    return (x * 3.0).sin() + 1.0


def test_the_report_tells_how_wrong_where_and_on_what(device):
    x = torch.full((2, 3), 0.25, device=device)
    report = compare_compiled(sines, (x,), double_sine)
    found = report.divergence
    expected = torch.tensor(0.75, device=device).sin().item()
    assert (found.phase, found.graph, found.what) == ("inference", 0, "values")
    assert found.target == "aten.sin.default"
    assert "test_compare.py" in found.user_line
    assert "(x * 3.0).sin() + 1.0" in found.user_line
    errors = found.errors
    assert (errors.differing, errors.elements, errors.position) == (1, 6, (0, 0))
    assert errors.expected == pytest.approx(expected)
    assert errors.seen == pytest.approx(2 * expected)
    assert errors.max_abs == pytest.approx(expected)
    assert errors.max_rel == pytest.approx(1.0)
    assert errors.ulps == 2**23  # one binade
    assert 0 <= errors.reference_error < 3e-7
    (taken,) = found.inputs
    assert (taken.dtype, taken.shape, taken.nans, taken.infinities) == ("float32", (2, 3), 0, 0)
    assert taken.minimum == taken.maximum == taken.mean == 0.75
    assert found.also == 1  # the sum
    assert found.alone
    assert found.deterministic
    text = str(report)
    for part in ("sines", "double_sine", found.node, "1 of 6", "8388608 ulps", "[0, 0]", "mul:"):
        assert part in text
    with pytest.raises(DivergenceError, match="sines") as caught:
        report.raise_if_diverged()
    assert caught.value.comparison is report


def test_a_report_of_a_right_compiler_says_so_and_does_not_raise(device):
    report = compare_compiled(sines, (torch.ones(2, device=device),), nop)
    assert (
        str(report)
        == "sines, compiled with nop, held against eager: agrees (1 graphs, 3 operators)"
    )
    report.raise_if_diverged()


def planted(kind, model, x, target):
    recorder = Recorder()
    compare_compiled(model, (x,), recorder, every_node=False)
    node = next(
        one for gm, _ in recorder.graphs for one in gm.graph.nodes if str(one.target) == target
    )
    return Fault(kind, node.name, target)


@pytest.mark.parametrize(
    ("kind", "target", "what"),
    [
        ("fp16 overflow", "aten.add.Tensor", "nan"),
        ("wrong dtype", "aten.add.Tensor", "dtype"),
        ("wrong stride", "aten.add.Tensor", "strides"),
        ("wrong constant", "aten.add.Tensor", "values"),
    ],
)
def test_the_report_says_what_differs(kind, target, what, device):
    def large(x):
        return x * 1e6 + 1e5

    x = torch.ones(2, 3, device=device)
    fault = planted(kind, large, x, target)
    found = compare_compiled(large, (x,), faulty(fault.plant)).divergence
    assert (found.node, found.what) == (fault.node, what)
    assert (found.errors is None) is (what in ("dtype", "strides"))


def test_a_mutation_that_is_left_out_is_called_one(device):
    def counted(x, total):
        total.add_(x.sum())
        return x * 2

    arguments = (torch.ones(3, device=device), torch.zeros((), device=device))
    fault = Fault("dropped mutation", "copy_", "aten.copy_.default")
    found = compare_compiled(counted, arguments, faulty(fault.plant)).divergence
    assert (found.node, found.what) == (fault.node, "mutation")
    assert "total.add_(x.sum())" in found.user_line
    assert (found.errors.expected, found.errors.seen) == (3.0, 0.0)
    assert arguments[1] == 0


def test_float64_finds_what_is_within_eagers_tolerance(device):
    def normalized(x):
        return F.layer_norm(x, (8,))

    x = torch.randn(4, 8).to(device) * 1.3
    fault = planted("missing eps", normalized, x, "aten.native_layer_norm.default")
    compiler = faulty(fault.plant)
    assert compare_compiled(normalized, (x,), compiler, "eager").agrees
    assert compare_compiled(normalized, (x,), compiler, "float64").divergence.node == fault.node
    assert not compare_compiled(normalized, (x,), compiler, rtol=1e-7, atol=0.0).agrees


def test_an_error_that_no_result_shows_is_found_only_when_every_node_is_looked_at(device):
    def hidden(x):
        return (x.sin() * 1e-9) + 100.0

    x = torch.ones(2, 2, device=device)
    assert compare_compiled(hidden, (x,), double_sine).divergence.target == "aten.sin.default"
    assert compare_compiled(hidden, (x,), double_sine, every_node=False).agrees


# --- random numbers ----------------------------------------------------------------------------


def dropped(x):
    return F.dropout(x.exp(), 0.4) * 2.0 + F.dropout(x, 0.3)


def draws_differently(gm, example_inputs):
    """Right, but its random stream is ahead of eager's."""
    run = nop(gm, example_inputs)

    def ahead(*inputs):
        torch.rand(3, device=next(one.device for one in inputs if isinstance(one, torch.Tensor)))
        return run(*inputs)

    return ahead


def random_names(fn, x):
    recorder = Recorder()
    compare_compiled(fn, (x,), recorder, every_node=False)
    return tuple(
        node.name
        for gm, _ in recorder.graphs
        for node in gm.graph.nodes
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    )


def test_a_compiler_that_draws_other_numbers_agrees_and_the_report_says_so(device):
    x = torch.randn(16, 16).to(device).requires_grad_()
    report = compare_compiled(dropped, (x,), draws_differently, "float64")
    assert report.agrees, report
    assert report.redrawn == random_names(dropped, x)
    assert len(report.redrawn) == 2
    assert report.redrawn[0] in str(report)


def test_a_fault_behind_other_random_numbers_is_named(device):
    x = torch.randn(16, 16).to(device).requires_grad_()
    fault = planted("wrong constant", dropped, x, "aten.mul.Tensor")
    report = compare_compiled(dropped, (x,), faulty(fault.plant, draws_differently))
    assert report.divergence.node == fault.node
    assert report.redrawn


@pytest.mark.parametrize("compiler", [nop, draws_differently])
def test_a_dropout_with_another_probability_is_named(compiler, device):
    def plant(graph):
        for node in graph.nodes:
            if node.target is aten.native_dropout.default:
                node.args = (node.args[0], node.args[1] - 0.1, node.args[2])

    x = torch.randn(16, 16).to(device)
    report = compare_compiled(dropped, (x,), faulty(plant, compiler))
    assert report.divergence.node == random_names(dropped, x)[0]


def test_a_random_operator_of_another_dtype_is_named(device):
    def noise(x):
        return x + torch.rand_like(x)

    def plant(graph):
        for node in graph.nodes:
            if node.target is aten.rand_like.default:
                node.kwargs = {**node.kwargs, "dtype": torch.float64}

    found = compare_compiled(
        noise, (torch.ones(4, device=device),), faulty(plant, draws_differently)
    ).divergence
    assert (found.node, found.what) == ("rand_like", "dtype")


# --- operators that differ from run to run -----------------------------------------------------


_RUNS = itertools.count(1)


@torch.library.custom_op("lazyfx_compare_test::noisy", mutates_args=())
def noisy(x: torch.Tensor) -> torch.Tensor:
    return x + float(next(_RUNS))


@noisy.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def with_noise(x):
    return (noisy(x * 2.0) - x).sin() + 1.0


def test_an_operator_that_differs_from_itself_is_named_and_nothing_else_is_blamed(device):
    x = torch.ones(3, 3, device=device)
    report = compare_compiled(with_noise, (x,), nop)
    assert report.agrees, report
    assert report.nondeterministic == ("noisy",)
    assert "from run to run in noisy" in str(report)
    assert compare_compiled(with_noise, (x,), double_sine).divergence.target == "aten.sin.default"


def test_determinism_is_checked_on_demand_where_nothing_else_differs(device):
    @torch.library.custom_op("lazyfx_compare_test::unseen", mutates_args=())
    def unseen(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 1e-7 * (next(_RUNS) % 2))

    unseen.register_fake(torch.empty_like)

    def nearly(x):
        return unseen(x) * 2.0

    x = torch.ones(3, device=device)
    assert not compare_compiled(nearly, (x,), nop).nondeterministic
    report = compare_compiled(nearly, (x,), nop, check_determinism=True)
    assert report.agrees
    assert report.nondeterministic == ("unseen",)


def test_a_compiled_graph_that_differs_from_itself_is_said_to(device):
    def unsteady(tensor):
        return tensor + next(_RUNS)

    def plant(graph):
        for node in list(graph.nodes):
            if node.target is aten.sin.default:
                with graph.inserting_after(node):
                    wrong = graph.call_function(unsteady, (node,))
                node.replace_all_uses_with(
                    wrong, delete_user_cb=lambda user, new=wrong: user is not new
                )

    found = compare_compiled(sines, (torch.ones(2, 2, device=device),), faulty(plant)).divergence
    assert found.target == "aten.sin.default"
    assert not found.deterministic
    assert "another value each time" in str(found)


# --- faults of other kinds ---------------------------------------------------------------------


def chain(x):
    y = x * 2.0
    z = y + 3.0
    return z.sin() * y.cos()


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_the_node_that_a_compiler_cannot_take_is_named(when, device):
    def refuses(gm, example_inputs):
        def fail(*_):
            raise RuntimeError("no kernel for a cosine")

        wrong = [one for one in gm.graph.nodes if one.target is aten.cos.default]
        if wrong and when == "compiling":
            fail()
        return fail if wrong else nop(gm, example_inputs)

    found = compare_compiled(chain, (torch.ones(2, device=device),), refuses).divergence
    assert (found.node, found.what, found.alone) == ("cos", "raised", True)
    assert "no kernel for a cosine" in str(found)
    assert isinstance(found.error, RuntimeError)


def test_a_wrong_dtype_is_blamed_and_not_the_product_that_raises_because_of_it(device):
    def product(x):
        return (x + 1.0) @ x

    x = torch.ones(3, 3, device=device)
    fault = planted("wrong dtype", product, x, "aten.add.Tensor")
    found = compare_compiled(product, (x,), faulty(fault.plant)).divergence
    assert (found.node, found.what) == (fault.node, "dtype")


def test_a_compiler_that_loses_a_result_is_named(device):
    def loses(gm, example_inputs):
        run = nop(gm, example_inputs)
        wrong = any(one.target is aten.cos.default for one in gm.graph.nodes)
        return lambda *inputs: run(*inputs)[:-1] if wrong else run(*inputs)

    found = compare_compiled(chain, (torch.ones(2, device=device),), loses).divergence
    assert (found.node, found.what) == ("cos", "raised")
    assert "instead of" in str(found)


def test_a_node_that_writes_over_a_value_that_is_needed_is_blamed(device):
    def plant(graph):
        for node in graph.nodes:
            if node.target is aten.add.Tensor:
                node.target = aten.add_.Tensor

    found = compare_compiled(chain, (torch.ones(2, device=device),), faulty(plant)).divergence
    assert (found.node, found.what) == ("add", "mutation")


def test_a_compiled_graph_that_writes_its_input_is_found(device):
    def plant(graph):
        for node in graph.nodes:
            if node.target is aten.mul.Tensor and node.args[1] == 2.0:
                node.target = aten.mul_.Tensor

    x = torch.ones(2, device=device)
    found = compare_compiled(chain, (x,), faulty(plant)).divergence
    assert (found.node, found.what) == ("mul", "mutation")
    assert (x == 1).all()


def test_a_node_that_writes_an_input_is_blamed_and_not_what_reads_it_later(device):
    def f(x):
        x = x.to(torch.bfloat16)
        return (x @ x.T).softmax(-1).sum(1) * (x.var(1) + 1e-3).rsqrt()

    def plant(graph):
        for node in graph.nodes:
            if node.target is aten.sub.Tensor and node.args[0].op == "placeholder":
                node.target = aten.sub_.Tensor

    torch.manual_seed(0)
    report = compare_compiled(f, (torch.randn(6, 8).to(device).requires_grad_(),), faulty(plant))
    found = report.divergence
    assert (found.phase, found.node, found.what) == ("backward", "sub", "mutation")
    assert found.alone


def test_a_result_in_the_memory_of_an_input_is_found(device):
    def f(x):
        return x.clone(), x * 2.0

    def plant(graph):
        for node in graph.nodes:
            if node.target is aten.clone.default:
                node.replace_all_uses_with(node.args[0])

    found = compare_compiled(f, (torch.ones(3, device=device),), faulty(plant)).divergence
    assert (found.node, found.what, found.alone) == ("clone", "aliasing", True)
    assert found.expected == "memory of its own"
    assert "the memory of" in found.seen


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_fault_in_float32_behind_bfloat16_is_not_excused_by_the_error_of_bfloat16(
    reference, device
):
    def f(x):
        hidden = x.bfloat16() @ (torch.eye(8, device=device) * 1.5 + 0.1).bfloat16()
        return F.layer_norm(F.gelu(hidden).float(), (8,), eps=1e-4)

    def plant(graph):
        for node in graph.nodes:
            if node.target is aten.native_layer_norm.default:
                node.args = (*node.args[:4], 0.0)

    torch.manual_seed(0)
    x = torch.randn(6, 8).to(device)
    assert compare_compiled(f, (x,), nop, reference).agrees
    found = compare_compiled(f, (x,), faulty(plant), reference).divergence
    assert found.target == "aten.native_layer_norm.default"
    assert found.alone


def test_a_missing_epsilon_is_blamed_and_not_the_root_that_magnifies_it(device):
    def f(x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    x = torch.randn(4, 8).to(device) * 0.02
    fault = planted("missing eps", f, x, "aten.add.Tensor")
    found = compare_compiled(f, (x,), faulty(fault.plant)).divergence
    assert (found.node, found.alone) == (fault.node, True)


def test_a_fault_that_only_shows_while_a_value_is_not_a_result_is_found(device):
    def plant(graph):  # as a wrong fusion of an addition with a sine would be
        results = graph.output_node().args[0]
        for node in graph.nodes:
            source = node.args[0] if node.target is aten.sin.default else None
            if source not in (None, *results) and source.target is aten.add.Tensor:
                node.target = aten.cos.default

    found = compare_compiled(chain, (torch.ones(2, device=device),), faulty(plant)).divergence
    assert (found.node, found.alone) == ("sin", False)
    assert "among its neighbors" in str(found)


def test_errors_that_add_up_are_no_fault(device):
    def rounding(gm, example_inputs):
        return nop(gm, example_inputs)

    def long(x):
        for _ in range(40):
            x = (x * 1.1).sin() + x @ x.T
            x = x / x.abs().max()
        return x.sum()

    x = torch.randn(16, 16).to(device).requires_grad_()
    assert compare_compiled(long, (x,), rounding, "float64").agrees


# --- what is compared --------------------------------------------------------------------------


def test_every_graph_of_a_function_with_breaks_is_compared(device):
    def broken(x):
        x = x.sin() * 2.0
        torch._dynamo.graph_break()
        return x.cos()

    x = torch.ones(2, 2, requires_grad=True, device=device)
    report = compare_compiled(broken, (x,), nop)
    assert [one.phase for one in report.graphs] == ["forward", "forward", "backward", "backward"]
    found = compare_compiled(broken, (x,), double_sine).divergences
    # the backward of the cosine has a sine, too
    assert [one.graph for one in found] == [0, 2]


def test_a_function_that_was_compiled_often_before_is_compared(device):
    model = nn.Linear(2, 2).to(device)
    for number in range(12):
        report = compare_compiled(
            model, (torch.ones(number + 1, 2, device=device),), nop, dynamic=False
        )
        assert len(report.graphs) == 2


def test_without_grad_or_with_backward_off_there_is_no_backward(device):
    model, x, _ = made("mlp", device)
    with torch.no_grad():
        assert [one.phase for one in compare_compiled(model, (x,), nop).graphs] == ["inference"]
    assert [one.phase for one in compare_compiled(model, (x,), nop, backward=False).graphs] == [
        "forward"
    ]


def test_the_backward_is_given_what_one_asks_for(device):
    def loss(x):
        return x.sin() * 3.0

    recorder = Recorder()
    x, grad = (
        torch.ones(2, requires_grad=True, device=device),
        torch.tensor([5.0, 7.0], device=device),
    )
    compare_compiled(loss, (x,), recorder, every_node=False, grads=[grad])
    _, values = recorder.graphs[1]
    torch.testing.assert_close(values["tangents_1"], grad)
    with pytest.raises(NotCompilableError, match="each of the 1 results"):
        compare_compiled(loss, (x,), nop, grads=[grad, grad])


def test_arguments_by_name_containers_and_complex_numbers(device):
    def nested(pair, *, by):
        return {"sum": pair[0] + pair[1] * by, "angle": torch.polar(pair[0], pair[1]) * 2.0}

    pair = [torch.rand(3).to(device).requires_grad_(), torch.rand(3).to(device).requires_grad_()]
    report = compare_compiled(nested, (pair,), nop, "float64", kwargs={"by": 2.0})
    assert report.agrees
    assert len(report.graphs) == 2


def test_nothing_is_changed(device):
    model, x, _ = made("conv and batch norm", device)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pending = model.eval()(x).sum()
    model.train()
    kept = x.detach().clone()
    torch.manual_seed(5)
    expected = torch.rand(3, device=device)
    torch.manual_seed(5)
    compare_compiled(model, (x,), nop)
    torch.testing.assert_close(torch.rand(3, device=device), expected)
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert all((one.grad == 1).all() for one in model.parameters())
    assert x.grad is None
    torch.testing.assert_close(x, kept)
    pending.backward()  # nothing that it needs was written


def test_the_module_in_a_closure_is_put_back_too(device):
    model, x, _ = made("in place", device)
    compare_compiled(lambda x: model(x) * 2.0, (x,), nop)
    assert model.calls == 0
    assert not model.average.any()


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_graph_that_is_there_already_is_compared(dynamic, device):
    gm, values = next(
        recorded("transformer block, dynamic" if dynamic else "transformer block", device)
    )
    inputs = inputs_of(gm, values)
    before = [(one.name, one.target, one.args) for one in gm.graph.nodes]
    assert compare_graph(gm, inputs, nop).agrees
    assert [(one.name, one.target, one.args) for one in gm.graph.nodes] == before
    report = compare_graph(gm, inputs, faulty(Fault("wrong constant", "bernoulli", "?").plant))
    assert report.agrees  # a fault at no node is none
    assert report.name == "forward graph"
    with pytest.raises(NotCompilableError, match=f"expected {len(inputs)}"):
        compare_graph(gm, inputs[1:], nop)
    with pytest.raises(NotCompilableError, match=r"node\.meta\['val'\]"):
        compare_graph(torch.fx.symbolic_trace(sines), [torch.ones(2, device=device)], nop)


def test_what_cannot_be_compared_is_refused(device):
    x = torch.ones(2, device=device)
    with pytest.raises(NotCompilableError, match="a function or an nn.Module"):
        compare_compiled(3, (x,), nop)
    with pytest.raises(NotCompilableError, match="seen none"):
        compare_compiled(lambda x: x, (x,), nop)
    with pytest.raises(UnknownOptionError, match="'float32'"):
        compare_compiled(sines, (x,), nop, "float32")
    with pytest.raises(UnknownOptionError, match="rtol=0.1"):
        compare_compiled(sines, (x,), nop, "float64", rtol=0.1)
    with pytest.raises(UnknownOptionError, match="no_such_compiler"):
        compare_compiled(sines, (x,), "no_such_compiler")
    with pytest.raises(NotCompilableError, match="or a name"):
        compare_compiled(sines, (x,), 3)


@pytest.mark.parametrize("call", ["compare_compiled", "compare_graph", "minify"])
def test_a_tensor_for_its_arguments_is_refused_and_not_taken_apart(call):
    gm, x = nop_graph(), torch.randn(3)
    calls = {
        "compare_compiled": lambda: compare_compiled(torch.sin, x, nop),
        "compare_graph": lambda: compare_graph(gm, x, nop),
        "minify": lambda: minify(gm, x, lambda gm, inputs: True),
    }
    with pytest.raises(NotCompilableError, match=rf"{call}\(\w+\): .* seen Tensor; pass \(x,\)"):
        calls[call]()


def nop_graph():
    return make_fx(torch.sin)(torch.randn(3))


def test_the_faults_change_what_they_say(device):
    """The planting itself: a fault is found by name in a part of the graph, and nowhere else."""
    gm, values = next(recorded("mlp", device))
    fault = next(drawn(gm, values, 0))
    assert fault.plant(gm.graph)
    assert not Fault(fault.kind, "no such node", fault.target).plant(gm.graph)
    assert fault.kind in planted_faults.KINDS


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 12),
    reason="up to torch 2.11 Dynamo imports the module that a function comes from",
)
def test_a_function_of_a_module_that_cannot_be_imported_is_compared(device):
    place = {"__name__": "a_notebook_of_mine", "torch": torch}
    exec("def f(x):\n    return torch.sin(x) + torch.ones_like(x)", place)
    assert compare_compiled(place["f"], (torch.randn(3).to(device).requires_grad_(),), nop).agrees
    assert compare_compiled(place["f"], (torch.randn(3).to(device),), nop).agrees


class _Named(torch.Tensor):
    pass


@pytest.mark.parametrize("x", [torch.randn(3), torch.randn(3, requires_grad=True)])
def test_a_result_of_another_class_is_a_divergence(x):
    def renaming(gm, inputs):
        return lambda *args: [result.as_subclass(_Named) for result in gm(*args)]

    report = compare_compiled(lambda x: x.sin() + 1, (x,), renaming)
    assert not report.agrees
    first = report.divergences[0]
    assert (first.what, first.node) == ("kind", "sin")
    assert "_Named of torch.float32" in first.seen
    assert "a tensor of torch.float32" in first.expected


def test_a_result_on_another_device_is_a_divergence():
    def forgetting(gm, inputs):
        return lambda *args: [result.to("meta") for result in gm(*args)]

    x = torch.randn(3)
    report = compare_graph(make_fx(torch.sin)(x), [x], forgetting)
    assert not report.agrees
    assert report.divergence.what == "device"
