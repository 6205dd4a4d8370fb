"""The safe archive: what goes in comes out, and what cannot go in is refused by name."""

import collections
import functools
import json
import operator
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from lazyfx_core import (
    DroppedMetadataWarning,
    GraphFormatError,
    LazyGraphModule,
    SerializationError,
    assert_max_recompiles,
    load_graph,
    save_graph,
    use_lazy_graph_module,
)
from lazyfx_core._container import read_structure


def scale(x):
    return x * 2


fx.wrap("scale")


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.mode = "fast"

    def forward(self, x):
        return x * self.weight


class OwnGraphModule(LazyGraphModule):
    """A user's own class of graph modules."""


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return True


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.down = nn.Linear(16, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.sequence = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.25))
        self.several = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.named = nn.ModuleDict({"norm": nn.LayerNorm(8)})
        self.embedding = nn.Embedding(10, 8)
        self.tied = nn.Linear(8, 10, bias=False)
        self.tied.weight = self.embedding.weight
        self.again = self.down

    def forward(self, x, i):
        x = self.bn(self.conv(x)).relu().flatten(2).transpose(1, 2)
        x = self.down(self.lstm(x)[0])
        x = self.attention(x, x, x)[0]
        x = self.sequence(self.encoder(x))
        for layer in self.several:
            x = layer(x)
        x = self.named["norm"](x) + self.again(torch.cat([x, x], -1))
        return self.tied(x) + self.embedding(i).sum()


@pytest.fixture
def through(tmp_path):
    def save_and_load(gm, save=None, **options):
        path = tmp_path / "graph.safetensors"
        save_graph(gm, path, **(save or {}))
        return load_graph(path, **options)

    return save_and_load


def lazy(gm):
    return LazyGraphModule.from_graphmodule(gm)


def trace(function):
    if isinstance(function, nn.Module):
        return fx.symbolic_trace(function)
    return fx.symbolic_trace(lambda x: function(x))


def holding(**attributes):
    """A module that returns its input, with these parameters, buffers or attributes."""
    root = nn.Module()
    for name, value in attributes.items():
        if torch.is_tensor(value) and not isinstance(value, nn.Parameter):
            root.register_buffer(name, value)
        else:
            setattr(root, name, value)
    graph = fx.Graph()
    x = graph.placeholder("x")
    seen = [graph.get_attr(name) for name, v in attributes.items() if torch.is_tensor(v)]
    graph.output((x, *seen))
    return fx.GraphModule(root, graph)


@pytest.mark.parametrize("kind", [lazy, lambda gm: gm], ids=["lazy", "plain"])
@pytest.mark.parametrize("training", [False, True])
def test_a_network_of_leaf_modules_computes_the_same(through, kind, training):
    gm = kind(trace(Zoo()).train(training))
    inputs = torch.randn(2, 3, 8, 8), torch.arange(4)
    back = through(gm)
    torch.manual_seed(3)
    expected = gm(*inputs)
    torch.manual_seed(3)
    assert torch.equal(back(*inputs), expected)
    assert [node.format_node() for node in back.graph.nodes] == [
        node.format_node() for node in gm.graph.nodes
    ]
    assert [(name, type(m)) for name, m in back.named_modules() if name] == [
        (name, type(m)) for name, m in gm.named_modules() if name
    ]
    assert str(back.lstm) == str(gm.lstm)
    for name, tensor in gm.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_weights_that_were_one_are_one_again_and_train_together(through):
    back = through(trace(Zoo()))
    assert back.tied.weight is back.embedding.weight
    back(torch.randn(2, 3, 8, 8), torch.arange(4)).sum().backward()
    assert back.embedding.weight.grad is not None


def test_an_lstm_runs_from_the_weights_it_shows(through):
    back = through(trace(Zoo()).eval())
    with torch.no_grad():
        for parameter in back.lstm.parameters():
            parameter.zero_()
    out, _ = back.lstm(torch.randn(1, 4, 8))
    assert not out.any()


