"""Archives by somebody who means harm: every one is refused by name, and nothing is executed.

Most start from a good archive whose structure is changed and written anew, digests included.
"""

import contextlib
import copy
import json
import os
import random
import subprocess
import sys
import textwrap
import time
import zlib

import pytest
import torch
from torch import fx, nn

from lazyfx_core import (
    GraphFormatError,
    LazyGraphModule,
    SerializationError,
    load_graph,
    save_graph,
)
from lazyfx_core._container import read_container, write_container
from lazyfx_core._graph_module import LazyGraphModule as Lazy


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8)
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, *, factor: float = 2.0):
        y = self.linear(x) * self.weight
        return {"out": torch.clamp(y, min=0.0) * factor, "shape": getattr(y, "shape")}  # noqa: B009


class Archive:
    """An archive whose structure may be changed."""

    def __init__(self, gm, path):
        save_graph(gm, path)
        self.path = path
        text, self.tensors = read_container(path)
        self.data = json.loads(text)

    @property
    def root(self):
        return self.data["modules"][0]

    @property
    def graph(self):
        return self.root["graph"]

    def node(self, name):
        return next(row for row in self.graph["nodes"] if row[2] == name)

    def calls(self, target):
        """Let the first function that is called be ``target``."""
        self.graph["targets"][0] = target

    def load(self, **options):
        write_container(self.path, json.dumps(self.data).encode(), self.tensors)
        return load_graph(self.path, **options)


@pytest.fixture
def archive(tmp_path):
    gm = fx.symbolic_trace(Model())
    gm.encoder = nn.TransformerEncoderLayer(4, 2, 8)
    return Archive(LazyGraphModule.from_graphmodule(gm), tmp_path / "graph")


@pytest.fixture
def plain(tmp_path):
    return Archive(fx.symbolic_trace(Model()), tmp_path / "graph")


def test_the_archive_that_the_others_are_made_of_is_good(archive, plain):
    for good in (archive, plain):
        assert good.load()(torch.ones(3))["out"].shape == (3,)


INJECTIONS = [
    "x): import os #",
    "x=__import__('os').system('true')",
    "x\n    import os",
    "x; import os",
    "x: print(1)",
    "x y",
    "x.y",
    "x'",
    "",
    "lambda",
    "größe",
    "x\0",
    "***x",
    "*",
    "x=1",
]


@pytest.mark.parametrize("text", INJECTIONS)
@pytest.mark.parametrize("kind", ["plain", "archive"])
@pytest.mark.parametrize("field", ["name", "target", "keyword", "orig_args", "_func_name"])
def test_text_that_would_be_more_than_a_name_in_code_is_refused(request, kind, field, text):
    bad = request.getfixturevalue(kind)
    if field == "name":
        bad.node("linear")[2] = text
    elif field == "target":
        bad.node("x")[1] = text
    elif field == "keyword":
        bad.node("clamp")[4] = {text: 0.0}
    elif field == "orig_args":
        bad.graph["codegen"] = {
            "codegen": "pytree",
            "orig_args": [text],
            "in_spec": None,
            "out_spec": None,
            "has_out_spec": False,
        }
    else:
        bad.graph["codegen"]["attributes"] = {"_func_name": text}
    with pytest.raises(GraphFormatError):
        bad.load()


@pytest.mark.parametrize(
    "text", ["a: import os #", "a(b)", "a\nb", "a b", "", "a;b", "a'", "<a", 5, None, ["a"]]
)
def test_a_class_name_that_would_be_more_than_a_name_in_code_is_refused(archive, text):
    archive.root["class_name"] = text
    with pytest.raises(GraphFormatError, match="class name"):
        archive.load()


PATHS = [
    "forward.__globals__",
    "forward",
    "__class__",
    "__dict__",
    "_modules",
    "_buffers",
    "_parameters",
    "_forward_hooks",
    "_graph",
    "graph",
    "code",
    "meta",
    "training",
    "linear.forward",
    "linear.__class__",
    "linear._parameters",
    "linear.in_features",
    "linear..weight",
    "linear.weight.data",
    "weight.grad_fn",
    "nothing",
    "linear.weight)(__import__('os')",
    "weight\n",
    "",
]


