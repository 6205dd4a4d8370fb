"""``diff_graphs`` and ``diff_dumps`` report the edits that were made, and nothing else."""

import copy
import json
import operator
import pickle
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers.dump import dump_graphs, graph_dumper_aot, load_dump
from lazyfx_compilers.errors import DumpFormatError, NotCompilableError, UnknownOptionError
from lazyfx_core.testing import graph_cases
from lazyfx_tools.diff import diff_dumps, diff_graphs

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


# --- making graphs, and editing them -----------------------------------------------------------

UNARY = (torch.sin, torch.cos, torch.relu, torch.tanh, torch.exp)
BINARY = (torch.add, torch.mul, torch.sub)


def random_graph(nodes, seed, near=8):
    draw = random.Random(seed)
    graph = fx.Graph()
    values = [graph.placeholder(f"x{i}") for i in range(5)]
    for _ in range(nodes):
        kind = draw.randrange(3)
        first = draw.choice(values[-near:])
        if kind == 0:
            new = graph.call_function(draw.choice(UNARY), (first,))
        elif kind == 1:
            new = graph.call_function(draw.choice(BINARY), (first, draw.choice(values[-30:])))
        else:
            new = graph.call_function(torch.add, (first, draw.randrange(1000) / 7))
        values.append(new)
    graph.output(tuple(value for value in values if not value.users))
    return fx.GraphModule({}, graph)


def edited(gm, count, seed):
    """A copy with ``count`` edits, no two side by side, and how many there are of each kind.

    Side by side they are not told apart: a node removed where one was added is a changed node.
    """
    draw = random.Random(seed)
    gm = copy.deepcopy(gm)
    done = {"changed": 0, "added": 0, "removed": 0}
    nodes = [node for node in gm.graph.nodes if node.op == "call_function"]
    draw.shuffle(nodes)
    touched = set()
    for node in nodes:
        if len(touched) >= count or touched & {node, *node.all_input_nodes, *node.users}:
            continue
        before = len(touched)
        touched.add(node)
        kind = draw.randrange(3)
        if kind == 0 and isinstance(node.args[-1], float):
            node.args = (node.args[0], node.args[1] + 1000.5)
            done["changed"] += 1
        elif kind == 1:
            with gm.graph.inserting_after(node):
                new = gm.graph.call_function(torch.erf, (node,))
            node.replace_all_uses_with(new, lambda user, new=new: user is not new)
            touched.add(new)
            count += 1
            done["added"] += 1
        else:
            touched.update(node.all_input_nodes)
            touched.update(node.users)
            count += len(touched) - before - 1
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
            done["removed"] += 1
    return gm, done


def reported(diff):
    return {kind: len(getattr(diff, kind)) for kind in ("changed", "added", "removed")}


def rebuilt(gm, choose):
    """The same graph, with its nodes in the topological order that ``choose`` picks step by step.

    Inputs keep their order, which is the signature.
    """
    new = fx.Graph()
    copies = {}
    waiting = dict.fromkeys(gm.graph.nodes)
    missing = {node: len(node.all_input_nodes) for node in waiting}
    ready = [node for node in waiting if not missing[node]]
    while ready:
        node = next((each for each in ready if each.op == "placeholder"), None)
        others = [each for each in ready if each.op != "output"]
        node = node or choose(others or ready)
        ready.remove(node)
        copies[node] = new.node_copy(node, copies.__getitem__)
        for user in node.users:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    new._codegen = copy.copy(gm.graph._codegen)
    return fx.GraphModule(gm, new)


def shuffled(gm, seed):
    return rebuilt(gm, random.Random(seed).choice)


def copied(gm):
    """A copy that shares attributes (``copy.deepcopy`` warns about torch's own tree specs)."""
    new = fx.Graph()
    copies = {}
    for node in gm.graph.nodes:
        copies[node] = new.node_copy(node, copies.__getitem__)
    new._codegen = copy.copy(gm.graph._codegen)
    return fx.GraphModule(gm, new)


def renamed(gm):
    gm = copied(gm)
    for number, node in enumerate(reversed(gm.graph.nodes)):
        node.name = f"another_{number}"
        if node.op == "placeholder" and not node.target.startswith("*"):
            node.target = node.name
    return gm


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x)))) * 0.5


class Stack(nn.Module):
    def __init__(self, layers=12, width=8):
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x).softmax(-1)


