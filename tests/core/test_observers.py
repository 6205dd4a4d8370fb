"""Everything that works with fx.GraphModule works with ours, stale or fresh.

One table: each observer runs on a plain module, on ours while stale, and on ours once fresh, and
each time has to give what eager gives. What observers *report* (signatures, sources, names) is
compared with what they report of the plain module. Compilers, hooks and classes written by users
have tables of their own beside this one (``test_observers_*.py``).
"""

import copy
import functools
import importlib.util
import inspect
import io
import operator
import pickle
import threading
import types
import typing
import weakref
from multiprocessing.reduction import ForkingPickler
from unittest import mock

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

from lazyfx_core import LazyGraphModule


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 2


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, fx.GraphModule) or super().is_leaf_module(module, name)


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


def through_folder(gm, x, tmp_path):
    gm.to_folder(tmp_path / "written", "Written")
    spec = importlib.util.spec_from_file_location("written", tmp_path / "written" / "module.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Written().to(x.device)(x)  # to_folder makes parameters on the CPU


def through_meta(gm, x):
    state = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    gm.to("meta")
    gm.to_empty(device=x.device)
    gm.load_state_dict(state)
    return gm(x)


def through_data_parallel(gm, x):
    if torch.cuda.is_available() and not x.is_cuda:
        pytest.skip("DataParallel takes the GPUs that are there")
    return nn.DataParallel(gm)(x)


def through_frozen_weights(gm, x):
    gm.requires_grad_(False)
    out = gm(x)
    assert not out.requires_grad
    return out


def through_weak_references(gm, x):
    assert weakref.ref(gm)() is gm
    assert weakref.WeakMethod(gm.forward)() == gm.forward
    return weakref.proxy(gm)(x)


def through_wraps(gm, x):
    @functools.wraps(gm.forward)
    def wrapped(*args):
        return gm.forward(*args)

    assert list(inspect.signature(wrapped).parameters) == ["x"]
    return wrapped(x)


def through_mock_on_the_instance(gm, x):
    with mock.patch.object(gm, "forward", wraps=gm.forward) as forward:
        gm(x)
    assert forward.call_count == 1
    return gm(x)


def through_mock_on_the_class(name):
    def observe(gm, x):
        with mock.patch.object(type(gm), name, lambda self, x: x + 41):
            assert torch.equal(gm(x), x + 41)
            gm.code, gm.forward, gm.__call__
        gm.forward(x)
        return gm(x)

    return observe


def through_autospec(gm, x):
    double = mock.create_autospec(gm.forward, side_effect=gm.forward)
    with pytest.raises(TypeError, match="unexpected|too many|takes"):
        double(x, x, x)
    return double(x)


def through_parameters_of_a_class(gm, x):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nn.utils.parametrize.register_parametrization(gm, "weight", Double())
    assert not torch.equal(gm(x), gm.forward(x + 1))
    nn.utils.parametrize.remove_parametrizations(gm, "weight", leave_parametrized=False)
    gm.recompile()
    return gm(x)


def through_weight_norm(gm, x):
    nn.utils.parametrizations.weight_norm(gm, "weight")
    nn.utils.parametrizations.weight_norm(gm.linear)
    return gm(x)


def through_pruning(gm, x):
    prune.identity(gm, "weight")
    gm(x)
    prune.remove(gm, "weight")
    return gm(x)


def through_replaced_class(gm, x):
    """What FSDP does to a module: a class with a mixin in front takes the place of its own."""

    class Mixin:
        def hello(self):
            return "hello"

    own = type(gm)
    gm.__class__ = type("Mixed", (Mixin, own), {})
    first = gm(x)
    torch.testing.assert_close(gm.forward(x), first)
    assert gm.hello() == "hello"
    gm.__class__ = own
    gm.recompile()
    return gm(x)


def through_backward(gm, x):
    leaf = x.clone().requires_grad_()
    out = gm(leaf)
    (from_module,) = torch.autograd.grad(out.sum(), leaf)
    (from_forward,) = torch.autograd.grad(gm.forward(leaf).sum(), leaf)
    assert torch.equal(from_module, from_forward)
    assert from_module.abs().sum() > 0
    return out.detach()


def through_checkpoint(reentrant):
    def observe(gm, x):
        leaf = x.clone().requires_grad_()
        out = torch.utils.checkpoint.checkpoint(gm, leaf, use_reentrant=reentrant)
        out.sum().backward()
        expected = through_gradient(gm, x)
        assert torch.equal(leaf.grad, expected)
        return out.detach()

    return observe


def through_gradient(gm, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(gm(leaf).sum(), leaf)[0]


def through_func_transforms(gm, x):
    expected = through_gradient(gm, x)
    torch.testing.assert_close(torch.func.grad(lambda x: gm(x).sum())(x), expected)
    torch.testing.assert_close(torch.func.jacrev(lambda x: gm(x).sum())(x), expected)
    return torch.func.vjp(gm, x)[0]


def through_jvp(gm, x):
    out, tangent = torch.func.jvp(gm, (x,), (torch.ones_like(x),))
    linear_out, linear = torch.func.linearize(gm, x)
    torch.testing.assert_close(linear(torch.ones_like(x)), tangent)
    torch.testing.assert_close(linear_out, out)
    return out


def through_ensemble(gm, x):
    state = {name: torch.stack([t, t]) for name, t in gm.state_dict().items()}
    skeleton = copy.deepcopy(gm).to("meta")
    both = torch.vmap(lambda state: torch.func.functional_call(skeleton, state, (x,)))(state)
    torch.testing.assert_close(both[0], both[1])
    return both[0]


def through_tracing_a_class(gm, x):
    class Scaled(metaclass=fx.ProxyableClassMeta):
        def __init__(self, value):
            self.value = value

        def read(self):
            return self.value

    class Reader(Holder):
        def forward(self, x):
            return Scaled(self.inner(x)).read()

    return fx.symbolic_trace(Reader(gm))(x)


OBSERVERS = {
    # calls
    "call": lambda gm, x: gm(x),
    "call by keyword": lambda gm, x: gm(x=x),
    "forward": lambda gm, x: gm.forward(x),
    "class forward": lambda gm, x: type(gm).forward(gm, x),
    "class call": lambda gm, x: type(gm).__call__(gm, x),
    "getattr with a default": lambda gm, x: getattr(gm, "forward", None)(x),
    "forward's function": lambda gm, x: gm.forward.__func__(gm, x),
    "a method made of the class's forward": lambda gm, x: types.MethodType(type(gm).forward, gm)(x),
    "super of its own class": lambda gm, x: super(type(gm), gm).__call__(x),
    "Module.__call__": lambda gm, x: nn.Module.__call__(gm, x),
    "_call_impl": lambda gm, x: gm._call_impl(x),
    "methodcaller": lambda gm, x: operator.methodcaller("forward", x)(gm),
    "operator.call": lambda gm, x: operator.call(gm, x),
    "partial": lambda gm, x: functools.partial(gm.forward, x)(),
    "wraps": through_wraps,
    "weak references": through_weak_references,
    "eight threads": through_threads,
    "mock the instance's forward": through_mock_on_the_instance,
    "mock the class's forward": through_mock_on_the_class("forward"),
    "mock the class's call": through_mock_on_the_class("__call__"),
    "autospec": through_autospec,
    # copies
    "copy": lambda gm, x: copy.copy(gm)(x),
    "deepcopy": lambda gm, x: copy.deepcopy(gm)(x),
    "deepcopy of a holder": lambda gm, x: copy.deepcopy(Holder(gm))(x) / 2,
    "pickle": lambda gm, x: pickle.loads(pickle.dumps(gm))(x),
    "pickle of its bound forward": lambda gm, x: pickle.loads(pickle.dumps(gm.forward))(x),
    "torch's reduction": lambda gm, x: (lambda f, args: f(*args))(*gm.__reduce__())(x),
    "multiprocessing's pickler": lambda gm, x: pickle.loads(ForkingPickler.dumps(gm))(x),
    "cloudpickle": lambda gm, x: pickle.loads(pytest.importorskip("cloudpickle").dumps(gm))(x),
    "torch.save": through_torch_save,
    "to_folder": through_folder,
    "data-parallel replica": lambda gm, x: gm._replicate_for_data_parallel()(x),
    "DataParallel": through_data_parallel,
    "GraphModule of it": lambda gm, x: fx.GraphModule(gm, gm.graph)(x),
    "LazyGraphModule of it": lambda gm, x: LazyGraphModule(gm, gm.graph)(x),
    "GraphModule of a copied graph": lambda gm, x: fx.GraphModule(gm, copy.deepcopy(gm.graph))(x),
    # what an nn.Module does
    "apply": lambda gm, x: gm.apply(lambda module: None)(x),
    "in a Sequential": lambda gm, x: nn.Sequential(gm, nn.Identity())(x),
    "share_memory": lambda gm, x: gm.share_memory()(x),
    "meta and back": through_meta,
    "double": lambda gm, x: gm.double()(x.double()).float(),
    "train and eval": lambda gm, x: gm.train().eval()(x),
    "requires_grad_": through_frozen_weights,
    "named_modules": lambda gm, x: dict(Holder(gm).named_modules())["inner"](x),
    "get_submodule": lambda gm, x: Holder(gm).get_submodule("inner").forward(x),
    "setstate": lambda gm, x: (gm.__setstate__(gm.__dict__.copy()), gm(x))[1],
    "parametrization": through_parameters_of_a_class,
    "weight_norm": through_weight_norm,
    "prune": through_pruning,
    "another class": through_replaced_class,
    # transforms
    "functional_call": lambda gm, x: torch.func.functional_call(gm, dict(gm.state_dict()), (x,)),
    "vmap": lambda gm, x: torch.vmap(gm)(x),
    "vmap of forward": lambda gm, x: torch.vmap(gm.forward)(x),
    "grad, jacrev, vjp": through_func_transforms,
    "jvp and linearize": through_jvp,
    "an ensemble": through_ensemble,
    "backward": through_backward,
    "checkpoint": through_checkpoint(reentrant=False),
    "reentrant checkpoint": through_checkpoint(reentrant=True),
    # tracers and TorchScript
    "jit.script": lambda gm, x: torch.jit.script(gm)(x),
    "jit.script of a parent": lambda gm, x: torch.jit.script(Holder(gm))(x) / 2,
    "jit.freeze": lambda gm, x: torch.jit.freeze(torch.jit.script(gm.eval()))(x),
    "jit.trace": lambda gm, x: torch.jit.trace(gm, x)(x),
    "jit.trace of forward": lambda gm, x: torch.jit.trace(gm.forward, x)(x),
    "jit.trace_module": lambda gm, x: torch.jit.trace_module(gm, {"forward": x}).forward(x),
    "make_fx": lambda gm, x: make_fx(gm)(x)(x),
    "make_fx, symbolic": lambda gm, x: make_fx(
        gm, tracing_mode="symbolic", _allow_non_fake_inputs=True
    )(x)(x),
    "make_fx, functionalized": lambda gm, x: make_fx(torch.func.functionalize(gm))(x)(x),
    "symbolic_trace": lambda gm, x: fx.symbolic_trace(gm)(x),
    "symbolic_trace of a parent": lambda gm, x: fx.symbolic_trace(Holder(gm))(x) / 2,
    "a tracer that keeps it whole": lambda gm, x: (
        LazyGraphModule(h := Holder(gm), LeafTracer().trace(h))(x) / 2
    ),
    "symbolic_trace of a proxyable class": through_tracing_a_class,
    "Interpreter": lambda gm, x: fx.Interpreter(gm).run(x),
    "Transformer": lambda gm, x: fx.Transformer(gm).transform()(x),
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


pytestmark = [
    # torch's script checker trips over the annotations in torch's own GraphModule.__init__.
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support instance-level"),
    # torch.func.linearize says so of every module that holds parameters.
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node with no underlying"),
]


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_sees_a_graph_module(observer, kind, model, x, tmp_path):
    expected = model(x).detach()
    look = OBSERVERS[observer]
    with_folder = {"tmp_path": tmp_path} if look is through_folder else {}
    result = look(make(kind, model), x, **with_folder)
    torch.testing.assert_close(result.detach(), expected)


def members(gm):
    """Names and kinds of what ``inspect.getmembers`` finds of the face of a graph module."""
    known = {n for n in dir(fx.GraphModule) if not n.startswith("__")} | {"__call__"}
    return sorted((k, type(v).__name__) for k, v in inspect.getmembers(gm) if k in known)


REPORTS = {
    "signature": inspect.signature,
    "signature of forward": lambda gm: inspect.signature(gm.forward),
    "signature of the class's forward": lambda gm: inspect.signature(type(gm).forward),
    "signature of call": lambda gm: inspect.signature(gm.__call__),
    "signature of the class's call": lambda gm: inspect.signature(type(gm).__call__),
    "full argument spec": lambda gm: inspect.getfullargspec(gm.forward),
    "annotations": lambda gm: gm.forward.__annotations__,
    "type hints": lambda gm: typing.get_type_hints(gm.forward),
    "source": lambda gm: inspect.getsource(gm.forward),
    "source of the class's forward": lambda gm: inspect.getsource(type(gm).forward),
    "code names": lambda gm: (gm.forward.__code__.co_varnames, gm.forward.__code__.co_names),
    "bytecode": lambda gm: gm.forward.__code__.co_code,
    "file": lambda gm: type(gm).forward.__code__.co_filename.rpartition(".")[0].startswith("<eval"),
    "names of forward": lambda gm: (gm.forward.__name__, gm.forward.__qualname__),
    "globals": lambda gm: sorted(gm.forward.__globals__),
    "kind of forward": lambda gm: (type(gm.forward), type(type(gm).forward)),
    "kind of call": lambda gm: (type(gm.__call__), type(type(gm).__call__)),
    "identity of forward": lambda gm: (
        gm.forward == gm.forward and gm.forward.__func__ is type(gm).forward
    ),
    "forward statically, on the second look": lambda gm: (
        gm.forward,
        type(inspect.getattr_static(gm, "forward")),
    )[1],
    "callable": lambda gm: (callable(gm), inspect.ismethod(gm.forward), inspect.isclass(type(gm))),
    "hasattr": lambda gm: [hasattr(gm, n) for n in ("forward", "code", "_code", "__call__", "no")],
    "members": members,
    "dir": lambda gm: sorted(set(dir(fx.GraphModule)) - set(dir(gm))),
    "str": str,
    "repr": repr,
    "format": lambda gm: f"{gm}",
    "code": lambda gm: gm.code,
    "lines": lambda gm: gm._lineno_map,
    "print_readable": lambda gm: gm.print_readable(print_output=False),
    "python_code": lambda gm: gm.graph.python_code("self").src,
    "what recompile returns": lambda gm: gm.recompile().src,
    "keys of the dictionary": lambda gm: (gm.code, sorted(vars(gm)))[1],
    "keys of the state": lambda gm: list(gm.state_dict()),
    "class": lambda gm: (gm.__class__ is type(gm), gm.__class__.__name__, gm._get_name()),
    "class, qualified": lambda gm: (type(gm).__qualname__, type(gm).__module__),
    "isinstance": lambda gm: (isinstance(gm, fx.GraphModule), isinstance(gm, nn.Module)),
    "doc": lambda gm: (gm.forward.__doc__, gm.__call__.__doc__),
    "reduction": lambda gm: (gm.__reduce__()[0], gm.__reduce__()[1][0]["_code"]),
    "imports": lambda gm: gm.__reduce__()[1][1],
    "wrapped": lambda gm: inspect.unwrap(gm.forward) == gm.forward,
}


@pytest.mark.parametrize("kind", ["stale", "fresh"])
@pytest.mark.parametrize("report", REPORTS)
def test_every_report_says_what_it_says_of_a_graph_module(report, kind, model):
    assert REPORTS[report](make(kind, model)) == REPORTS[report](make("plain", model))


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_annotated_placeholders_show_in_signature_and_hints(kind):
    graph = fx.Graph()
    placeholder = graph.placeholder("x", type_expr=torch.Tensor)
    scale = graph.placeholder("scale", type_expr=float, default_value=2.0)
    graph.output(graph.call_function(torch.mul, (placeholder, scale)), type_expr=torch.Tensor)
    gm = fx.GraphModule({}, graph) if kind == "plain" else LazyGraphModule({}, graph)
    if kind == "fresh":
        gm.real_recompile()
    hints = {"x": torch.Tensor, "scale": float, "return": torch.Tensor}
    assert typing.get_type_hints(gm.forward) == hints
    assert inspect.signature(gm.forward).parameters["scale"].default == 2.0
    assert torch.equal(torch.jit.script(gm)(torch.ones(2)), torch.full((2,), 2.0))


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
