"""torch.compile, export and AOT take our modules, stale or fresh, as they take fx.GraphModule.

Everything is compiled with ``fullgraph=True``: a graph break counts as being noticed.
"""

import copy
import io
import warnings

import pytest
import torch
from torch import fx, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.eval_frame import innermost_fn

from lazyfx_core import LazyGraphModule, use_lazy_graph_module

pytestmark = [
    # Dynamo and compiled autograd ask every tensor for its gradient.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # torch.export of torch 2.13 at run_decompositions and unflatten.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated"),
]


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 2


class ForwardCaller(Holder):
    def forward(self, x):
        return self.inner.forward(x) * 2


class Twice(Holder):
    def forward(self, x):
        return self.inner(x) + self.inner.forward(x)


# Later releases look at a class without asking the module anything first.
DYNAMO_CAN_BE_TAPPED = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)


def compiled(function, x, **options):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, **{"backend": "eager", **options})(x)


def through_saved_forward(gm, x):
    forward = gm.forward
    return compiled(lambda x: forward(x), x)


def through_function_of_the_class(gm, x):
    forward = type(gm).forward
    return compiled(lambda x: forward(gm, x), x)


def through_module_list(gm, x):
    modules = nn.ModuleList([gm])
    return compiled(lambda x: modules[0](x), x)


def through_disabled_forward(gm, x):
    disabled = torch.compiler.disable(gm.forward)
    assert innermost_fn(disabled).__self__ is gm
    return torch.compile(disabled, backend="eager")(x)


def through_disabled_module(gm, x):
    torch.compiler.reset()
    disabled = torch.compiler.disable(gm)
    return torch.compile(lambda x: disabled(x) * 1, backend="eager")(x)


def through_compile_in_place(gm, x):
    torch.compiler.reset()
    gm.compile(backend="eager", fullgraph=True)
    return gm(x)


def through_shapes(gm, x):
    torch.compiler.reset()
    seen = []

    def backend(graph_module, example_inputs):
        seen.append(graph_module)
        return graph_module.forward

    fast = torch.compile(gm, backend=backend, dynamic=True, fullgraph=True)
    for rows in (5, 6, 7):
        other = torch.randn(rows, 4).to(x.device)
        torch.testing.assert_close(fast(other), gm(other))
    assert len(seen) == 1
    return fast(x)


def gradients(function, gm, x):
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    return out, torch.autograd.grad(out.sum(), [leaf, *gm.parameters()])


def through_backward(backend):
    def observe(gm, x):
        torch.compiler.reset()
        reference = copy.deepcopy(gm)
        fast = torch.compile(gm, backend=backend, fullgraph=True)
        out, got = gradients(fast, gm, x)
        torch.testing.assert_close(got, gradients(reference, reference, x)[1])
        return out

    return observe


def through_compiled_autograd(gm, x):
    torch.compiler.reset()
    reference = copy.deepcopy(gm)
    leaf = x.clone().requires_grad_()
    out = gm(leaf)
    graphs = []

    def compiler(graph_module):
        graphs.append(graph_module)
        return torch.compile(graph_module, backend="eager", fullgraph=True)

    with compiled_autograd._enable(compiler):
        out.sum().backward()
    assert len(graphs) == 1
    got = [leaf.grad, *(p.grad for p in gm.parameters())]
    torch.testing.assert_close(got, list(gradients(reference, reference, x)[1]))
    return out


def through_compiled_autograd_hook(gm, x):
    """The module is called inside the backward that is being captured."""
    torch.compiler.reset()
    leaf = x.clone().requires_grad_()
    squared = leaf.square()
    squared.register_hook(lambda gradient: gm(gradient.detach()))

    def compiler(graph_module):
        return torch.compile(graph_module, backend="eager")

    with compiled_autograd._enable(compiler):
        squared.backward(x)
    return leaf.grad / (2 * x)


def through_checkpoint(gm, x):
    def function(x):
        return torch.utils.checkpoint.checkpoint(gm, x, use_reentrant=False)

    return compiled(function, x.clone().requires_grad_(), backend="aot_eager")


def through_cond(gm, x):
    def function(x):
        return torch.cond(x.sum() > -1e9, lambda x: gm(x), lambda x: x + 1, (x,))

    return compiled(function, x)


def through_hooks(gm, x):
    gm.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    gm.register_forward_hook(lambda module, args, out: out * 2)
    return compiled(gm, x - 1) / 2


def through_dynamo_export(gm, x):
    torch.compiler.reset()
    return torch._dynamo.export(gm)(x).graph_module(x)


def through_functional_call(gm, x):
    state = dict(gm.state_dict())
    return compiled(lambda x: torch.func.functional_call(gm, state, (x,)), x)


def through_vmap(gm, x):
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 10):
        pytest.skip("Dynamo up to torch 2.9 cannot trace vmap of any module")
    return compiled(lambda x: torch.vmap(gm)(x), x)


def through_aot_module(gm, x):
    from functorch.compile import aot_module, nop

    return aot_module(gm, fw_compiler=nop)(x)


def through_aot_function(gm, x):
    from functorch.compile import aot_function, nop

    def function(x, state):
        return torch.func.functional_call(gm, state, (x,))

    return aot_function(function, fw_compiler=nop)(x, dict(gm.state_dict()))


def export(gm, x, **options):
    torch.compiler.reset()
    return torch.export.export(gm, (x,), **options)


