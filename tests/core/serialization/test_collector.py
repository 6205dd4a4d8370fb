"""The garbage collector is as it was after a large graph was written or read, whatever happens."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import sys
import threading

import pytest
import torch
from torch import fx

from lazyfx_core import LazyGraphModule, SerializationError, _collector, load_graph, save_graph
from lazyfx_core._collector import collector_paused

LARGE = 5_000


def chain(length: int, argument: object = None) -> LazyGraphModule:
    graph = fx.Graph()
    node = graph.placeholder("x")
    for _ in range(length):
        node = graph.call_function(torch.ops.aten.add.Tensor, (node, node))
    graph.output((node, argument))
    return LazyGraphModule({}, graph)


@pytest.fixture(params=[True, False], ids=["on", "off"])
def collector(request):
    (gc.enable if request.param else gc.disable)()
    yield request.param
    gc.enable()


def test_it_does_not_run_while_a_large_graph_is_written_and_read(tmp_path):
    gm, path = chain(LARGE), tmp_path / "graph"
    generations = []

    def note(phase, info):
        if phase == "start":
            generations.append(info["generation"])

    threshold = gc.get_threshold()
    gc.callbacks.append(note)
    try:
        gc.set_threshold(10, 1, 1)
        with collector_paused(0):
            held = [[] for _ in range(100)]
        assert generations, "a small graph pauses nothing"
        gc.collect()
        del generations[:]
        data = pickle.dumps(gm)
        save_graph(gm, path)
        written = len(generations)
        _ = pickle.loads(data).graph
        _ = load_graph(path).graph
        read = len(generations) - written
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(note)
    assert len(held) == 100
    assert written < LARGE / 10
    assert read < LARGE / 10


def test_it_is_as_it_was_afterwards(collector, tmp_path):
    gm, path = chain(LARGE), tmp_path / "graph"
    _ = pickle.loads(pickle.dumps(gm)).graph
    save_graph(gm, path)
    _ = load_graph(path).graph
    assert gc.isenabled() is collector


def test_it_is_as_it_was_after_a_failure(collector, tmp_path):
    gm = chain(LARGE, argument=object())
    with pytest.raises(SerializationError):
        save_graph(gm, tmp_path / "graph")
    assert gc.isenabled() is collector


def test_threads_that_overlap_are_counted():
    inside, leave = threading.Barrier(2), threading.Event()

    def long_one():
        with collector_paused(LARGE):
            inside.wait()
            leave.wait()

    thread = threading.Thread(target=long_one)
    thread.start()
    inside.wait()
    with collector_paused(LARGE):
        pass
    assert not gc.isenabled(), "the other thread is not done"
    leave.set()
    thread.join()
    assert gc.isenabled()


def _report(queue):
    queue.put(gc.isenabled())


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_a_child_forked_meanwhile_has_its_collector():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with collector_paused(LARGE):
        child = context.Process(target=_report, args=(queue,))
        child.start()
        enabled = queue.get(timeout=60)
        child.join()
    assert enabled
    assert gc.isenabled()


class Stop(Exception):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_leaves_it_as_it_was(collector):
    """As Ctrl-C may raise between any two lines."""
    for line in range(60):
        seen = 0

        def interrupt(frame, event, argument, line=line):
            nonlocal seen
            if frame.f_code.co_filename.endswith("_collector.py"):
                seen += 1
                if seen == line:
                    sys.settrace(None)
                    raise Stop
            return interrupt

        sys.settrace(interrupt)
        try:
            with collector_paused(LARGE):
                pass
        except Stop:
            pass
        finally:
            sys.settrace(None)
        assert gc.isenabled() is collector, line
        assert not _collector._pausing, line
        if seen < line:
            break
    assert line > 10
