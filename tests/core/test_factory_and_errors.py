"""make_graph_module, conversion, and what bad input is told."""

import pytest
import torch
from torch import fx, nn

from lazyfx_core import (
    CodeGenerationError,
    InvalidGraphError,
    LazyFxError,
    LazyGraphModule,
    MissingDependencyError,
    NotAGraphModuleError,
    check_graph,
    make_graph_module,
    require_graph_module,
    use_lazy_graph_module,
)


def test_make_graph_module_follows_the_flag_and_an_explicit_class_wins(plain, model, x):
    assert not isinstance(make_graph_module(plain, plain.graph), LazyGraphModule)
    with use_lazy_graph_module(True):
        assert isinstance(make_graph_module(plain, plain.graph), LazyGraphModule)
        eager = make_graph_module(plain, plain.graph, graph_module_cls=fx.GraphModule)
    assert not isinstance(eager, LazyGraphModule)
    lazy = make_graph_module(plain, plain.graph, "Named", graph_module_cls=LazyGraphModule)
    assert lazy.needs_recompile
    assert type(lazy).__name__ == "Named"
    assert torch.equal(lazy(x), model(x))


def test_the_error_of_a_class_of_the_users_own_stays(plain):
    class Own(fx.GraphModule):
        def __init__(self, root, graph, class_name="GraphModule"):
            raise RuntimeError("its own")

    plain.graph.create_node("get_attr", "nowhere")
    with pytest.raises(RuntimeError, match="its own"):
        make_graph_module({}, plain.graph, graph_module_cls=Own)


def test_from_graphmodule_shares_everything_and_generates_nothing(model, x):
    gm = fx.symbolic_trace(model)
    gm.meta["note"] = 1
    calls = []
    gm.register_forward_hook(lambda *a: calls.append(1))
    gm.extra = {"kept": True}
    lazy = LazyGraphModule.from_graphmodule(gm)
    assert lazy.needs_recompile
    assert lazy.graph is gm.graph
    assert lazy.graph.owning_module is lazy
    assert lazy.weight is gm.weight
    assert lazy.extra is gm.extra
    assert lazy.meta["note"] == 1
    assert type(lazy).__name__ == type(gm).__name__
    assert torch.equal(lazy(x), model(x))
    assert calls == [1]
    lazy.add_module("new", nn.Linear(1, 1))
    assert not hasattr(gm, "new")


def test_from_graphmodule_of_a_lazy_module_is_that_module(lazy):
    assert LazyGraphModule.from_graphmodule(lazy) is lazy


def test_from_graphmodule_takes_torchs_private_lazy_class(plain, model, x):
    from torch.fx._lazy_graph_module import _LazyGraphModule

    theirs = _LazyGraphModule(plain, plain.graph)
    lazy = LazyGraphModule.from_graphmodule(theirs)
    assert lazy.needs_recompile
    assert torch.equal(lazy(x), model(x))


def test_force_recompile_of_a_plain_module_does_nothing(plain):
    code = plain.code
    LazyGraphModule.force_recompile(plain)
    assert plain.code == code


@pytest.mark.parametrize("wrong", [nn.Linear(2, 2), None, 3, "gm", torch.sin, fx.Graph()])
@pytest.mark.parametrize(
    "function",
    [
        LazyGraphModule.from_graphmodule,
        LazyGraphModule.force_recompile,
        lambda gm: require_graph_module(gm, "mine(gm)"),
    ],
)
def test_what_is_not_a_graph_module_is_refused_by_name(function, wrong):
    with pytest.raises(NotAGraphModuleError, match="GraphModule, got ") as caught:
        function(wrong)
    assert isinstance(caught.value, (TypeError, LazyFxError))


def test_a_graph_module_where_a_graph_belongs_is_told_the_way(plain):
    with pytest.raises(NotAGraphModuleError, match=r"graph=.*pass gm\.graph"):
        LazyGraphModule(plain, plain)
    with pytest.raises(NotAGraphModuleError, match=r"pass gm\.graph"):
        make_graph_module(plain, plain)
    with pytest.raises(NotAGraphModuleError, match=r"LazyGraphModule\(root="):
        LazyGraphModule(None, plain.graph)
    with pytest.raises(NotAGraphModuleError, match=r"make_graph_module\(root="):
        make_graph_module(None, plain.graph)
    with pytest.raises(NotAGraphModuleError, match=r"check_graph\(\) takes"):
        check_graph(plain)


