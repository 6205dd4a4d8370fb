"""Everything that works with fx.GraphModule works with ours, stale or fresh.

One table: each observer runs on a plain module, on ours while stale, and on ours once fresh.
"""

import copy
import inspect
import io
import pickle
import threading

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_core import LazyGraphModule


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 2


class ForwardCaller(Holder):
    def forward(self, x):
        return self.inner.forward(x) * 2


def compiled(function, x):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="eager")(x)


def through_saved_forward(gm, x):
    forward = gm.forward
    return compiled(lambda x: forward(x), x)


def through_disabled_forward(gm, x):
    from torch._dynamo.eval_frame import innermost_fn

    disabled = torch.compiler.disable(gm.forward)
    assert innermost_fn(disabled).__self__ is gm
    return torch.compile(disabled, backend="eager")(x)


def through_threads(gm, x):
    results = []
    threads = [threading.Thread(target=lambda: results.append(gm(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(torch.equal(r, results[0]) for r in results)
    return results[0]


def through_torch_save(gm, x):
    buffer = io.BytesIO()
    torch.save(gm, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)(x)


def through_backward(gm, x):
    x = x.clone().requires_grad_()
    gm(x).sum().backward()
    return x.grad


def through_hand_made_replacement(gm, x):
    fx.replace_pattern(gm, lambda a, b: a * b, lambda a, b: torch.mul(a, b))
    gm.recompile()
    return gm(x)


def through_split(gm, x):
    from torch.fx.passes.split_module import split_module

    parts = iter(range(100))
    return split_module(gm, gm, lambda node: next(parts) // 3)(x)


def through_source(gm, x):
    assert "def forward(self, x" in inspect.getsource(gm.forward)
    assert list(inspect.signature(gm.forward).parameters) == ["x"]
    assert list(inspect.signature(type(gm).forward).parameters) == ["self", "x"]
    assert gm.forward.__code__.co_varnames[:2] == ("self", "x")
    return gm(x)


OBSERVERS = {
    "call": lambda gm, x: gm(x),
    "forward": lambda gm, x: gm.forward(x),
    "class forward": lambda gm, x: type(gm).forward(gm, x),
    "class call": lambda gm, x: type(gm).__call__(gm, x),
    "source and signature": through_source,
    "jit.script": lambda gm, x: torch.jit.script(gm)(x),
    "jit.trace": lambda gm, x: torch.jit.trace(gm, x)(x),
    "compile the module": lambda gm, x: compiled(gm, x),
    "compile a function that calls it": lambda gm, x: compiled(lambda x: gm(x), x),
    "compile a function that calls forward": lambda gm, x: compiled(lambda x: gm.forward(x), x),
    "compile a saved forward": through_saved_forward,
    "compile a parent": lambda gm, x: compiled(Holder(gm), x) / 2,
    "compile a parent that calls forward": lambda gm, x: compiled(ForwardCaller(gm), x) / 2,
    "disable forward": through_disabled_forward,
    "export strict": lambda gm, x: torch.export.export(gm, (x,), strict=True).module()(x),
    "export": lambda gm, x: torch.export.export(gm, (x,), strict=False).module()(x),
    "export a parent strict": lambda gm, x: (
        torch.export.export(Holder(gm), (x,), strict=True).module()(x) / 2
    ),
    "make_fx": lambda gm, x: make_fx(gm)(x)(x),
    "symbolic_trace": lambda gm, x: fx.symbolic_trace(gm)(x),
    "symbolic_trace a parent": lambda gm, x: fx.symbolic_trace(Holder(gm))(x) / 2,
    "Interpreter": lambda gm, x: fx.Interpreter(gm).run(x),
    "Transformer": lambda gm, x: fx.Transformer(gm).transform()(x),
    "replace_pattern": through_hand_made_replacement,
    "split_module": through_split,
    "copy": lambda gm, x: copy.copy(gm)(x),
    "deepcopy": lambda gm, x: copy.deepcopy(gm)(x),
    "pickle": lambda gm, x: pickle.loads(pickle.dumps(gm))(x),
    "torch's reduction": lambda gm, x: (lambda f, args: f(*args))(*gm.__reduce__())(x),
    "torch.save": through_torch_save,
    "data-parallel replica": lambda gm, x: gm._replicate_for_data_parallel()(x),
    "eight threads": through_threads,
    "functional_call": lambda gm, x: torch.func.functional_call(gm, dict(gm.state_dict()), (x,)),
    "vmap": lambda gm, x: torch.vmap(gm)(x),
    "backward": through_backward,
}


def make(kind, model):
    gm = fx.symbolic_trace(model)
    if kind == "plain":
        return gm
    lazy = LazyGraphModule.from_graphmodule(gm)
    if kind == "fresh":
        lazy.real_recompile()
    assert lazy.needs_recompile == (kind == "stale")
    return lazy


# torch's script checker trips over the annotations in torch's own GraphModule.__init__.
@pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support instance-level")
@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_sees_a_graph_module(observer, kind, model, x):
    expected = through_backward(model, x) if observer == "backward" else model(x)
    result = OBSERVERS[observer](make(kind, model), x)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("kind", ["stale", "fresh"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile_backends_take_our_modules(kind, backend, model, x):
    torch.compiler.reset()
    gm = make(kind, model)
    torch.testing.assert_close(torch.compile(gm, fullgraph=True, backend=backend)(x), model(x))


def test_torchs_graph_pickler_stores_a_stale_module_and_leaves_it_usable(model, x):
    graph_pickler = pytest.importorskip(
        "torch.fx._graph_pickler", reason="GraphPickler came with torch 2.7"
    )
    gm = make("stale", model)
    data = graph_pickler.GraphPickler.dumps(gm)
    assert len(data) > 0
    assert torch.equal(gm(x), model(x))


def test_script_properties_stay_out_of_the_scripted_module(model):
    scripted = torch.jit.script(make("stale", model))
    assert not hasattr(scripted._c, "needs_recompile")
