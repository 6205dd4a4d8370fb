"""Hooks fire exactly once and errors read the same, on the first call as on the second.

The reference's lazy class calls the module again from inside its own call: hooks fire twice.
"""

import pytest
import torch
from torch import fx, nn
from torch.nn.modules import module as global_hooks

from lazyfx_core import LazyGraphModule


def make(kind, model):
    gm = fx.symbolic_trace(model)
    if kind == "plain":
        return gm
    lazy = LazyGraphModule.from_graphmodule(gm)
    if kind == "fresh":
        lazy.real_recompile()
    assert lazy.needs_recompile == (kind == "stale")
    return lazy


def note(fired, word):
    def hook(*args, **kwargs):
        fired.append(word)

    return hook


def run(gm, x):
    gm(x.clone().requires_grad_()).sum().backward()


HOOKS = {
    "forward pre": lambda gm, f: gm.register_forward_pre_hook(note(f, "hook")),
    "forward pre, with kwargs": lambda gm, f: gm.register_forward_pre_hook(
        note(f, "hook"), with_kwargs=True
    ),
    "forward": lambda gm, f: gm.register_forward_hook(note(f, "hook")),
    "forward, with kwargs": lambda gm, f: gm.register_forward_hook(
        note(f, "hook"), with_kwargs=True
    ),
    "forward, prepended": lambda gm, f: gm.register_forward_hook(note(f, "hook"), prepend=True),
    "forward, always": lambda gm, f: gm.register_forward_hook(note(f, "hook"), always_call=True),
    "full backward": lambda gm, f: gm.register_full_backward_hook(note(f, "hook")),
    "full backward pre": lambda gm, f: gm.register_full_backward_pre_hook(note(f, "hook")),
    "of a child": lambda gm, f: gm.linear.register_forward_hook(note(f, "hook")),
    "of a tensor": lambda gm, f: gm.weight.register_hook(note(f, "hook")),
}


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_fires_once_per_call(name, kind, model, x):
    fired = []
    gm = make(kind, model)
    handle = HOOKS[name](gm, fired)
    run(gm, x)
    assert fired == ["hook"]
    run(gm, x)
    assert fired == ["hook"] * 2
    gm.recompile()
    run(gm, x)
    assert fired == ["hook"] * 3
    handle.remove()
    run(gm, x)
    assert fired == ["hook"] * 3


GLOBAL_HOOKS = {
    "forward pre": global_hooks.register_module_forward_pre_hook,
    "forward": global_hooks.register_module_forward_hook,
    "forward, always": lambda hook: global_hooks.register_module_forward_hook(
        hook, always_call=True
    ),
    "full backward": global_hooks.register_module_full_backward_hook,
    "full backward pre": global_hooks.register_module_full_backward_pre_hook,
}


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
@pytest.mark.parametrize("name", GLOBAL_HOOKS)
def test_a_hook_on_all_modules_fires_once_per_module(name, kind, model, x):
    gm, seen = make(kind, model), []
    handle = GLOBAL_HOOKS[name](lambda module, *args: seen.append(module))
    try:
        run(gm, x)
    finally:
        handle.remove()
    assert len(seen) == 2
    assert {id(module) for module in seen} == {id(gm), id(gm.linear)}


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_hooks_that_change_things_change_them_once_and_in_order(kind, model, x):
    gm, order = make(kind, model), []
    gm.register_forward_pre_hook(lambda m, args: (order.append("pre"), (args[0] + 1,))[1])
    gm.register_forward_hook(lambda m, args, out: (order.append("post"), out * 3)[1])
    gm.register_forward_hook(
        lambda m, args, kwargs, out: (order.append(sorted(kwargs)), out + 1)[1], with_kwargs=True
    )
    for _ in range(2):
        torch.testing.assert_close(gm(x), model(x + 1) * 3 + 1)
    assert order == ["pre", "post", []] * 2


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_a_hook_that_is_always_called_is_called_once_when_forward_fails(kind, model, x):
    gm, fired = make(kind, model), []
    gm.register_forward_hook(note(fired, "always"), always_call=True)
    gm.register_forward_hook(note(fired, "usually"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gm(x.new_zeros(2, 5))
    assert fired == ["always"]


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_hooks_around_state_dicts_fire_once_and_change_nothing_else(kind, model, x):
    gm, fired = make(kind, model), []
    gm.register_state_dict_pre_hook(note(fired, "before saving"))
    gm.register_state_dict_post_hook(note(fired, "after saving"))
    gm.register_load_state_dict_pre_hook(note(fired, "before loading"))
    gm.register_load_state_dict_post_hook(note(fired, "after loading"))
    state = gm.state_dict()
    assert list(state) == list(model.state_dict())
    assert gm.load_state_dict(state) == ([], [])
    assert fired == ["before saving", "after saving", "before loading", "after loading"]
    if kind == "stale":
        assert gm.needs_recompile
    assert torch.equal(gm(x), model(x))


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_removing_the_hook_from_inside_the_first_call_works(kind, model, x):
    gm, fired = make(kind, model), []

    def once(*args):
        fired.append("hook")
        handle.remove()

    handle = gm.register_forward_pre_hook(once)
    gm(x), gm(x)
    assert fired == ["hook"]


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_a_hook_may_recompile_the_module_it_hangs_on(kind, model, x):
    gm = make(kind, model)
    gm.register_forward_pre_hook(lambda module, args: (module.recompile(), None)[1])
    for _ in range(3):
        torch.testing.assert_close(gm(x), model(x))


def failing(kind):
    graph = fx.Graph()
    first, second = graph.placeholder("a"), graph.placeholder("b")
    graph.output(graph.call_function(torch.matmul, (first, second)))
    gm = fx.GraphModule({}, graph) if kind == "plain" else LazyGraphModule({}, graph)
    if kind == "fresh":
        gm.real_recompile()
    return gm


def marked(gm, capsys):
    with pytest.raises(RuntimeError) as caught:
        gm(torch.zeros(2, 3), torch.zeros(2, 3))
    return capsys.readouterr().err.partition("Call using")[2], caught.value


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_the_marker_is_printed_once_at_the_first_call_as_at_the_second(kind, capsys):
    gm = failing(kind)
    first, error = marked(gm, capsys)
    second, _ = marked(gm, capsys)
    assert first == second
    assert first.count("<--- HERE") == 1
    assert "matmul = torch.matmul(a, b)" in first
    assert error.__context__ is None


def test_the_marked_text_is_that_of_a_graph_module(capsys):
    texts = [marked(failing(kind), capsys)[0] for kind in ("plain", "stale", "fresh")]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_a_wrong_number_of_arguments_is_reported_alike(kind, model, x):
    with pytest.raises(TypeError, match=r"takes 2 positional arguments but 3 were given"):
        make(kind, model)(x, x)


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_a_failing_child_is_shown_through_its_own_lines(kind, capsys):
    child = failing(kind)
    graph = fx.Graph()
    inputs = graph.placeholder("a"), graph.placeholder("b")
    graph.output(graph.call_module("child", inputs))
    cls = fx.GraphModule if kind == "plain" else LazyGraphModule
    parent = cls({"child": child}, graph)
    assert isinstance(parent, nn.Module)
    with pytest.raises(RuntimeError):
        parent(torch.zeros(2, 3), torch.zeros(2, 3))
    assert "matmul = torch.matmul(a, b)" in capsys.readouterr().err