def captured(function, *inputs, dynamic=False, grad=False, partition=None):
    """Joint, forward and backward graphs (or the inference graph) of AOTAutograd, by phase."""
    from functorch.compile import aot_module_simplified, default_partition, make_boxed_func

    graphs = {}

    def keep(phase):
        def compiler(gm, _):
            graphs[phase] = copied(gm)
            return make_boxed_func(gm.forward)

        return compiler

    def partition_fn(joint, joint_inputs, **kwargs):
        graphs["joint"] = copied(joint)
        return (partition or default_partition)(joint, joint_inputs, **kwargs)

    def backend(gm, example_inputs):
        graphs["dynamo"] = copied(gm)
        return aot_module_simplified(
            gm,
            example_inputs,
            fw_compiler=keep("forward"),
            bw_compiler=keep("backward"),
            partition_fn=partition_fn,
            inference_compiler=keep("inference"),
        )

    torch.compiler.reset()
    compiled = torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)
    if grad:
        result = compiled(*inputs)
        result.sum().backward()
    else:
        with torch.no_grad():
            compiled(*inputs)
    return graphs


# --- nothing differs ---------------------------------------------------------------------------


@RELAXED
@given(graph_cases())
def test_a_graph_equals_itself_its_copy_and_itself_with_other_names(case):
    gm = case.plain()
    assert diff_graphs(gm, gm).identical
    assert diff_graphs(gm, case.plain()).identical
    other = renamed(gm)
    diff = diff_graphs(gm, other)
    assert diff.identical, str(diff)
    assert len(diff.matched) == len(gm.graph.nodes)
    assert len(diff.renamed) == len(gm.graph.nodes)


@RELAXED
@given(graph_cases(mutation=False, randomness=False, submodules=False), st.integers(0, 1000))
def test_the_order_of_independent_nodes_does_not_count(case, seed):
    gm = case.plain()
    diff = diff_graphs(gm, renamed(shuffled(gm, seed)))
    assert diff.identical, str(diff)


@RELAXED
@given(graph_cases())
def test_a_graph_equals_what_a_pickle_of_it_loads(case):
    gm = case.lazy()
    assert diff_graphs(gm, pickle.loads(pickle.dumps(gm))).identical


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_equal_themselves_renamed_and_shuffled(seed):
    gm = random_graph(150, seed, near=40)
    diff = diff_graphs(gm, renamed(shuffled(gm, seed)))
    assert diff.identical, str(diff)
    assert len(diff.matched) == len(gm.graph.nodes)


def graph_of_twins(nodes, seed, results):
    """A graph in which nearly every call is made several times, and most of them for nothing."""
    draw = random.Random(seed)
    graph = fx.Graph()
    values = [graph.placeholder("x")]
    for _ in range(nodes):
        near = values[: draw.randrange(1, 5)] if draw.random() < 0.6 else values[-4:]
        if draw.random() < 0.6:
            new = graph.call_function(draw.choice(UNARY[:2]), (draw.choice(near),))
        else:
            new = graph.call_function(BINARY[0], (draw.choice(near), draw.choice(near)))
        values.append(new)
    graph.output(tuple(draw.choices(values, k=results)))
    return fx.GraphModule({}, graph)


@pytest.mark.parametrize("results", [1, 3])
@pytest.mark.parametrize("nodes", [4, 8, 16, 60])
def test_which_of_equal_calls_is_which_is_told_by_what_is_made_of_them(nodes, results):
    for seed in range(100):
        gm = graph_of_twins(nodes, seed, results)
        diff = diff_graphs(gm, renamed(shuffled(gm, seed)))
        assert diff.identical, f"seed {seed}: {diff}\n{gm.code}"


@pytest.mark.parametrize("used", ["by one", "as results", "not at all"])
@pytest.mark.parametrize("equal", [True, False])
def test_of_thousands_of_calls_one_less_is_one_removed_node(equal, used):
    def calls(count):
        graph = fx.Graph()
        x = graph.placeholder("x")
        made = [graph.call_function(torch.add, (x, 0 if equal else i)) for i in range(count)]
        joined = graph.call_function(torch.cat, (made,)) if used == "by one" else None
        graph.output({"by one": joined, "as results": tuple(made), "not at all": x}[used])
        return fx.GraphModule({}, graph)

    diff = diff_graphs(calls(5000), calls(4999))
    assert reported(diff) == {"changed": int(used != "not at all"), "added": 0, "removed": 1}
    assert not diff.rewired


def test_symbolic_sizes_with_other_names_are_no_difference():
    def f(x, y):
        return (x @ y).reshape(-1) * (x.shape[0] + 2 * y.shape[1])

    inputs = torch.randn(5, 4), torch.randn(4, 7)
    one = captured(f, *inputs, dynamic=True)["inference"]
    two = captured(f, torch.randn(6, 3), torch.randn(3, 9), dynamic=True)["inference"]
    assert any("s" in str(node.meta.get("val")) for node in one.graph.nodes)
    diff = diff_graphs(one, two)
    assert diff.identical, str(diff)


