"""``graph_hash``: the same for what does the same, another for everything else."""

import copy
import operator
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_core import (
    InvalidGraphError,
    LazyGraphModule,
    NotAGraphModuleError,
    SerializationError,
    graph_hash,
    load_graph,
    save_graph,
)


def trace(function, **options):
    return fx.symbolic_trace(function, **options)


def lazy(gm):
    return LazyGraphModule.from_graphmodule(gm)


def build(*rows, root=None, codegen=None):
    """A graph module from rows of ``(op, target, args, kwargs)``."""
    graph, made = fx.Graph(), []
    for op, target, args, kwargs in rows:
        args = tuple(made[a.index] if isinstance(a, N) else a for a in args)
        made.append(graph.create_node(op, target, args, kwargs))
    graph.output(made[-1])
    if codegen is not None:
        graph.set_codegen(codegen)
    return fx.GraphModule(root or nn.Module(), graph)


class N(int):
    """A reference to a node."""

    index = property(int)


def call(target, *args, **kwargs):
    return build(("placeholder", "x", (), {}), ("call_function", target, (N(0), *args), kwargs))


def holding(value, name="held"):
    root = nn.Module()
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(name, value)
    else:
        setattr(root, name, value)
    op = "call_module" if isinstance(value, nn.Module) else "get_attr"
    args = (N(0),) if op == "call_module" else ()
    return build(("placeholder", "x", (), {}), (op, name, args, {}), root=root)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.relu(self.linear(x) + self.weight).sum(-1)


def test_two_traces_of_one_function_are_equal():
    assert graph_hash(trace(Net())) == graph_hash(trace(Net()))


def test_names_do_not_count_unless_asked_for():
    one, two = trace(lambda x, y: torch.add(x, y) * 2), trace(lambda a, b: torch.add(a, b) * 2)
    next(node for node in two.graph.nodes if node.op == "call_function").name = "other"
    assert graph_hash(one) == graph_hash(two)
    assert graph_hash(one, names=True) != graph_hash(two, names=True)
    assert graph_hash(one, names=True) == graph_hash(copy.deepcopy(one), names=True)


def test_paths_of_attributes_do_not_count_unless_asked_for():
    one, two = holding(nn.Linear(2, 2), "a"), holding(nn.Linear(2, 2), "b")
    assert graph_hash(one) == graph_hash(two)
    assert graph_hash(one, names=True) != graph_hash(two, names=True)


@pytest.mark.parametrize("options", [{}, {"names": True, "meta": True, "values": True}])
def test_copies_pickles_archives_and_laziness_do_not_count(tmp_path, options):
    gm = lazy(trace(Net()))
    gm.meta["a"] = 1
    for node in gm.graph.nodes:
        node.meta["stack_trace"] = "x" * 50
    save_graph(gm, tmp_path / "x")
    same = [
        *(copy.copy(gm), copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))),
        load_graph(tmp_path / "x"),
    ]
    assert {graph_hash(other, **options) for other in same} == {graph_hash(gm, **options)}
    assert graph_hash(trace(Net())) == graph_hash(gm)


def test_nothing_is_generated_and_nothing_changes():
    gm = lazy(trace(Net()))
    before = [node.format_node() for node in gm.graph.nodes]
    graph_hash(gm, names=True, meta=True, values=True)
    assert gm.needs_recompile
    assert [node.format_node() for node in gm.graph.nodes] == before


VALUES = [1, 1.0, True, 0.0, -0.0, None, "1", 1j, (1,), [1], {"a": 1}, {1: 1}, {1}, b"1", ...]
VALUES += [slice(1), range(1), torch.float32, torch.device("cpu"), torch.strided, float("nan")]
VALUES += [float("inf"), frozenset({1}), torch.contiguous_format, 2**70]


def test_every_constant_counts_by_type_and_value():
    hashes = [graph_hash(call(torch.add, value)) for value in VALUES]
    assert len(set(hashes)) == len(VALUES)
    assert hashes == [graph_hash(call(torch.add, value)) for value in VALUES]


def linear(**options):
    return nn.Linear(3, 3, **options)


def module(change):
    made = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    change(made)
    return made


