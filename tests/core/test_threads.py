"""First calls and recompiles that race: no error, no wrong result, one generation."""

import sys
import threading

import pytest
import torch
from torch import fx

from lazyfx_core import LazyGraphModule


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run_together(count, function):
    errors = []
    barrier = threading.Barrier(count)

    def body():
        barrier.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("threads", [2, 8, 32])
def test_first_calls_from_many_threads_generate_once_and_agree(threads, monkeypatch):
    generated = []
    original = fx.Graph.python_code

    def counted(self, *args, **kwargs):
        generated.append(self)
        return original(self, *args, **kwargs)

    template = fx.symbolic_trace(lambda x: x.sin() + 1)
    monkeypatch.setattr(fx.Graph, "python_code", counted)
    x = torch.randn(3)
    expected = x.sin() + 1
    for _ in range(25):
        gm = LazyGraphModule(template, template.graph)
        generated.clear()

        def call(gm=gm):
            assert torch.equal(gm(x), expected)
            assert torch.equal(gm.forward(x), expected)
            assert "sin" in gm.code

        run_together(threads, call)
        assert len(generated) == 1


def test_recompiles_racing_with_calls_never_fail():
    gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: x.sin() + 1))
    x = torch.randn(3)
    expected = x.sin() + 1

    def work():
        for i in range(60):
            if i % 3 == 0:
                gm.recompile()
            assert torch.equal(gm(x), expected)

    run_together(6, work)
    assert torch.equal(gm(x), expected)


def test_an_edit_followed_by_recompile_is_never_lost():
    gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x)))
    node = next(n for n in gm.graph.nodes if n.op == "call_function")
    x = torch.randn(3)
    stop = threading.Event()

    def observe():
        while not stop.is_set():
            gm(x)

    threads = [threading.Thread(target=observe) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(100):
            node.target = torch.cos if i % 2 else torch.sin
            gm.recompile()
            assert torch.equal(gm(x), x.cos() if i % 2 else x.sin())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
