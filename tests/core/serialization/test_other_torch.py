"""What another torch stored: metadata that this one does not have is left out, by name.

Another torch is imitated by taking a class out of this one, or an operator, after storing.
"""

import dataclasses
import importlib
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import NodeSource, NodeSourceAction
from torch.utils import _pytree

from lazyfx_core import (
    DroppedMetadataWarning,
    LazyGraphModule,
    NotInThisTorchError,
    _decode,
    _torch_records,
    _torch_sympy,
    load_graph,
    save_graph,
)
from lazyfx_core._expressions import Expressions


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
    with pytest.warns(DroppedMetadataWarning, match=r"takes \['position'\], found \['idx'\]"):
        assert metas(load()) == [{"kept": 1}] * 3


def test_a_record_that_needs_more_fields_is_left_out(store, become_another_torch):
    load = store(sine(kept=1, key=_pytree.SequenceKey(3)))
    become_another_torch(dataclasses.make_dataclass("SequenceKey", ["idx", "of"]))
    with pytest.warns(DroppedMetadataWarning, match=r"takes \['idx', 'of'\], found \['idx'\]"):
        assert metas(load()) == [{"kept": 1}] * 3


@pytest.mark.parametrize("slots", [False, True])
def test_a_record_that_has_got_a_field_with_a_default_comes_back(
    store, become_another_torch, slots
):
    load = store(sine(key=_pytree.SequenceKey(3)))
    fields = ["idx", ("of", int, dataclasses.field(default=7))]
    become_another_torch(dataclasses.make_dataclass("SequenceKey", fields, slots=slots))
    for meta in metas(load()):
        assert (meta["key"].idx, meta["key"].of) == (3, 7)


REPLACE, CREATE = NodeSourceAction.REPLACE, NodeSourceAction.CREATE
ACTIONS = (
    [(REPLACE, [REPLACE]), (None, []), ([REPLACE, CREATE], [REPLACE, CREATE])]
    if isinstance(NodeSource(None).action, list)  # after torch 2.6
    else [([REPLACE], REPLACE), ([], None), (CREATE, CREATE)]
)


@pytest.mark.parametrize(("stored", "expected"), ACTIONS)
def test_the_source_of_a_node_has_as_many_actions_as_here(store, stored, expected):
    gm = sine()
    _, node, _ = gm.graph.nodes
    source = NodeSource(node, "a_pass", REPLACE)
    source.action = stored
    node.meta["from_node"] = [source]
    (back,) = metas(store(gm)())[1]["from_node"]
    assert back.action == expected
    assert vars(back).keys() == vars(source).keys()
    assert "a_pass" in repr(back)
    assert back.to_dict()["pass_name"] == "a_pass"


@pytest.mark.skipif(
    isinstance(NodeSource(None).action, list), reason="several actions are new after torch 2.6"
)
def test_a_source_of_several_actions_is_left_out(store):
    gm = sine(kept=1)
    source = NodeSource(next(iter(gm.graph.nodes)), "a_pass", REPLACE)
    source.action = [REPLACE, CREATE]
    gm.graph.output_node().meta["from_node"] = [source]
    with pytest.warns(DroppedMetadataWarning, match="from_node.*one action, found several"):
        assert metas(store(gm)()) == [{"kept": 1}] * 3


def test_a_source_of_other_fields_is_left_out(store):
    gm = sine(kept=1)
    source = NodeSource(next(iter(gm.graph.nodes)), "a_pass", REPLACE)
    del source.pass_name
    gm.graph.output_node().meta["from_node"] = [source]
    with pytest.warns(DroppedMetadataWarning, match="from_node.*NodeSource takes"):
        assert metas(store(gm)()) == [{"kept": 1}] * 3


@pytest.mark.parametrize("place", [0, 1])
def test_a_module_beside_what_is_left_out_is_left_out(store, become_another_torch, place):
    held = [_pytree.SequenceKey(3)]
    held.insert(place, torch.nn.Linear(1, 1))
    load = store(sine(kept=1, held=held))
    become_another_torch()
    with pytest.warns(DroppedMetadataWarning, match="'held'"):
        assert metas(load()) == [{"kept": 1}] * 3