def test_a_size_that_is_another_symbol_is_a_difference():
    def swapped(x, y):
        return x.new_zeros(y.shape[0], x.shape[0])

    def straight(x, y):
        return x.new_zeros(x.shape[0], y.shape[0])

    inputs = torch.randn(5), torch.randn(7)
    one, two = (make_fx(f, tracing_mode="symbolic")(*inputs) for f in (straight, swapped))
    diff = diff_graphs(one, two)
    assert not diff.identical
    assert len(diff.rewired) == 2
    zeros = [each for each in (*diff.changed, *diff.inherited) if "new_zeros" in each.target]
    assert [field.field for field in zeros[0].fields] == ["shape"]


# --- edits are reported as they were made --------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_random_edits_are_reported_one_for_one(seed):
    gm = random_graph(300, seed)
    new, done = edited(gm, 5, seed + 1)
    diff = diff_graphs(gm, renamed(new))
    assert reported(diff) == done, str(diff)
    assert not diff.moved
    back = diff_graphs(new, gm)
    assert reported(back) == {
        "changed": done["changed"],
        "added": done["removed"],
        "removed": done["added"],
    }


@pytest.mark.parametrize("seed", range(5))
def test_edits_of_a_shuffled_and_renamed_graph_are_reported_too(seed):
    gm = random_graph(200, seed)
    new, done = edited(gm, 3, seed + 1)
    diff = diff_graphs(gm, renamed(shuffled(new, seed)))
    assert reported(diff) == done, str(diff)


def test_fifty_edits_of_ten_thousand_nodes_are_reported():
    gm = random_graph(10_000, 1)
    new, done = edited(gm, 50, 2)
    assert reported(diff_graphs(gm, new)) == done


def test_two_graphs_with_nothing_in_common_are_compared():
    one, two = random_graph(3000, 1), random_graph(3000, 2)
    diff = diff_graphs(one, two)
    assert len(diff.matched) + len(diff.added) == len(two.graph.nodes)
    assert len(diff.matched) + len(diff.removed) == len(one.graph.nodes)


def chain(constants, cast_at=None):
    def f(x):
        for place, constant in enumerate(constants):
            x = torch.sin(x) * constant
            if place == cast_at:
                x = x.to(torch.float64)
        return x

    return f


def test_a_changed_constant_in_a_thousand_nodes_is_one_changed_node():
    constants = [0.5] * 500
    old = fx.symbolic_trace(chain(constants))
    constants[250] = 0.75
    diff = diff_graphs(old, fx.symbolic_trace(chain(constants)))
    assert reported(diff) == {"changed": 1, "added": 0, "removed": 0}
    (change,) = diff.changed
    assert change.old == change.new == "mul_250"
    (field,) = change.fields
    assert (field.field, field.old, field.new) == ("args[1]", "0.5", "0.75")
    assert not diff.rewired


def test_an_inserted_cast_is_one_added_node_and_its_user_is_rewired():
    old = fx.symbolic_trace(chain([0.5] * 100))
    diff = diff_graphs(old, fx.symbolic_trace(chain([0.5] * 100, cast_at=50)))
    assert reported(diff) == {"changed": 0, "added": 1, "removed": 0}
    assert diff.added[0].target == "to"
    (rewiring,) = diff.rewired
    assert (rewiring.old, rewiring.argument) == ("sin_51", "args[0]")
    assert (rewiring.old_input, rewiring.new_input) == ("mul_50", "to")
    assert [(each.target, each.old, each.new) for each in diff.ops] == [("to", 0, 1)]


def test_what_a_changed_dtype_does_to_the_results_below_is_told_apart():
    x = torch.randn(3)
    old = make_fx(chain([0.5] * 20))(x)
    new = make_fx(chain([0.5] * 20, cast_at=9))(x)
    diff = diff_graphs(old, new)
    assert reported(diff) == {"changed": 0, "added": 1, "removed": 0}
    assert len(diff.inherited) == 20  # a sine and a product each
    assert {field.field for each in diff.inherited for field in each.fields} == {"dtype"}


def test_a_replaced_operation_is_one_changed_node():
    old = fx.symbolic_trace(lambda x: torch.relu(x * 2) + 1)
    new = fx.symbolic_trace(lambda x: torch.tanh(x * 2) + 1)
    diff = diff_graphs(old, new)
    assert reported(diff) == {"changed": 1, "added": 0, "removed": 0}
    (field,) = diff.changed[0].fields
    assert (field.field, field.old, field.new) == ("target", "torch.relu", "torch.tanh")


def test_swapped_arguments_are_rewired():
    old = fx.symbolic_trace(lambda x, y: x.sin() - y)
    new = fx.symbolic_trace(lambda x, y: y - x.sin())
    diff = diff_graphs(old, new)
    assert reported(diff) == {"changed": 0, "added": 0, "removed": 0}
    assert {each.argument for each in diff.rewired} == {"args[0]", "args[1]"}


