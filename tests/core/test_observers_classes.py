"""Classes and methods written by users, on top of ours as on top of fx.GraphModule.

Subclasses that define ``forward``, ``__call__`` or ``recompile``, a ``forward`` set by hand, other
classes put in place of the module's own, modules inside modules.
"""

import copy
import pickle
import types
from unittest import mock

import pytest
import torch
from torch import fx, nn

from lazyfx_core import LazyGraphModule

KINDS = pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])


def base_of(kind):
    return fx.GraphModule if kind == "plain" else LazyGraphModule


def ready(kind, gm):
    if kind == "fresh":
        gm.real_recompile()
    return gm


def build(kind, cls, model):
    traced = fx.symbolic_trace(model)
    return ready(kind, cls(traced, traced.graph))


@KINDS
def test_a_forward_of_a_subclass_stands_behind_the_generated_one(kind, model, x):
    class Mine(base_of(kind)):
        def forward(self, x):
            return x * 0

    gm = build(kind, Mine, model)
    torch.testing.assert_close(gm(x), model(x))
    torch.testing.assert_close(gm.forward(x), model(x))
    assert torch.equal(Mine.forward(gm, x), x * 0)
    assert torch.equal(super(type(gm), gm).forward(x), x * 0)


@KINDS
def test_a_call_of_a_subclass_wraps_the_generated_one(kind, model, x):
    class Mine(base_of(kind)):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs) + 1

    gm = build(kind, Mine, model)
    for _ in range(2):
        torch.testing.assert_close(gm(x), model(x) + 1)
        torch.testing.assert_close(gm.forward(x), model(x))
        gm.recompile()


@KINDS
def test_a_call_that_does_not_call_on_is_called_once(kind, model, x):
    calls = []

    class Mine(base_of(kind)):
        def __call__(self, x):
            calls.append("mine")
            return x + 1

    gm = build(kind, Mine, model)
    assert torch.equal(gm(x), x + 1)
    assert calls == ["mine"]


@KINDS
def test_a_recompile_of_a_subclass_is_asked_and_may_call_on(kind, model, x):
    asked = []

    class Mine(base_of(kind)):
        def recompile(self):
            asked.append("mine")
            return super().recompile()

    gm = build(kind, Mine, model)
    count = len(asked)
    assert count == 1
    assert "sin" in gm.recompile().src
    assert len(asked) == count + 1
    torch.testing.assert_close(gm(x), model(x))
    assert len(asked) == count + 1


@KINDS
def test_a_recompile_that_edits_first_is_seen_in_the_code(kind, model, x):
    class Mine(base_of(kind)):
        def recompile(self):
            for node in self.graph.find_nodes(op="call_function", target=torch.sin):
                node.target = torch.cos
            return super().recompile()

    gm = build(kind, Mine, model)
    assert "torch.cos" in gm.code
    expected = (model.linear(x.cos()) * model.weight + model.offset).relu()
    torch.testing.assert_close(gm(x), expected)


@KINDS
def test_a_subclass_that_never_generates_runs_its_own_forward(kind, model, x):
    """What interpreting subclasses do: recompile() does nothing, forward walks the graph."""

    class Interpreted(base_of(kind)):
        def recompile(self):
            pass

        def forward(self, x):
            return fx.Interpreter(self).run(x) + 1

    gm = build("plain", Interpreted, model)
    torch.testing.assert_close(gm(x), model(x) + 1)
    gm.recompile()
    torch.testing.assert_close(gm.forward(x), model(x) + 1)


@KINDS
def test_a_recompile_that_sets_forward_itself_is_respected(kind, model, x):
    class Mine(base_of(kind)):
        def recompile(self):
            code = super().recompile()
            generated = type(self).forward
            type(self).forward = lambda self, x: generated(self, x) + 1
            return code

    gm = build(kind, Mine, model)
    for _ in range(2):
        torch.testing.assert_close(gm(x), model(x) + 1)
        torch.testing.assert_close(gm.forward(x), model(x) + 1)
        gm.recompile()


