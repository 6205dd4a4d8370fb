"""Counting recompiles: asked for, done, avoided; why and by whom."""

import itertools
import os
import pickle
import signal
import threading

import pytest
import torch
from torch import fx
from torch.torch_version import TorchVersion

from lazyfx_core import (
    LazyFxError,
    LazyGraphModule,
    TooManyRecompilesError,
    _codegen_stats,
    assert_max_recompiles,
    recompile_stats,
)


def edit(gm):
    for node in gm.graph.nodes:
        if node.op == "call_function":
            node.target = torch.cos if node.target is torch.sin else torch.sin


@pytest.fixture
def gm():
    graph = fx.symbolic_trace(lambda x: torch.sin(x)).graph
    return LazyGraphModule({}, graph)


def test_asked_done_and_avoided(gm):
    x = torch.ones(1)
    with recompile_stats() as stats:
        for _ in range(5):
            edit(gm)
            gm.recompile()
        gm(x)
        gm.recompile()
        gm(x)
    counted = stats.snapshot()
    assert (counted.asked, counted.done, counted.plain) == (6, 1, 0)
    assert (counted.avoided, counted.unchanged) == (5, 1)
    assert counted.seconds > 0
    assert counted.causes.keys() == {"call"}


@pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support instance-level")
@pytest.mark.parametrize(
    ("look", "cause"),
    [
        (lambda gm: gm(torch.ones(1)), "call"),
        (lambda gm: gm.forward, "forward"),
        (lambda gm: gm.code, "code"),
        (lambda gm: gm.__reduce__(), "pickle"),
        (lambda gm: gm.__getstate__(), "pickle"),
        (lambda gm: gm.real_recompile(), "real_recompile"),
        (lambda gm: gm.recompile().src, "python_code"),
        (lambda gm: torch.jit.script(gm), "script"),
        (lambda gm: fx.symbolic_trace(gm), "trace"),
        (
            lambda gm: torch.compile(lambda x: gm.forward(x), backend="eager")(torch.ones(1)),
            "dynamo",
        ),
    ],
)
def test_causes_are_named(gm, look, cause):
    torch.compiler.reset()
    with recompile_stats() as stats:
        look(gm)
    counted = stats.snapshot()
    lazies = {name: count for name, count in counted.causes.items() if name != "plain"}
    assert lazies.keys() == {cause}
    assert lazies[cause].done == 1


def test_callers_are_named_by_file_and_line(gm):
    with recompile_stats() as stats:
        gm.recompile()
        gm.code
    (asked_by, looked_by) = sorted(stats.snapshot().callers.items())
    assert asked_by[0].rpartition(":")[0] == looked_by[0].rpartition(":")[0] == __file__
    assert int(looked_by[0].rpartition(":")[2]) == int(asked_by[0].rpartition(":")[2]) + 1
    assert (asked_by[1].asked, asked_by[1].done) == (1, 0)
    assert (looked_by[1].asked, looked_by[1].done) == (0, 1)


def test_constructions_ask_for_code_too(gm):
    with recompile_stats() as stats:
        LazyGraphModule({}, gm.graph)
        pickle.loads(pickle.dumps(gm))
    counted = stats.snapshot()
    assert (counted.asked, counted.done) == (2, 0)


def test_plain_modules_do_what_they_are_asked():
    with recompile_stats() as stats:
        plain = fx.symbolic_trace(lambda x: torch.sin(x))
        plain.recompile()
    counted = stats.snapshot()
    assert (counted.asked, counted.done, counted.plain, counted.avoided) == (2, 2, 2, 0)
    assert counted.causes["plain"].seconds > 0


def test_nothing_is_wrapped_or_counted_outside_a_block(gm):
    original = vars(fx.GraphModule)["recompile"]
    with recompile_stats() as stats:
        assert vars(fx.GraphModule)["recompile"] is not original
    assert vars(fx.GraphModule)["recompile"] is original
    gm.recompile()
    gm.code
    assert stats.snapshot().asked == 0
    assert not _codegen_stats.collecting