def test_inputs_are_told_by_their_place_and_not_by_their_names():
    old = fx.symbolic_trace(lambda x, y: x - y)
    assert diff_graphs(old, fx.symbolic_trace(lambda y, x: y - x)).identical
    assert not diff_graphs(old, fx.symbolic_trace(lambda y, x: x - y)).identical


@pytest.mark.parametrize(
    ("old", "new"),
    [(1, 1.0), (1, True), (0.0, -0.0), ("a", b"a"), ([1, 2], (1, 2)), (None, 0), (2, 3)],
)
def test_constants_are_told_apart_by_type_and_value(old, new):
    def graph(constant):
        made = fx.Graph()
        x = made.placeholder("x")
        made.output(made.call_function(torch.add, (x, constant)))
        return fx.GraphModule({}, made)

    assert diff_graphs(graph(old), graph(copy.deepcopy(old))).identical
    (change,) = diff_graphs(graph(old), graph(new)).changed
    assert change.fields[0].field == "args[1]"


def test_not_a_number_equals_itself():
    def f(x):
        return x + float("nan")

    assert diff_graphs(fx.symbolic_trace(f), fx.symbolic_trace(f)).identical


def test_functions_that_hold_other_values_are_not_the_same():
    def graph(function):
        made = fx.Graph()
        made.output(made.call_function(function, (made.placeholder("x"),)))
        return fx.GraphModule({}, made)

    def closure(factor):
        return lambda x: x * factor

    def default(factor):
        return lambda x, factor=factor: x * factor

    for make in (closure, default):
        assert diff_graphs(graph(make(2)), graph(make(2))).identical
        assert not diff_graphs(graph(make(2)), graph(make(3))).identical


def test_a_tensor_among_the_arguments_is_compared_however_large_it_is():
    def graph(last):
        constant = torch.zeros(5000)
        constant[-1] = last
        made = fx.Graph()
        made.output(made.call_function(torch.add, (made.placeholder("x"), constant)))
        return fx.GraphModule({}, made)

    assert diff_graphs(graph(1.0), graph(1.0)).identical
    assert len(diff_graphs(graph(1.0), graph(2.0)).changed) == 1


def test_two_different_lambdas_are_not_the_same():
    def graph(function):
        made = fx.Graph()
        made.output(made.call_function(function, (made.placeholder("x"),)))
        return fx.GraphModule({}, made)

    one, two = (lambda x: x + 1), (lambda x: x + 2)
    assert diff_graphs(graph(one), graph(one)).identical
    assert diff_graphs(graph(one), graph(two)).changed[0].fields[0].field == "target"


# --- layers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(0)
    model = Stack()
    return model, captured(model, torch.randn(2, 8), grad=True)


def test_a_removed_layer_is_reported_as_the_nodes_of_one_layer(deep):
    model, graphs = deep
    shorter = copy.deepcopy(model)
    del shorter.layers[5]
    less = captured(shorter, torch.randn(2, 8), grad=True)
    for phase in ("dynamo", "forward"):
        diff = diff_graphs(graphs[phase], less[phase])
        assert not diff.added, str(diff)
        assert len(diff.removed) == diff.old_nodes - diff.new_nodes
        names = [each.name for each in diff.removed]
        wanted = {"native_layer_norm": 1, "gelu": 1} if phase == "forward" else {"layer_norm": 1}
        for word, count in wanted.items():
            targets = [each.target for each in diff.removed]
            assert sum(word in each for each in targets) == count, (phase, names)
        assert not [each for each in diff.changed if each.new != "output"], str(diff)
        assert len(diff.rewired) <= 2, str(diff)


def test_a_changed_layer_does_not_disturb_the_others(deep):
    model, graphs = deep

    class Other(Block):
        def forward(self, x):
            return x + self.down(torch.relu(self.up(self.norm(x)))) * 0.5

    changed = copy.deepcopy(model)
    changed.layers[7].__class__ = Other
    other = captured(changed, torch.randn(2, 8), grad=True)
    diff = diff_graphs(graphs["dynamo"], other["dynamo"])
    assert len(diff.matched) == len(other["dynamo"].graph.nodes)
    (change,) = diff.changed
    assert next((each.field, each.new) for each in change.fields) == ("target", "torch.relu")
    forward = diff_graphs(graphs["forward"], other["forward"])
    touched = [*forward.added, *forward.removed, *forward.changed]
    assert 0 < len(touched) <= 4, str(forward)


def test_a_layer_in_front_leaves_the_others_where_they_are():
    old = fx.symbolic_trace(lambda x: torch.sin(torch.cos(torch.sin(torch.cos(x)))))
    new = fx.symbolic_trace(lambda x: torch.sin(torch.cos(torch.sin(torch.cos(x * 2)))))
    diff = diff_graphs(old, new)
    assert reported(diff) == {"changed": 0, "added": 1, "removed": 0}


