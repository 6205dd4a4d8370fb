"""The one hook in torch: what it reaches, and that it goes in and out without a trace."""

import pickle

import pytest
import torch
from torch import fx, nn
from torch.fx import _lazy_graph_module as torchs
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.split_module import split_module

from lazyfx_core import (
    LazyGraphModule,
    SeamError,
    force_skip_lazy_graph_module,
    make_graph_module,
    remove_seam,
    seam_installed,
    use_lazy_graph_module,
)


def user_class(gm):
    return type(gm).__mro__[1]


def test_nothing_is_patched_before_the_first_flag_and_removal_is_exact():
    original = torchs._get_graph_module_cls
    assert not seam_installed()
    setting = use_lazy_graph_module(True)
    assert torchs._get_graph_module_cls is original
    with setting:
        assert seam_installed()
    remove_seam()
    remove_seam()
    assert torchs._get_graph_module_cls is original
    assert not seam_installed()


def test_a_removed_seam_is_installed_again_by_the_next_flag():
    with use_lazy_graph_module(True):
        pass
    remove_seam()
    with use_lazy_graph_module(True):
        assert isinstance(fx.symbolic_trace(lambda x: torch.sin(x)), LazyGraphModule)


@pytest.mark.parametrize("flag", [True, False])
def test_symbolic_trace_make_fx_transformer_and_unpickling_follow_the_flag(flag):
    x = torch.randn(3)
    data = pickle.dumps(fx.symbolic_trace(lambda x: torch.sin(x)))
    with use_lazy_graph_module(flag):
        made = {
            "symbolic_trace": fx.symbolic_trace(lambda x: torch.sin(x)),
            "make_fx": make_fx(torch.sin)(x),
            "unpickled": pickle.loads(data),
        }
        made["transformer"] = fx.Transformer(made["make_fx"]).transform()
    # split_module of torch 2.6 calls fx.GraphModule directly: only the wide seam reaches it
    asks = "_make_graph_module" in split_module.__code__.co_names
    with use_lazy_graph_module(flag, everywhere=flag and not asks):
        made["split"] = split_module(made["make_fx"], nn.Module(), lambda node: 0)
    for name, gm in made.items():
        assert isinstance(gm, LazyGraphModule) is flag, name
        assert torch.equal(gm(x), x.sin()), name


def test_dynamo_hands_our_class_to_the_backend():
    torch.compiler.reset()
    seen = []

    def backend(gm, example_inputs):
        seen.append((user_class(gm), gm.needs_recompile))
        return gm

    x = torch.randn(3)
    with use_lazy_graph_module(True):
        result = torch.compile(lambda x: x.sin() + 1, backend=backend)(x)
    assert seen == [(LazyGraphModule, True)]
    assert torch.equal(result, x.sin() + 1)


def test_dynamos_own_flag_does_not_win_over_ours():
    torch.compiler.reset()
    seen = []

    def backend(gm, example_inputs):
        seen.append(user_class(gm))
        return gm

    with use_lazy_graph_module(False):
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.randn(3))
    torch.compiler.reset()
    with force_skip_lazy_graph_module():
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.randn(3))
    torch.compiler.reset()
    torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.randn(3))
    assert seen == [fx.GraphModule, fx.GraphModule, torchs._LazyGraphModule]


def test_the_aot_partitioners_build_our_class_forward_and_backward():
    from functorch.compile import aot_function, make_boxed_func

    seen = []

    def compiler(gm, example_inputs):
        seen.append(user_class(gm))
        return make_boxed_func(gm)

    x = torch.randn(3, requires_grad=True)
    with use_lazy_graph_module(True):
        out = aot_function(lambda x: x.sin().cos(), fw_compiler=compiler)(x)
        out.sum().backward()
    assert seen == [LazyGraphModule, LazyGraphModule]
    torch.testing.assert_close(x.grad, (-x.sin().sin() * x.cos()).detach())


def test_inductor_trains_through_our_modules():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with use_lazy_graph_module(True):
        loss = torch.compile(model)(x).square().sum()
        grads = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(grads, expected)


def test_a_later_patch_by_somebody_else_is_not_undone_silently(monkeypatch):
    with use_lazy_graph_module(True):
        pass
    ours = torchs._get_graph_module_cls
    monkeypatch.setattr(torchs, "_get_graph_module_cls", lambda: fx.GraphModule)
    with pytest.raises(SeamError, match="remove the later patch first"):
        remove_seam()
    monkeypatch.setattr(torchs, "_get_graph_module_cls", ours)
    remove_seam()


def test_a_torch_that_moved_the_function_is_reported_and_not_patched(monkeypatch):
    monkeypatch.delattr(torchs, "_get_graph_module_cls")
    with pytest.raises(SeamError, match="_get_graph_module_cls"), use_lazy_graph_module(True):
        pass
    assert not seam_installed()


def test_a_torch_that_no_longer_asks_the_function_is_reported(monkeypatch):
    monkeypatch.setattr(torchs, "_make_graph_module", lambda *a, **k: None)
    with pytest.raises(SeamError, match="_make_graph_module"), use_lazy_graph_module(True):
        pass
    assert not seam_installed()


# --- the wide seam --------------------------------------------------------------------------------


def trace():
    return fx.symbolic_trace(lambda x: torch.sin(x)).graph


