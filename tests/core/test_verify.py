"""The check for people who forget ``recompile()``."""

import copy
import operator

import pytest
import torch
from torch import fx
from torch._dynamo import exc as dynamo_errors
from torch.torch_version import TorchVersion

from lazyfx_core import (
    LazyGraphModule,
    NotAGraphModuleError,
    StaleGraphError,
    use_lazy_graph_module,
    verify_graphs,
)


def build(verify=True):
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(torch.sin, (x,))
    b = graph.call_function(operator.add, (a, 1.5))
    c = graph.call_function(torch.cat, ([a, b],), {"dim": 0})
    graph.output(c)
    return LazyGraphModule({}, graph, "Checked", verify=verify)


def node(gm, name):
    return next(n for n in gm.graph.nodes if n.name == name)


EDITS = {
    "target": (
        lambda gm: setattr(node(gm, "sin"), "target", torch.cos),
        r"node 'sin' \(call_function\): target was sin, is cos",
    ),
    "argument": (
        lambda gm: node(gm, "add").update_arg(1, 2.5),
        r"node 'add' \(call_function\): args was \(sin, 1.5\), is \(sin, 2.5\)",
    ),
    "keyword": (lambda gm: node(gm, "cat").update_kwarg("dim", 1), r"node 'cat'.*kwargs"),
    "nested": (
        lambda gm: node(gm, "cat").update_arg(0, [node(gm, "add"), node(gm, "sin")]),
        r"node 'cat'.*args",
    ),
    "type": (lambda gm: setattr(node(gm, "x"), "type", torch.Tensor), r"node 'x'.*type was None"),
    "added": (lambda gm: gm.graph.call_function(torch.neg, (1,)), r"added 'neg'"),
    "order": (lambda gm: node(gm, "x").prepend(node(gm, "cat")), r"order of the nodes changed"),
    "renamed": (lambda gm: setattr(node(gm, "sin"), "name", "other"), r"added 'other'.*'sin'"),
    "codegen": (lambda gm: gm.graph.set_codegen(fx.CodeGen()), r"code generator"),
}


@pytest.mark.parametrize("look", [lambda gm, x: gm(x), lambda gm, x: gm.forward(x)])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_without_recompile_is_reported_with_its_node(edit, look):
    gm = build()
    x = torch.ones(2)
    for _ in range(2):
        assert torch.equal(gm(x), torch.cat([x.sin(), x.sin() + 1.5]))
    change, message = EDITS[edit]
    change(gm)
    with pytest.raises(StaleGraphError, match=message) as caught:
        look(gm, x)
    assert "'Checked'" in str(caught.value)
    assert "call gm.recompile() after editing" in str(caught.value)


def test_erasing_is_reported():
    gm = build()
    extra = gm.graph.call_function(torch.neg, (1,))
    gm.recompile()
    gm(torch.ones(2))
    gm.graph.erase_node(extra)
    with pytest.raises(StaleGraphError, match="erased 'neg'"):
        gm(torch.ones(2))


def test_recompile_ends_the_complaint():
    gm = build()
    x = torch.ones(2)
    gm(x)
    node(gm, "sin").target = torch.cos
    with pytest.raises(StaleGraphError):
        gm(x)
    gm.recompile()
    assert torch.equal(gm(x), torch.cat([x.cos(), x.cos() + 1.5]))
    assert torch.equal(gm(x), torch.cat([x.cos(), x.cos() + 1.5]))


def test_new_objects_of_equal_value_are_no_change():
    gm = build()
    x = torch.ones(2)
    before = gm(x)
    for n in gm.graph.nodes:
        n.args, n.kwargs = tuple(n.args), dict(n.kwargs)
    node(gm, "add").update_arg(1, float("1.5"))
    node(gm, "sin").meta["anything"] = 1
    assert torch.equal(gm(x), before)


def test_a_module_that_is_not_verified_runs_its_old_code_like_a_plain_one():
    gm = build(verify=False)
    x = torch.ones(2)
    before = gm(x)
    node(gm, "sin").target = torch.cos
    assert torch.equal(gm(x), before)


def test_modules_can_be_watched_for_a_while():
    gm = build(verify=False)
    x = torch.ones(2)
    before = gm(x)
    call = type(gm).__call__
    with verify_graphs(gm):
        assert torch.equal(gm(x), before)
        node(gm, "sin").target = torch.cos
        with pytest.raises(StaleGraphError, match="'sin'"):
            gm(x)
    assert torch.equal(gm(x), before)
    assert type(gm).__call__ is call


def test_an_edit_from_before_the_block_is_found_too():
    gm = build(verify=False)
    gm(torch.ones(2))
    node(gm, "sin").target = torch.cos
    with verify_graphs(gm), pytest.raises(StaleGraphError, match="'sin'"):
        gm(torch.ones(2))


def test_modules_built_in_the_block_are_verified_for_life():
    with verify_graphs(), use_lazy_graph_module():
        gm = fx.symbolic_trace(lambda x: torch.sin(x))
    gm(torch.ones(1))
    node(gm, "sin").target = torch.cos
    with pytest.raises(StaleGraphError):
        gm(torch.ones(1))


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_copies_are_verified_too(copier):
    gm = copier(build())
    gm(torch.ones(2))
    node(gm, "sin").target = torch.cos
    with pytest.raises(StaleGraphError):
        gm(torch.ones(2))


def test_a_forward_set_by_hand_is_left_alone():
    gm = build(verify=False)
    gm(torch.ones(2))
    type(gm).forward = lambda self, x: x + 41
    with verify_graphs(gm):
        assert torch.equal(gm(torch.ones(2)), torch.full((2,), 42.0))
    assert torch.equal(gm(torch.ones(2)), torch.full((2,), 42.0))


@pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support instance-level")
def test_a_verified_module_scripts_and_traces():
    gm = build()
    x = torch.ones(2)
    expected = torch.cat([x.sin(), x.sin() + 1.5])
    for _ in range(2):
        assert torch.equal(torch.jit.script(gm)(x), expected)
        assert torch.equal(fx.symbolic_trace(gm)(x), expected)
        assert torch.equal(type(gm).forward(gm, x), expected)
        assert torch.equal(type(gm).__call__(gm, x), expected)


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="Dynamo 2.6 refuses it, aloud: no constant modules"
)
def test_a_verified_module_compiles():
    gm = build()
    x = torch.ones(2)
    expected = torch.cat([x.sin(), x.sin() + 1.5])
    for _ in range(2):
        torch.compiler.reset()
        assert torch.equal(torch.compile(gm, fullgraph=True, backend="eager")(x), expected)


def test_a_verified_module_in_a_compiled_function_compiles_or_is_refused_aloud():
    gm = build()
    x = torch.ones(2)
    for _ in range(2):
        torch.compiler.reset()
        run = torch.compile(lambda x: gm(x), fullgraph=True, backend="eager")
        if TorchVersion(torch.__version__) < (2, 12):  # Dynamo has no constants that are modules
            with pytest.raises((dynamo_errors.Unsupported, dynamo_errors.InternalTorchDynamoError)):
                run(x)
        else:
            assert torch.equal(run(x), torch.cat([x.sin(), x.sin() + 1.5]))


def test_only_lazy_modules_can_be_watched():
    plain = fx.symbolic_trace(lambda x: torch.sin(x))
    with (
        pytest.raises(NotAGraphModuleError, match=r"argument 1 .*from_graphmodule"),
        verify_graphs(build(), plain),
    ):
        pass