def test_another_batch_size_is_a_changed_input_and_consequences(deep):
    model, graphs = deep
    other = captured(model, torch.randn(5, 8), grad=True)
    diff = diff_graphs(graphs["forward"], other["forward"])
    assert not diff.added
    assert not diff.removed
    assert not diff.rewired
    assert [each.fields[0].field for each in diff.changed if each.target == "input"] == ["shape"]
    assert len(diff.inherited) > 100


# --- stages, modes, decompositions ---------------------------------------------------------------


def test_the_forward_is_found_in_the_joint_graph(deep):
    _, graphs = deep
    joint, forward = graphs["joint"], graphs["forward"]
    diff = diff_graphs(joint, forward)
    computed = [node.name for node in forward.graph.nodes if node.op == "call_function"]
    matched = {new for _, new in diff.matched}
    assert not [name for name in computed if name not in matched]
    assert not diff.added
    tangents = [each.name for each in diff.removed if each.op == "placeholder"]
    assert tangents
    assert all("tangent" in name for name in tangents)


def test_decompositions_replace_what_they_decompose(deep):
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    _, _graphs = deep
    inference = captured(deep[0].eval(), torch.randn(2, 8))["inference"]
    table = get_decompositions([aten.gelu])
    fakes = [node.meta["val"] for node in inference.graph.nodes if node.op == "placeholder"]
    decomposed = make_fx(inference, decomposition_table=table)(*fakes)
    diff = diff_graphs(inference, decomposed)
    assert {each.target for each in diff.removed} == {"aten.gelu.default"}
    assert len(diff.removed) == 12
    assert {each.new for each in diff.rewired}
    assert not diff.changed
    assert not any("gelu" in each.target for each in diff.added)


def test_two_modes_of_torch_compile_make_the_same_forward():
    model = Stack(layers=3)
    x = torch.randn(2, 8)
    found = []

    def backend(gm, inputs, **options):
        found.append(copied(gm))
        return gm.forward

    for dynamic in (False, None):
        torch.compiler.reset()
        torch.compile(model, backend=backend, dynamic=dynamic)(x)
    assert diff_graphs(*found).identical


# --- what a graph holds ---------------------------------------------------------------------------


def test_a_constant_with_another_value_is_a_changed_node():
    def graph(values):
        constant = torch.tensor(values)
        return make_fx(lambda x: x + constant)(torch.zeros(3))

    same = diff_graphs(graph([1.0, 2.0, 3.0]), graph([1.0, 2.0, 3.0]))
    assert same.identical
    diff = diff_graphs(graph([1.0, 2.0, 3.0]), graph([1.0, 5.0, 3.0]))
    (change,) = diff.changed
    assert (change.fields[0].field, change.fields[0].new) == ("value", "5.0")
    assert change.fields[0].old == "2.0 at [1]"


def test_values_of_parameters_count_unless_told_otherwise():
    one, two = fx.symbolic_trace(nn.Linear(2, 2)), fx.symbolic_trace(nn.Linear(2, 2))
    assert len(diff_graphs(one, two).changed) == 2
    assert diff_graphs(one, two, values=False).identical


def test_constants_that_tracing_numbers_are_told_by_what_they_are():
    def graph(*constants):
        made = fx.Graph()
        x = made.placeholder("x")
        root = nn.Module()
        for number, constant in enumerate(constants):
            root.register_buffer(f"_tensor_constant{number}", torch.tensor(constant))
            x = made.call_function(torch.add, (x, made.get_attr(f"_tensor_constant{number}")))
        made.output(x)
        return fx.GraphModule(root, made)

    diff = diff_graphs(graph(1.0, 2.0), graph(7.0, 1.0, 2.0))
    assert reported(diff) == {"changed": 0, "added": 2, "removed": 0}, str(diff)


def test_weights_that_change_places_are_not_the_same():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x * self.a - self.b

    class Swapped(Net):
        def forward(self, x):
            return x * self.b - self.a

    diff = diff_graphs(fx.symbolic_trace(Net()), fx.symbolic_trace(Swapped()))
    assert not diff.identical
    assert len(diff.rewired) + len(diff.changed) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse()),
        (torch.eye(3).to_sparse(), torch.eye(3).flip(0).to_sparse()),
        (torch.tensor([1], dtype=torch.uint64), torch.tensor([2], dtype=torch.uint64)),
        (torch.zeros(4).view(torch.bits16), torch.ones(4).view(torch.bits16)),
        (
            torch.zeros(2).view(torch.bits16)[0],
            torch.ones(2).view(torch.bits16)[1],
        ),
        *(
            [(bits.view(torch.float4_e2m1fn_x2), (bits + 1).view(torch.float4_e2m1fn_x2))]
            if hasattr(torch, "float4_e2m1fn_x2")
            and (bits := torch.ones(2, dtype=torch.uint8)).any()
            else []
        ),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_tensors_of_every_kind_are_compared_by_value(one, other):
    def graph(constant):
        made, root = fx.Graph(), nn.Module()
        root.register_buffer("constant", constant)
        made.output(made.get_attr("constant"))
        return fx.GraphModule(root, made)

    assert diff_graphs(graph(one), graph(copy.deepcopy(one))).identical
    (change,) = diff_graphs(graph(one), graph(other)).changed
    assert change.fields[0].field in ("value", "places")