def through_export_dynamic(gm, x):
    program = export(
        gm, torch.randn(3, 4).to(x.device), dynamic_shapes=({0: torch.export.Dim("rows")},)
    )
    return program.module()(x)


def through_export_saved(gm, x):
    buffer = io.BytesIO()
    torch.export.save(export(gm, x), buffer)
    buffer.seek(0)
    with warnings.catch_warnings():  # torch 2.9 to 2.11 map bytes that are read-only
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.export.load(buffer).module()(x)


def through_forward_of_the_class(gm, x):
    def function(x):
        return type(gm).forward(gm, x)

    is_stale = isinstance(gm, LazyGraphModule) and gm.needs_recompile
    if is_stale and not DYNAMO_CAN_BE_TAPPED:
        with pytest.raises(torch._dynamo.exc.Unsupported):  # said aloud, and right without
            compiled(function, x)
        torch.compiler.reset()
        return torch.compile(function, backend="eager")(x)
    return compiled(function, x)


OBSERVERS = {
    "the module": compiled,
    "a function that calls it": lambda gm, x: compiled(lambda x: gm(x), x),
    "a function that calls forward": lambda gm, x: compiled(lambda x: gm.forward(x), x),
    "a function that calls the class's forward": through_forward_of_the_class,
    "a saved forward": through_saved_forward,
    "a saved function of the class": through_function_of_the_class,
    "forward itself": lambda gm, x: compiled(gm.forward, x),
    "a parent": lambda gm, x: compiled(Holder(gm), x) / 2,
    "a parent that calls forward": lambda gm, x: compiled(ForwardCaller(gm), x) / 2,
    "a parent that calls both": lambda gm, x: compiled(Twice(gm), x) / 2,
    "a Sequential": lambda gm, x: compiled(nn.Sequential(gm, nn.Identity()), x),
    "a ModuleList": through_module_list,
    "a list": lambda gm, x: compiled(lambda x, modules=[gm]: sum(m(x) for m in modules), x),
    "a parent that is a lazy module": lambda gm, x: compiled(
        LazyGraphModule({"inner": gm}, calling("inner")), x
    ),
    "a deepcopy": lambda gm, x: compiled(copy.deepcopy(gm), x),
    "isinstance and getattr": lambda gm, x: compiled(
        lambda x: getattr(gm, "forward")(x) if isinstance(gm, nn.Module) else x,  # noqa: B009
        x,
    ),
    "hasattr": lambda gm, x: compiled(lambda x: gm(x) if hasattr(gm, "forward") else x, x),
    "in place": through_compile_in_place,
    "dynamic shapes": through_shapes,
    "with hooks": through_hooks,
    "disable forward": through_disabled_forward,
    "disable the module": through_disabled_module,
    "aot_eager": lambda gm, x: compiled(gm, x, backend="aot_eager"),
    "inductor": lambda gm, x: compiled(gm, x, backend="inductor"),
    "inductor, forward": lambda gm, x: compiled(gm.forward, x, backend="inductor"),
    "backward, eager": through_backward("eager"),
    "backward, aot_eager": through_backward("aot_eager"),
    "compiled autograd": through_compiled_autograd,
    "compiled autograd of a hook": through_compiled_autograd_hook,
    "checkpoint": through_checkpoint,
    "cond": through_cond,
    "functional_call": through_functional_call,
    "vmap": through_vmap,
    "aot_module": through_aot_module,
    "aot_function": through_aot_function,
    "dynamo.export": through_dynamo_export,
    "export": lambda gm, x: export(gm, x, strict=False).module()(x),
    "export strict": lambda gm, x: export(gm, x, strict=True).module()(x),
    "export a parent": lambda gm, x: export(Holder(gm), x, strict=False).module()(x) / 2,
    "export a parent strict": lambda gm, x: export(Holder(gm), x, strict=True).module()(x) / 2,
    "export a parent that calls forward, strict": lambda gm, x: (
        export(ForwardCaller(gm), x, strict=True).module()(x) / 2
    ),
    "export dynamic": through_export_dynamic,
    "export and decompose": lambda gm, x: export(gm, x).run_decompositions().module()(x),
    "export and unflatten": lambda gm, x: (
        torch.export.unflatten(export(Holder(gm), x, strict=False))(x) / 2
    ),
    "export, save, load": through_export_saved,
    "export again": lambda gm, x: export(export(gm, x).module(), x).module()(x),
}


def calling(name):
    graph = fx.Graph()
    graph.output(graph.call_module(name, (graph.placeholder("x"),)))
    return graph


def make(kind, model):
    gm = fx.symbolic_trace(model)
    if kind == "plain":
        return gm
    lazy = LazyGraphModule.from_graphmodule(gm)
    if kind == "fresh":
        lazy.real_recompile()
    assert lazy.needs_recompile == (kind == "stale")
    return lazy


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_compiler_sees_a_graph_module(observer, kind, model, x):
    result = OBSERVERS[observer](make(kind, model), x)
    torch.testing.assert_close(result, model(x))


@pytest.mark.parametrize("observer", ["backward, aot_eager", "compiled autograd", "inductor"])
def test_compilers_build_their_own_modules_lazily_and_right(observer, model, x):
    with use_lazy_graph_module(True):
        result = OBSERVERS[observer](make("stale", model), x)
    torch.testing.assert_close(result, model(x))