DIFFERENT = {
    "argument order": lambda: (
        trace(lambda x, y: torch.sub(x, y)),
        trace(lambda x, y: torch.sub(y, x)),
    ),
    "which placeholder": lambda: (trace(lambda x, y: x + x), trace(lambda x, y: y + y)),
    "order of nodes": lambda: (
        trace(lambda x: (x.sin(), x.cos())),
        trace(lambda x: (x.cos(), x.sin())[::-1]),
    ),
    "target": lambda: (call(torch.add, 1), call(torch.sub, 1)),
    "in place": lambda: (call(operator.add, 1), call(operator.iadd, 1)),
    "method or function": lambda: (trace(lambda x: x.sin()), trace(lambda x: torch.sin(x))),
    "overload": lambda: (
        call(torch.ops.aten.add.Tensor, 1),
        call(torch.ops.aten.add.Scalar, 1),
    ),
    "packet": lambda: (call(torch.ops.aten.add.Tensor, 1), call(torch.ops.aten.add, 1)),
    "keyword": lambda: (call(torch.sum, dim=1), call(torch.sum, 1)),
    "keyword value": lambda: (call(torch.sum, dim=1), call(torch.sum, dim=0)),
    "unused node": lambda: (
        build(("placeholder", "x", (), {})),
        build(("placeholder", "x", (), {}), ("placeholder", "y", (), {})),
    ),
    "default": lambda: (
        build(("placeholder", "x", (1,), {})),
        build(("placeholder", "x", (2,), {})),
    ),
    "star": lambda: (build(("placeholder", "x", (), {})), build(("placeholder", "*x", (), {}))),
    "shape": lambda: (holding(torch.ones(2, 3)), holding(torch.ones(3, 2))),
    "strides": lambda: (holding(torch.ones(2, 2)), holding(torch.ones(2, 2).t())),
    "dtype": lambda: (holding(torch.ones(2)), holding(torch.ones(2).double())),
    "device": lambda: (holding(torch.ones(2)), holding(torch.ones(2, device="meta"))),
    "parameter": lambda: (holding(nn.Parameter(torch.ones(2))), holding(torch.ones(2))),
    "requires grad": lambda: (
        holding(nn.Parameter(torch.ones(2))),
        holding(nn.Parameter(torch.ones(2), requires_grad=False)),
    ),
    "class of a module": lambda: (holding(nn.ReLU()), holding(nn.GELU())),
    "bias": lambda: (holding(linear()), holding(linear(bias=False))),
    "configuration": lambda: (holding(nn.Dropout(0.5)), holding(nn.Dropout(0.25))),
    "mode of a child": lambda: (
        holding(module(lambda m: None)),
        holding(module(lambda m: m[1].eval())),
    ),
    "training": lambda: (holding(nn.Dropout().train()), holding(nn.Dropout().eval())),
    "codegen": lambda: (
        build(("placeholder", "x", (), {})),
        trace(lambda x: x, concrete_args={"x": [fx.PH]}),
    ),
    "kind of attribute": lambda: (holding(linear()), trace(lambda x: x)),
    "dict order": lambda: (call(torch.add, {"a": 1, "b": 2}), call(torch.add, {"b": 2, "a": 1})),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_decides_the_result_counts(name):
    one, two = DIFFERENT[name]()
    again, _ = DIFFERENT[name]()
    assert graph_hash(one) != graph_hash(two)
    assert graph_hash(one) == graph_hash(again)


def two_calls(first, second):
    root = nn.Module()
    root.a, root.b = first, second
    rows = [("placeholder", "x", (), {}), ("call_module", "a", (N(0),), {})]
    return build(*rows, ("call_module", "b", (N(1),), {}), root=root)


def test_one_module_called_twice_is_not_two_modules():
    one = nn.Linear(2, 2)
    shared, separate = two_calls(one, one), two_calls(nn.Linear(2, 2), nn.Linear(2, 2))
    assert graph_hash(shared) != graph_hash(separate)
    tied = nn.Linear(2, 2)
    tied.weight = one.weight
    assert graph_hash(two_calls(one, tied)) != graph_hash(separate)
    assert graph_hash(two_calls(one, tied)) != graph_hash(shared)


def test_branches_of_cond_count():
    def branches(then, otherwise):
        root = nn.Module()
        root.then, root.otherwise = trace(then), trace(otherwise)
        graph = fx.Graph()
        x = graph.placeholder("x")
        parts = graph.get_attr("then"), graph.get_attr("otherwise")
        graph.output(graph.call_function(torch.ops.higher_order.cond, (True, *parts, (x,))))
        return fx.GraphModule(root, graph)

    one = branches(lambda x: x.sin(), lambda x: x.cos())
    assert graph_hash(one) == graph_hash(branches(lambda x: x.sin(), lambda x: x.cos()))
    assert graph_hash(one) != graph_hash(branches(lambda x: x.cos(), lambda x: x.sin()))
    assert graph_hash(one) != graph_hash(branches(lambda x: x.sin(), lambda x: x.tan()))


def test_values_count_only_if_asked_for():
    one, two = holding(torch.zeros(2)), holding(torch.ones(2))
    assert graph_hash(one) == graph_hash(two)
    assert graph_hash(one, values=True) != graph_hash(two, values=True)
    assert graph_hash(holding(torch.ones(2)), values=True) == graph_hash(two, values=True)
    for tensor in (torch.ones(0), torch.tensor(1), torch.ones(2).bfloat16(), torch.ones(2) + 0j):
        assert graph_hash(holding(tensor), values=True)
    assert graph_hash(holding(torch.ones(2, device="meta")), values=True)


def test_values_of_views_tell_what_they_show():
    base = torch.arange(8.0)
    one, two = holding(base[:4]), holding(base[4:])
    assert graph_hash(one, values=True) != graph_hash(two, values=True)
    turned = torch.arange(4.0).view(2, 2)
    assert graph_hash(holding(turned.t()), values=True) != graph_hash(holding(turned), values=True)
    imaginary = (torch.ones(2) + 2j).conj()
    assert graph_hash(holding(imaginary), values=True) != graph_hash(
        holding(imaginary.conj()), values=True
    )


def test_metadata_counts_only_if_asked_for():
    one, two = trace(Net()), trace(Net())
    next(iter(two.graph.nodes)).meta["note"] = 1
    assert graph_hash(one) == graph_hash(two)
    assert graph_hash(one, meta=True) != graph_hash(two, meta=True)


def test_sets_are_equal_in_any_order():
    one = call(torch.add, {"a", "b", "c"})
    assert graph_hash(one) == graph_hash(call(torch.add, {"c", "b", "a"}))


@pytest.mark.filterwarnings("ignore:Raw SymInt value")
def test_symbolic_numbers_in_arguments_count():
    def symbolic(shape):
        return make_fx(lambda x: x.view(x.shape[0] * 2, -1), tracing_mode="symbolic")(
            torch.ones(*shape)
        )

    assert graph_hash(symbolic((4, 4))) == graph_hash(symbolic((4, 4)))
    gm = symbolic((4, 4))
    size = next(
        n.meta["val"] for n in gm.graph.nodes if isinstance(n.meta.get("val"), torch.SymInt)
    )
    one, two = call(torch.add, size), call(torch.add, size + 1)
    assert graph_hash(one) != graph_hash(two)


def test_a_lambda_is_refused_and_its_node_named():
    graph = fx.Graph()
    node = graph.create_node("call_function", lambda x: x, (graph.placeholder("x"),), name="odd")
    graph.output(node)
    with pytest.raises(SerializationError, match="node 'odd', target"):
        graph_hash(fx.GraphModule(nn.Module(), graph))


def test_what_cannot_be_hashed_is_refused_by_name():
    for wrong in (nn.Linear(2, 2), None):
        with pytest.raises(NotAGraphModuleError, match="graph_hash"):
            graph_hash(wrong)
    gm = holding(nn.Linear(2, 2))
    del gm.held
    with pytest.raises(InvalidGraphError, match="node 'held'.*'held'"):
        graph_hash(gm)
    gm = holding(nn.Linear(2, 2))
    gm.held.register_forward_hook(lambda *args: None)
    with pytest.raises(SerializationError, match="node 'held'.*forward_hooks"):
        graph_hash(gm)
    gm = holding(nn.Linear(2, 2))
    gm.held.lock = iter(())
    with pytest.raises(SerializationError, match="node 'held'.*iterator"):
        graph_hash(gm)


def test_leaf_modules_of_every_kind_can_be_hashed():
    for made in (
        *(nn.LSTM(2, 2), nn.MultiheadAttention(4, 2), nn.TransformerEncoderLayer(4, 2, 8)),
        *(nn.Conv2d(1, 1, 3), nn.BatchNorm1d(2), nn.Embedding(2, 2), nn.ModuleList([nn.ReLU()])),
    ):
        one, two = holding(made), holding(copy.deepcopy(made))
        assert graph_hash(one) == graph_hash(two)


EXPECTED = {
    "linear": "6a8d6a33e7d655aa8e780a36be67a8f10d2e7cb04b91e3c69375213603d638ef",
    "operators": "978fadf02ef7142616e066f3360610cb24c013d09691e9230edc72e702758a34",
    "functions": "c51df089032b7d7b0337aaed411add89dcad899ed2ca75ed944d883a3b9a6c04",
    "containers": "7d9ac6550aa1b53e3dab38a01048fa3494a83b7890a5b81d04c1182d3c445b4a",
}

GRAPHS = textwrap.dedent(
    """
    import torch
    from torch import fx, nn

    def graphs():
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(3, 4)
                self.weight = nn.Parameter(torch.ones(3))
                self.register_buffer("scale", torch.ones(2, 4))

            def forward(self, x, factor=2.0):
                return torch.relu(self.linear(x * self.weight)) * self.scale * factor

        class Own(fx.Tracer):
            def is_leaf_module(self, module, name):
                return False

        net = Net()
        yield "linear", fx.GraphModule(net, Own().trace(net))
        graph = fx.Graph()
        x = graph.placeholder("x")
        y = graph.call_function(torch.ops.aten.add.Tensor, (x, 1))
        y = graph.call_function(torch.ops.aten.sum.dim_IntList, (y, [0, 1]), {"keepdim": True})
        y = graph.call_function(torch.ops.aten._to_copy.default, (y,), {"dtype": torch.float64})
        graph.output((y,))
        yield "operators", fx.GraphModule(nn.Module(), graph)
        yield "functions", fx.symbolic_trace(
            lambda x, y: torch.nn.functional.gelu(torch.cat([x, y], dim=-1))[..., 1:].sum(0) @ y.t()
        )
        graph = fx.Graph()
        x = graph.placeholder("x", default_value=None)
        args = ({"b": 1, "a": (1.5, None)}, {"x", "y", "z"}, slice(None, 2), 1j, float("-inf"))
        y = graph.call_function(len, (x, *args), {"device": torch.device("cpu")})
        graph.output([y, {"k": y}])
        yield "containers", fx.GraphModule(nn.Module(), graph)
    """
)


def _graphs():
    space = {}
    exec(GRAPHS, space)
    return dict(space["graphs"]())


def test_the_hash_is_the_same_on_every_torch():
    """Constants: 2.6, 2.13 and 2.15 gave the same."""
    assert {name: graph_hash(gm) for name, gm in _graphs().items()} == EXPECTED


@pytest.mark.parametrize("seed", ["0", "1234"])
def test_the_hash_is_the_same_in_every_process(seed):
    code = GRAPHS + (
        "\nfrom lazyfx_core import graph_hash\nprint(*(graph_hash(gm) for _, gm in graphs()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert done.stdout.split() == list(EXPECTED.values())


def test_keywords_are_equal_in_any_order():
    one, two = call(torch.sum, dim=0, keepdim=True), call(torch.sum, keepdim=True, dim=0)
    assert graph_hash(one) == graph_hash(two)


def test_values_that_cannot_be_read_are_refused_by_name():
    gm = holding(torch.eye(2).to_sparse())
    assert graph_hash(gm)
    with pytest.raises(SerializationError, match="node 'held'.*sparse"):
        graph_hash(gm, values=True)


def test_values_are_hashed_without_numpy_as_with_it():
    program = """
import sys, warnings
if sys.argv[1] == "without":
    sys.modules["numpy"] = None
warnings.simplefilter("ignore")
import torch
from torch import fx, nn
from lazyfx_core import graph_hash
torch.manual_seed(0)
root = nn.Module()
root.a, root.b = nn.Parameter(torch.randn(3, 2)[1:].T), nn.Parameter(torch.zeros(0))
graph = fx.Graph()
graph.output((graph.get_attr("a"), graph.get_attr("b")))
print(graph_hash(fx.GraphModule(root, graph), values=True))
"""
    hashes = [
        subprocess.run(
            [sys.executable, "-c", program, how], capture_output=True, text=True, check=True
        ).stdout
        for how in ("with", "without")
    ]
    assert len(hashes[0]) == 65
    assert hashes[0] == hashes[1]