def test_buffers_that_are_views_of_each_other_are_again(through):
    root, base = nn.Module(), torch.arange(6.0)
    root.register_buffer("base", base)
    root.register_buffer("view", base[2:5])
    root.register_buffer("turned", base.view(2, 3).t())
    graph = fx.Graph()
    graph.output(tuple(graph.get_attr(name) for name in ("base", "view", "turned")))
    back = through(fx.GraphModule(root, graph))
    back.base[2] = 100
    assert back.view[0] == 100
    assert back.turned[2, 0] == 100
    assert back.turned.stride() == (1, 3)


def test_a_buffer_that_was_not_to_be_saved_is_stored_and_still_not_to_be_saved(through):
    gm = lazy(holding(steps=torch.ones(2)))
    gm.register_buffer("steps", torch.ones(2), persistent=False)
    gm.register_buffer("nothing", None)
    back = through(gm)
    assert torch.equal(back.steps, torch.ones(2))
    assert back.nothing is None
    assert "steps" not in back.state_dict()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3).bfloat16(),
        torch.randn(3, dtype=torch.complex64),
        torch.tensor([True, False]),
        torch.tensor(7),
        torch.empty(0, 3),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.ones(1).expand(1000),
        torch.tensor(float("nan")),
    ],
    ids=["bf16", "complex", "bool", "0-dim", "empty", "channels last", "expanded", "nan"],
)
def test_tensors_of_every_kind_survive(through, tensor):
    back = through(holding(a=tensor))
    torch.testing.assert_close(back.a, tensor, equal_nan=True)
    assert (back.a.dtype, back.a.stride()) == (tensor.dtype, tensor.stride())


def test_frozen_parameters_stay_frozen_and_are_parameters(through):
    back = through(holding(a=nn.Parameter(torch.ones(2), requires_grad=False)))
    assert isinstance(back.a, nn.Parameter)
    assert not back.a.requires_grad


def test_parameters_on_the_meta_device_stay_there_and_take_no_room(through, tmp_path):
    back = through(holding(a=nn.Parameter(torch.empty(1 << 20, device="meta"))))
    assert back.a.is_meta
    assert isinstance(back.a, nn.Parameter)
    assert (tmp_path / "graph.safetensors").stat().st_size < 10_000


def test_fake_parameters_are_refused_and_named(tmp_path):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        gm = holding(a=nn.Parameter(torch.empty(3)))
    with pytest.raises(SerializationError, match=r"'a'.*fake|fake.*'a'"):
        save_graph(gm, tmp_path / "fake")
    assert not (tmp_path / "fake").exists()


def test_sparse_tensors_are_refused_and_named(tmp_path):
    with pytest.raises(SerializationError, match="weird"):
        save_graph(holding(weird=torch.eye(3).to_sparse()), tmp_path / "sparse")


@pytest.mark.parametrize("outer", [lazy, lambda gm: gm], ids=["lazy", "plain"])
@pytest.mark.parametrize("inner", [lazy, lambda gm: gm], ids=["lazy", "plain"])
def test_nested_graph_modules_keep_their_kind(through, outer, inner):
    inside = fx.Graph()
    inside.output(inside.call_function(operator.iadd, (inside.placeholder("x"), 1)))
    child = inner(fx.GraphModule(nn.Module(), inside))
    root = nn.Module()
    root.child, root.twice = child, child
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("twice", (graph.call_module("child", (x,)),)))
    gm = outer(fx.GraphModule(root, graph))
    back = through(gm)
    assert isinstance(back, LazyGraphModule) is isinstance(gm, LazyGraphModule)
    assert isinstance(back.child, LazyGraphModule) is isinstance(child, LazyGraphModule)
    assert back.child is back.twice
    x = torch.zeros(2)
    assert torch.equal(back(x), torch.full((2,), 2.0))
    assert torch.equal(x, torch.full((2,), 2.0)), "in place, as written"


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("flag", [False, True])
def test_a_module_comes_back_as_what_it_was_whatever_the_flags_say(through, flag, everywhere):
    plain, ours = trace(torch.sin), lazy(trace(torch.sin))
    with use_lazy_graph_module(flag, **({"everywhere": True} if flag and everywhere else {})):
        assert not isinstance(through(plain), LazyGraphModule)
        assert isinstance(through(ours), LazyGraphModule)