def test_symbolic_values_that_need_a_function_of_another_torch_are_left_out(store, monkeypatch):
    traced = make_fx(lambda x: x[: x.shape[0] // 2], tracing_mode="symbolic")(torch.ones(6))
    gm = LazyGraphModule.from_graphmodule(traced)
    gm.graph.output_node().meta["kept"] = 1
    load = store(gm)
    without = {k: v for k, v in _torch_sympy._classes().items() if k != "torch.FloorDiv"}
    monkeypatch.setattr(_torch_sympy, "_classes", lambda: without)
    with pytest.warns(DroppedMetadataWarning, match=r"'val' .*torch\.FloorDiv"):
        back = load()
    assert not any("val" in meta for meta in metas(back))
    assert metas(back)[-1]["kept"] == 1
    assert torch.equal(back(torch.ones(8)), torch.ones(4))


def test_symbolic_values_that_are_left_out_are_looked_at_once(store, monkeypatch):
    def many(x):
        for _ in range(100):
            x = torch.sin(x)
        return x[: x.shape[0] // 2]

    traced = make_fx(many, tracing_mode="symbolic")(torch.ones(6))
    load = store(LazyGraphModule.from_graphmodule(traced))
    without = {k: v for k, v in _torch_sympy._classes().items() if k != "torch.FloorDiv"}
    add, rows = Expressions.add, []
    monkeypatch.setattr(_torch_sympy, "_classes", lambda: without)
    monkeypatch.setattr(Expressions, "add", lambda self, row: rows.append(row) or add(self, row))
    with pytest.warns(DroppedMetadataWarning, match=r"'val' .*torch\.FloorDiv"):
        assert not any("val" in meta for meta in metas(load()))
    assert len([row for row in rows if row[0] == "torch.FloorDiv"]) == 1


def test_an_attribute_of_another_torch_is_left_out_unless_the_graph_uses_it(tmp_path, monkeypatch):
    graph = fx.Graph()
    graph.output((graph.get_attr("used"), graph.get_attr("other")))
    gm = LazyGraphModule({"used": torch.ones(1), "other": torch.ones(1)}, graph)
    gm.beside = torch.uint16
    save_graph(gm, tmp_path / "gm")
    del gm.used
    gm.used = torch.uint16
    save_graph(gm, tmp_path / "using")
    monkeypatch.delitem(_decode._DTYPES, "uint16")
    with pytest.warns(DroppedMetadataWarning, match=r"'beside' \('uint16' is not a dtype"):
        assert not hasattr(load_graph(tmp_path / "gm"), "beside")
    with pytest.raises(NotInThisTorchError, match=r"node 'used' refers to 'used': 'uint16'"):
        load_graph(tmp_path / "using")


def test_a_graph_comes_without_a_tracer_that_this_torch_lacks(tmp_path, monkeypatch):
    save_graph(sine(), tmp_path / "gm")
    find, known = _torch_records.find_class, _torch_records._TRACERS
    renamed = "torch.fx._symbolic_trace:TracerOfAnother"
    monkeypatch.setattr(_torch_records, "_TRACERS", {*known, renamed})
    monkeypatch.setattr(_torch_records, "find_class", lambda path: find(renamed))
    with pytest.warns(DroppedMetadataWarning, match="tracer.*TracerOfAnother"):
        back = load_graph(tmp_path / "gm")
    assert back.graph._tracer_cls is None
    assert torch.equal(back(torch.ones(1)), torch.ones(1).sin())


def test_a_graph_module_of_another_torch_is_left_out_wherever_metadata_has_it(tmp_path):
    library = torch.library.Library("lazyfx_other_torch", "DEF")
    library.define("four_times(Tensor x) -> Tensor")
    graph = fx.Graph()
    four_times = torch.ops.lazyfx_other_torch.four_times.default
    graph.output(graph.call_function(four_times, (graph.placeholder("x"),)))
    save_graph(sine(kept=1, held=LazyGraphModule({}, graph)), tmp_path / "gm")
    library._destroy()
    del torch.ops.lazyfx_other_torch, four_times
    with pytest.warns(DroppedMetadataWarning, match=r"'held' \(module 1: .*import the library"):
        assert metas(load_graph(tmp_path / "gm")) == [{"kept": 1}] * 3


def test_a_warning_names_the_callers_line_and_can_be_an_error(store, become_another_torch):
    load = store(sine(key=_pytree.SequenceKey(3)))
    become_another_torch()
    with pytest.warns(DroppedMetadataWarning) as said:
        load()
    assert {one.filename for one in said} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DroppedMetadataWarning, match="'key'"):
            load()


def test_functions_of_torchs_modules_that_nobody_has_imported_are_found(tmp_path):
    symbolic_shapes = importlib.import_module("torch.fx.experimental.symbolic_shapes")
    graph = fx.Graph()
    graph.output(graph.call_function(symbolic_shapes.sym_eq, (graph.placeholder("x"), 2)))
    gm = LazyGraphModule({}, graph)
    save_graph(gm, tmp_path / "gm")
    (tmp_path / "gm.pickle").write_bytes(pickle.dumps(gm))
    load = """
import pickle, sys
from lazyfx_core import load_graph
assert "torch.fx.experimental.symbolic_shapes" not in sys.modules
gm = load_graph("gm") if sys.argv[1] == "archive" else pickle.load(open("gm.pickle", "rb"))
print(gm(2), gm(3))
"""
    for kind in ("archive", "pickle"):
        command = [sys.executable, "-c", load, kind]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stdout == "True False\n", done.stderr


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
