"""What construction, marking and dropping a module leave out, and leave behind."""

import copy
import gc
import inspect
import linecache
import sys
import traceback
import weakref

import pytest
import torch
from torch import fx, nn
from torch.fx import graph_module as torch_module
from torch.torch_version import TorchVersion

from lazyfx_core import LazyGraphModule, make_graph_module


def sources():
    keys = {*torch_module._loader.eval_cache, *linecache.cache}
    return {key for key in keys if key.startswith("<eval_with_key>")}


@pytest.fixture
def generations(monkeypatch):
    seen = []
    original = fx.Graph.python_code

    def counted(self, *args, **kwargs):
        seen.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(fx.Graph, "python_code", counted)
    return seen


def sine():
    graph = fx.Graph()
    graph.output(graph.call_function(torch.sin, (graph.placeholder("x"),)))
    return graph


# --- construction -----------------------------------------------------------------------------


def state_of(gm):
    """The dictionary of a module, in order, with what the graph or the instance owns left out."""
    return {
        name: (type(value), list(value) if isinstance(value, (dict, list, set)) else value)
        for name, value in vars(gm).items()
        if name
        not in ("_graph", "_code", "_lineno_map", "_prologue_start", "_in_spec", "_out_spec")
    }


def test_a_lean_construction_leaves_the_state_that_torchs_constructor_leaves(model):
    traced = fx.symbolic_trace(model)
    traced.eval()
    lean = LazyGraphModule(traced, traced.graph, "Named")
    stock = fx.GraphModule(traced, traced.graph, "Named")
    assert state_of(lean) == state_of(stock)
    assert list(state_of(lean)) == list(state_of(stock))
    assert [n for n, _ in lean.named_parameters()] == [n for n, _ in stock.named_parameters()]
    assert list(lean.state_dict()) == list(stock.state_dict())
    assert type(lean).__name__ == "Named"
    assert traced.graph.owning_module is stock


def test_two_modules_share_no_container():
    first, second = LazyGraphModule({}, sine()), LazyGraphModule({}, sine())
    for name, value in vars(first).items():
        if isinstance(value, (dict, list, set)):
            assert value is not vars(second)[name], name


def test_a_root_mapping_puts_parents_before_their_children():
    graph = fx.Graph()
    child = graph.get_attr("block.weight")
    whole = graph.call_module("block", (child,))
    graph.output(whole)
    block, weight = nn.Linear(2, 2), nn.Parameter(torch.ones(2, 2))
    gm = LazyGraphModule({"block.weight": weight, "block": block}, graph)
    assert gm.block.weight is weight
    assert gm.block is block


@pytest.mark.parametrize("patched", ["__init__", "__setattr__"])
def test_a_patched_constructor_is_called(monkeypatch, patched):
    seen = []
    original = getattr(nn.Module, patched)

    def watched(self, *args, **kwargs):
        seen.append(type(self))
        return original(self, *args, **kwargs)

    LazyGraphModule({}, sine())
    monkeypatch.setattr(nn.Module, patched, watched)
    gm = LazyGraphModule({}, sine())
    assert type(gm) in seen
    monkeypatch.undo()
    seen.clear()
    LazyGraphModule({}, sine())
    assert seen == []


def test_a_constructor_that_nobody_has_read_is_called(monkeypatch):
    original = fx.GraphModule.__init__

    def __init__(self, root, graph, class_name="GraphModule"):
        original(self, root, graph, class_name)
        self.attribute_of_a_later_release = 1

    monkeypatch.setattr(fx.GraphModule, "__init__", __init__)
    assert LazyGraphModule({}, sine()).attribute_of_a_later_release == 1


def test_a_class_between_ours_and_module_gets_its_constructor_called():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.counted = 1

    class Mine(LazyGraphModule, Counted):
        pass

    assert Mine({}, sine()).counted == 1


def test_a_subclass_that_sets_attributes_its_own_way_is_asked():
    class Mine(LazyGraphModule):
        def __setattr__(self, name, value):
            self.__dict__.setdefault("names", []).append(name)
            super().__setattr__(name, value)

    assert "meta" in Mine({}, sine()).names


def test_construction_does_not_look_at_nodes_that_refer_to_nothing(monkeypatch):
    graph = sine()
    LazyGraphModule({}, graph)

    def nodes(self):
        raise AssertionError("looked at the nodes")

    with monkeypatch.context() as patched:
        patched.setattr(fx.Graph, "nodes", property(nodes))
        gm = LazyGraphModule({}, graph)
        gm.recompile()
    assert gm.needs_recompile


