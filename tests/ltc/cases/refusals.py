"""What a replay could not repeat: refused by name, before anything ran or was written."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _harness import Case, add, case, named, python, refusing, scaled
from torch import fx, nn

import lazyfx_ltc as ltc

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
SPLIT = r"split the model|deep|operators in one graph"


class Tagged(torch.Tensor):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


def plain(a: Any) -> Any:
    return a + 1


def chain(length: int) -> Callable[[Any], Any]:
    def run(a: Any) -> Any:
        for _ in range(length):
            a = a * 1.0001
        return a

    return run


def written_to_a_list(*tensors: Any) -> Any:
    torch._foreach_add_(tensors, 2)
    return tensors


def written_by_itself(*tensors: Any) -> Any:
    torch._foreach_mul_(tensors, [tensors[0], tensors[0]])
    return tensors


def branch(a: Any) -> Any:
    return a if a.sum() > 0 else -a


def loop(a: Any) -> Any:
    while a.max() < 10:
        a = a * 2
    return a


class Rebinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Any) -> Any:
        self.count = self.count + 1
        return x * self.count


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.secrets = [torch.ones(4)]

    def forward(self, x: Any) -> Any:
        return x + self.secrets[0]


class Hooked(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4))
        self[0].register_forward_hook(lambda module, given, result: result * 2)


def drawn(a: Any) -> Any:
    return a + torch.empty(3, 4).uniform_(generator=torch.Generator())


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([X, X[:1]])


READS = "reads the value of a tensor"
CASES: dict[str, Case] = {
    "item": case(lambda a: a * a.sum().item(), X, refused=f"node 'item'.*{READS}"),
    "tolist": case(lambda a: a.tolist(), X, refused=READS),
    "bool": case(python(branch), X, refused=rf"node 'inner'.*{READS}.*refusals\.py:\d+"),
    "a loop on values": case(python(loop), X, refused=READS),
    "float()": case(python(lambda a: a * float(a[0, 0])), X, refused=READS),
    "int()": case(python(lambda a: a[: int(a.sum())]), X, refused=READS),
    "an index by a tensor": case(
        python(lambda a, i: range(9)[i], 2), X, torch.tensor(1), refused=READS
    ),
    "numpy": case(lambda a: a.numpy(), X, refused="node 'numpy'"),
    "a numpy function": case(python(lambda a: a.detach().numpy().sum()), X, refused="node 'inner'"),
    "equal": case(python(lambda a: a if torch.equal(a, a + 0) else -a), X, refused=READS),
    "allclose": case(python(lambda a: torch.allclose(a, a * 1)), X, refused=READS),
    "is_nonzero": case(python(lambda a: a.sum().is_nonzero()), X, refused=READS),
    "a formatted tensor, not used": case(
        python(lambda a: (repr(a.shape), a)[1] * 2), X, capture_mode=torch.no_grad
    ),
    "nonzero": case(lambda a: a.nonzero(), X, refused=READS),
    "masked_select": case(lambda a: a.masked_select(a > 0), X, refused=READS),
    "a boolean index": case(lambda a: a[a > 0], X, refused=READS),
    "unique": case(lambda a: a.unique(), X, refused=READS),
    "bincount": case(lambda a: a.bincount(), torch.arange(4), refused=READS),
    "repeat_interleave by a tensor": case(
        lambda a: a.repeat_interleave(a), torch.arange(4), refused=READS
    ),
    "an inverse, which checks": case(lambda a: torch.linalg.inv(a @ a.t()), X, refused=READS),
    "an object with a data-dependent size": case(
        python(lambda a, n: torch.zeros(n.item()), 2), X, torch.tensor(2), refused=READS
    ),
    "sparse in": case(plain, X.to_sparse(), refused="argument 0: .*sparse"),
    "sparse made inside": case(lambda a: a.to_sparse(), X, refused="node 'to_sparse'"),
    "a subclass in": case(plain, X.as_subclass(Tagged), refused="argument 0: .*subclass Tagged"),
    "meta in": case(plain, X.to("meta"), refused="argument 0: .*seen meta"),
    "meta made inside": case(lambda a: a.to("meta"), X, refused="on meta.*expected cpu"),
    "a nested argument on another device": case(
        lambda d: d["x"][0] + 1, {"x": [X.to("meta")]}, refused=r"argument 0\['x'\]\[0\]: .*meta"
    ),
    "weights on another device": case(
        nn.Linear(4, 4, device="meta"), X, refused="model tensor 'weight': .*seen meta"
    ),
    "a conjugate in": case(plain, torch.complex(X, X).conj(), refused="argument 0: .*resolve_conj"),
    "a conjugate out": case(lambda a: (a * 2).conj(), torch.complex(X, X), refused="resolve_conj"),
    "metadata of an argument": case(
        lambda a: a.t_() + 1, X, refused="changes the shape or layout of argument 0"
    ),
    "an argument resized": case(
        lambda a: a.resize_(2, 2), X.clone(), refused="shape or layout of argument 0|resize_"
    ),
    "an argument's memory replaced": case(
        lambda a, b: a.set_(b), X, X * 2, refused="set_|argument 0"
    ),
    "an argument's data replaced": case(
        python(lambda a, b: setattr(a, "data", b), 2), X, X * 2, refused="set_|argument 0|data"
    ),
    "an attribute bound anew": case(
        Rebinds(), X, how="leaf", refused="submodule '0' binds its attribute 'count' anew"
    ),
    "a tensor hidden in a list": case(
        Hidden(), X, how="leaf", refused=r"node '_0' \(call_module 0\)"
    ),
    "a forward hook": case(Hooked(), X, how="leaf", refused="hooks"),
    "a generator of its own": case(python(drawn), X, refused=r"torch\.Generator of its own"),
    "as_strided on a view": case(
        lambda a: a.t().as_strided((2,), (1,)) + 1, X, refused="as_strided"
    ),
    "an error of the model": case(lambda a: a @ a, X, refused="node 'matmul'.*RuntimeError"),
    "an error raised on purpose": case(
        python(lambda a: [][1]), X, refused="node 'inner'.*IndexError"
    ),
    "operators outside any program, all listed": case(
        lambda a: scaled(a) + named(a) + a.erf(),
        X,
        refused=r"2 operator.*::scaled .*::named",
    ),
    "an operator of torch in dead code, which is left out": case(
        lambda a: (torch.ops.aten.linalg_pinv.atol_rtol_tensor(a), a + 1)[1], X
    ),
    "an operator of the user's in dead code, which may do anything": case(
        lambda a: (scaled(a), a + 1)[1], X, refused="::scaled"
    ),
    "an operator that writes, and returns nothing": case(
        python(lambda a: written_to_a_list(a + 1, a * 2)), X
    ),
    "lists that share memory": case(
        python(lambda a: written_by_itself(a + 1, a * 2)), X, refused="share memory"
    ),
    "4900 operators": case(chain(4900), X),
    "20000 operators": case(chain(20000), X, refused=SPLIT),
    "20000 operators in a leaf": case(python(chain(20000)), X, refused=SPLIT),
}


def extraction(name: str, reason: str, model: Callable[[], Any], *given: Any) -> None:
    """A refused ``extract_compiled_graph(model(), *given)``."""

    @add(CASES, name, refused=reason)
    def _() -> None:
        made = model()
        random = torch.get_rng_state()
        with refusing():
            ltc.extract_compiled_graph(made, *given)
        assert torch.equal(random, torch.get_rng_state())


def unordered() -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    later = graph.call_function(torch.sin, (x,))
    with graph.inserting_before(later):
        early = graph.call_function(operator.add, (later, 1))
    graph.output(early)
    return fx.GraphModule(nn.Module(), graph)


def nowhere() -> fx.GraphModule:
    gm = fx.symbolic_trace(plain)
    with gm.graph.inserting_before(next(iter(reversed(gm.graph.nodes)))):
        gm.graph.create_node("get_attr", "nowhere")
    return gm


def traced() -> fx.GraphModule:
    return fx.symbolic_trace(plain)


extraction("a module that is not traced", "GraphModule", lambda: nn.Linear(4, 4), (X,))
extraction("a function", "GraphModule", lambda: plain, (X,))
extraction("a graph without a module", "GraphModule", lambda: traced().graph, (X,))
extraction("a graph that names what is not there", "node 'nowhere'", nowhere, (X,))
extraction("a graph out of order", "InvalidGraphError", unordered, (X,))
extraction("quantized in", "argument 0: .*quantized", traced, (quantized(),))
extraction("nested in", "argument 0: .*nested", traced, (nested(),))
extraction(
    "a negative view in",
    "argument 0: .*resolve_neg",
    traced,
    (torch.complex(X, X).conj().imag,),
)
extraction("a bare tensor", r"example_inputs: expected a tuple or list.*\(x,\)", traced, X)
extraction("too few examples", "argument 'a': expected a value, seen none", traced, ())
extraction("too many examples", "expected at most 1", traced, (X, X))
extraction("an unknown keyword", "argument 'b': the model takes no such", traced, (X,), {"b": X})
extraction("an argument twice", "argument 'a': given twice", traced, (X,), {"a": X})


@add(CASES, "a lazy tensor", refused="argument 0: expected a tensor on cpu.*seen lazy")
def _() -> None:
    ltc.initialize()
    with refusing():
        ltc.extract_compiled_graph(traced(), (X.to("lazy"),))


@add(CASES, "another device for the session", refused="'cuda'")
def _() -> None:
    ltc.initialize("cpu")
    with refusing():
        ltc.initialize("cuda")


@add(CASES, "a device that is none", refused="expected 'cpu' or 'cuda', seen 'tpu'")
def _() -> None:
    with refusing():
        ltc.initialize("tpu")