@KINDS
def test_an_init_and_attributes_of_a_subclass_work(kind, model, x):
    class Mine(base_of(kind)):
        kept = "class"

        def __init__(self, root, graph, scale):
            super().__init__(root, graph, "Mine")
            self.scale = scale

        def __getattr__(self, name):
            if name == "magic":
                return 7
            return super().__getattr__(name)

        @property
        def doubled(self):
            return self.scale * 2

    traced = fx.symbolic_trace(model)
    gm = ready(kind, Mine(traced, traced.graph, 3))
    assert (gm.scale, gm.doubled, gm.magic, gm.kept) == (3, 6, 7, "class")
    torch.testing.assert_close(gm(x), model(x))
    assert type(gm).__mro__[1] is Mine


@KINDS
def test_a_subclass_of_a_subclass_works(kind, model, x):
    class Outer(base_of(kind)):
        def __call__(self, *args):
            return super().__call__(*args) * 2

    class Inner(Outer):
        def __call__(self, *args):
            return super().__call__(*args) + 1

    gm = build(kind, Inner, model)
    for _ in range(2):
        torch.testing.assert_close(gm(x), model(x) * 2 + 1)
        gm.recompile()


@KINDS
def test_a_mixin_in_front_of_the_base_works(kind, model, x):
    class Counting:
        calls = 0

        def __call__(self, *args):
            type(self).calls += 1
            return super().__call__(*args)

    class Mine(Counting, base_of(kind)):
        pass

    gm = build(kind, Mine, model)
    attributes = set(vars(Counting))
    for count in (1, 2):
        torch.testing.assert_close(gm(x), model(x))
        assert type(gm).calls == count
        gm.recompile()
    assert set(vars(Counting)) == attributes


@KINDS
def test_a_forward_set_on_the_instance_is_called(kind, model, x):
    gm = build(kind, base_of(kind), model)
    gm.forward = lambda x: x + 41
    assert torch.equal(gm(x), x + 41)
    gm.recompile()
    assert torch.equal(gm(x), x + 41)
    del gm.forward
    torch.testing.assert_close(gm(x), model(x))


@KINDS
def test_a_method_bound_to_the_instance_may_call_the_generated_forward(kind, model, x):
    gm = build(kind, base_of(kind), model)
    original = gm.forward
    gm.forward = types.MethodType(lambda self, x: original(x) + 1, gm)
    torch.testing.assert_close(gm(x), model(x) + 1)
    torch.testing.assert_close(type(gm).forward(gm, x), model(x))


@KINDS
def test_a_forward_set_on_the_class_is_called_until_recompile(kind, model, x):
    gm = build(kind, base_of(kind), model)
    type(gm).forward = lambda self, x: x + 41
    for _ in range(2):
        assert torch.equal(gm(x), x + 41)
        assert torch.equal(gm.forward(x), x + 41)
        assert torch.equal(type(gm).forward(gm, x), x + 41)
    assert "sin" in gm.code
    assert torch.equal(gm(x), x + 41)
    gm.recompile()
    torch.testing.assert_close(gm(x), model(x))


@KINDS
def test_a_wrapper_around_the_generated_forward_of_the_class_is_called(kind, model, x):
    gm = build(kind, base_of(kind), model)
    generated = type(gm).forward
    type(gm).forward = lambda self, x: generated(self, x) * 2
    torch.testing.assert_close(gm(x), model(x) * 2)
    type(gm).forward = generated
    torch.testing.assert_close(gm(x), model(x))


@KINDS
def test_a_call_set_on_the_class_is_called_until_recompile(kind, model, x):
    gm = build(kind, base_of(kind), model)
    type(gm).__call__ = lambda self, x: x + 41
    for _ in range(2):
        assert torch.equal(gm(x), x + 41)
        torch.testing.assert_close(gm.forward(x), model(x))
        assert gm.code