@pytest.mark.parametrize("path", [p for p in PATHS if p != "linear.in_features"])
@pytest.mark.parametrize("kind", ["plain", "archive"])
def test_a_path_that_reaches_a_method_a_table_or_code_is_refused(request, kind, path):
    bad = request.getfixturevalue(kind)
    bad.node("weight")[1] = path
    with pytest.raises(GraphFormatError, match="node 'weight'"):
        bad.load()


@pytest.mark.parametrize("path", [p for p in PATHS if p != "linear.in_features"])
def test_a_called_module_is_a_module(archive, path):
    archive.node("linear")[1] = path
    with pytest.raises(GraphFormatError, match="node 'linear'"):
        archive.load()


@pytest.mark.parametrize("table", ["parameters", "buffers", "modules"])
@pytest.mark.parametrize(
    "name", ["forward", "__globals__", "__class__", "a.b", "", "training", "code", "graph", "to"]
)
def test_nothing_that_a_module_holds_is_called_like_something_of_its_class(archive, table, name):
    """``self.forward.__globals__`` would be found in the class, whatever the tables hold."""
    archive.root[table][name] = 1
    with pytest.raises(GraphFormatError, match="name of what|hidden by"):
        archive.load()


@pytest.mark.parametrize("table", ["parameters", "buffers", "modules"])
@pytest.mark.parametrize("name", ["__globals__", "forward", "weight.data"])
def test_nor_what_its_children_hold(archive, table, name):
    archive.data["modules"][1][table][name] = 0 if table != "modules" else None
    with pytest.raises(GraphFormatError, match="module 1"):
        archive.load()


HOSTILE_VALUES = [
    {"fn": ["builtins", "getattr"]},
    {"fn": ["builtins", "eval"]},
    {"fn": ["builtins", "exec"]},
    {"fn": ["builtins", "__import__"]},
    {"fn": ["builtins", "open"]},
    {"fn": ["os", "system"]},
    {"fn": ["torch", "load"]},
    {"fn": ["torch", "save"]},
    {"fn": ["torch", "compile"]},
    {"fn": ["torch.hub", "load"]},
    {"fn": ["torch.jit", "load"]},
    {"fn": ["torch.ops", "load_library"]},
    {"fn": ["torch", "from_file"]},
    {"fn": ["torch.extra", "torch._C._load"]},
    {"fn": ["operator", "attrgetter"]},
    {"fn": ["operator", "methodcaller"]},
    {"fn": ["operator", "itemgetter"]},
    {"fn": ["operator", "call"]},
    {"fn": ["builtins", "str.format"]},
    {"fn": ["torch.Tensor", "register_hook"]},
    {"fn": ["torch.Tensor", "apply_"]},
    {"fn": ["torch.Tensor", "__reduce_ex__"]},
    {"name": "os:system"},
    {"name": "builtins:eval"},
    {"name": "subprocess:Popen"},
    {"op": ["overload", "aten.from_file.default"]},
    {"op": ["overload", "aten.save.default"]},
    {"op": ["packet", "aten.from_file"]},
    {"op": ["overload", "prim.Print.default"]},
    {"op": ["higher_order", "higher_order.triton_kernel_wrapper_mutation"]},
    {"op": ["overload", "__class__.__init__.__globals__"]},
    {"op": ["packet", "load_library"]},
    {"op": ["packet", "aten.__init__"]},
    {"op": ["higher_order", "aten.add.Tensor"]},
    {"op": ["nonsense", "aten.add.Tensor"]},
    {"class": "builtins:eval"},
    {"class": "torch.utils._pytree:importlib"},
    {"class": "torch.fx.experimental.symbolic_shapes:ShapeEnv"},
    {"class": "os:system"},
    {"record": ["os:stat_result", {}]},
    {"record": ["torch.fx.traceback:NodeSource", {"__class__": 1}]},
    {"record": ["torch.utils._pytree:TreeSpec", {}]},
    {"allowed": "os:system"},
    {"allowed": "builtins:eval"},
    {"object": 0},
    {"shared": 0},
    {"again": 0},
    {"module": 0},
    {"module": 99},
    {"tensor": 10**6},
    {"typing": ["get_type_hints", []]},
    {"typing": ["ForwardRef", ["__import__('os')"]]},
    {"alias": [{"name": "os:PathLike"}, []]},
    {"alias": [5, []]},
    {"union": [{"fn": ["torch", "sin"]}, None]},
    {"enum": [{"name": "signal:Signals"}, "SIGKILL"]},
    {"named": [{"name": "os:stat_result"}, [0] * 10]},
    {"spec": [{"name": "builtins:eval"}, None, []]},
    {"unknown": 1},
    {"set": [[1]]},
    {"items": [[{"dict": {}}, 1]]},
    {"frozenset": [{"dict": {}}]},
    {"range": [0, 1, 0]},
    {"range": [0, 1.5, 1]},
    {"slice": [0]},
    {"int": "0x" + "g" * 10},
    {"float": "1e5"},
    {"complex": ["1", 2]},
    {"bytes": "***"},
    {"dtype": "load"},
    {"device": "__import__('os')"},
    {"device": "cpu:" + "9" * 400},
    {"layout": "load"},
    {"memory_format": "compile"},
    {"size": ["a"]},
    {"constant": "eval"},
    {"fake": ["tensor", 0]},
    {"fake": ["mode", 0]},
    {"text": 10**9},
    {"node": 10**9},
    {"node": -1},
    {"node": True},
    {"tuple": 1, "list": 2},
    {},
]


