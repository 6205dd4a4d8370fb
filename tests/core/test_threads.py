"""First calls and recompiles that race: no error, no wrong result, one generation."""

import copy
import os
import pickle
import sys
import threading

import pytest
import torch
from torch import fx

from lazyfx_core import LazyGraphModule, recompile_stats


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


def first_calls(threads, modules):
    """``modules`` stale modules, each called for the first time by ``threads`` threads at once."""
    functions = (torch.sin, torch.cos, torch.neg)
    x = torch.randn(2)
    expected = [function(x) for function in functions]
    made = []
    for position in range(modules):
        graph = fx.Graph()
        graph.output(graph.call_function(functions[position % 3], (graph.placeholder("x"),)))
        made.append(LazyGraphModule({}, graph))

    def work():
        for position, gm in enumerate(made):
            if not torch.equal(gm(x), expected[position % 3]):
                raise AssertionError(f"module {position} computed something else")

    with recompile_stats() as stats:
        run_together(threads, work)
    assert stats.snapshot().done == modules
    assert not any(gm.needs_recompile for gm in made)


@pytest.mark.parametrize("threads", [2, 8, 64])
def test_thousands_of_first_calls(threads):
    first_calls(threads, 6_000 // threads)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 4, 8, 16, 32, 64])
def test_a_million_first_calls(threads):
    """1,000,000 first calls in all, over 2 to 64 threads, the switch interval at 1 µs."""
    modules = {2: 20_000, 4: 20_000, 8: 15_000, 16: 10_000, 32: 7_500, 64: 6_250}
    assert sum(count * n for count, n in modules.items()) >= 1_000_000
    first_calls(threads, modules[threads])


def test_recompiles_edits_copies_and_looks_of_every_kind_race():
    gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x) + 1))
    x = torch.randn(3)
    allowed = (x.sin() + 1, x.cos() + 1)
    edit_lock = threading.Lock()
    node = gm.graph.find_nodes(op="call_function", target=torch.sin)[0]
    turn = iter(range(10**6))

    def right(result):
        assert any(torch.equal(result, one) for one in allowed)

    def work():
        for _ in range(40):
            kind = next(turn) % 8
            if kind == 0:
                with edit_lock:
                    node.target = torch.cos if node.target is torch.sin else torch.sin
                    gm.recompile()
            elif kind == 1:
                gm.recompile()
            elif kind == 2:
                right(copy.copy(gm)(x))
                gm.graph.owning_module = gm
            elif kind == 3:
                assert "forward" in gm.code
            elif kind == 4:
                right(type(gm).forward(gm, x))
            elif kind == 5:
                right(pickle.loads(pickle.dumps(gm))(x))
            elif kind == 6:
                assert "return" in gm.recompile().src
            else:
                right(gm(x))

    run_together(8, work)
    gm.recompile()
    assert torch.equal(gm(x), allowed[node.target is torch.cos])


def test_an_interrupt_inside_generation_leaves_the_module_whole(monkeypatch):
    gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x) + 1))
    x = torch.randn(3)
    original = fx.Graph.python_code

    def interrupted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fx.Graph, "python_code", interrupted)
        for look in (lambda: gm(x), lambda: gm.forward, lambda: gm.code):
            with pytest.raises(KeyboardInterrupt):
                look()
            assert gm.needs_recompile
    assert torch.equal(gm(x), x.sin() + 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_another_thread_generates_can_generate(monkeypatch):
    inside, leave = threading.Event(), threading.Event()
    original = fx.Graph.python_code

    def slow(self, *args, **kwargs):
        inside.set()
        leave.wait(5)
        return original(self, *args, **kwargs)

    first, second = (
        LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x)))
        for _ in range(2)
    )
    monkeypatch.setattr(fx.Graph, "python_code", slow)
    thread = threading.Thread(target=lambda: first.code)
    thread.start()
    inside.wait()
    monkeypatch.undo()
    threading.Timer(0.1, leave.set).start()
    child = os.fork()  # waits for the generation to end
    if child == 0:
        try:
            second.code
            os._exit(0)
        except BaseException:
            os._exit(1)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