def test_neither_saving_nor_loading_generates_code_for_a_lazy_module(through):
    gm = lazy(trace(Zoo()))
    with assert_max_recompiles(0):
        back = through(gm)
        assert len(back.graph.nodes) == len(gm.graph.nodes)
    assert gm.needs_recompile
    assert back.needs_recompile


def test_functions_of_ones_own_need_to_be_allowed(tmp_path):
    path = str(tmp_path / "own")
    gm = trace(lambda x: scale(x) + 1)
    save_graph(gm, path)
    with pytest.raises(GraphFormatError, match=r"scale.*allow=\[[\w.]+\.scale\]") as caught:
        load_graph(path)
    assert "node 'scale'" in str(caught.value)
    assert torch.equal(load_graph(path, allow=[scale])(torch.ones(1)), torch.tensor([3.0]))


def test_modules_of_ones_own_need_to_be_allowed(tmp_path):
    path = tmp_path / "own"
    root = nn.Module()
    root.gate = Gate()
    graph = LeafTracer().trace(nn.Sequential(collections.OrderedDict(gate=Gate())))
    gm = fx.GraphModule(root, graph)
    save_graph(gm, path)
    with pytest.raises(GraphFormatError, match=r"Gate.*allow=\[[\w.]+\.Gate\]"):
        load_graph(path, allow=[LeafTracer])
    back = load_graph(path, allow={Gate, LeafTracer})
    assert type(back.gate) is Gate
    assert back.gate.mode == "fast"
    assert torch.equal(back(torch.ones(3)), torch.ones(3))


def test_a_class_is_not_found_by_its_name_because_somebody_loaded_it(tmp_path):
    path = tmp_path / "own"
    save_graph(fx.GraphModule({"gate": Gate()}, one_call("gate")), path)
    edit(path, lambda data: data["modules"][1].update({"class": {"name": f"{__name__}:Gate"}}))
    with pytest.raises(GraphFormatError, match="Gate.*metadata only"):
        load_graph(path)


def test_a_method_that_is_not_torchs_needs_to_be_allowed(tmp_path):
    path = tmp_path / "own"
    graph = fx.Graph()
    graph.output(graph.call_method("my_method", (graph.placeholder("x"),)))
    save_graph(fx.GraphModule(nn.Module(), graph), path)
    with pytest.raises(GraphFormatError, match="my_method"):
        load_graph(path)
    assert len(load_graph(path, allow=["my_method"]).graph.nodes) == 3


def test_a_users_subclass_comes_back_if_it_is_allowed(tmp_path):
    path = tmp_path / "own"
    gm = trace(torch.sin)
    own = OwnGraphModule(gm, gm.graph, "Mine")
    save_graph(own, path)
    with pytest.raises(GraphFormatError, match=r"allow=\[[\w.]+\.OwnGraphModule\]"):
        load_graph(path)
    back = load_graph(path, allow=[OwnGraphModule])
    assert isinstance(back, OwnGraphModule)
    assert type(back).__name__ == "Mine"
    assert torch.equal(back(torch.ones(1)), torch.ones(1).sin())


def test_allow_takes_a_list_and_says_so(tmp_path):
    path = tmp_path / "own"
    save_graph(trace(torch.sin), path)
    for wrong in (scale, "scale"):
        with pytest.raises(TypeError, match="takes a list"):
            load_graph(path, allow=wrong)
    with pytest.raises(TypeError, match="got 5"):
        load_graph(path, allow=[5])


@pytest.mark.parametrize(
    ("register", "name"),
    [
        ("register_forward_hook", "forward hooks"),
        ("register_forward_pre_hook", "forward pre hooks"),
        ("register_full_backward_hook", "backward hooks"),
        ("register_state_dict_pre_hook", "state dict pre hooks"),
        ("register_load_state_dict_post_hook", "load state dict post hooks"),
    ],
)
def test_hooks_are_refused_by_name(tmp_path, register, name):
    gm = trace(nn.Sequential(nn.Linear(2, 2)))
    getattr(gm.get_submodule("0"), register)(lambda *args: None)
    with pytest.raises(SerializationError, match=name) as caught:
        save_graph(gm, tmp_path / "hooked")
    assert "module '0'" in str(caught.value)