@pytest.mark.parametrize("value", HOSTILE_VALUES, ids=lambda v: json.dumps(v)[:60])
def test_a_target_that_is_not_harmless_is_refused(archive, value):
    archive.calls(value)
    with pytest.raises(GraphFormatError, match="node"):
        archive.load()


@pytest.mark.parametrize("value", HOSTILE_VALUES, ids=lambda v: json.dumps(v)[:60])
@pytest.mark.parametrize("place", ["argument", "deep", "second call", "default", "output"])
def test_an_argument_that_is_not_harmless_is_refused(archive, value, place):
    row = archive.node("mul_1")
    if place == "argument":
        row[3].append(value)
    elif place == "deep":
        row[3].append({"dict": {"a": [{"tuple": [value]}]}})
    elif place == "second call":  # what was found to be fine once may be called otherwise again
        archive.graph["nodes"].insert(-1, [row[0], row[1], "again", [value, 1]])
    elif place == "default":
        archive.node("x")[3].append(value)
    else:
        archive.graph["nodes"][-1][3] = [[value]]
    with pytest.raises(GraphFormatError):
        archive.load()


@pytest.mark.parametrize("value", HOSTILE_VALUES, ids=lambda v: json.dumps(v)[:60])
@pytest.mark.parametrize("name", ["activation", "_note"])
def test_an_attribute_of_a_torch_module_that_is_not_harmless_is_refused(archive, value, name):
    index = archive.root["modules"]["encoder"]
    archive.data["modules"][index]["attributes"][name] = [value]
    with pytest.raises(GraphFormatError, match="module"):
        archive.load()


@pytest.mark.parametrize(
    "name",
    [
        *("forward", "__class__", "__dict__", "_modules", "_call_impl", "_wrapped_call_impl"),
        *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "__setstate__", "training"),
        *("_compiled_call_impl ", "a b", "", "a\n", "state_dict", "_sa_block", "_version\n"),
    ],
)
def test_an_attribute_in_the_place_of_something_of_the_class_is_refused(archive, name):
    index = archive.root["modules"]["encoder"]
    archive.data["modules"][index]["attributes"][name] = {"fn": ["torch", "sin"]}
    with pytest.raises(GraphFormatError, match=f"module {index}"):
        archive.load()


@pytest.mark.parametrize("name", ["graph", "code", "_graph", "_code", "recompile", "meta"])
def test_an_attribute_in_the_place_of_something_of_a_graph_module_is_refused(archive, name):
    archive.root["attributes"][name] = "x = 1"
    with pytest.raises(GraphFormatError, match="module 0"):
        archive.load()


def test_an_lstm_of_endless_layers_does_not_hang(tmp_path):
    gm = fx.symbolic_trace(nn.Sequential(nn.LSTM(2, 2)))
    bad = Archive(gm, tmp_path / "x")
    held = bad.data["modules"][1]["attributes"]
    held["all_weights"], held["num_layers"] = [[[1]]], 10**15
    with pytest.raises(GraphFormatError, match="all_weights"):
        bad.load()