@pytest.mark.parametrize("wrong", [nn.Linear, nn.Module(), int])
def test_an_explicit_class_must_be_a_class_of_graph_modules(plain, wrong):
    with pytest.raises(NotAGraphModuleError, match="graph_module_cls"):
        make_graph_module(plain, plain.graph, graph_module_cls=wrong)


@pytest.mark.parametrize("build", [LazyGraphModule, make_graph_module])
def test_a_target_the_root_does_not_have_is_named(plain, build):
    with pytest.raises(InvalidGraphError, match=r"node 'linear'.*'linear'.*no attribute 'linear'"):
        build(nn.Module(), plain.graph)
    with pytest.raises(InvalidGraphError, match=r"'linear'.*not a key of the root mapping"):
        build({}, plain.graph)


def invalid_foreign(gm):
    other = fx.symbolic_trace(lambda x: torch.sin(x)).graph
    foreign = next(iter(other.nodes))
    node = gm.graph.find_nodes(op="call_function", target=torch.sin)[0]
    node.args = (foreign,)
    return r"'sin'.*'\w+'.*another graph"


def invalid_order(gm):
    nodes = {n.name: n for n in gm.graph.nodes}
    nodes["relu"].append(nodes["sin"])
    return "'linear'.*'sin'.*only later"


def invalid_erased(gm):
    sin = gm.graph.find_nodes(op="call_function", target=torch.sin)[0]
    linear = gm.graph.find_nodes(op="call_module", target="linear")[0]
    keep = linear.args
    linear.args = ()
    gm.graph.erase_node(sin)
    linear.args = keep
    return "'linear'.*'sin'.*erased"


def invalid_target(gm):
    gm.graph.find_nodes(op="call_function", target=torch.sin)[0].target = "sin"
    return "'sin'.*callable"


@pytest.mark.parametrize("edit", [invalid_foreign, invalid_order, invalid_erased, invalid_target])
@pytest.mark.parametrize(
    "look",
    [lambda gm, x: gm(x), lambda gm, x: gm.forward, lambda gm, x: gm.code, lambda gm, x: str(gm)],
)
def test_an_invalid_edit_is_named_when_looked_at_and_can_be_repaired(plain, model, x, edit, look):
    import copy

    lazy = LazyGraphModule.from_graphmodule(plain)
    good = copy.deepcopy(lazy.graph)
    lazy(x)
    pattern = edit(lazy)
    lazy.recompile()
    for _ in range(2):
        with pytest.raises(InvalidGraphError, match=pattern):
            look(lazy, x)
        assert lazy.needs_recompile
    assert "linear" in str(lazy.graph)  # the graph itself can always be looked at
    lazy.graph = good
    assert torch.equal(lazy(x), model(x))


def test_a_placeholder_may_stand_anywhere():
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.sin, (x,))
    late = graph.placeholder("late")
    y.args = (late,)
    graph.output(y)
    check_graph(graph)
    gm = LazyGraphModule({}, graph)
    assert torch.equal(gm(torch.zeros(1), torch.ones(1)), torch.ones(1).sin())


def test_an_error_inside_generation_is_never_an_attribute_error(lazy, x, model, monkeypatch):
    original = fx.Graph.python_code

    def broken(self, *args, **kwargs):
        raise AttributeError("inside generation")

    monkeypatch.setattr(fx.Graph, "python_code", broken)
    for look in (lambda: lazy(x), lambda: lazy.forward, lambda: lazy.code, lambda: lazy._code):
        with pytest.raises(CodeGenerationError, match="inside generation") as caught:
            look()
        assert isinstance(caught.value.__cause__, AttributeError)
        assert lazy.needs_recompile
        assert vars(lazy)["_code"] is None
    monkeypatch.setattr(fx.Graph, "python_code", original)
    assert torch.equal(lazy(x), model(x))


def test_a_failed_generation_keeps_a_forward_set_by_hand(lazy, x, monkeypatch):
    type(lazy).forward = lambda self, x: x + 41

    def broken(self, *args, **kwargs):
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr(fx.Graph, "python_code", broken)
        with pytest.raises(CodeGenerationError):
            lazy.code
    assert torch.equal(lazy(x), x + 41)


def test_a_missing_dependency_names_the_command():
    error = MissingDependencyError("graphviz", needed_for="drawing", command="apt install graphviz")
    assert isinstance(error, ImportError)
    assert "drawing needs 'graphviz'" in str(error)
    assert "apt install graphviz" in str(error)
