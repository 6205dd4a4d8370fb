"""When code is generated, when it is not, and what a stale module shows."""

import gc
import inspect
import weakref

import pytest
import torch
from torch import fx, nn
from torch.fx.graph import PythonCode
from torch.torch_version import TorchVersion

from lazyfx_core import LazyGraphModule, use_lazy_graph_module


def replace(gm, old, new):
    nodes = [n for n in gm.graph.nodes if n.op == "call_function" and n.target is old]
    assert nodes
    for node in nodes:
        node.target = new


@pytest.fixture
def generations(monkeypatch):
    """The graphs that torch generated code for, in order."""
    seen = []
    original = fx.Graph.python_code

    def counted(self, *args, **kwargs):
        seen.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(fx.Graph, "python_code", counted)
    return seen


def test_replacing_sin_by_cos_and_recompiling_changes_the_result():
    with use_lazy_graph_module():
        gm = fx.symbolic_trace(lambda x: torch.sin(x))
    x = torch.randn(3)
    assert torch.equal(gm(x), x.sin())
    replace(gm, torch.sin, torch.cos)
    gm.recompile()
    assert gm.needs_recompile
    assert torch.equal(gm(x), x.cos())
    assert "torch.cos" in gm.code
    assert "torch.sin" not in gm.code


def test_construction_and_recompile_generate_nothing(plain, generations):
    gm = LazyGraphModule(plain, plain.graph)
    for _ in range(5):
        gm.recompile()
    assert generations == []
    assert gm.needs_recompile
    assert gm._needs_recompile()


def test_many_recompiles_between_two_looks_generate_once(lazy, x, generations):
    lazy(x)
    for old, new in [(torch.sin, torch.cos), (torch.cos, torch.tan), (torch.tan, torch.tanh)]:
        replace(lazy, old, new)
        lazy.recompile()
    lazy(x)
    lazy(x)
    assert len(generations) == 2


@pytest.mark.parametrize(
    "look",
    [
        lambda gm: gm.forward,
        lambda gm: type(gm).forward,
        lambda gm: type(gm).__call__,
        lambda gm: gm.code,
        lambda gm: str(gm),
        lambda gm: gm._code,
        lambda gm: gm._lineno_map,
        lambda gm: gm.real_recompile(),
        lambda gm: LazyGraphModule.force_recompile(gm),
        lambda gm: inspect.signature(gm.forward),
        lambda gm: gm.recompile().src,
        lambda gm: hasattr(gm, "_code"),
        lambda gm: gm.__reduce__(),
        lambda gm: gm.__getstate__(),
    ],
)
def test_looking_generates_exactly_once(lazy, generations, look):
    look(lazy)
    assert not lazy.needs_recompile
    assert len(generations) == 1
    lazy.forward
    lazy.real_recompile()
    assert len(generations) == 1


@pytest.mark.parametrize(
    "look",
    [
        lambda gm: gm.needs_recompile,
        lambda gm: gm.graph,
        lambda gm: list(gm.named_parameters()),
        lambda gm: gm.state_dict(),
        lambda gm: repr(nn.Module.__repr__(gm)),
        lambda gm: fx.Interpreter(gm).run(gm.offset.expand(2, 4)),
        lambda gm: gm.train(False),
        lambda gm: gm.to(torch.float64),
        lambda gm: dir(gm),
    ],
)
def test_what_needs_no_code_leaves_the_module_stale(lazy, generations, look):
    look(lazy)
    assert lazy.needs_recompile
    assert generations == []


def test_print_readable_shows_the_graph_as_it_is_now(lazy, x):
    lazy(x)
    replace(lazy, torch.sin, torch.cos)
    assert "torch.cos" in lazy.print_readable(print_output=False)
    lazy.recompile()
    assert "torch.cos" in lazy.print_readable(print_output=False)
    assert lazy.needs_recompile


def test_str_and_code_show_the_generated_code(lazy, plain):
    plain.recompile()
    assert lazy.code == plain.code
    assert lazy.code in str(lazy)


def test_generated_fields_do_not_stay_readable_after_recompile(lazy, x):
    lazy(x)
    assert "torch.sin" in lazy._code
    replace(lazy, torch.sin, torch.cos)
    lazy.recompile()
    assert vars(lazy)["_code"] is None
    assert "torch.sin" not in lazy._code