def test_blocks_nest_and_overlap(gm):
    first, second = recompile_stats(), recompile_stats()
    with first:
        gm.recompile()
        second.__enter__()
        gm.recompile()
    gm.recompile()
    second.__exit__(None, None, None)
    gm.recompile()
    assert first.snapshot().asked == second.snapshot().asked == 2
    with pytest.raises(RuntimeError, match="open or was used already"), first:
        pass


def test_all_threads_are_counted(gm):
    with recompile_stats() as stats:
        threads = [threading.Thread(target=gm.recompile) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert stats.snapshot().asked == 4


def test_a_snapshot_does_not_move(gm):
    with recompile_stats() as stats:
        gm.recompile()
        early = stats.snapshot()
        gm.recompile()
        assert (early.asked, stats.snapshot().asked) == (1, 2)


def test_the_report_can_be_read(gm):
    with recompile_stats() as stats:
        for _ in range(3):
            gm.recompile()
        gm.code
        fx.symbolic_trace(lambda x: torch.sin(x))
    text = stats.report(top=1)
    assert text.startswith("recompiles: 4 asked for, 2 done (1 by plain modules), 2 avoided")
    assert "cause" in text
    assert "caller" in text
    assert "… and" in text


def test_a_limit_that_holds_and_one_that_does_not(gm):
    with assert_max_recompiles(1):
        gm.recompile()
        gm.code
    edit(gm)
    gm.recompile()
    limit = assert_max_recompiles(0)
    stats = limit.__enter__()
    gm.code
    with pytest.raises(TooManyRecompilesError, match=r"at most 0 .* saw 1") as caught:
        limit.__exit__(None, None, None)
    assert isinstance(caught.value, (AssertionError, LazyFxError))
    assert __file__ in str(caught.value)
    assert stats.snapshot().done == 1


def test_a_limit_does_not_hide_another_error(gm):
    def fail():
        gm.code
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), assert_max_recompiles(0):
        fail()


@pytest.mark.parametrize(
    ("wrong", "error"), [(-1, ValueError), ("1", TypeError), (True, TypeError)]
)
def test_a_limit_is_a_count(wrong, error):
    with pytest.raises(error, match=r"assert_max_recompiles\(most\)"):
        assert_max_recompiles(wrong)


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 10),
    reason="torch up to 2.9 does not generate the modules inside again",
)
def test_seconds_of_nested_plain_modules_are_counted_once(monkeypatch):
    """Each level generates for a second by a clock of our own; the sum is that of the levels."""
    ticks = itertools.count()
    monkeypatch.setattr(_codegen_stats.time, "perf_counter", lambda: float(next(ticks)))
    inner = fx.symbolic_trace(torch.nn.Identity())
    for _ in range(4):
        graph = fx.Graph()
        graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
        inner = fx.GraphModule({"inner": inner}, graph)
    before = next(ticks)
    with recompile_stats() as stats:
        inner.recompile()
    assert stats.snapshot().done == 5
    assert stats.snapshot().seconds <= next(ticks) - before


def test_a_patch_made_during_a_block_and_left_in_place_does_not_count_twice(monkeypatch):
    gm = fx.symbolic_trace(lambda x: x + 1)
    kept = fx.GraphModule.recompile
    monkeypatch.setattr(fx.GraphModule, "recompile", kept)  # puts it back afterwards
    with recompile_stats():
        ours = fx.GraphModule.recompile
        fx.GraphModule.recompile = lambda self: ours(self)
    with recompile_stats() as stats:
        gm.recompile()
    assert (stats.snapshot().asked, stats.snapshot().done) == (1, 1)


def test_a_block_cannot_be_entered_twice():
    stats = recompile_stats()
    with stats:
        pass
    with pytest.raises(RuntimeError, match="call recompile_stats"), stats:
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_another_thread_counts_can_recompile(plain):
    stop = threading.Event()

    def count():
        with recompile_stats():
            while not stop.is_set():
                fx.symbolic_trace(lambda x: x + 1)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(50):
            child = os.fork()
            if not child:
                signal.alarm(20)
                plain.recompile()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()
