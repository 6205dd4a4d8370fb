"""Session, input matcher, return value handler, fallback counters, logging, imports."""

from __future__ import annotations

import logging
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch import fx

import lazyfx_ltc as ltc

X = torch.randn(3, 4)
Alone = Callable[[str], "CompletedProcess[str]"]


def test_every_public_name_is_there_and_sorted() -> None:
    assert sorted(ltc.__all__) == ltc.__all__
    assert all(hasattr(ltc, name) for name in ltc.__all__)


def test_importing_has_no_side_effects(alone: Alone) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import lazyfx_ltc
assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::add.Tensor", "Lazy")
new = set(sys.modules) - before
heavy = ("torch._inductor", "torch._dynamo", "torch._functorch", "functorch")
assert not [name for name in new if name.startswith(heavy)], new
"""
    result = alone(code)
    assert result.returncode == 0, result.stderr


def test_the_session_is_initialized_once_from_many_threads(alone: Alone) -> None:
    code = """
import threading, lazyfx_ltc
seen = []
threads = [threading.Thread(target=lambda: seen.append(lazyfx_ltc.initialize())) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert seen == ["cpu"] * 8, seen
assert lazyfx_ltc.initialize("cpu") == "cpu"
"""
    result = alone(code)
    assert result.returncode == 0, result.stderr


def test_a_backend_that_somebody_else_registered_is_used(alone: Alone) -> None:
    code = """
import torch, torch._lazy, torch._lazy.ts_backend
torch._lazy.ts_backend.init()
import lazyfx_ltc
assert lazyfx_ltc.initialize() == "cpu"
c = lazyfx_ltc.extract_compiled_graph(torch.fx.symbolic_trace(lambda a: a + 1), (torch.ones(2),))
assert c(torch.ones(2)).tolist() == [2, 2]
"""
    result = alone(code)
    assert result.returncode == 0, result.stderr


def test_the_other_device_is_refused_once_the_session_exists() -> None:
    ltc.initialize()
    with pytest.raises(ltc.SessionError, match=r"expected 'cpu', seen 'cuda'.*new process"):
        ltc.initialize("cuda")
    with pytest.raises(ltc.SessionError, match="expected 'cpu' or 'cuda', seen 'tpu'"):
        ltc.initialize("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused(alone: Alone) -> None:
    for code in (
        "import lazyfx_ltc; lazyfx_ltc.initialize('cuda')",
        "import os; os.environ['LTC_TS_CUDA'] = '1'; import lazyfx_ltc; lazyfx_ltc.initialize()",
    ):
        result = alone(code)
        assert "SessionError: device: 'cuda' was asked for" in result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_a_cuda_session_agrees_with_eager(alone: Alone) -> None:
    code = """
import torch, lazyfx_ltc
assert lazyfx_ltc.initialize("cuda") == "cuda"
gm = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).cuda())
x = torch.randn(3, 4, device="cuda")
c = lazyfx_ltc.extract_compiled_graph(gm, (x,))
with torch.no_grad():
    torch.testing.assert_close(c(x), gm(x))
try:
    lazyfx_ltc.extract_compiled_graph(gm, (x.cpu(),))
except lazyfx_ltc.InputError as error:
    assert "expected a tensor on cuda" in str(error)
else:
    raise AssertionError
"""
    result = alone(code)
    assert result.returncode == 0, result.stderr


def test_the_matcher_fills_arguments_by_tensor_id_and_keeps_constants() -> None:
    matcher = ltc.GraphInputMatcher({11: 0, 12: 1}, [12, -1, 11, -1], [None, 5, None, 6])
    assert matcher(["a", "b", "unused"]) == ["b", 5, "a", 6]
    assert matcher.positions() == (1, None, 0, None)


def test_the_matcher_names_what_is_missing() -> None:
    with pytest.raises(ltc.GuardError, match="argument 1 is missing.*expected at least 2.*seen 1"):
        ltc.GraphInputMatcher({12: 1}, [12], [None])(["a"])
    with pytest.raises(ValueError, match="expected 2 values.*seen 1"):
        ltc.GraphInputMatcher({}, [1, 2], [None])


def test_the_handler_restores_duplicates() -> None:
    a, b = torch.ones(1), torch.ones(1)
    handler = ltc.ReturnValueHandler([a, b, a])
    assert handler.index == [[0, 2], [1]]
    assert handler.total_count == 3
    restored = handler.duplicate_eager_tensors(["x", "y"])
    assert restored == ["x", "y", "x"]
    with pytest.raises(ltc.GuardError, match="expected 2 tensors.*seen 3"):
        handler.duplicate_eager_tensors([1, 2, 3])


def test_fallback_counters_are_reported_since_a_snapshot() -> None:
    ltc.initialize()
    X.to("lazy").argmax()
    everything = ltc.get_fallback_ops()
    assert any(entry.startswith("aten::argmax=") for entry in everything)
    snapshot = ltc.fallback_counts()
    assert ltc.get_fallback_ops(since=snapshot) == []
    X.to("lazy").argmax()
    assert ltc.get_fallback_ops(since=snapshot) == ["aten::argmax=1"]


def test_the_dump_goes_to_logging_and_only_if_asked(caplog: pytest.LogCaptureFixture) -> None:
    gm = fx.symbolic_trace(lambda a: a.tanh() + 1)
    with caplog.at_level(logging.WARNING, logger="lazyfx_ltc"):
        ltc.extract_compiled_graph(gm, (X,))
    assert not caplog.records
    with caplog.at_level(logging.INFO, logger="lazyfx_ltc"):
        ltc.extract_compiled_graph(gm, (X,))
    assert "captured 2 operators" in caplog.text
    with caplog.at_level(logging.DEBUG, logger="lazyfx_ltc"):
        ltc.extract_compiled_graph(gm, (X,))
    text = caplog.text
    for piece in ("fx code", "def forward", "LTC IR", "aten::tanh", "backend IR", "graph hash"):
        assert piece in text


def test_the_fx_graph_of_a_capture_is_a_copy() -> None:
    gm: Any = fx.symbolic_trace(lambda a: a + 1)
    compiled = ltc.extract_compiled_graph(gm, (X,))
    for node in gm.graph.nodes:
        if node.op == "call_function":
            node.target = torch.sub
    gm.recompile()
    torch.testing.assert_close(compiled(X), X + 1)
    assert "add" in str(compiled.graph)