def test_everywhere_reaches_direct_constructions_and_leaves_subclasses_alone():
    class Mine(fx.GraphModule):
        pass

    graph, x = trace(), torch.randn(3)
    with use_lazy_graph_module(True, everywhere=True):
        made = fx.GraphModule(nn.Module(), graph, "Named")
        mine = Mine(nn.Module(), graph)
        torchs_lazy = torchs._LazyGraphModule(nn.Module(), graph)
    assert user_class(made) is LazyGraphModule
    assert type(made).__name__ == "Named"
    assert made.needs_recompile
    assert user_class(mine) is Mine
    assert user_class(torchs_lazy) is torchs._LazyGraphModule
    for gm in (made, mine, torchs_lazy):
        assert torch.equal(gm(x), x.sin())


def test_the_wide_seam_is_installed_by_everywhere_only_and_removed_exactly():
    original = vars(fx.GraphModule)["__new__"]
    with use_lazy_graph_module(True):
        assert vars(fx.GraphModule)["__new__"] is original
    with use_lazy_graph_module(True, everywhere=True):
        assert vars(fx.GraphModule)["__new__"] is not original
    remove_seam()
    assert vars(fx.GraphModule)["__new__"] is original
    with use_lazy_graph_module(True, everywhere=True):
        assert isinstance(fx.GraphModule({}, trace()), LazyGraphModule)


def test_plain_modules_copied_under_the_wide_seam_become_lazy_and_right():
    import copy

    plain, x = fx.GraphModule({}, trace()), torch.randn(3)
    with use_lazy_graph_module(True, everywhere=True):
        copies = [copy.copy(plain), copy.deepcopy(plain)]
    for gm in copies:
        assert user_class(gm) is LazyGraphModule
        assert torch.equal(gm(x), x.sin())


def test_the_wide_seam_halves_what_is_generated_by_inductor_again():
    from lazyfx_core import recompile_stats

    def train(flags):
        torch.compiler.reset()
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        x = torch.randn(2, 3, 8)
        with torch._inductor.config.patch(fx_graph_cache=False), flags, recompile_stats() as stats:
            torch.compile(model)(x).sum().backward()
        return stats.snapshot(), [p.grad for p in model.parameters()]

    plain, expected = train(force_skip_lazy_graph_module())
    narrow, first = train(use_lazy_graph_module(True))
    wide, second = train(use_lazy_graph_module(True, everywhere=True))
    assert plain.done > narrow.done > wide.done
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)


def test_a_later_patch_of_the_constructor_is_not_undone_silently(monkeypatch):
    with use_lazy_graph_module(True, everywhere=True):
        pass
    ours = vars(fx.GraphModule)["__new__"]
    fx.GraphModule.__new__ = staticmethod(lambda cls, *a, **k: ours.__func__(cls, *a, **k))
    try:
        with pytest.raises(SeamError, match=r"GraphModule.__new__.*remove the later patch first"):
            remove_seam()
        assert seam_installed()
    finally:
        fx.GraphModule.__new__ = ours
    remove_seam()


def test_a_torch_without_a_class_for_each_instance_is_reported_and_not_patched():
    original = vars(fx.GraphModule)["__new__"]
    fx.GraphModule.__new__ = staticmethod(lambda cls, *a, **k: object.__new__(cls))
    try:
        with (
            pytest.raises(SeamError, match="leave everywhere out"),
            use_lazy_graph_module(True, everywhere=True),
        ):
            pass
    finally:
        fx.GraphModule.__new__ = original


def test_an_explicit_class_overrides_the_wide_seam_too(plain):
    with use_lazy_graph_module(True, everywhere=True):
        gm = make_graph_module(plain, plain.graph, graph_module_cls=fx.GraphModule)
    assert not isinstance(gm, LazyGraphModule)


def test_a_users_class_of_a_similar_name_is_left_alone(plain):
    class MyGraphModuleImpl(fx.GraphModule):
        def __init__(self, root, graph, extra):
            super().__init__(root, graph)
            self.extra = extra

    with use_lazy_graph_module(True, everywhere=True):
        gm = MyGraphModuleImpl(plain, plain.graph, 7)
    assert isinstance(gm, MyGraphModuleImpl)
    assert gm.extra == 7


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_seam_is_installed_again_when_somebody_put_torchs_function_back(everywhere):
    originals = torchs._get_graph_module_cls, vars(fx.GraphModule)["__new__"]
    with use_lazy_graph_module(True, everywhere=everywhere):
        torchs._get_graph_module_cls = originals[0]
        fx.GraphModule.__new__ = originals[1]
        assert not seam_installed()
    with use_lazy_graph_module(True, everywhere=everywhere):
        assert seam_installed()
        assert isinstance(fx.symbolic_trace(lambda x: x + 1), LazyGraphModule)
        if everywhere:
            assert isinstance(fx.GraphModule({}, fx.Graph()), LazyGraphModule)
        torchs._get_graph_module_cls = originals[0]
        fx.GraphModule.__new__ = originals[1]
    remove_seam()
    assert (torchs._get_graph_module_cls, vars(fx.GraphModule)["__new__"]) == originals


def test_a_constructor_that_somebody_else_patched_is_named():
    kept = vars(fx.GraphModule)["__new__"]

    def theirs(cls, *args, **kwargs):
        return kept.__func__(cls, *args, **kwargs)

    fx.GraphModule.__new__ = theirs
    try:
        with (
            pytest.raises(SeamError, match=r"was replaced by .*test_seam"),
            use_lazy_graph_module(True, everywhere=True),
        ):
            pass
    finally:
        fx.GraphModule.__new__ = kept