@pytest.mark.parametrize(
    "cls",
    [
        {"name": "torch.nn.parallel.distributed:DistributedDataParallel"},
        {"name": f"{__name__}:Model"},
        {"fn": ["torch.nn", "Parameter"]},
        {"fn": ["torch", "Tensor"]},
        {"class": "torch.fx.traceback:NodeSource"},
        *("lazy graph module", "graph module", "torch.nn.Linear", None, 5, [], {}),
    ],
)
def test_the_class_of_a_module_is_one_of_torch_nn(archive, cls):
    archive.data["modules"][1]["class"] = cls
    with pytest.raises(GraphFormatError, match="module 1"):
        archive.load()


def tree(kind, context, children):
    return {
        "codegen": "pytree",
        "orig_args": ["x"],
        "in_spec": [{"fn": ["builtins", "tuple"]}, None, [None]],
        "out_spec": [kind, context, children],
        "has_out_spec": True,
    }


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("namedtuple", {"fn": ["builtins", "getattr"]}),
        ("namedtuple", {"fn": ["torch", "sin"]}),
        ("namedtuple", {"fn": ["builtins", "tuple"]}),
        ("namedtuple", None),
        ({"fn": ["builtins", "dict"]}, {"fn": ["builtins", "getattr"]}),
        ({"fn": ["builtins", "dict"]}, 5),
        ({"fn": ["builtins", "list"]}, {"fn": ["builtins", "getattr"]}),
        ({"fn": ["collections", "defaultdict"]}, [{"fn": ["builtins", "getattr"]}, []]),
        ({"fn": ["collections", "defaultdict"]}, [{"fn": ["torch", "sin"]}, []]),
        ({"fn": ["collections", "defaultdict"]}, 5),
        ({"fn": ["collections", "deque"]}, "x"),
        ({"fn": ["torch", "sin"]}, None),
        ("nonsense", None),
        ([], None),
    ],
)
def test_a_tree_that_would_call_something_is_refused(archive, kind, context):
    archive.graph["codegen"] = tree(kind, context, [None])
    with pytest.raises(GraphFormatError):
        archive.load()


@pytest.mark.parametrize("key", ["a':__import__('os'),'b", "a\\", "a\n", "a'"])
def test_a_keyword_of_the_signature_that_would_end_its_quotes_is_refused(plain, key):
    plain.graph["codegen"] = {
        "codegen": "pytree",
        "orig_args": ["x", "factor"],
        "in_spec": [
            {"fn": ["builtins", "tuple"]},
            None,
            [
                [{"fn": ["builtins", "tuple"]}, None, [None]],
                [{"fn": ["builtins", "dict"]}, [key], [None]],
            ],
        ],
        "out_spec": None,
        "has_out_spec": False,
    }
    with pytest.raises(GraphFormatError, match="keyword"):
        plain.load()


@pytest.mark.parametrize(
    "value", [{"fn": ["builtins", "sorted"]}, {"fn": ["builtins", "reversed"]}, "x y", 5, [1]]
)
def test_a_code_generator_that_rewrites_code_is_refused(archive, value):
    archive.graph["codegen"]["attributes"] = {"_body_transformer": value}
    if value not in (5, [1]):
        with pytest.raises(GraphFormatError):
            archive.load()


@pytest.mark.parametrize(
    "name",
    ["eval", "exec", "__import__", "open", "torch", "self", "getattr", "a b", "a.b", "class", "x)"],
)
def test_a_symbol_that_means_something_else_in_code_is_refused(archive, name):
    """torch writes a symbolic number into code as it prints."""
    use_symbol(archive, name)
    with pytest.raises(GraphFormatError, match="symbol"):
        archive.load()


def test_a_symbol_with_a_name_of_its_own_is_read(archive):
    use_symbol(archive, "s0")
    assert "s0" in str(archive.load().graph)


