"""What torch's private lazy class gets wrong, from torch 2.6 to 2.15.

Each test names the defect, shows it on ``torch.fx._lazy_graph_module`` and shows that it is not in
ours. Where the first half fails on a newer torch, the reference was mended: say so in the docs.
"""

import copy
import inspect
import pickle
import threading

import pytest
import torch
from torch import fx
from torch.fx import _lazy_graph_module as torchs

from lazyfx_core import LazyGraphModule, get_graph_module_cls, use_lazy_graph_module


@pytest.fixture
def theirs(model):
    gm = fx.symbolic_trace(model)
    return torchs._LazyGraphModule(gm, gm.graph)


@pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support instance-level")
def test_jit_script(theirs, lazy, model, x):
    with pytest.raises(Exception, match="cannot be used as a value|_lazy_forward"):
        torch.jit.script(theirs)
    torch.testing.assert_close(torch.jit.script(lazy)(x), model(x))


def test_fullgraph_compile_of_a_saved_forward(theirs, lazy, model, x):
    def compiled(forward):
        torch.compiler.reset()
        return torch.compile(lambda x: forward(x), fullgraph=True, backend="eager")(x)

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(theirs.forward)
    torch.testing.assert_close(compiled(lazy.forward), model(x))


def test_hooks_on_the_first_call(theirs, lazy, x):
    for gm, expected in ((theirs, 2), (lazy, 1)):
        fired = []
        gm.register_forward_pre_hook(lambda m, args, fired=fired: fired.append(1))
        gm(x)
        assert len(fired) == expected


def test_signature_before_the_first_call(theirs, lazy):
    assert list(inspect.signature(theirs.forward).parameters) == ["args", "kwargs"]
    assert list(inspect.signature(lazy.forward).parameters) == ["x"]


def test_recompile_returns_the_code(theirs, lazy):
    assert theirs.recompile() is None
    assert "sin" in lazy.recompile().src


def test_recompile_through_the_base_class_leaves_no_stale_code(model, x):
    for cls, is_right in ((torchs._LazyGraphModule, False), (LazyGraphModule, True)):
        gm = fx.symbolic_trace(model)
        gm = cls(gm, gm.graph)
        gm(x)
        next(n for n in gm.graph.nodes if n.target is torch.sin).target = torch.cos
        if is_right:
            cls.recompile(gm)
        else:
            cls.recompile()  # a classmethod: there is no way to say which module
        assert ("cos" in gm.code) is is_right


def test_copies_and_pickles_stay_lazy(theirs, lazy):
    assert not isinstance(copy.copy(theirs), torchs._LazyGraphModule)
    assert not isinstance(pickle.loads(pickle.dumps(theirs)), torchs._LazyGraphModule)
    assert isinstance(copy.copy(lazy), LazyGraphModule)
    assert isinstance(pickle.loads(pickle.dumps(lazy)), LazyGraphModule)


def test_an_in_place_operator_survives_a_pickle(mutating):
    theirs = torchs._LazyGraphModule({}, copy.deepcopy(mutating.graph))
    for gm, mutates in ((theirs, False), (mutating, True)):
        x = torch.zeros(1)
        pickle.loads(pickle.dumps(gm))(x)
        assert bool(x.item()) is mutates


def test_flags_in_another_thread():
    seen = []

    def look():
        seen.append(torchs._get_graph_module_cls())

    with torchs._use_lazy_graph_module(True):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [torchs._LazyGraphModule]  # leaked
    seen.clear()
    with use_lazy_graph_module(True):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [fx.GraphModule]


def test_a_skip_inside_a_use():
    with torchs._use_lazy_graph_module(True), torchs._force_skip_lazy_graph_module():
        assert torchs._get_graph_module_cls() is torchs._LazyGraphModule  # ignored
    from lazyfx_core import force_skip_lazy_graph_module

    with use_lazy_graph_module(True), force_skip_lazy_graph_module():
        assert get_graph_module_cls() is fx.GraphModule
