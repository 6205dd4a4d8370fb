"""What another torch stored: metadata that this one does not have is left out, by name.

Another torch is imitated by taking a class out of this one, or an operator, after storing.
"""

import dataclasses
import pickle
import warnings

import pytest
import torch
from torch import fx
from torch.utils import _pytree

from lazyfx_core import (
    DroppedMetadataWarning,
    LazyGraphModule,
    NotInThisTorchError,
    _torch_records,
    load_graph,
    save_graph,
)


@pytest.fixture(params=["archive", "pickle"])
def store(request, tmp_path):
    """Stores a module, and gives what loads it and looks at its graph."""

    def through_archive(gm):
        save_graph(gm, tmp_path / "gm")
        return lambda: load_graph(tmp_path / "gm")

    def through_pickle(gm):
        data = pickle.dumps(gm)

        def load():
            back = pickle.loads(data)
            assert back.graph.nodes
            return back

        return load

    return through_archive if request.param == "archive" else through_pickle


@pytest.fixture
def become_another_torch(monkeypatch):
    """Puts another class, or none, in the place of ``torch.utils._pytree.SequenceKey``."""

    def become(cls=None):
        if cls is None:
            monkeypatch.delattr(_pytree, "SequenceKey")
        else:
            cls.__module__, cls.__qualname__ = "torch.utils._pytree", "SequenceKey"
            monkeypatch.setattr(_pytree, "SequenceKey", cls)
        _torch_records._record_class.cache_clear()

    yield become
    monkeypatch.undo()
    _torch_records._record_class.cache_clear()


def sine(**meta):
    gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x)))
    for node in gm.graph.nodes:
        node.meta.update(meta)
    return gm


def metas(gm):
    return [node.meta for node in gm.graph.nodes]


def test_a_record_that_is_gone_is_left_out_and_named(store, become_another_torch):
    gm = sine(kept=[1, "one"], key=_pytree.SequenceKey(3), deep={"a": [_pytree.SequenceKey(4)]})
    gm.meta.update(kept=2, key=_pytree.SequenceKey(5))
    load = store(gm)
    become_another_torch()
    with pytest.warns(DroppedMetadataWarning) as said:
        back = load()
    text = " ".join(str(one.message) for one in said)
    assert "'deep' ('torch.utils._pytree:SequenceKey' is not a record" in text
    assert "'key' ('torch.utils._pytree:SequenceKey' is not a record" in text
    assert "kept" not in text
    assert metas(back) == [{"kept": [1, "one"]}] * 3
    assert back.meta == {"kept": 2}
    assert torch.equal(back(torch.ones(2)), gm(torch.ones(2)))


def test_a_record_of_other_fields_is_left_out(store, become_another_torch):
    load = store(sine(kept=1, key=_pytree.SequenceKey(3)))
    become_another_torch(dataclasses.make_dataclass("SequenceKey", ["position"]))
    with pytest.warns(DroppedMetadataWarning, match=r"takes \('position',\), found \['idx'\]"):
        assert metas(load()) == [{"kept": 1}] * 3


def test_a_record_that_needs_more_fields_is_left_out(store, become_another_torch):
    load = store(sine(kept=1, key=_pytree.SequenceKey(3)))
    become_another_torch(dataclasses.make_dataclass("SequenceKey", ["idx", "of"]))
    with pytest.warns(DroppedMetadataWarning, match=r"takes \('idx', 'of'\), found \['idx'\]"):
        assert metas(load()) == [{"kept": 1}] * 3


def test_a_record_that_has_got_a_field_with_a_default_comes_back(store, become_another_torch):
    load = store(sine(key=_pytree.SequenceKey(3)))
    fields = ["idx", ("of", int, 7)]
    become_another_torch(dataclasses.make_dataclass("SequenceKey", fields))
    for meta in metas(load()):
        assert (meta["key"].idx, meta["key"].of) == (3, 7)


def test_an_operator_that_is_gone_is_left_out_of_metadata(store):
    library = torch.library.Library("lazyfx_other_torch", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    twice = torch.ops.lazyfx_other_torch.twice.default
    load = store(sine(kept=1, original_aten=twice))
    library._destroy()
    del torch.ops.lazyfx_other_torch, twice
    with pytest.warns(DroppedMetadataWarning, match=r"original_aten.*twice.*import the library"):
        assert metas(load()) == [{"kept": 1}] * 3


def test_a_node_that_calls_an_operator_of_another_torch_is_refused(store):
    library = torch.library.Library("lazyfx_other_torch", "DEF")
    library.define("thrice(Tensor x) -> Tensor")
    graph = fx.Graph()
    thrice = torch.ops.lazyfx_other_torch.thrice.default
    graph.output(graph.call_function(thrice, (graph.placeholder("x"),)))
    load = store(LazyGraphModule({}, graph))
    library._destroy()
    del torch.ops.lazyfx_other_torch
    with pytest.raises(NotInThisTorchError, match=r"node 'thrice.*import the library"):
        load()


def test_what_many_nodes_share_is_looked_at_once(store, become_another_torch, monkeypatch):
    graph = fx.Graph()
    node = graph.placeholder("x")
    held = {"note": list(range(50)), "key": _pytree.SequenceKey(3)}
    for _ in range(100):
        node = graph.call_function(torch.sin, (node,))
        node.meta["held"] = held
    graph.output(node)
    load = store(LazyGraphModule({}, graph))
    become_another_torch()
    rebuild, calls = _torch_records.rebuild, []
    monkeypatch.setattr(
        _torch_records, "rebuild", lambda path, fields: calls.append(path) or rebuild(path, fields)
    )
    with pytest.warns(DroppedMetadataWarning, match="held"):
        assert not any(metas(load()))
    assert len(calls) == 1


def test_nothing_is_said_if_nobody_wants_to_hear_it(tmp_path, become_another_torch):
    save_graph(sine(key=_pytree.SequenceKey(3)), tmp_path / "gm")
    become_another_torch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(metas(load_graph(tmp_path / "gm", warn=False)))
    with pytest.warns(DroppedMetadataWarning) as said:
        load_graph(tmp_path / "gm")
    assert [one.filename for one in said] == [__file__]