def test_a_saved_forward_called_ten_times_generates_once(lazy, model, x, generations):
    forward = lazy.forward
    for _ in range(10):
        assert torch.equal(forward(x), model(x))
    assert len(generations) == 1


def test_forward_can_be_called_directly(lazy, model, x):
    assert torch.equal(lazy.forward(x), model(x))
    assert lazy.forward.__self__ is lazy


def test_recompile_returns_python_code_like_graph_module_does(lazy, plain, x):
    code = lazy.recompile()
    assert isinstance(code, PythonCode)
    assert lazy.needs_recompile
    expected = plain.recompile()
    assert code.src == expected.src
    assert code.globals.keys() == expected.globals.keys()
    assert code._lineno_map == expected._lineno_map
    assert not lazy.needs_recompile


def test_python_code_filled_by_somebody_elses_look_is_kept(lazy, x):
    code = lazy.recompile()
    lazy(x)
    replace(lazy, torch.sin, torch.cos)
    lazy.recompile()
    lazy(x)
    assert "sin" in code.src
    assert "cos" not in code.src


def test_reading_the_default_field_of_python_code_first_is_right_too(lazy, plain):
    if TorchVersion(torch.__version__) < (2, 10):
        pytest.skip("PythonCode._prologue_start came after torch 2.9")
    assert lazy.recompile()._prologue_start == plain.recompile()._prologue_start


def test_assigning_a_graph_makes_the_module_stale(lazy, x):
    lazy(x)
    graph = fx.Graph()
    graph.output(graph.call_function(torch.neg, (graph.placeholder("x"),)))
    lazy.graph = graph
    assert lazy.needs_recompile
    assert torch.equal(lazy(x), -x)


def test_recompiling_the_parent_marks_a_lazy_child_and_forces_nothing(x, generations):
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + 1

    class Leaf(fx.Tracer):
        def is_leaf_module(self, module, name):
            return True

    inner = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x)))
    outer = Outer(inner)
    parent = LazyGraphModule(outer, Leaf().trace(outer))
    assert torch.equal(parent(x), x.sin() + 1)
    replace(inner, torch.sin, torch.cos)
    generations.clear()
    parent.recompile()
    assert inner.needs_recompile
    assert generations == []
    assert torch.equal(parent(x), x.cos() + 1)
    assert generations == [inner.graph]  # the graph of the parent did not change


def test_recompiling_the_parent_recompiles_a_plain_child_at_once(x):
    child = fx.symbolic_trace(lambda x: torch.sin(x))
    graph = fx.Graph()
    graph.output(graph.call_module("child", (graph.placeholder("x"),)))
    parent = LazyGraphModule({"child": child}, graph)
    parent(x)
    replace(child, torch.sin, torch.cos)
    parent.recompile()
    assert torch.equal(child(x), x.cos())
    assert torch.equal(parent(x), x.cos())


def test_generating_the_parent_does_not_make_a_fresh_child_stale(x):
    child = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x)))
    graph = fx.Graph()
    graph.output(graph.call_module("child", (graph.placeholder("x"),)))
    parent = LazyGraphModule({"child": child}, graph)
    child(x)
    parent.real_recompile()
    assert not child.needs_recompile


def test_real_recompile_of_a_fresh_module_does_nothing(lazy, x, generations):
    lazy(x)
    lazy.real_recompile()
    LazyGraphModule.force_recompile(lazy)
    assert len(generations) == 1


def test_private_real_recompile_generates_even_when_fresh(lazy, x):
    lazy(x)
    replace(lazy, torch.sin, torch.cos)
    code = lazy._real_recompile()
    assert "cos" in code.src
    assert not lazy.needs_recompile


def test_a_forward_set_by_hand_on_the_instance_is_used(lazy, x):
    lazy.forward = lambda x: x + 41
    assert torch.equal(lazy(x), x + 41)


def test_a_forward_set_by_hand_on_the_class_of_a_stale_module_is_kept_until_recompile(lazy, x):
    type(lazy).forward = lambda self, x: x + 41
    assert torch.equal(lazy(x), x + 41)
    assert torch.equal(lazy.forward(x), x + 41)
    assert "sin" in lazy.code
    lazy.recompile()
    assert not torch.equal(lazy(x), x + 41)