def use_symbol(archive, name):
    """Multiply by a symbolic number of this name."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from lazyfx_core._torch_symbolic import FakeWriter

    writer = FakeWriter()
    writer.describe(ShapeEnv())
    fakes = writer.environment()
    fakes["numbers"] = [["int", len(fakes["expressions"]), 5]]
    fakes["expressions"].append(["Symbol", name, {"integer": True}])
    archive.data["fakes"] = fakes
    archive.node("mul_1")[3][1] = {"fake": ["number", 0]}


@pytest.mark.parametrize(
    "annotation", [5, 1.5, {"fn": ["torch", "sin"]}, {"node": 0}, {"bytes": ""}]
)
def test_a_type_annotation_is_a_type(archive, annotation):
    archive.node("mul_1").extend([{}, annotation])
    with pytest.raises(GraphFormatError, match="mul_1.*annotation"):
        archive.load()


def test_shared_values_in_arguments_are_refused_before_torch_copies_them(archive):
    """Thirty lines that would be 10 ** 30 numbers."""
    archive.graph["shared"] = [[1], *([{"shared": i}] * 10 for i in range(30))]
    archive.node("mul_1")[3].append({"shared": 30})
    with pytest.raises(GraphFormatError, match="'shared' is not a kind of value"):
        archive.load()


REPEATED = {
    "another kind": [{"bytes": ""}],
    "itself": [{"dict": {"a": {"again": 0}}}],
    "each other": [{"dict": {"a": {"again": 1}}}, {"dict": {"a": {"again": 0}}}],
    "more than may be repeated": [{"dict": {str(i): i for i in range(33)}}],
    "nobody": [],
}


@pytest.mark.parametrize("table", REPEATED.values(), ids=REPEATED)
def test_what_is_repeated_is_small_and_not_itself(archive, table):
    archive.graph["again"] = table
    archive.graph["meta"] = [{"copy": {"again": 0}}, *[None] * (len(archive.graph["nodes"]) - 1)]
    with pytest.raises(GraphFormatError, match="node 'x'"):
        archive.load()


@pytest.mark.parametrize("table", ["text", "shared", "again"])
@pytest.mark.parametrize(
    "inside", [lambda it: {"tuple": [it, it]}, lambda it: [it], lambda it: {"set": [it]}]
)
def test_tables_are_referred_to_by_whole_entries_of_metadata_only(archive, table, inside):
    """Thirty lines that would be 2 ** 30 values, or take as long to hash or to print."""
    held = [inside({table: i}) for i in range(30)]
    name = {"text": "texts"}.get(table, table)
    archive.graph[name] = ["x" * 100 if table == "text" else {"dict": {}}, *held]
    archive.graph["meta"] = [{"m": {"shared": 30}}, *[None] * (len(archive.graph["nodes"]) - 1)]
    archive.graph.setdefault("shared", held + held)
    with pytest.raises(GraphFormatError, match=f"node 'x'.*'{table}' is not a kind of value"):
        archive.load()


def test_keys_that_hash_alike_are_refused(archive):
    """Else ten thousand of them take seconds, and more of them take hours."""
    pairs = [[i * (2**61 - 1), 0] for i in range(1, 10_000)]
    archive.graph["meta"] = [{"m": {"items": pairs}}, *[None] * (len(archive.graph["nodes"]) - 1)]
    with pytest.raises(GraphFormatError, match="node 'x'.*same hash"):
        archive.load()


TAKEN = {
    "a node": lambda a: a.node("mul").__setitem__(2, "self"),
    "a placeholder": lambda a: a.node("x").__setitem__(1, "self"),
    "the rest of the arguments": lambda a: a.node("x").__setitem__(1, "*self"),
    "a parameter that hides torch": lambda a: a.node("x").__setitem__(1, "torch"),
    "an argument before it is taken apart": lambda a: a.graph.update(
        codegen={"pytree": {"orig_args": ["self", "x"], "in_spec": None, "out_spec": None}}
    ),
}


@pytest.mark.parametrize("damage", TAKEN.values(), ids=TAKEN)
def test_nothing_is_called_self_but_the_module(archive, damage):
    """``self = x.numpy(); self.tofile(path)`` would write a file, if the module holds a tofile."""
    damage(archive)
    with pytest.raises(GraphFormatError):
        archive.load()


def test_duplicate_names_later_nodes_and_cycles_are_refused(archive):
    cases = [
        (lambda a: a.node("mul")[3].append({"node": 9}), "node 'mul'.*9 does not exist"),
        (lambda a: a.node("mul_1").__setitem__(2, "mul"), "'mul'.*same name"),
        (lambda a: a.data["modules"][1]["modules"].update(back=1), "module 1 contains itself"),
        (lambda a: a.data["modules"][1]["modules"].update(back=0), "module 0 contains itself"),
        (lambda a: a.root["modules"].update(more=99), "module 99 does not exist"),
        (lambda a: a.data["modules"].append(a.data["modules"][1]), "nobody refers to"),
        (lambda a: a.data["modules"].pop(), "does not exist"),
        (lambda a: a.data.update(schema=2), "schema 2.*newer"),
        (lambda a: a.data.update(schema="1"), "schema"),
        (lambda a: a.data.update(modules={}), "modules"),
        (lambda a: a.data.update(modules=[]), "modules"),
        (lambda a: a.root.pop("graph"), "module 0"),
        (lambda a: a.root.update(graph=[]), "graph is an object"),
    ]
    good = copy.deepcopy(archive.data)
    for change, message in cases:
        archive.data = copy.deepcopy(good)
        change(archive)
        with pytest.raises(GraphFormatError, match=message):
            archive.load()


@pytest.mark.parametrize(
    "text", [b"[]", b"5", b"null", b"", b"{", b'{"schema": 1}', b"\xff", b"{}"]
)
def test_a_structure_that_is_no_structure_is_refused(archive, text):
    write_container(archive.path, text, archive.tensors)
    with pytest.raises(GraphFormatError):
        load_graph(archive.path)


@pytest.mark.parametrize("opening", [b"[", b'{"tuple":[', b'{"a":'])
def test_a_million_levels_are_refused(archive, opening):
    deep = opening * 10**6
    text = json.dumps(archive.data).encode()
    for place in (deep, text[:-1] + b',"x":' + deep + b"}"):
        write_container(archive.path, place, archive.tensors)
        with pytest.raises(GraphFormatError, match="nested too deep|not JSON"):
            load_graph(archive.path)


@pytest.mark.parametrize("depth", [60, 300, 900, 5000])
def test_values_that_are_nested_too_deep_are_refused_or_read(archive, depth):
    value = 1
    for _ in range(depth):
        value = {"tuple": [value]}
    archive.node("mul_1")[3].append(value)
    try:
        text = json.dumps(archive.data).encode()
    except RecursionError:
        inner = b'{"tuple":[' * depth + b"1" + b"]}" * depth
        archive.node("mul_1")[3][-1] = "here"
        text = json.dumps(archive.data).encode().replace(b'"here"', inner)
    write_container(archive.path, text, archive.tensors)
    if depth >= 900:
        with pytest.raises(GraphFormatError, match="deep"):
            load_graph(archive.path)
    else:
        with contextlib.suppress(GraphFormatError):
            load_graph(archive.path)


def test_ranges_and_integers_of_any_size_cost_nothing(archive):
    archive.node("mul_1")[3] += [{"range": [0, 10**8, 1]}, {"int": hex(2**4000)}, 2**70]
    begin = time.perf_counter()
    assert archive.load().graph.find_nodes(op="output")
    assert time.perf_counter() - begin < 60


def test_a_structure_that_expands_a_thousandfold_is_refused(archive, tmp_path):
    text = b'{"schema":1,"modules":[' + b"[]," * (12 << 20) + b"[]]}"
    assert len(zlib.compress(text, 1)) < 1 << 20
    write_container(archive.path, text, [])
    with pytest.raises(GraphFormatError, match="structure_bytes"):
        load_graph(archive.path)


LEAVES = [None, True, -1, 2**70, "", "x" * 10, [], {}, [[]], {"node": 0}]


def leaves(data, path=()):
    """The paths of all leaves and containers of ``data``."""
    if path:
        yield path
    if isinstance(data, dict):
        for key in data:
            yield from leaves(data[key], (*path, key))
    elif isinstance(data, list):
        for index, item in enumerate(data):
            yield from leaves(item, (*path, index))


def replaced(data, path, value):
    """``data`` with ``value`` at ``path``; shares everything else."""
    if not path:
        return value
    new = dict(data) if isinstance(data, dict) else list(data)
    new[path[0]] = replaced(data[path[0]], path[1:], value)
    return new


def rich_module():
    """A small module of which each kind of entry is there."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        y = torch.ops.aten.add.Tensor(x, 1)
        return torch.ops.aten.sum.dim_IntList(y, [0], keepdim=True, dtype=torch.float64)

    gm = make_fx(function, tracing_mode="symbolic")(torch.ones(3, 4))
    gm.meta["note"] = {"a": (1, 2.5), "b": {3}}
    gm.bn = nn.BatchNorm1d(3)
    gm.child = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: x.relu()))
    gm.limits = [slice(0, 2), 1j, b"b", torch.float16, torch.device("cpu"), torch.Size([1])]
    return gm