def test_a_setting_that_the_text_of_a_module_does_not_show_is_a_changed_node():
    class Net(nn.Module):
        def __init__(self, heads):
            super().__init__()
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(8, heads)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    two, four = fx.symbolic_trace(Net(2)), fx.symbolic_trace(Net(4))
    assert diff_graphs(two, fx.symbolic_trace(Net(2))).identical
    (change,) = diff_graphs(two, four).changed
    assert ("num_heads", "2", "4") in [(f.field, f.old, f.new) for f in change.fields]
    evaluated = copy.deepcopy(two)
    evaluated.attention.out_proj.eval()
    assert not diff_graphs(two, evaluated).identical


def test_a_module_that_is_configured_otherwise_is_a_changed_node():
    def net(padding):
        torch.manual_seed(0)
        return fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 2, 3, padding=padding), nn.ReLU()))

    assert diff_graphs(net(1), net(1)).identical
    (change,) = diff_graphs(net(1), net(0)).changed
    assert change.fields[0].field == "module"


def test_graphs_of_higher_order_operators_are_compared_inside():
    def graph(constant):
        def yes(x):
            return x.sin() * constant

        def no(x):
            return x.cos()

        def f(x):
            return torch.cond(x.sum() > 0, yes, no, (x,))

        return captured(f, torch.randn(3))["dynamo"]

    assert diff_graphs(graph(2), graph(2)).identical
    diff = diff_graphs(graph(2), graph(3))
    (inside,) = diff.inside
    assert inside.diff.changed[0].fields[0].new == "3"
    assert not diff.added
    assert not diff.removed
    assert "inside" in str(diff)


# --- order that counts ----------------------------------------------------------------------------


def statements(*lines):
    """A graph of ``(name, target, arguments)``; what has the name ``out`` is returned."""
    graph = fx.Graph()
    known = {"x": graph.placeholder("x"), "y": graph.placeholder("y")}
    for name, target, arguments in lines:
        args = tuple(known.get(each, each) for each in arguments)
        known[name] = graph.call_function(target, args)
    graph.output((known["p"], known["q"]))
    return fx.GraphModule({}, graph)


WRITE = ("w", torch.ops.aten.add_.Tensor, ("x", 1.0))
READ = ("p", torch.ops.aten.mul.Tensor, ("x", 2.0))
OTHER = ("q", torch.ops.aten.mul.Tensor, ("y", 3.0))


def test_a_read_on_the_other_side_of_a_write_has_moved():
    diff = diff_graphs(statements(READ, WRITE, OTHER), statements(WRITE, READ, OTHER))
    assert diff.moved == (("mul_tensor", "mul_tensor"),)
    assert not diff.identical
    assert diff_graphs(statements(READ, WRITE, OTHER), statements(READ, OTHER, WRITE)).identical


def test_a_read_of_a_view_on_the_other_side_of_a_write_has_moved():
    view = ("v", torch.ops.aten.view.default, ("x", (-1,)))
    read = ("p", torch.ops.aten.mul.Tensor, ("v", 2.0))
    one, two = statements(view, read, WRITE, OTHER), statements(view, WRITE, read, OTHER)
    assert len(diff_graphs(one, two).moved) == 1


def test_python_that_writes_is_a_write_too():
    for write in (("w", operator.iadd, ("x", 1.0)), ("w", torch.nn.functional.relu, ("x", True))):
        diff = diff_graphs(statements(READ, write, OTHER), statements(write, READ, OTHER))
        assert diff.moved, write


def test_draws_in_another_order_have_moved():
    first = ("p", torch.ops.aten.bernoulli.default, ("x",))
    second = ("q", torch.ops.aten.rand_like.default, ("y",))
    assert len(diff_graphs(statements(first, second), statements(second, first)).moved) == 1
    assert diff_graphs(statements(first, second), statements(first, second)).identical


# --- odd graphs -----------------------------------------------------------------------------------