def test_a_subclass_may_define_call_and_recompile(plain, model, x):
    class Mine(LazyGraphModule):
        asked = 0

        def recompile(self):
            type(self).asked += 1
            return super().recompile()

        def __call__(self, *args):
            return super().__call__(*args) + 1

    gm = Mine(plain, plain.graph)
    gm.recompile()
    assert type(gm).asked == 2
    assert gm.needs_recompile
    assert torch.equal(gm(x), model(x) + 1)
    assert torch.equal(gm(x), model(x) + 1)


def test_hooks_of_every_kind_fire_once_on_the_first_call(lazy, model, x):
    fired = []
    x.requires_grad_()
    lazy.register_forward_pre_hook(lambda m, args: (fired.append("pre"), (args[0] + 1,))[1])
    lazy.register_forward_hook(lambda m, args, out: fired.append("post"))
    lazy.register_full_backward_hook(lambda m, gi, go: fired.append("backward"))
    out = lazy(x)
    assert torch.equal(out, model(x + 1))
    out.sum().backward()
    assert fired == ["pre", "post", "backward"]


def test_parametrizing_a_stale_module_works(lazy, x):
    class Double(nn.Module):
        def forward(self, w):
            return 2 * w

    torch.nn.utils.parametrize.register_parametrization(lazy, "weight", Double())
    expected = (lazy.linear(torch.sin(x)) * lazy.weight + lazy.offset).relu()
    assert torch.equal(lazy(x), expected)
    replace(lazy, torch.sin, torch.cos)
    lazy.recompile()
    torch.nn.utils.parametrize.remove_parametrizations(lazy, "weight")
    expected = (lazy.linear(torch.cos(x)) * lazy.weight + lazy.offset).relu()
    assert torch.equal(lazy(x), expected)


def test_two_modules_may_share_a_graph(lazy, x):
    other = LazyGraphModule(lazy, lazy.graph)
    lazy(x)
    replace(other, torch.sin, torch.cos)
    other.recompile()
    assert "sin" in lazy.code
    assert "cos" in other.code


def test_the_module_dictionary_holds_nothing_of_ours(lazy, plain, x):
    plain.recompile()
    for look in (lambda: None, lambda: lazy(x), lazy.recompile):
        look()
        assert list(vars(lazy)) == list(vars(plain))  # while stale too: others may iterate over it


def test_a_dropped_module_is_freed(plain):
    gm = LazyGraphModule(plain, plain.graph)
    gm.recompile()
    reference = weakref.ref(gm)
    plain.graph.owning_module = plain
    del gm
    gc.collect()
    assert reference() is None


def test_the_class_of_a_dead_module_says_so(plain):
    gm = LazyGraphModule(plain, plain.graph)
    cls = type(gm)
    plain.graph.owning_module = plain
    del gm
    gc.collect()
    with pytest.raises(AttributeError, match="is gone"):
        cls.forward


def test_pytree_specs_are_there_before_the_first_look():
    class Nested(nn.Module):
        def forward(self, pair):
            return {"sum": pair[0] + pair[1]}

    tracer = fx.Tracer()
    graph = tracer.trace(Nested(), concrete_args={"pair": (fx.PH, fx.PH)})
    gm = LazyGraphModule(tracer.root, graph)
    assert gm.needs_recompile
    assert gm._in_spec == graph._codegen.pytree_info.in_spec
    assert gm._out_spec == graph._codegen.pytree_info.out_spec
    assert gm.needs_recompile
    one = torch.ones(1)
    assert torch.equal(gm((one, one))["sum"], one + one)


def test_the_error_text_has_the_marker_on_the_first_call_as_on_the_second(capsys):
    lazy = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: x @ x))
    wrong = torch.zeros(2, 5)
    texts = []
    for _ in range(2):
        with pytest.raises(RuntimeError):
            lazy(wrong)
        texts.append(capsys.readouterr().err)
    assert "<--- HERE" in texts[0]
    assert texts[0].partition("Call using")[2] == texts[1].partition("Call using")[2]