def test_dynamo_is_told_of_each_construction():
    from torch._dynamo.mutation_guard import GenerationTracker

    torch.compiler.reset()
    torch.compile(lambda x: x.sin(), backend="eager")(torch.ones(1))  # wraps the constructor
    gm = LazyGraphModule({}, sine())
    assert GenerationTracker.check(gm)
    test_construction_does_not_look_at_nodes_that_refer_to_nothing(pytest.MonkeyPatch())


# --- classes that are used again ----------------------------------------------------------------


def test_the_class_of_a_module_nobody_looked_at_is_used_again():
    graph = sine()
    ids = set()
    for _ in range(100):
        gm = LazyGraphModule({}, graph)
        ids.add(id(type(gm)))
        graph.owning_module = None
        del gm
    before = len(LazyGraphModule.__subclasses__())
    for _ in range(100):
        LazyGraphModule({}, graph)
    assert len(LazyGraphModule.__subclasses__()) <= before + 1
    assert len(ids) < 10


@pytest.mark.parametrize(
    "touch",
    [
        lambda cls: cls,
        lambda cls: weakref.ref(cls),
        lambda cls: type("Sub", (cls,), {}),
        lambda cls: setattr(cls, "forward", lambda self, x: x),
        lambda cls: setattr(cls, "anything", 1),
        lambda cls: setattr(cls, "__doc__", "mine"),
        lambda cls: setattr(cls, "__qualname__", "Mine"),
        lambda cls: cls.__annotations__.update(a=int),
        lambda cls: setattr(cls, "__module__", "mine"),
    ],
    ids=[
        "held",
        "weak",
        "subclass",
        "forward",
        "other",
        "doc",
        "qualname",
        "annotations",
        "module",
    ],
)
def test_a_class_that_somebody_holds_or_changed_is_not_used_again(touch):
    graph = sine()
    gm = LazyGraphModule({}, graph)
    held = touch(type(gm))
    identity = type(gm).__lazyfx__
    graph.owning_module = None
    del gm
    gc.collect()
    for _ in range(3):
        assert type(LazyGraphModule({}, sine())).__lazyfx__ is not identity
    del held


def test_a_class_that_was_observed_is_not_used_again():
    graph = sine()
    gm = LazyGraphModule({}, graph)
    gm.forward
    identity = type(gm).__lazyfx__
    graph.owning_module = None
    del gm
    gc.collect()
    assert type(LazyGraphModule({}, sine())).__lazyfx__ is not identity


def test_a_name_given_to_one_module_does_not_reach_the_next():
    graph = sine()
    gm = LazyGraphModule({}, graph, "First")
    graph.owning_module = None
    del gm
    assert type(LazyGraphModule({}, graph)).__name__ == "GraphModule"


def test_code_that_dynamo_compiled_for_a_dead_module_is_not_run_for_the_next():
    def run(gm, x):
        return gm(x)

    torch.compiler.reset()
    compiled = torch.compile(run, backend="eager")
    x = torch.randn(3)
    for function in (torch.sin, torch.cos, torch.tan, torch.neg, torch.abs):
        graph = fx.Graph()
        graph.output(graph.call_function(function, (graph.placeholder("x"),)))
        gm = LazyGraphModule({}, graph)
        assert torch.equal(compiled(gm, x), function(x))
        graph.owning_module = None
        del gm, graph
        gc.collect()


def test_a_class_guarded_by_dynamo_is_not_used_again_even_if_nobody_ran_the_module():
    def run(gm, x):
        return x.sin() if isinstance(gm, LazyGraphModule) else x.cos()

    torch.compiler.reset()
    compiled = torch.compile(run, backend="eager")
    gm = LazyGraphModule({}, sine())
    identity = type(gm).__lazyfx__
    compiled(gm, torch.ones(1))
    gm.graph.owning_module = None
    del gm
    gc.collect()
    assert type(LazyGraphModule({}, sine())).__lazyfx__ is not identity


# --- recompiling what did not change ------------------------------------------------------------


def test_an_unchanged_graph_keeps_its_code(lazy, x, generations):
    first = lazy(x)
    forward, code = type(lazy).forward, lazy.code
    forward.__globals__["torch"] = None  # nobody's but this function's
    returned = lazy.recompile()
    assert lazy.needs_recompile
    assert torch.equal(lazy(x), first)
    assert type(lazy).forward is not forward  # as with fx.GraphModule
    assert type(lazy).forward.__code__ is forward.__code__
    assert lazy.code is code
    assert returned.src == code
    assert len(generations) == 1


def find(gm, op):
    return next(node for node in gm.graph.nodes if node.op == op)


