"""What cannot be captured faithfully is refused, by name, before anything ran."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

import lazyfx_ltc as ltc
from lazyfx_core import InvalidGraphError, NotAGraphModuleError

X = torch.randn(3, 4)


def extract(model: Any, *examples: Any) -> ltc.CompiledGraph:
    gm = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    return ltc.extract_compiled_graph(gm, examples)


def plus_one(a: Any) -> Any:
    return a + 1


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize("given", [nn.Linear(2, 2), plus_one, None, fx.Graph()])
def test_anything_but_a_graph_module_is_refused(given: Any) -> None:
    with pytest.raises(NotAGraphModuleError, match="GraphModule"):
        ltc.extract_compiled_graph(given, (X,))
    with pytest.raises(NotAGraphModuleError, match="force_lazy_device"):
        ltc.force_lazy_device(given)


INPUTS: dict[str, tuple[Any, str]] = {
    "a bare tensor": (X, r"example_inputs: expected a tuple or list.*\(x,\)"),
    "too few": ((), r"argument 'a': expected a value, seen none; the model takes a"),
    "too many": ((X, X), r"expected at most 1 \(a\), seen 2"),
    "an object": ((object(),), r"argument 0: expected a tensor, number, .*seen object"),
    "an object in a list": (([X, {"m": object()}],), r"argument 0\[1\]\['m'\]: .*seen object"),
    "a subclass": ((X.as_subclass(Tagged),), r"argument 0: .*subclass Tagged"),
    "sparse": ((X.to_sparse(),), r"argument 0: .*seen torch.sparse_coo"),
    "meta": ((X.to("meta"),), r"argument 0: expected a tensor on cpu.*seen meta"),
    "a conjugate": ((torch.randn(2, dtype=torch.complex64).conj(),), "resolve_conj"),
}


@pytest.mark.parametrize("case", INPUTS.values(), ids=INPUTS.keys())
def test_a_bad_example_input_is_named(case: tuple[Any, str]) -> None:
    inputs, message = case
    with pytest.raises(ltc.InputError, match=message):
        ltc.extract_compiled_graph(fx.symbolic_trace(plus_one), inputs)


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
def test_a_quantized_example_input_is_refused() -> None:
    with pytest.raises(ltc.InputError, match=r"argument 0: .*seen quantized"):
        extract(plus_one, torch.quantize_per_tensor(X, 0.1, 0, torch.qint8))


def test_a_lazy_example_input_is_refused() -> None:
    ltc.initialize()
    with pytest.raises(ltc.InputError, match=r"argument 0: .*on cpu.*seen lazy"):
        extract(plus_one, X.to("lazy"))


def test_a_model_on_another_device_is_refused() -> None:
    with pytest.raises(ltc.InputError, match=r"model tensor '0\.weight': .*seen meta"):
        extract(fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4, device="meta"))), X)


def test_a_graph_that_cannot_run_is_refused_with_the_node() -> None:
    gm = fx.symbolic_trace(plus_one)
    with gm.graph.inserting_before(next(iter(reversed(gm.graph.nodes)))):
        gm.graph.create_node("get_attr", "nowhere")
    with pytest.raises(InvalidGraphError, match=r"node 'nowhere' \(get_attr\)"):
        extract(gm, X)
    graph = fx.Graph()
    x = graph.placeholder("x")
    later = graph.call_function(torch.sin, (x,))
    with graph.inserting_before(later):
        early = graph.call_function(operator.add, (later, 1))
    graph.output(early)
    with pytest.raises(InvalidGraphError):
        extract(fx.GraphModule(nn.Module(), graph), X)


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Everything(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def leaf(module: nn.Module) -> fx.GraphModule:
    model = nn.Sequential(module)
    return fx.GraphModule(model, Everything().trace(model))


HOST_READS: dict[str, Callable[[Any], Any]] = {
    "item": lambda a: a * a.sum().item(),
    "tolist": lambda a: a.tolist(),
    "nonzero": lambda a: a.nonzero(),
    "masked_select": lambda a: a.masked_select(a > 0),
}


@pytest.mark.parametrize("read", HOST_READS.keys())
def test_values_read_on_the_host_are_refused_with_the_node(read: str) -> None:
    with pytest.raises(ltc.HostReadError, match=rf"node '{read}'.*baked into the graph"):
        extract(HOST_READS[read], X)


def test_a_branch_on_values_is_refused_with_the_users_line() -> None:
    with pytest.raises(ltc.HostReadError, match=r"node '_0' .*test_refusals\.py:\d+") as caught:
        extract(leaf(Branch()), X)
    assert 'fallback="partition"' in caught.value.__notes__[0]


def test_what_cannot_be_partitioned_is_not_advised_to_be() -> None:
    compiled = ltc.compile(Branch())
    with torch.no_grad():
        compiled(X)
    assert "partition" not in compiled.fallbacks[0]
    gm = leaf(Branch())
    parts = ltc.extract_compiled_graph(gm, (X,), fallback="partition")
    parts(X)
    assert "partition" not in str(parts.explain())


def test_numpy_is_refused() -> None:
    with pytest.raises(ltc.CaptureError, match="node 'numpy'"):
        extract(lambda a: a.numpy(), X)


def test_operators_outside_any_program_are_all_listed_and_nothing_ran(strange: Any) -> None:
    ltc.initialize()
    before = ltc.get_fallback_ops()
    with pytest.raises(ltc.FallbackError) as caught:
        extract(lambda a: strange.scaled(a)[0] + strange.named(a, 'a"b'), X)
    assert set(caught.value.ops) == {"lazyfx_ltc_tests::scaled", "lazyfx_ltc_tests::named"}
    assert "lazyfx_ltc_tests::scaled (at node 'scaled'" in str(caught.value)
    assert 'fallback="partition"' in caught.value.__notes__[0]
    assert ltc.get_fallback_ops() == before


def test_fallbacks_in_dead_code_do_not_matter_unless_they_may_do_something(strange: Any) -> None:
    pinv = torch.ops.aten.linalg_pinv.atol_rtol_tensor
    torch.testing.assert_close(extract(lambda a: (pinv(a) + 1, a + 1)[1], X)(X), X + 1)
    with pytest.raises(ltc.FallbackError, match="linalg_pinv"):
        extract(lambda a: pinv(a) + 1, X)
    with pytest.raises(ltc.FallbackError, match="lazyfx_ltc_tests::drawn"):
        extract(lambda a: (strange.drawn(a)[0], a + 1)[1], X)
    with pytest.raises(ltc.FallbackError, match="lazyfx_ltc_tests::scaled"):
        extract(lambda a: (strange.scaled(a)[0], a + 1)[1], X)


def test_hooks_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    gm = fx.symbolic_trace(model)
    gm.get_submodule("0").register_forward_hook(lambda m, i, o: o)
    with pytest.raises(ltc.CaptureError, match="submodule '0' has forward hooks"):
        extract(gm, X)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.secrets = [torch.randn(4), torch.tensor(2.0)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.secrets[0] * self.secrets[1]


def test_a_tensor_hidden_in_a_list_is_refused() -> None:
    with pytest.raises(ltc.CaptureError, match=r"node '_0' \(call_module 0\)"):
        extract(leaf(Hidden()), X)


OTHERS: dict[str, tuple[Any, str]] = {
    "metadata of an argument": (lambda a: a.t_() + 1, "changes the shape or layout of argument 0"),
    "another device": (lambda a: a.to("meta"), "node 'to'.*on meta.*expected cpu"),
    "as_strided on a view": (lambda a: a.t().as_strided((2,), (1,)) + 1, "as_strided"),
    "draws out of order": (lambda a: torch.rand_like(a.t()), r"not contiguous.*\.contiguous\(\)"),
    "a reinterpreting view": (lambda a: a.view(torch.int32), "output 0 is a view .* reinterprets"),
    "an error of the model": (lambda a: a @ a, "node 'matmul'.*RuntimeError"),
    "sparse results": (lambda a: a.to_sparse(), "node 'to_sparse'"),
    "an object": (lambda a: (a + 1, torch.device("cpu")), "output 1 is a device"),
}


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS.keys())
def test_what_a_replay_could_not_repeat_is_refused(case: tuple[Any, str]) -> None:
    model, message = case
    with pytest.raises(ltc.CaptureError, match=message):
        extract(model, X)


def test_too_long_a_graph_is_refused() -> None:
    def chain(a: Any) -> Any:
        for _ in range(6000):
            a = a + 1
        return a

    with pytest.raises(ltc.CaptureError, match=r"beyond operator 5000.*split the model"):
        extract(chain, X)


def test_a_generator_of_its_own_is_refused() -> None:
    generator = torch.Generator()

    class Draws(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.empty(3, 4).uniform_(generator=generator)

    with pytest.raises(ltc.CaptureError, match=r"torch\.Generator of its own"):
        extract(leaf(Draws()), X)
