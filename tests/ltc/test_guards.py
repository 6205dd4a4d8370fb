"""A call that does not fit the capture fails before anything ran, and says what differs."""

from __future__ import annotations

import threading
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
    return ltc.extract_compiled_graph(fx.symbolic_trace(writes), (X.clone(), X.clone()))


class Tagged(torch.Tensor):
    pass


BAD: dict[str, tuple[Any, str]] = {
    "too few": ((X,), "expected 2 arguments, as at capture, seen 1"),
    "too many": ((X, X, X), "expected 2 arguments, as at capture, seen 3"),
    "not a tensor": ((X, 3), "argument 1: expected a torch.Tensor, seen int"),
    "a subclass": ((X, X.as_subclass(Tagged)), "argument 1: .*seen Tagged"),
    "another shape": ((X, torch.randn(4, 4)), r"argument 1: expected float32\[3, 4\].*\[4, 4\]"),
    "another dtype": ((X.double(), X), "argument 0: expected float32.*seen float64"),
    "other strides": ((X, torch.randn(4, 3).t()), r"argument 1: .*strides \[1, 3\].*contiguous"),
    "meta": ((X, X.to("meta")), "argument 1: .*on cpu.*on meta"),
    "sparse": ((X, X.to_sparse()), "argument 1: .*seen torch.sparse_coo"),
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


def test_written_memory_may_not_be_shared(compiled: ltc.CompiledGraph) -> None:
    x = X.clone()
    with pytest.raises(ltc.GuardError, match="argument 1 shares memory with argument 0"):
        compiled(x, x)
    with pytest.raises(ltc.CaptureError, match="argument 1 shares memory with argument 0"):
        ltc.extract_compiled_graph(fx.symbolic_trace(writes), (x, x))


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


def test_autocast_is_refused_at_capture_and_at_a_call(compiled: ltc.CompiledGraph) -> None:
    with torch.autocast("cpu"):
        with pytest.raises(ltc.GuardError, match="autocast: expected off for cpu"):
            compiled(X, X)
        with pytest.raises(ltc.CaptureError, match="autocast: expected off for cpu"):
            ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a @ a.t()), (X,))


def graph_with(number: int) -> fx.GraphModule:
    return fx.symbolic_trace(lambda a: (a * number).tanh() + number)


def test_threads_capture_and_replay_at_once() -> None:
    failures: list[BaseException] = []

    # symbolic_trace patches torch for the whole process: not from threads.
    models = [graph_with(number) for number in range(4)]
    falls_back = fx.symbolic_trace(lambda a: a.argmax() + a)

    def work(gm: fx.GraphModule) -> None:
        try:
            for _ in range(5):
                compiled = ltc.extract_compiled_graph(gm, (X,))
                for _ in range(5):
                    torch.testing.assert_close(compiled(X), gm(X))
        except BaseException as error:
            failures.append(error)

    # A fallback in one thread must not fail the others.
    def bad() -> None:
        try:
            with pytest.raises(ltc.FallbackError):
                ltc.extract_compiled_graph(falls_back, (X,))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    threads += [threading.Thread(target=bad)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_one_capture_is_safe_to_call_from_several_threads() -> None:
    gm = fx.symbolic_trace(lambda a: (a.tanh() + 1, a * 2))
    compiled = ltc.extract_compiled_graph(gm, (X,))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                mine = torch.randn(3, 4)
                torch.testing.assert_close(compiled(mine), gm(mine))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_compiled_graph_cannot_be_changed_and_describes_itself(
    compiled: ltc.CompiledGraph,
) -> None:
    with pytest.raises(AttributeError):
        compiled.device = "cuda"  # type: ignore[misc]
    assert repr(compiled).startswith("CompiledGraph(2 arguments, 0 model tensors")
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