@pytest.mark.parametrize(
    "edit",
    [
        lambda gm: setattr(find(gm, "call_function"), "target", torch.cos),
        lambda gm: setattr(find(gm, "call_function"), "name", "renamed"),
        lambda gm: setattr(find(gm, "call_function"), "type", torch.Tensor),
        lambda gm: setattr(find(gm, "call_module"), "kwargs", {"input": find(gm, "placeholder")}),
        lambda gm: find(gm, "call_function").update_arg(0, 1.0),
        lambda gm: find(gm, "call_method").prepend(find(gm, "placeholder")),
        lambda gm: find(gm, "call_method").prepend(find(gm, "get_attr")),
        lambda gm: find(gm, "output").replace_input_with(
            find(gm, "call_method"), find(gm, "placeholder")
        ),
        lambda gm: gm.graph.call_function(torch.neg, (1,)),
        lambda gm: gm.graph.set_codegen(fx.CodeGen()),
        lambda gm: gm.graph.on_generate_code(lambda current: lambda body: ["pass\n", *body]),
        lambda gm: setattr(find(gm, "call_function"), "_repr_fn", lambda node: "other"),
        lambda gm: setattr(gm, "graph", copy.deepcopy(gm.graph)),
    ],
)
def test_any_change_of_the_graph_is_noticed(lazy, generations, edit):
    lazy.code
    edit(lazy)
    lazy.recompile()
    try:
        lazy.code
    except (ValueError, RuntimeError):
        return  # noticed, and said to be wrong
    assert len(generations) == 2


@fx.wrap
def wrapped(x):
    return x + 1


def test_wrapping_a_function_is_noticed(generations):
    graph = fx.Graph()
    node = graph.call_function(wrapped, (graph.placeholder("x"),))
    graph.output(node)
    gm = LazyGraphModule({}, graph)
    assert "wrap(" not in gm.code
    node.meta["is_wrapped"] = True
    gm.recompile()
    assert "wrap(" in gm.code


def test_a_graph_that_holds_what_prints_differently_later_is_generated_again(generations):
    class Symbol:
        text = "s0"

        def __repr__(self):
            return self.text

    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.add, (x, 1))
    graph.output(node)
    gm = LazyGraphModule({}, graph)
    node._update_args_kwargs((x, Symbol()), {}) if hasattr(
        node, "_update_args_kwargs"
    ) else setattr(node, "args", (x, Symbol()))
    gm.recompile()
    assert "s0" in gm.code
    Symbol.text = "4"
    gm.recompile()
    assert "s0" not in gm.code


def test_a_code_generator_of_the_users_own_is_always_asked(generations):
    class Mine(fx.CodeGen):
        text = "first"

        def additional_globals(self):
            return [("marker", self.text)]

    graph = sine()
    graph.set_codegen(Mine())
    gm = LazyGraphModule({}, graph)
    gm.code
    gm.recompile()
    gm.code
    assert len(generations) == 2


def test_profiling_metadata_is_always_generated_again(generations):
    from torch.fx.experimental import _config

    if TorchVersion(torch.__version__) < (2, 10):
        pytest.skip("enrich_profiler_metadata came after torch 2.9")
    with _config.patch(enrich_profiler_metadata=True):
        gm = LazyGraphModule({}, sine())
        gm.code
        gm.recompile()
        gm.code
    assert len(generations) == 2


def test_code_of_a_graph_that_grew_is_let_go_of_when_it_is_marked():
    gm = LazyGraphModule({}, sine())
    code = weakref.ref(gm.forward.__code__)
    gm.graph.call_function(torch.cos, (find(gm, "placeholder"),))
    gm.recompile()
    gc.collect()
    assert code() is None


# --- sources -----------------------------------------------------------------------------------


def test_sources_go_with_the_module_and_with_each_recompile():
    x = torch.ones(1)
    gc.collect()
    LazyGraphModule({}, sine())(x)
    gc.collect()
    LazyGraphModule({}, sine())(x)
    before = len(sources())
    for _ in range(300):
        LazyGraphModule({}, sine())(x)
    gm = LazyGraphModule({}, sine())
    for i in range(300):
        find(gm, "call_function").target = torch.cos if i % 2 else torch.sin
        gm.recompile()
        gm(x)
    del gm
    gc.collect()
    LazyGraphModule({}, sine())(x)
    assert len(sources()) <= before + 2


def test_the_reference_keeps_every_source():
    before = len(torch_module._loader.eval_cache)
    for _ in range(10):
        fx.GraphModule({}, sine())
    gc.collect()
    assert len(torch_module._loader.eval_cache) >= before + 10