@KINDS
@pytest.mark.parametrize("name", ["forward", "__call__"])
@pytest.mark.parametrize("look", ["call", "code", "forward", "recompile", "nothing"])
def test_what_a_test_patches_on_the_class_is_gone_afterwards(name, look, kind, model, x):
    gm = build(kind, base_of(kind), model)
    with mock.patch.object(type(gm), name, lambda self, x: x + 41):
        if look == "call":
            assert torch.equal(gm(x), x + 41)
        elif look == "code":
            assert gm.code
        elif look == "forward":
            assert gm.forward(x) is not None
        elif look == "recompile":
            gm.recompile()
    for _ in range(2):
        torch.testing.assert_close(gm(x), model(x))
        torch.testing.assert_close(gm.forward(x), model(x))
        gm.recompile()


@KINDS
def test_deleting_what_was_set_on_the_class_is_not_needed_to_go_on(kind, model, x):
    gm = build(kind, base_of(kind), model)
    gm(x)
    del type(gm).forward
    gm.recompile()
    torch.testing.assert_close(gm(x), model(x))


@KINDS
def test_a_class_put_in_front_is_kept_and_may_be_taken_off(kind, model, x):
    class Mixin:
        def hello(self):
            return "hello"

    gm = build(kind, base_of(kind), model)
    own, attributes = type(gm), set(vars(Mixin))
    gm.__class__ = type("Mixed", (Mixin, own), {})
    torch.testing.assert_close(gm(x), model(x))
    torch.testing.assert_close(gm.forward(x), model(x))
    assert (gm.hello(), type(gm).__name__) == ("hello", "Mixed")
    gm.__class__ = own
    torch.testing.assert_close(gm(x), model(x))
    assert set(vars(Mixin)) == attributes


@pytest.mark.parametrize("kind", ["stale", "fresh"])
def test_recompiling_under_another_class_writes_to_no_class_of_the_users(kind, model, x):
    """fx.GraphModule itself recurses without end here."""

    class Mixin:
        pass

    gm = build(kind, LazyGraphModule, model)
    attributes = set(vars(Mixin))
    gm.__class__ = type("Mixed", (Mixin, type(gm)), {})
    for _ in range(2):
        gm.recompile()
        torch.testing.assert_close(gm(x), model(x))
    assert set(vars(Mixin)) == attributes


class Leaf(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, fx.GraphModule)


class Tree(nn.Module):
    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x):
        return self.left(x) + self.right(x)


@KINDS
def test_modules_inside_modules_inside_modules_work(kind, model, x):
    leaf = build(kind, base_of(kind), model)
    inner = Tree(leaf, leaf)
    middle = ready(kind, base_of(kind)(inner, Leaf().trace(inner)))
    outer = Tree(middle, leaf)
    top = ready(kind, base_of(kind)(outer, Leaf().trace(outer)))
    expected = Tree(Tree(model, model), model)(x)
    torch.testing.assert_close(top(x), expected)
    top.recompile()
    if kind != "plain":
        assert all(gm.needs_recompile for gm in (top, middle, leaf))
    torch.testing.assert_close(top(x), expected)
    torch.testing.assert_close(copy.deepcopy(top)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(top))(x), expected)


@KINDS
def test_a_module_that_replaces_its_class_attribute_with_a_descriptor_is_left_alone(kind, model, x):
    gm = build(kind, base_of(kind), model)
    type(gm).forward = staticmethod(lambda x: x + 41)
    assert torch.equal(gm(x), x + 41)
    type(gm).forward = property(lambda self: lambda x: x + 42)
    assert torch.equal(gm(x), x + 42)


class LazyMine(LazyGraphModule):
    def mine(self):
        return "mine"


@pytest.mark.parametrize("kind", ["stale", "fresh"])
def test_the_class_chosen_by_a_user_survives_copies_and_pickles(kind, model, x):
    """fx.GraphModule forgets it."""
    gm = build(kind, LazyMine, model)
    for duplicate in (copy.copy(gm), copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        assert isinstance(duplicate, LazyMine)
        assert duplicate.mine() == "mine"
        torch.testing.assert_close(duplicate(x), model(x))