def outcome(path, tensors, data):
    """Load what ``data`` says: True if it loads, False if it is refused as it should be."""
    write_container(path, json.dumps(data).encode(), tensors)
    begin = time.perf_counter()
    try:
        gm = load_graph(path, check_tensors=False, warn=False)
    except GraphFormatError:
        loaded = False
    else:
        loaded = True
        assert len(gm.graph.nodes) >= 0
    assert time.perf_counter() - begin < 30, "hangs"
    return loaded


def test_every_field_may_be_anything(tmp_path):
    """One leaf after another, each replaced by everything: a fixed sample, all with --slow."""
    sample(tmp_path, 600)


@pytest.mark.slow
def test_every_field_may_be_anything_at_length(tmp_path):
    sample(tmp_path, 9_000)


def sample(tmp_path, count):
    loaded = 0
    for lazy, gm in enumerate((rich_module(), LazyGraphModule.from_graphmodule(rich_module()))):
        archive = Archive(gm, tmp_path / "graph")
        changes = [(p, v) for p in leaves(archive.data) for v in LEAVES]
        random.Random(lazy).shuffle(changes)
        for path, value in changes[: count // 2]:
            try:
                data = replaced(archive.data, path, value)
                loaded += outcome(archive.path, archive.tensors, data)
            except Exception as error:
                raise AssertionError(f"{path} = {value!r}: {error!r}") from error
    assert 0 < loaded < count / 2


@pytest.mark.parametrize("count", [400, pytest.param(3_000, marks=pytest.mark.slow)])
def test_damaged_bytes_are_always_found(tmp_path, count):
    path = tmp_path / "graph"
    save_graph(rich_module(), path)
    good, chance = path.read_bytes(), random.Random(5)
    for _ in range(count):
        content = bytearray(good)
        kind = chance.randrange(3)
        if kind == 0:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[chance.randrange(len(content)) :]
        else:
            begin = chance.randrange(len(content))
            content[begin : begin + chance.randrange(1, 40)] = chance.randbytes(8)
        if bytes(content) == good:
            continue
        path.write_bytes(content)
        with pytest.raises(GraphFormatError):
            load_graph(path)


AUDITED = textwrap.dedent(
    """
    import ast, json, random, sys, warnings
    warnings.simplefilter("ignore")
    import torch
    from lazyfx_core import load_graph
    from lazyfx_core.errors import LazyFxError
    from lazyfx_core._container import read_container, write_container
    import lazyfx_core._torch_symbolic, torch.fx.experimental.symbolic_shapes
    import importlib
    sys.path.insert(0, sys.argv[1])
    hostile = importlib.import_module("hostile")
    path, kind, count = sys.argv[2], sys.argv[3], int(sys.argv[4])
    events, watching = [], False
    inside = tuple({p for p in sys.path if p.endswith("site-packages")})
    inside += (sys.prefix, sys.base_prefix)
    CODE = ("exec", "compile")

    def hook(event, args):
        if not watching:
            return
        if event in CODE:
            name = str(args[1] if event == "compile" else args[0].co_filename)
            if kind == "plain" and name.startswith("<eval_with_key>"):
                if event == "compile" and args[0] is not None:
                    seen.append(args[0])
            elif event == "compile" and name == "<unknown>":
                pass  # ast.parse, for the marks below a line of a traceback
            elif not name.startswith(inside):
                events.append((event, name, str(args[0])[:200]))
        elif event == "import":
            if args[0].partition(".")[0] not in ("torch", "sympy", "mpmath", "_heapq"):
                events.append((event, args[0]))
        elif event == "open":
            file, mode, flags = args
            is_write = (flags or 0) & 3 or "w" in str(mode) or "a" in str(mode)
            if is_write or not str(file).startswith((path, "<eval_with_key>", *inside)):
                events.append((event, str(file), str(mode)))
        elif event.split(".")[0] in ("subprocess", "socket", "os", "shutil", "ctypes", "pty"):
            if event not in ("os.listdir", "os.scandir", "os.putenv"):
                events.append((event, str(args)[:200]))

    seen = []
    gm = load_graph(path)  # whatever torch imports late, it imports now
    gm(*hostile.inputs())
    try:
        torch.cond(torch.tensor(True), torch.sin, torch.cos, (torch.ones(1),))
        gm(*hostile.inputs(), 1, 2, 3)
    except TypeError:
        pass
    sys.addaudithook(hook)
    text, tensors = read_container(path)
    data = json.loads(text)
    chance = random.Random(7)
    changes = [(p, v) for p in hostile.leaves(data) for v in hostile.VALUES]
    chance.shuffle(changes)
    loaded = called = 0
    for place, value in changes[:count]:
        write_container(path, json.dumps(hostile.replaced(data, place, value)).encode(), tensors)
        try:
            watching = "load"
            gm = load_graph(path, check_tensors=False)
            loaded += 1
            watching = "call" if kind == "plain" else False
            if not watching:
                gm.graph.python_code("self"), gm.recompile().src
                gm.code
                watching = "call"
            gm(*hostile.inputs())
            called += 1
        except LazyFxError:
            pass
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            if watching == "load":
                raise
        finally:
            watching = False
    print(json.dumps({"events": events[:10], "loaded": loaded, "called": called}))
    for source in {s.decode() if isinstance(s, bytes) else s for s in seen}:
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except SyntaxError:
            continue  # nothing can run it
        # In quotes they are arguments like any other text, and a parameter may have any name.
        called = [node.func for node in nodes if isinstance(node, ast.Call)]
        words = [getattr(one, "id", getattr(one, "attr", "")) for one in called]
        assert not {"__import__", "eval", "exec", "open", "system"}.intersection(words), source
    """
)

HOSTILE_MODULE = textwrap.dedent(
    """
    import torch
    VALUES = [
        *(None, True, -1, 2 ** 70, "", [], {}, "__import__('os').system('true')", "eval"),
        {"fn": ["builtins", "getattr"]}, {"fn": ["builtins", "sorted"]}, {"node": 0},
        {"name": "os:system"},
        {"fn": ["torch", "sin"]}, {"fn": ["builtins", "max"]}, {"op": ["packet", "aten.from_file"]},
    ]
    def inputs():
        return (torch.ones(3),)
    def leaves(data, path=()):
        if path:
            yield path
        keys = range(len(data)) if isinstance(data, list) else ()
        for key in (data if isinstance(data, dict) else keys):
            yield from leaves(data[key], (*path, key))
    def replaced(data, path, value):
        if not path:
            return value
        new = dict(data) if isinstance(data, dict) else list(data)
        new[path[0]] = replaced(data[path[0]], path[1:], value)
        return new
    """
)


@pytest.mark.parametrize("kind", ["lazy", "plain"])
def test_neither_loading_nor_calling_hostile_files_touches_anything(tmp_path, request, kind):
    """Under an audit hook, in a process of its own."""
    (tmp_path / "hostile.py").write_text(HOSTILE_MODULE)
    gm = fx.symbolic_trace(Model())
    gm.encoder = nn.TransformerEncoderLayer(4, 2, 8)
    path = tmp_path / "graph"
    save_graph(gm if kind == "plain" else LazyGraphModule.from_graphmodule(gm), path)
    count = 2000 if request.config.getoption("--slow") else 150
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(tmp_path), str(path), kind, str(count)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["events"] == []
    assert report["loaded"] > 10
    assert report["called"] > 5


def test_one_name_for_all(archive):
    assert issubclass(GraphFormatError, SerializationError)
    assert Lazy is LazyGraphModule