def test_odd_graphs_are_compared():
    empty = fx.GraphModule({}, fx.Graph())
    no_output = fx.Graph()
    no_output.call_function(torch.sin, (no_output.placeholder("x"),))
    only_output = fx.Graph()
    only_output.output(None)
    missing = fx.Graph()
    missing.output(missing.get_attr("weight"))
    broken = fx.GraphModule({"weight": torch.zeros(2)}, missing)
    del broken.weight
    odd = [
        empty,
        fx.GraphModule({}, no_output),
        fx.GraphModule({}, only_output),
        broken,
        statements(READ, WRITE, OTHER),
    ]
    for one in odd:
        assert diff_graphs(one, one).identical
        for two in odd:
            diff = diff_graphs(one, two)
            assert len(diff.matched) + len(diff.removed) == len(one.graph.nodes)
            assert len(diff.matched) + len(diff.added) == len(two.graph.nodes)
            assert diff.identical == (one is two)


def test_a_module_that_contains_itself_is_compared():
    def tower():
        graph = fx.Graph()
        graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
        root = nn.Module()
        root.inner = nn.Identity()
        gm = fx.GraphModule(root, graph)
        gm.inner = gm
        return gm

    assert diff_graphs(tower(), tower()).identical


def test_very_deep_graphs_are_compared():
    graph = fx.Graph()
    x = graph.placeholder("x")
    for _ in range(5000):
        x = graph.call_function(torch.sin, (x,))
    graph.output(x)
    gm = fx.GraphModule({}, graph)
    assert diff_graphs(gm, copy.copy(gm)).identical


@RELAXED
@given(graph_cases(), graph_cases())
def test_any_two_graphs_are_compared_and_the_other_way_round_too(one, two):
    a, b = one.plain(), two.plain()
    diff, back = diff_graphs(a, b), diff_graphs(b, a)
    for each, (old, new) in ((diff, (a, b)), (back, (b, a))):
        assert len(each.matched) + len(each.removed) == len(old.graph.nodes)
        assert len(each.matched) + len(each.added) == len(new.graph.nodes)
        assert str(each)
    assert diff.identical == back.identical


def test_neither_graph_is_changed():
    one, two = random_graph(100, 3), random_graph(100, 4)
    before = [str(gm.graph) for gm in (one, two)]
    diff_graphs(one, two)
    assert before == [str(gm.graph) for gm in (one, two)]


def test_what_is_no_graph_is_refused_by_name():
    with pytest.raises(NotCompilableError, match=r"diff_graphs\(b\)"):
        diff_graphs(random_graph(3, 1), nn.Linear(1, 1))


# --- as data and text -----------------------------------------------------------------------------


def test_a_difference_is_plain_data():
    old = fx.symbolic_trace(chain([0.5] * 3))
    diff = diff_graphs(old, fx.symbolic_trace(chain([0.5, 0.75, 0.5], cast_at=1)))
    data = json.loads(diff.to_json())
    assert data["identical"] is False
    assert [each["name"] for each in data["added"]] == ["to"]
    assert data["changed"][0]["fields"] == [{"field": "args[1]", "old": "0.5", "new": "0.75"}]
    assert data["rewired"][0]["new_input"] == "to"
    assert pickle.loads(pickle.dumps(diff)) == diff


def test_the_text_is_short_and_says_what_differs():
    constants = [0.5] * 500
    old = fx.symbolic_trace(chain(constants))
    new = fx.symbolic_trace(chain([0.75] * 500))
    text = str(diff_graphs(old, new))
    assert text.splitlines()[0] == "1002 -> 1002 nodes: 500 changed"
    assert "args[1]: 0.5 -> 0.75" in text
    assert "... and 480 more" in text
    assert len(text.splitlines()) < 60
    assert str(diff_graphs(old, old)) == "identical (1002 nodes)"


# --- dumps ----------------------------------------------------------------------------------------


def dumped(folder, name, *models, inputs=None, grad=True):
    """A dump of a training step of each model."""
    dumper = graph_dumper_aot(name, folder)
    for model in models:
        torch.compiler.reset()
        result = torch.compile(model, backend=dumper)(
            torch.randn(2, 8) if inputs is None else inputs
        )
        if grad:
            result.sum().backward()
    return load_dump(dumper.path)


def test_two_dumps_of_one_model_are_identical(tmp_path):
    model = Stack(layers=2)
    one, two = dumped(tmp_path, "one", model), dumped(tmp_path, "two", model)
    diff = diff_dumps(one, two)
    assert diff.identical, str(diff)
    assert [(pair.old, pair.new) for pair in diff.graphs] == [(g.id, g.id) for g in one]
    assert not diff.environment
    assert str(diff).splitlines()[0].endswith("two: identical")


def test_a_dump_with_graphs_twice_equals_itself(tmp_path):
    block = dump_graphs("twice", tmp_path)
    torch._dynamo.reset()
    with block as dumper, block:
        torch.compile(torch.sin, backend="aot_eager")(torch.ones(3, requires_grad=True))
    assert len([g for g in load_dump(dumper.path) if g.phase == "forward"]) == 2
    assert diff_dumps(dumper.path, dumper.path).identical


