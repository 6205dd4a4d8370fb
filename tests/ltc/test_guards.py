"""A call that does not fit the capture fails before anything ran, and says what differs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import fx, nn

import lazyfx_ltc as ltc

X = torch.randn(3, 4)


def writes(a: Any, b: Any) -> Any:
    return a.add_(1) * b


@pytest.fixture(scope="module")
def compiled() -> ltc.CompiledGraph:
    return ltc.extract_compiled_graph(
        fx.symbolic_trace(writes), (X.clone(), X.clone()), on_mismatch="error"
    )


class Tagged(torch.Tensor):
    pass


BAD: dict[str, tuple[Any, str]] = {
    "too few": ((X,), r"arguments: expected \(\*, \*\), as at capture, seen \(\*\)"),
    "too many": ((X, X, X), r"arguments: expected \(\*, \*\), as at capture, seen \(\*, \*, \*\)"),
    "not a tensor": ((X, 3), "argument 1: expected a torch.Tensor, as at capture, seen int"),
    "a subclass": ((X, X.as_subclass(Tagged)), "argument 1: .*seen Tagged"),
    "another shape": ((X, torch.randn(4, 4)), r"argument 1: expected float32\[3, 4\].*\[4, 4\]"),
    "another dtype": ((X.double(), X), "argument 0: expected float32.*seen float64"),
    "other strides": ((X, torch.randn(4, 3).t()), r"argument 1: .*strides \[1, 3\]"),
    "a nest": ((X, [X]), r"expected \(\*, \*\), as at capture, seen \(\*, \[\*\]\)"),
    "meta": ((X, X.to("meta")), "argument 1: .*on cpu.*on meta"),
    "sparse": ((X, X.to_sparse()), "argument 1: .*seen a tensor of layout torch.sparse_coo"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_a_call_that_does_not_fit_is_refused(
    case: tuple[Any, str], compiled: ltc.CompiledGraph
) -> None:
    args, message = case
    before = [
        a.clone() if isinstance(a, torch.Tensor) and a.device.type == "cpu" else a for a in args
    ]
    with pytest.raises(ltc.GuardError, match=message):
        compiled(*args)
    if isinstance(before[0], torch.Tensor):
        assert torch.equal(args[0], before[0])


def test_memory_that_is_written_is_shared_as_at_capture(compiled: ltc.CompiledGraph) -> None:
    x = X.clone()
    with pytest.raises(ltc.GuardError, match="argument 1 shares memory with argument 0 otherwise"):
        compiled(x, x)
    assert torch.equal(x, X)
    shared = ltc.extract_compiled_graph(fx.symbolic_trace(writes), (x, x), on_mismatch="error")
    torch.testing.assert_close(shared(x, x), (X + 1) * (X + 1))
    torch.testing.assert_close(x, X + 1)
    with pytest.raises(ltc.GuardError, match="argument 1 no longer shares memory with argument 0"):
        shared(X.clone(), X.clone())


def test_memory_shared_as_another_type_is_refused_where_it_is_written() -> None:
    x = X.clone()
    with pytest.raises(ltc.CaptureError, match="argument 1 shares memory with argument 0 as"):
        ltc.extract_compiled_graph(fx.symbolic_trace(writes), (x, x.view(torch.int32)))


def test_an_expanded_tensor_is_not_written_to(compiled: ltc.CompiledGraph) -> None:
    wide = torch.zeros(4).expand(3, 4)
    with pytest.raises(ltc.CaptureError, match="argument 0 shows an element.*expanded tensor"):
        ltc.extract_compiled_graph(fx.symbolic_trace(writes), (wide, X))


def test_strides_of_dimensions_of_size_one_do_not_matter() -> None:
    gm = fx.symbolic_trace(lambda a: a + 1)
    compiled = ltc.extract_compiled_graph(gm, (torch.randn(1, 4),))
    odd = torch.randn(4, 1).t()
    assert odd.stride() != (4, 1)
    torch.testing.assert_close(compiled(odd), odd + 1)


def test_a_call_that_needs_gradients_is_refused_not_detached() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4)))
    compiled = ltc.extract_compiled_graph(gm, (X,))
    with pytest.raises(ltc.GradientError, match=r"'0\.\w+' requires grad.*torch\.no_grad\(\)"):
        compiled(X)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), gm(X))
    with torch.inference_mode():
        torch.testing.assert_close(compiled(X), gm(X))
    plain = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a + 1), (X,))
    with pytest.raises(ltc.GradientError, match="argument 0 requires grad"):
        plain(X.clone().requires_grad_())


def test_autocast_is_guarded_and_captured(compiled: ltc.CompiledGraph) -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    product = ltc.extract_compiled_graph(gm, (X,))
    with torch.no_grad():
        wide = product(X)
    with torch.autocast("cpu"), torch.no_grad():
        with pytest.raises(ltc.GuardError, match="autocast: expected off, .*seen torch.bfloat16"):
            compiled(X, X.clone())
        assert product(X).dtype is torch.bfloat16
        torch.testing.assert_close(product(X), gm(X))
        inside = ltc.extract_compiled_graph(gm, (X,))
        torch.testing.assert_close(inside(X), gm(X))
    with torch.no_grad():
        gm.get_parameter("0.weight").mul_(2)
        with torch.autocast("cpu"):  # a new block: eager keeps its casts of weights for one
            torch.testing.assert_close(inside(X), gm(X))
        assert inside(X).dtype is wide.dtype is torch.float32
    assert (product.captures, inside.captures) == (2, 2)


def graph_with(number: int) -> fx.GraphModule:
    return fx.symbolic_trace(lambda a: (a * number).tanh() + number)


def test_threads_capture_and_replay_at_once(at_once: Callable[..., None], strange: Any) -> None:
    # symbolic_trace patches torch for the whole process: not from threads.
    models = [graph_with(number) for number in range(4)]
    falls_back = fx.symbolic_trace(lambda a: strange.scaled(a)[0] + a)

    def work(gm: fx.GraphModule) -> None:
        for _ in range(5):
            compiled = ltc.extract_compiled_graph(gm, (X,))
            for _ in range(5):
                torch.testing.assert_close(compiled(X), gm(X))

    # A fallback in one thread must not fail the others.
    def bad() -> None:
        with pytest.raises(ltc.FallbackError):
            ltc.extract_compiled_graph(falls_back, (X,))

    at_once(*(partial(work, model) for model in models), bad)


def test_one_capture_is_safe_to_call_from_several_threads(at_once: Callable[..., None]) -> None:
    gm = fx.symbolic_trace(lambda a: (a.tanh() + 1, a * 2))
    compiled = ltc.extract_compiled_graph(gm, (X,))

    def work() -> None:
        for _ in range(50):
            mine = torch.randn(3, 4)
            torch.testing.assert_close(compiled(mine), gm(mine))

    at_once(*[work] * 4)


def test_a_compiled_graph_cannot_be_changed_and_describes_itself(
    compiled: ltc.CompiledGraph,
) -> None:
    with pytest.raises(AttributeError):
        compiled.device = "cuda"  # type: ignore[misc]
    assert repr(compiled).startswith("CompiledGraph(2 arguments, 0 model tensors, 2 operators")
    assert "argument 1: float32[3, 4] with strides [4, 1] on cpu" in compiled.explain().guards
    assert compiled.dot().startswith("digraph")
    assert '[label="argument 1", shape=ellipse]' in compiled.dot()
    report = str(compiled.explain())
    assert "mutated: 1\n  argument 0" in report
    assert "argument 1: float32[3, 4]" in report
    assert compiled.fallbacks == ()
    assert "aten::add" in compiled.ir()
    assert "aten::mul" in compiled.backend_ir()
    assert next(iter(compiled.graph.nodes)).op == "placeholder"


def test_inference_mode_is_fine_for_capture_and_calls() -> None:
    gm = fx.symbolic_trace(lambda a: a.add_(1) * 2)
    with torch.inference_mode():
        x = torch.randn(3, 4)
        want_written = x + 1
        compiled = ltc.extract_compiled_graph(gm, (x,))
        torch.testing.assert_close(compiled(x), want_written * 2)
        torch.testing.assert_close(x, want_written)


def test_a_long_chain_is_captured_and_called_on_a_thread_with_a_small_stack() -> None:
    def chain(a: Any) -> Any:
        for _ in range(4900):
            a = a * 1.0001
        return a

    gm = fx.symbolic_trace(chain)
    x = torch.randn(3)
    results: list[torch.Tensor] = []
    before = threading.stack_size(512 * 1024)
    try:
        capture = threading.Thread(
            target=lambda: results.append(ltc.extract_compiled_graph(gm, (x,))(x))
        )
        capture.start()
    finally:
        threading.stack_size(before)
    capture.join()
    torch.testing.assert_close(results, [gm(x)])
