"""Forward and backward graphs of AOTAutograd, compiled by ``extract_compiled_graph`` and boxed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _harness import Case, add, same
from torch import fx, nn
from torch._functorch.aot_autograd import aot_function, aot_module, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses import FakeTensorMode

import lazyfx_ltc as ltc

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))


class Compiler:
    """Counts what it compiles."""

    def __init__(self, boxed: bool = True) -> None:
        self.boxed = boxed
        self.made: list[ltc.CompiledGraph] = []

    def __call__(self, gm: fx.GraphModule, inputs: Any) -> Any:
        compiled = ltc.extract_compiled_graph(gm, inputs)
        self.made.append(compiled)
        return compiled.boxed if self.boxed else make_boxed_func(compiled)


def leaves(given: Any) -> list[torch.Tensor]:
    found = given if isinstance(given, (tuple, list)) else [given]
    return [one for one in found if isinstance(one, torch.Tensor)]


def backward(outputs: Any) -> None:
    total = [one.float().square().sum() for one in leaves(outputs) if one.requires_grad]
    if total:
        torch.stack(total).sum().backward()


def gradients_agree(
    model: Any,
    *args: Any,
    boxed: bool = True,
    grads: bool = True,
    dynamic: bool = False,
    decompose: bool = True,
    graphs: int | None = None,
    calls: int = 3,
    **options: Any,
) -> None:
    """Results, gradients, writes, state and random state, at three calls."""
    compiler = Compiler(boxed)
    compile_ = aot_module if isinstance(model, nn.Module) else aot_function
    ours_model, theirs_model = copy.deepcopy(model), copy.deepcopy(model)
    ours_call = compile_(
        ours_model,
        fw_compiler=compiler,
        bw_compiler=compiler,
        decompositions=ltc.decompositions() if decompose else None,
        dynamic=dynamic,
        **options,
    )
    for seed in range(calls):
        sides = []
        for call, module in ((ours_call, ours_model), (theirs_model, theirs_model)):
            given = copy.deepcopy(args)
            for one in leaves(given):
                with torch.no_grad():
                    one.mul_(1 + seed / 2) if one.is_floating_point() else None
            inner = [one * 1 if one.requires_grad and grads else one for one in leaves(given)]
            torch.manual_seed(seed)
            outputs = call(*inner)
            if grads:
                backward(outputs)
            state = (
                list(module.parameters()) + list(module.buffers())
                if (isinstance(module, nn.Module))
                else []
            )
            found = [*leaves(outputs), *leaves(inner), *state]
            slopes = [
                one.grad for one in (*leaves(given), *state) if one.is_leaf and one.grad is not None
            ]
            sides.append((found, slopes, torch.get_rng_state()))
            if isinstance(module, nn.Module):
                with torch.no_grad():
                    for one in module.parameters():
                        if one.grad is not None:
                            one -= 0.1 * one.grad
                            one.grad = None
        ours, theirs = sides
        for one, other in zip(ours[0], theirs[0], strict=True):
            assert (one.dtype, one.shape, one.requires_grad) == (
                *(other.dtype, other.shape, other.requires_grad),
            )
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5, check_dtype=True)
        assert len(ours[1]) == len(theirs[1])
        for one, other in zip(ours[1], theirs[1], strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
        assert torch.equal(ours[2], theirs[2])
    if graphs is not None:
        assert len(compiler.made) == graphs, compiler.made


def needs(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().requires_grad_()


class Block(nn.Module):
    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.second = nn.Linear(8, 4)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Any) -> Any:
        return x + self.drop(self.second(F.gelu(self.norm(self.first(x)))))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        mask = torch.full((4, 4), -1e9).triu(1)
        return ((q @ k.t()) / 2 + mask).softmax(-1) @ v


class Embeds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, ids: Any) -> Any:
        return F.cross_entropy(self.head(self.embed(ids)), ids)


def written(a: Any, b: Any) -> Any:
    a.add_(1)
    return a * b


def several(a: Any, b: Any) -> Any:
    return a * b, a.detach() + 1, b.sum(), (a > 0)


def train(name: str, model: Any, *args: Any, refused: str | None = None, **options: Any) -> None:
    CASES[name] = Case(run=lambda: _seeded(model, *args, **options), refused=refused)


def _seeded(model: Callable[[], Any], *args: Any, **options: Any) -> None:
    torch.manual_seed(0)
    gradients_agree(model() if isinstance(model, type) else model, *args, **options)


CASES: dict[str, Case] = {}
train("pointwise", lambda a, b: (a * b).tanh() + b.sigmoid(), needs(X), needs(Y), graphs=2)
train("one needs a gradient", lambda a, b: (a - b) * b, needs(X), Y, graphs=2)
train("the other needs a gradient", lambda a, b: (a - b) * b, X, needs(Y), graphs=2)
train("none needs a gradient", lambda a, b: (a - b) * b, X, Y, graphs=1, grads=False)
train("products", lambda a, b: a @ b.t() @ a, needs(X), needs(Y))
train("the other order", lambda a, b: b @ a.t() @ b, needs(X), needs(Y))
train("several results", several, needs(X), needs(Y))
train("a softmax by hand", lambda a: (a.exp() / a.exp().sum(-1, keepdim=True)).log(), needs(X))
train("softmax and log_softmax", lambda a: a.softmax(-1) * a.log_softmax(0), needs(X))
train("reductions", lambda a: a.sum(0) * a.mean(1), needs(X))
train("views", lambda a: a.t().reshape(2, 8)[:, 1:5] * 2, needs(X))
train("concatenation", lambda a, b: torch.cat([a, b * 2], 1).chunk(2, 0)[0], needs(X), needs(Y))
train("broadcast", lambda a, b: a * b[0] + b[:, :1], needs(X), needs(Y))
train("a zero-dimensional argument", lambda a, b: a * b, needs(X), needs(torch.tensor(2.0)))
train("an argument that is written", written, X, needs(Y))
train("an argument with a gradient that is written", written, needs(X), needs(Y))
train("a constant table", lambda a: a * torch.arange(4.0) + torch.ones(4), needs(X))
train("where", lambda a: torch.where(a > 0, a * 2, a * 3), needs(X))
train("layer norm", lambda a: F.layer_norm(a, (4,)), needs(X))
train("gelu and silu", lambda a: F.gelu(a) + F.silu(a) + F.gelu(a, approximate="tanh"), needs(X))
train("dropout", lambda a: F.dropout(a, 0.4) * 2, needs(X))
train("a multilayer perceptron", Block, X, graphs=2)
train("a block with dropout", Block(0.3), X)
train("convolution and batch norm in train mode", Convolution, IMAGE)
train("attention by hand", Attention, X)
train("an embedding and a loss", Embeds, torch.tensor([1, 0, 4]))
train("a compiler that is not boxed", lambda a: a.tanh() * 2, needs(X), boxed=False)
train("without decompositions", lambda a: a.tanh() * 2, needs(X), decompose=False)
train("symbolic shapes", lambda a: a.view(-1) * a.shape[0], needs(X), dynamic=True)
train("symbolic shapes, a model", Block, X, dynamic=True)
train(
    "min-cut partitioner",
    Block,
    X,
    partition_fn=min_cut_rematerialization_partition,
)
train("half precision", lambda a: (a * 2).tanh(), needs(X.bfloat16()))
train("an input returned", lambda a: (a, a * 2), needs(X))
train("a gradient nobody needs", lambda a, b: (a * 2, b.detach()), needs(X), needs(Y))


@add(CASES, "a boxed call empties the list, and lets go of its tensors")
def _() -> None:
    import weakref

    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a, b: (a + b, None)), (X, Y))
    boxed = compiled.boxed
    assert boxed._boxed_call
    given = [X.clone(), Y.clone()]
    watched = weakref.ref(given[0])
    result = boxed(given)
    assert given == []
    assert watched() is None
    assert isinstance(result, (tuple, list))
    torch.testing.assert_close(result[0], X + Y)
    assert result[1] is None


@add(CASES, "another shape at a later call")
def _() -> None:
    compiler = Compiler()
    call = aot_function(
        lambda a: (a * 2).tanh().sum(0), fw_compiler=compiler, bw_compiler=compiler, dynamic=True
    )
    for rows in (4, 6, 4, 9):
        ours, theirs = (torch.arange(rows * 2.0).view(rows, 2) / 9 for _ in range(2))
        ours.requires_grad_()
        theirs.requires_grad_()
        got, want = call(ours), (theirs * 2).tanh().sum(0)
        same([got.detach()], [want.detach()])
        got.square().sum().backward()
        want.square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@add(CASES, "fake examples that require grad")
def _() -> None:
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(one) for one in (needs(X), Y)]
    gm = fx.symbolic_trace(lambda a, b: (a - b) @ b)
    with mode:
        compiled = ltc.extract_compiled_graph(gm, fakes)
    torch.testing.assert_close(compiled(X, Y), gm(X, Y))


@add(CASES, "two models in turns")
def _() -> None:
    for order in ((lambda a, b: a - b, lambda a, b: b - a), (lambda a, b: b - a,)):
        for function in order:
            gradients_agree(function, needs(X), needs(Y), calls=2)
