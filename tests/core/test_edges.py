"""What attackers found: resurrection, scripted classes, constructors called twice, odd names."""

import copy
import gc
import os
import signal
import sys
import threading
import weakref
from unittest import mock

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental import _config
from torch.torch_version import TorchVersion

from lazyfx_core import (
    InvalidGraphError,
    LazyGraphModule,
    StaleGraphError,
    verify_graphs,
)


def one_op(target, *rest):
    graph = fx.Graph()
    graph.output(graph.call_function(target, (graph.placeholder("x"), *rest)))
    return graph


def call_of(gm):
    return next(node for node in gm.graph.nodes if node.op == "call_function")


X = torch.tensor(0.5)


def test_a_class_is_not_used_again_while_its_module_was_brought_back_to_life():
    """A weak reference is alive while ``__del__`` runs, so the module may survive it."""
    graph = one_op(torch.sin)
    first = LazyGraphModule({}, graph)
    graph.owning_module = None
    weak, saved = weakref.ref(first), []

    def bring_back(*_):
        if weak() is not None and not saved:
            saved.append(weak())

    before = gc.get_threshold()
    gc.collect()
    gc.callbacks.append(bring_back)
    gc.set_threshold(1)
    try:
        del first
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(bring_back)
    second = LazyGraphModule({}, one_op(torch.cos))
    torch.testing.assert_close(second(X), X.cos())
    for module in saved:
        torch.testing.assert_close(module(X), X.sin())
        assert type(module) is not type(second)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_a_class_that_is_kept_does_not_keep_module_and_weights():
    """``torch.jit`` keeps every class it ever scripted."""

    class Weighty(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(100))

        def forward(self, x: torch.Tensor):
            return x + self.weight

    def scripted():
        model = Weighty()
        gm = LazyGraphModule(model, fx.Tracer().trace(model))
        torch.jit.script(gm)
        return weakref.ref(gm), weakref.ref(model.weight)

    alive = [scripted() for _ in range(5)]
    gc.collect()
    assert [(a(), b()) for a, b in alive] == [(None, None)] * 5


def test_a_constructor_called_twice_takes_the_second_graph():
    gm = LazyGraphModule({}, one_op(torch.sin))
    gm(X)
    gm.__init__({}, one_op(torch.cos))
    torch.testing.assert_close(gm(X), X.cos())
    assert "cos" in gm.code


EDITS = {
    "python_code of the instance": lambda gm: setattr(
        gm.graph,
        "python_code",
        lambda *args, **kwargs: fx.Graph.python_code(one_op(torch.cos), *args, **kwargs),
    ),
    "class of the graph": lambda gm: setattr(
        gm.graph,
        "__class__",
        type(
            "Cosine",
            (fx.Graph,),
            {"python_code": lambda self, *a, **k: fx.Graph.python_code(one_op(torch.cos), *a, **k)},
        ),
    ),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_who_replaces_how_a_graph_makes_code_gets_new_code(edit):
    gm = LazyGraphModule({}, one_op(torch.sin))
    gm(X)
    edit(gm)
    gm.recompile()
    torch.testing.assert_close(gm(X), X.cos())


def test_a_patched_code_generator_counts():
    gm = LazyGraphModule({}, one_op(torch.sin))
    gm(X)

    def constant(self, output_args, **kwargs):
        return "return 7"

    with mock.patch.object(fx.graph.CodeGen, "generate_output", constant):
        gm.recompile()
        assert gm(X) == 7
    gm.recompile()
    torch.testing.assert_close(gm(X), X.sin())


def test_what_one_recompile_returned_can_be_changed_without_changing_the_next():
    gm = LazyGraphModule({}, one_op(torch.sin))
    first = gm.recompile()
    first.globals["z"] = 1
    first._lineno_map[99] = 1
    second = gm.recompile()
    assert "z" not in second.globals
    assert 99 not in second._lineno_map
    assert 99 not in gm._lineno_map


def test_a_use_in_another_graph_shows_in_the_code_as_with_plain_modules():
    graph = fx.Graph()
    x = graph.placeholder("x")
    unused = graph.call_function(torch.cos, (x,))
    graph.output(graph.call_function(torch.sin, (x,)))
    gms = [LazyGraphModule({}, copy.deepcopy(graph)), fx.GraphModule({}, graph)]
    assert unused.name == "cos"
    texts = []
    for gm in gms:
        gm(X)
        node = next(n for n in gm.graph.nodes if n.target is torch.cos)
        fx.Graph().call_function(torch.tan, (node,))
        gm.recompile()
        texts.append(gm.code)
    assert texts[0] == texts[1]


def test_a_body_transformer_counts_although_its_block_has_ended():
    gm = LazyGraphModule({}, one_op(torch.sin))

    def transformed(body):
        return [line.replace("sin", "cos") for line in body]

    with gm.graph.on_generate_code(lambda _: transformed):
        gm.recompile()
    torch.testing.assert_close(gm(X), X.cos())


@pytest.mark.parametrize(
    "edit",
    [
        lambda gm: setattr(call_of(gm), "args", (*call_of(gm).args[:1], -0.0)),
        lambda gm: gm.graph.set_codegen(type("Own", (fx.graph.CodeGen,), {})()),
    ],
    ids=["-0.0", "code generator"],
)
def test_verification_sees_the_edit(edit):
    gm = LazyGraphModule({}, one_op(torch.add, 0.0), verify=True)
    gm(X)
    edit(gm)
    with pytest.raises(StaleGraphError):
        gm(X)


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 10),
    reason="enrich_profiler_metadata came after torch 2.9",
)
def test_verification_does_not_mistake_a_setting_for_an_edit():
    gm = LazyGraphModule({}, one_op(torch.sin), verify=True)
    with _config.patch(enrich_profiler_metadata=True):
        gm(X)
    gm(X)