def test_an_attribute_that_cannot_be_stored_is_left_out_of_a_graph_module_with_a_warning(through):
    gm = trace(torch.sin)
    gm.lock, gm.note = iter(()), {"kept": (1, 2)}
    with pytest.warns(DroppedMetadataWarning, match="lock"):
        back = through(gm)
    assert back.note == {"kept": (1, 2)}
    assert not hasattr(back, "lock")
    with pytest.raises(SerializationError, match="lock"):
        through(gm, save={"strict": True})


def test_an_attribute_that_cannot_be_stored_is_an_error_in_any_other_module(tmp_path):
    gm = trace(nn.Sequential(nn.Linear(2, 2)))
    gm.get_submodule("0").lock = iter(())
    with pytest.raises(SerializationError, match="module '0', attribute 'lock'"):
        save_graph(gm, tmp_path / "lock")


@pytest.mark.parametrize("name", ["forward", "_call_impl"])
def test_an_attribute_in_the_place_of_a_method_is_not_stored(tmp_path, name):
    gm = trace(nn.Sequential(nn.Linear(2, 2)))
    setattr(gm.get_submodule("0"), name, torch.sin)
    with pytest.raises(SerializationError, match=f"module '0', attribute '{name}'"):
        save_graph(gm, tmp_path / "hidden")


def test_metadata_can_be_left_out(through):
    gm = trace(torch.sin)
    gm.meta["a"] = 1
    next(iter(gm.graph.nodes)).meta["b"] = 2
    kept, left = through(gm), through(gm, save={"meta": False})
    assert (kept.meta, next(iter(kept.graph.nodes)).meta) == ({"a": 1}, {"b": 2})
    assert (left.meta, next(iter(left.graph.nodes)).meta) == ({}, {})


def test_the_warning_points_at_the_caller(tmp_path):
    gm = trace(torch.sin)
    gm.meta["lock"] = iter(())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_graph(gm, tmp_path / "here")
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name]


def test_classes_in_metadata_come_back_as_classes_while_they_are_loaded(through):
    gm = trace(torch.sin)
    gm.meta["nn_module_stack"] = {"L": ("path", Gate)}
    assert through(gm).meta == {"nn_module_stack": {"L": ("path", Gate)}}


def test_map_location_moves_all_tensors(through):
    back = through(trace(nn.Linear(2, 2)), map_location="meta")
    assert {p.device.type for p in back.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "device", ["nowhere", "cpu:x", "cuda:99", "privateuseone", {"cuda": "cpu"}]
)
def test_a_device_that_cannot_be_used_is_named(tmp_path, device):
    save_graph(trace(nn.Linear(2, 2)), tmp_path / "graph")
    named = re.escape(f"map_location={str(device)!r}")
    with pytest.raises(ValueError, match=f"{named} cannot be used .*'cpu'"):
        load_graph(tmp_path / "graph", map_location=device)


