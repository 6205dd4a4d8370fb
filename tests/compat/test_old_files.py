"""Files that released versions wrote load for ever, and hold the graph they always held."""

import importlib.util
import pickle
from pathlib import Path

import pytest
import torch

from lazyfx_compilers import load_dump
from lazyfx_core import GraphFormatError, LazyGraphModule, graph_hash, load_graph

HERE = Path(__file__).parent
FILES = sorted(path for path in (HERE / "files").iterdir() if path.is_file())
DUMPS = sorted(path for path in (HERE / "files").iterdir() if path.is_dir())
assert FILES, "the files are kept in tests/compat/files"
assert DUMPS, "the files are kept in tests/compat/files"


def _writer():
    spec = importlib.util.spec_from_file_location("write_files", HERE / "write_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _written():
    return _writer().graph()


def _load(path):
    if path.suffix == ".pkl":
        return pickle.loads(path.read_bytes())
    return load_graph(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_holds_the_graph_that_was_written(path):
    assert path.stat().st_size < 20_000
    gm, back = _written(), _load(path)
    assert isinstance(back, LazyGraphModule)
    assert type(back).__name__ == "Compatible"
    assert type(back.child).__name__ == "Child"
    assert (back.training, back.norm.training) == (gm.training, gm.norm.training)
    assert (back.meta, repr(back.note)) == (gm.meta, repr(gm.note))
    nodes = list(zip(gm.graph.nodes, back.graph.nodes, strict=True))
    for old, new in nodes:
        assert (new.op, new.name, new.target, new.type) == (old.op, old.name, old.target, old.type)
        assert (repr(new.args), repr(new.kwargs)) == (repr(old.args), repr(old.kwargs))
        assert new.meta == old.meta
    assert graph_hash(back, names=True, values=True) == graph_hash(gm, names=True, values=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_and_computes_the_same(path):
    x = torch.arange(6.0).view(2, 3)
    gm, back = _written(), _load(path)
    expected, seen = gm(x.clone(), 1.5), back(x.clone(), 1.5)
    for one, other in (
        (expected["out"], seen["out"]),
        (expected["part"], seen["part"]),
        *zip(expected["double"], seen["double"], strict=True),
    ):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_a_newer_file_is_refused_as_newer(tmp_path):
    archive = next(path for path in FILES if path.suffix == ".safetensors")
    content = archive.read_bytes().replace(b'"schema":"1"', b'"schema":"9"')
    (tmp_path / "new").write_bytes(content)
    with pytest.raises(GraphFormatError, match=r"9|newer"):
        load_graph(tmp_path / "new")


@pytest.mark.parametrize("path", DUMPS, ids=lambda path: path.name)
def test_a_dump_runs_again_and_gives_what_training_gives_today(path):
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 40_000
    writer = _writer()
    x, weight = writer.inputs()
    loss = writer.loss(x, weight)
    loss.backward()
    dump = load_dump(path)
    _, forward, backward = dump
    assert [graph.phase for graph in dump] == ["joint", "forward", "backward"]
    for graph in (forward, backward):
        replay = graph.replay()
        assert (replay.reference, replay.bit_equal) == ("recorded", True)
    assert any(torch.equal(one, loss) for one in forward.run())
    assert any(one is not None and torch.equal(one, weight.grad) for one in backward.run())


@pytest.mark.parametrize("path", DUMPS, ids=lambda path: path.name)
def test_a_dump_says_which_lines_its_nodes_were(path):
    _, forward, _ = load_dump(path)
    (relu,) = forward.module().graph.find_nodes(
        op="call_function", target=torch.ops.aten.relu.default
    )
    assert "in loss" in relu.meta["stack_trace"]