def test_verification_does_not_mistake_a_new_global_name_for_an_edit(monkeypatch):
    gm = LazyGraphModule({}, one_op(torch.sin), verify=True)
    gm(X)
    monkeypatch.setattr(fx.graph, "_custom_builtins", dict(fx.graph._custom_builtins))
    fx.graph._register_custom_builtin("lazyfx_test", "import math", 3)
    gm(X)


def test_a_call_set_by_hand_survives_verification():
    gm = LazyGraphModule({}, one_op(torch.sin))
    gm(X)
    type(gm).__call__ = lambda self, x: "spy"
    with verify_graphs(gm):
        assert gm(X) == "spy"
    assert gm(X) == "spy"


PRIVATE = ["_generate", "_verify", "_adopt", "_reinstall", "_generate_with_torch", "_lazyfx"]


@pytest.mark.parametrize("name", PRIVATE)
def test_a_submodule_may_have_any_private_name(name):
    graph = fx.Graph()
    graph.output(graph.call_module(name, (graph.placeholder("x"),)))
    gm = LazyGraphModule({name: nn.ReLU()}, graph)
    assert gm(torch.tensor(-1.0)) == 0


def test_descriptors_of_a_subclass_are_set_by_the_constructor():
    class Mine(LazyGraphModule):
        @property
        def meta(self):
            return self.__dict__["own_meta"]

        @meta.setter
        def meta(self, value):
            self.__dict__["own_meta"] = value

    assert Mine({}, one_op(torch.sin)).meta == {}


@pytest.mark.parametrize("name", ["meta", "_replace_hooks"])
def test_an_attribute_node_with_a_name_of_torchs_own(name):
    graph = fx.Graph()
    graph.get_attr(name)
    graph.output(None)
    root = nn.Module()
    setattr(root, name, 3)
    assert vars(LazyGraphModule(root, graph))[name] == vars(fx.GraphModule(root, graph))[name]


def test_a_missing_attribute_is_the_kind_of_error_that_torch_raises():
    graph = fx.Graph()
    graph.output(graph.get_attr("absent"))
    for root, expected in ((nn.Module(), AttributeError), ({}, RuntimeError)):
        with pytest.raises(expected):
            fx.GraphModule(root, graph)
        with pytest.raises(expected) as raised:
            LazyGraphModule(root, graph)
        assert isinstance(raised.value, InvalidGraphError)
        assert "absent" in str(raised.value)


def test_a_module_whose_class_was_assigned_gets_one_of_its_own():
    class Mine(LazyGraphModule):
        pass

    gms = [LazyGraphModule({}, one_op(op)) for op in (torch.sin, torch.cos)]
    for gm in gms:
        gm.__class__ = Mine
        gm.recompile()
    for gm, op in zip(gms, (torch.sin, torch.cos), strict=True):
        assert isinstance(gm, Mine)
        torch.testing.assert_close(gm(X), op(X))


def test_a_fresh_module_given_the_dictionary_of_another_still_has_code():
    gm, other = (LazyGraphModule({}, one_op(op)) for op in (torch.sin, torch.cos))
    gm(X)
    gm.__dict__ = other.__dict__
    assert gm.code is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_code_generator_that_waits_for_a_fork_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(sys.modules["lazyfx_core._forward"], "_LONGEST_WAIT", 0.2)
    gm = LazyGraphModule({}, one_op(torch.sin))
    exits = []

    def fork():
        child = os.fork()
        if not child:
            signal.alarm(20)
            LazyGraphModule({}, one_op(torch.cos))(X)
            os._exit(0)
        exits.append(os.waitpid(child, 0)[1])

    def transform(body):
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        return body

    with gm.graph.on_generate_code(lambda _: transform):
        gm.recompile()
    torch.testing.assert_close(gm(X), X.sin())
    assert exits == [0]


def test_dir_shows_nothing_of_ours():
    assert not {"__lazyfx__", "torchdynamo_force_dynamic"} & set(
        dir(LazyGraphModule({}, one_op(torch.sin)))
    )