def test_graphs_of_dumps_are_paired_by_what_they_do(tmp_path):
    deep, small = Stack(layers=2), nn.Linear(8, 8)
    one = dumped(tmp_path, "one", small, deep)
    two = dumped(tmp_path, "two", nn.Sequential(nn.Tanh(), nn.Softmax(-1)), small, deep, grad=False)
    diff = diff_dumps(one.folder, two.folder)
    forwards = {pair.old: pair.new for pair in diff.graphs if "forward" in pair.old}
    assert [each[:3] for each in forwards] == ["000", "001"]
    assert [each[:3] for each in forwards.values()] == ["001", "002"]
    assert all(pair.identical for pair in diff.graphs), str(diff)
    assert not diff.identical
    assert diff.removed
    assert all(each.startswith("000") for each in diff.added)


def test_a_layer_that_changed_is_found_in_every_stage(tmp_path):
    model = Stack(layers=2)
    other = copy.deepcopy(model)
    other.layers[1].norm.eps = 1e-3
    diff = diff_dumps(dumped(tmp_path, "one", model), dumped(tmp_path, "two", other))
    by_phase = {pair.old[4:].partition("_")[0]: pair.diff for pair in diff.graphs}
    assert reported(by_phase["forward"]) == {"changed": 1, "added": 0, "removed": 0}
    (field,) = by_phase["forward"].changed[0].fields
    assert (field.old, field.new) == ("1e-05", "0.001")
    assert by_phase["backward"].identical
    assert json.loads(diff.to_json())["identical"] is False


def test_two_stages_of_a_dump_are_compared(tmp_path):
    dump = dumped(tmp_path, "one", Stack(layers=2))
    joint, forward = (next(g for g in dump if g.phase == phase) for phase in ("joint", "forward"))
    diff = diff_dumps(joint, forward.folder)
    (pair,) = diff.graphs
    assert not pair.diff.added
    assert pair.diff.removed


def test_other_inputs_and_another_torch_are_told(tmp_path):
    model = Stack(layers=1)
    one = dumped(tmp_path, "one", model)
    two = dumped(tmp_path, "two", model, inputs=torch.randn(8, 2).t())
    index = two.folder / "index.json"
    index.write_text(index.read_text().replace(torch.__version__, "2.0.0"))
    diff = diff_dumps(one, two.folder)
    assert ("torch", torch.__version__, "2.0.0") in [
        (each.field, each.old, each.new) for each in diff.environment
    ]
    forward = next(pair for pair in diff.graphs if "forward" in pair.old)
    assert [each.field.split()[1] for each in forward.inputs] == ["stride"]
    assert not diff.identical


def test_a_graph_that_cannot_be_read_is_a_difference_and_not_the_end(tmp_path):
    one = dumped(tmp_path, "one", Stack(layers=1))
    two = dumped(tmp_path, "two", Stack(layers=1))
    (next(iter(two)).folder / "graph.safetensors").write_bytes(b"no archive")
    diff = diff_dumps(one, two, values=False)
    assert not diff.identical
    assert "graph.safetensors" in diff.graphs[0].problem
    assert all(pair.identical for pair in diff.graphs[1:])
    assert "graph.safetensors" in str(diff)


def test_a_dump_and_a_graph_are_not_compared(tmp_path):
    dump = dumped(tmp_path, "one", nn.Linear(8, 8))
    with pytest.raises(UnknownOptionError, match="two dumps or two graphs"):
        diff_dumps(dump, dump.graphs[0])
    with pytest.raises(UnknownOptionError, match="diff_graphs"):
        diff_dumps(dump, dump.graphs[0].module())
    with pytest.raises(DumpFormatError):
        diff_dumps(dump, tmp_path / "nothing")


# --- accelerators ---------------------------------------------------------------------------------


def on_devices(*devices):
    with FakeTensorMode():
        x = torch.empty(2, 3, device=devices[0])
        return make_fx(lambda x: (x.sin() + torch.ones(3, device=devices[0])).to(devices[-1]))(x)


def test_ranks_that_run_one_graph_on_their_own_accelerators_do_not_differ(many_gpus):
    assert diff_graphs(on_devices("cuda:0"), on_devices("cuda:1")).identical


def test_another_kind_of_device_and_another_one_of_several_do_count(many_gpus):
    moved_to_cpu = diff_graphs(on_devices("cuda:0"), on_devices("cpu"))
    assert {each.field for change in moved_to_cpu.changed for each in change.fields} >= {"device"}
    other_way = diff_graphs(on_devices("cuda:0", "cuda:1"), on_devices("cuda:1", "cuda:0"))
    assert not other_way.identical