def test_a_source_lives_as_long_as_a_saved_forward():
    gm = LazyGraphModule({}, sine())
    saved = type(gm).forward
    find(gm, "call_function").target = torch.cos
    gm.recompile()
    assert "cos" in inspect.getsource(gm.forward)
    gc.collect()
    LazyGraphModule({}, sine()).forward
    assert "sin" in inspect.getsource(saved)
    name = saved.__code__.co_filename
    del saved
    gm.recompile()  # until then the old code is kept, for a guard of Dynamo's that may be running
    gc.collect()
    LazyGraphModule({}, sine()).forward
    assert name not in sources()


def test_a_traceback_through_a_live_module_shows_its_lines():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.matmul, (x, x)))
    gm = LazyGraphModule({}, graph)
    try:
        gm.forward(torch.zeros(2, 5))
    except RuntimeError:
        text = traceback.format_exc()
    assert "torch.matmul(x, x)" in text


@pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support instance-level")
def test_the_source_of_a_traced_lambda_can_be_read_and_scripted():
    gm = LazyGraphModule({}, fx.symbolic_trace(lambda x: torch.sin(x)).graph)
    assert "torch.sin(x)" in inspect.getsource(gm.forward)
    assert torch.equal(torch.jit.script(gm)(torch.zeros(1)), torch.zeros(1))


@pytest.mark.slow
def test_a_hundred_thousand_modules_leave_nothing():
    x = torch.ones(1)
    graph = sine()

    def one():
        gm = LazyGraphModule({}, graph)
        gm(x)
        graph.owning_module = None

    for _ in range(100):
        one()
    gc.collect()
    one()
    before, objects = len(sources()), len(gc.get_objects())
    for _ in range(100_000):
        one()
    gc.collect()
    one()
    assert len(sources()) <= before + 1
    assert len(gc.get_objects()) <= objects + 200


def test_a_module_that_dies_at_shutdown_says_nothing(tmp_path):
    import subprocess

    program = (
        "import torch\nfrom torch import fx\nfrom lazyfx_core import LazyGraphModule\n"
        "def trace():\n    return fx.symbolic_trace(lambda x: x.sin()).graph\n"
        "kept = [LazyGraphModule({}, trace()) for _ in range(3)]\n"
        "kept[0](torch.ones(1))\nimport builtins\nbuiltins.kept = kept\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


# --- deepcopy -----------------------------------------------------------------------------------


def test_a_deep_copy_has_the_graph_that_torch_would_copy(lazy, model, x):
    for node in lazy.graph.nodes:
        node.meta["mark"] = node.name
    ours, theirs = copy.deepcopy(lazy), copy.deepcopy(fx.GraphModule(lazy, lazy.graph))
    rows = [
        [(n.op, n.target, n.name, str(n.args), str(n.kwargs), n.type, n.meta) for n in g.nodes]
        for g in (ours.graph, theirs.graph)
    ]
    assert rows[0] == rows[1]
    assert type(ours).__mro__[1] is LazyGraphModule
    assert ours.needs_recompile
    for gm in (ours, theirs):
        new = gm.graph.call_function(torch.sin, (1,))
        gm.graph.erase_node(new)
        rows.append(new.name)
    assert rows[2] == rows[3]  # names that are given later agree too
    assert torch.equal(ours(x), model(x))
    assert not any(a is b for a, b in zip(ours.graph.nodes, lazy.graph.nodes, strict=True))
    assert [n.name for n in ours.graph.find_nodes(op="call_module")] == ["linear"]


def test_a_deep_copy_of_a_module_that_refers_to_itself_ends(lazy):
    lazy.meta["self"] = lazy
    copied = copy.deepcopy(lazy)
    assert copied.meta["self"] is copied


def test_two_modules_over_one_graph_are_copied_over_one_graph(lazy, x):
    other = LazyGraphModule(lazy, lazy.graph)
    first, second = copy.deepcopy([lazy, other])
    assert first.graph is second.graph
    assert first.graph is not lazy.graph


def test_a_deep_copy_of_a_fresh_module_makes_its_own_code(lazy, x):
    lazy(x)
    copied = copy.deepcopy(lazy)
    assert copied.needs_recompile
    find(copied, "call_function").target = torch.cos
    copied.recompile()
    assert "cos" in copied.code
    assert "cos" not in lazy.code


def test_the_factory_passes_the_class_name(lazy):
    gm = make_graph_module(lazy, lazy.graph, "Given", graph_module_cls=LazyGraphModule)
    assert type(gm).__name__ == "Given"