def test_checking_the_tensors_can_be_left_until_they_are_used(tmp_path):
    path = tmp_path / "graph"
    save_graph(trace(nn.Linear(64, 64)), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(GraphFormatError, match="tensors_sha256"):
        load_graph(path)
    assert load_graph(path, check_tensors=False) is not None


def test_writing_over_a_file_leaves_what_was_loaded_from_it_alone(tmp_path):
    path = str(tmp_path / "graph")
    first, second = trace(nn.Linear(2, 2)), trace(nn.Linear(2, 2))
    save_graph(first, path)
    back = load_graph(path)
    save_graph(second, path)
    assert torch.equal(back.weight, first.weight)
    with torch.no_grad():
        back.weight.zero_()
    assert torch.equal(load_graph(path).weight, second.weight)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "graph"
    save_graph(trace(nn.Linear(2, 2)), path)
    before = path.read_bytes()
    bad = trace(nn.Linear(2, 2))
    bad.register_forward_hook(lambda *args: None)
    with pytest.raises(SerializationError):
        save_graph(bad, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_graph_module_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"save_graph\(gm, path\).*Linear"):
        save_graph(nn.Linear(2, 2), tmp_path / "x")


def test_names_that_a_reader_would_refuse_are_refused_when_saving(tmp_path):
    gm = trace(torch.sin)
    next(iter(gm.graph.nodes)).name = "größe"
    with pytest.raises(SerializationError, match="größe.*rename it"):
        save_graph(gm, tmp_path / "x")
    gm = trace(torch.sin)
    gm.__class__.__name__ = "my model"
    with pytest.raises(SerializationError, match="my model.*rename it"):
        save_graph(gm, tmp_path / "x")


def test_a_module_that_contains_itself_is_refused(tmp_path):
    gm = trace(nn.Sequential(nn.Linear(2, 2)))
    gm.get_submodule("0")._modules["back"] = gm
    with pytest.raises(SerializationError, match="contains the whole module as 'back'"):
        save_graph(gm, tmp_path / "x")


def test_signatures_with_structure_survive(through):
    Pair = collections.namedtuple("Pair", "first second")
    globals()["Pair"] = Pair
    Pair.__module__, Pair.__qualname__ = __name__, "Pair"

    def function(data, pair):
        return {"sum": data["a"] + data["b c"], "pair": Pair(pair[0], data["a"])}

    concrete = {"data": {"a": fx.PH, "b c": fx.PH}, "pair": Pair(fx.PH, fx.PH)}
    gm = fx.symbolic_trace(function, concrete_args=concrete)
    back = through(gm, allow=[Pair])
    given = {"a": torch.ones(1), "b c": torch.ones(1)}, Pair(torch.zeros(1), torch.ones(1))
    assert str(back(*given)) == str(gm(*given))
    assert type(back(*given)["pair"]) is Pair


def test_weights_can_be_read_by_the_safetensors_library(tmp_path):
    from safetensors import safe_open

    gm = trace(nn.Linear(2, 3))
    save_graph(gm, tmp_path / "x")
    with safe_open(tmp_path / "x", "pt") as file:
        assert torch.equal(file.get_tensor("weight"), gm.weight)


def test_a_graph_module_inside_a_plain_module_is_reached(through):
    holder = nn.Sequential(lazy(trace(torch.cos)))
    gm = fx.GraphModule({"holder": holder}, one_call("holder"))
    back = through(gm)
    assert isinstance(back.holder[0], LazyGraphModule)
    assert torch.equal(back(torch.ones(1)), torch.ones(1).cos())


def test_a_thousand_children_deep_is_an_error_and_not_a_crash(tmp_path):
    inner = nn.Identity()
    for _ in range(3000):
        inner = nn.ModuleList([inner])
    root = nn.Module()
    root.deep = inner
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    gm = fx.GraphModule(nn.Module(), graph)
    gm.deep = inner
    path = tmp_path / "deep"
    save_graph(gm, path)
    with pytest.raises(GraphFormatError, match="too deep"):
        load_graph(path)


def one_call(name):
    graph = fx.Graph()
    graph.output(graph.call_module(name, (graph.placeholder("x"),)))
    return graph


def edit(path, change):
    from lazyfx_core._container import read_container, write_container

    text, tensors = read_container(path)
    data = json.loads(text)
    change(data)
    write_container(path, json.dumps(data).encode(), tensors)


def test_the_structure_says_what_wrote_it(tmp_path):
    save_graph(trace(torch.sin), tmp_path / "x")
    data = json.loads(read_structure(tmp_path / "x")[0])
    assert data["schema"] == 1
    assert data["torch"] == str(torch.__version__)
    edit(tmp_path / "x", lambda d: d.update(schema=2))
    with pytest.raises(GraphFormatError, match="schema 2.*newer lazyfx-core"):
        load_graph(tmp_path / "x")


def test_partial_functions_are_refused_by_name(tmp_path):
    graph = fx.Graph()
    target = functools.partial(torch.add, 1)
    target.__name__ = "add_one"
    graph.output(graph.call_function(target, (graph.placeholder("x"),)))
    with pytest.raises(SerializationError, match="target.*partial"):
        save_graph(fx.GraphModule(nn.Module(), graph), tmp_path / "x")
