"""graph_dumper_aot: every graph of a compilation, whole, paired, never in the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import aot_function, aot_module
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import (
    InvalidGraphError,
    MissingDependencyError,
    NotCompilableError,
    UnknownOptionError,
    get_inputs,
    graph_dumper_aot,
    memory_efficient_fusion,
    nop,
)
from lazyfx_compilers.dump import TensorSpec, dump_backend, load_dump

FILES = {"graph.py", "graph.safetensors", "inputs.json", "replay.py"}
BESIDE = {"index.json", "index.md", "replay.py"}


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.GELU(), nn.Linear(8, 2))


def train(function: Any, module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    result = function(x)
    result.square().sum().backward()
    assert x.grad is not None
    return [result.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def aot_parts(dumper, module):
    return aot_module(
        module, dumper.fw_compiler, dumper.bw_compiler, partition_fn=dumper.partition_fn
    )


ROUTES = {
    "torch.compile": lambda dumper, m: torch.compile(m, backend=dumper),
    "torch.compile, dynamic": lambda dumper, m: torch.compile(m, backend=dumper, dynamic=True),
    "aot_module": aot_parts,
    "memory_efficient_fusion": lambda dumper, m: memory_efficient_fusion(
        m,
        fw_compiler=dumper.fw_compiler,
        bw_compiler=dumper.bw_compiler,
        partition_fn=dumper.partition_fn,
    ),
}


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_a_training_step_is_dumped_and_equals_eager(route, data, tmp_path):
    module, x = model(), torch.randn(5, 4)
    expected = train(module, module, x)
    dumper = graph_dumper_aot("net", tmp_path, data)
    torch.testing.assert_close(train(ROUTES[route](dumper, module), module, x), expected)
    index = load_dump(tmp_path / "net")
    assert dumper.path == tmp_path / "net" == index.folder
    assert [g.phase for g in index.graphs] == ["joint", "forward", "backward"]
    for graph in index.graphs:
        suffix = "" if graph.compile_id is None else "_" + graph.compile_id.replace("/", "-")
        assert graph.id == f"000_{graph.phase}{suffix}"
    assert len({g.compile_id for g in index.graphs}) == 1
    assert ("torch.compile" in route) == (index.graphs[0].compile_id is not None)
    assert {g.compilation for g in index.graphs} == {0}
    for graph in index.graphs:
        names = {p.name for p in graph.folder.iterdir()}
        with_data = data and graph.phase != "joint"
        values = {"inputs.safetensors", "outputs.json", "outputs.safetensors"}
        assert names == FILES | (values if with_data else set())
        assert graph.has_data == graph.has_outputs == with_data
        assert len(graph.module().graph.nodes) == graph.nodes
        compile(graph.code, "graph.py", "exec")  # parses
        assert "def forward" in graph.code
        assert "f32[" in graph.code


def test_two_forwards_before_a_backward_are_paired_rightly(tmp_path):
    dumper = graph_dumper_aot("net", tmp_path)
    sine = aot_function(torch.sin, dumper.fw_compiler, dumper.bw_compiler, dumper.partition_fn)
    tangent = aot_function(torch.tanh, dumper.fw_compiler, dumper.bw_compiler, dumper.partition_fn)
    x = torch.randn(3, requires_grad=True)
    first, second = sine(x), tangent(x)
    second.sum().backward()
    first.sum().backward()
    found = {(g.compilation, g.phase): g for g in load_dump(dumper.path).graphs}
    assert len(found) == 6
    assert "aten.sin.default" in found[0, "forward"].ops
    assert "aten.cos.default" in found[0, "backward"].ops
    assert "aten.tanh.default" in found[1, "forward"].ops
    assert "aten.tanh_backward.default" in found[1, "backward"].ops


def test_recompiles_and_graph_breaks_get_numbers_of_their_own(tmp_path):
    def f(x):
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    dumper = graph_dumper_aot("f", tmp_path)
    compiled = torch.compile(f, backend=dumper, dynamic=False)
    for n in (3, 4):
        x = torch.randn(n)
        torch.testing.assert_close(compiled(x), f(x))
    graphs = load_dump(dumper.path).graphs
    assert [g.id[:13] for g in graphs] == [f"{i:03d}_inference" for i in range(4)]
    assert len({g.compile_id for g in graphs}) == 4


def test_a_graph_given_directly_is_dumped_and_run(tmp_path):
    dumper = graph_dumper_aot("direct", tmp_path)
    x = torch.randn(3)
    run = dumper(make_fx(lambda x: x.sin() + 1)(x), [x])
    inputs = [x]
    torch.testing.assert_close(run(inputs), x.sin() + 1)
    assert inputs == []
    torch.testing.assert_close(run(x), x.sin() + 1)
    assert [g.id for g in load_dump(dumper.path).graphs] == ["000_inference"]


def test_a_symbolically_traced_graph_is_dumped_as_it_is(tmp_path):
    dumper = graph_dumper_aot("traced", tmp_path)
    gm, x = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU())), torch.randn(4, 3)
    torch.testing.assert_close(dumper(gm, [x])(x), gm(x))
    (graph,) = load_dump(dumper.path).graphs
    assert graph.ops == {"0": 1, "1": 1}
    assert get_inputs(graph.folder)[0].shape == (4, 3)


def test_it_works_as_the_one_compiler_of_aot_function(tmp_path):
    dumper = graph_dumper_aot("one", tmp_path)
    x = torch.randn(3, requires_grad=True)
    aot_function(torch.sin, dumper)(x).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().cos())
    assert {g.phase for g in load_dump(dumper.path).graphs} == {"forward", "backward"}


def test_another_compiler_compiles_what_was_dumped(tmp_path):
    seen = []

    def compiler(gm, inputs):
        seen.append(gm)
        return gm.forward  # takes positional arguments

    dumper = graph_dumper_aot("net", tmp_path, True, compiler=compiler)
    run = dumper(make_fx(torch.sin)(torch.randn(3)), [torch.randn(3)])
    x = torch.randn(3)
    torch.testing.assert_close(run([x]), x.sin())
    assert len(seen) == 1
    assert torch.equal(get_inputs(dumper.path / "000_inference", data=True)[0], x)


def test_what_the_first_run_got_comes_back_exactly(tmp_path):
    dumper = graph_dumper_aot("data", tmp_path, True)
    base = torch.randn(40)
    inputs = [
        base.as_strided((3, 4), (1, 5), 2),  # neither contiguous nor at the start
        base[:6].view(2, 3),  # shares with the first
        torch.randn(3, 1).expand(3, 4),  # overlaps itself
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.tensor([3, -7]),
        torch.empty(0, 5),
        torch.tensor(True),
        2.5,
    ]
    gm = make_fx(lambda *args: args[0] + args[2])(*inputs)
    dumper(gm, inputs)(list(inputs))
    again = get_inputs(dumper.path / "000_inference", data=True)
    for want, got in zip(inputs, again, strict=True):
        if isinstance(want, torch.Tensor):
            assert (got.dtype, got.stride()) == (want.dtype, want.stride())
            assert got.storage_offset() == want.storage_offset()
            assert torch.equal(got, want)
        else:
            assert got == want
    again[1].fill_(9.0)
    assert again[0].eq(9.0).any(), "sharing is lost"


def test_data_is_what_the_inputs_were_before_the_graph_changed_them(tmp_path):
    x = torch.zeros(3)
    dumper = graph_dumper_aot("mutation", tmp_path, True)
    dumper(make_fx(lambda x: x.add_(1))(torch.zeros(3)), [torch.zeros(3)])([x])
    assert x.eq(1).all()
    assert get_inputs(dumper.path / "000_inference", data=True)[0].eq(0).all()


def test_a_run_with_fake_tensors_keeps_descriptions_and_warns_once(tmp_path, caplog):
    from torch._subclasses.fake_tensor import FakeTensorMode

    dumper = graph_dumper_aot("fake", tmp_path, True)
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.randn(2, 3))
        for _ in range(2):
            dumper(make_fx(torch.sin)(torch.randn(2, 3)), [x])([x])
    assert [r.levelname for r in caplog.records if "dump" in r.name] == ["WARNING"]
    assert "fake tensors" in caplog.text
    assert get_inputs(dumper.path / "000_inference")[0].shape == (2, 3)


def test_dynamic_sizes_are_described_by_hint_and_expression(tmp_path):
    dumper = graph_dumper_aot("dynamic", tmp_path)
    torch.compile(lambda x: x * x.shape[0], backend=dumper, dynamic=True)(torch.randn(5, 3))
    specs = load_dump(dumper.path).graphs[0].specs
    tensors = [s for s in specs if isinstance(s, TensorSpec)]
    assert tensors[0].shape == (5, 3)
    assert tensors[0].shape_expr is not None
    symbols = [s for s in specs if not isinstance(s, TensorSpec)]
    assert {(s.value, s.expr) for s in symbols} >= {(5, tensors[0].shape_expr[0])}


@pytest.mark.parametrize("dynamic", [False, True])
def test_operators_of_python_and_of_symbolic_sizes_are_told_apart(dynamic, tmp_path):
    def f(x):  # in Dynamo's graph nothing but Python operators; dynamic, AOT's has some too
        return x * x + (x.shape[0] // 2) * x

    dumper = graph_dumper_aot("products", tmp_path)
    x = torch.randn(5, requires_grad=True)
    torch.compile(f, backend=dumper, dynamic=dynamic)(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach() + 2)
    phases = [g.phase for g in load_dump(dumper.path).graphs]
    assert phases == ["joint", "forward", "backward"]


def test_sizes_that_data_decides_are_dumped(tmp_path):
    dumper = graph_dumper_aot("unbacked", tmp_path, compiler=nop)
    x = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch.compile(lambda x: x[x.nonzero()[:, 0]].sin(), backend=dumper)(x).sum().backward()
    index = load_dump(dumper.path)
    assert [g.phase for g in index.graphs] == ["joint", "forward", "backward"]
    for graph in index.graphs:
        assert get_inputs(graph.folder)


def test_higher_order_operators_are_dumped_with_their_subgraphs(tmp_path):
    def f(x):
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    dumper = graph_dumper_aot("cond", tmp_path)
    x = torch.randn(3)
    torch.testing.assert_close(torch.compile(f, backend=dumper, fullgraph=True)(x), f(x))
    (graph,) = load_dump(dumper.path)
    assert torch.ops.higher_order.cond in [n.target for n in graph.module().graph.nodes]
    assert {name for name in graph.ops if "cond" in name}
    assert torch.equal(graph.run([x])[0], f(x))
    assert torch.equal(graph.run([-x])[0], f(-x))


def test_the_users_lines_are_in_the_dump(tmp_path):
    def a_function_of_mine(x):
        return x.sin() + 1

    dumper = graph_dumper_aot("lines", tmp_path)
    torch.compile(a_function_of_mine, backend=dumper)(torch.randn(3))
    (graph,) = load_dump(dumper.path)
    assert "return x.sin() + 1" in graph.code
    (sine,) = graph.module().graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
    assert "test_dump_graphs.py" in sine.meta["stack_trace"]


# --- never overwriting, never leaving the folder, never in the way -------------------------------


def test_the_same_name_twice_overwrites_nothing(tmp_path):
    gm, x = make_fx(torch.sin)(torch.randn(3)), torch.randn(3)
    graph_dumper_aot("net", tmp_path)(gm, [x])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    second = graph_dumper_aot("net", tmp_path)
    second(make_fx(torch.cos)(x), [x])
    assert second.path == tmp_path / "net-2"
    assert before == {p: p.read_bytes() for p in before}
    assert len(load_dump(tmp_path / "net").graphs) == 1
    assert len(load_dump(tmp_path / "net-2").graphs) == 1


def test_a_user_file_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "net").write_text("mine")
    dumper = graph_dumper_aot("net", tmp_path)
    dumper(make_fx(torch.sin)(torch.randn(3)), [torch.randn(3)])
    assert (tmp_path / "net").read_text() == "mine"
    assert dumper.path == tmp_path / "net-2"


def test_many_threads_and_dumpers_of_one_name_do_not_meet(tmp_path):
    gm, x = make_fx(torch.sin)(torch.randn(3)), torch.randn(3)
    dumpers = [graph_dumper_aot("net", tmp_path) for _ in range(4)]

    def work(dumper):
        for _ in range(5):
            dumper(gm, [x])

    threads = [threading.Thread(target=work, args=(d,)) for d in dumpers for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({d.path for d in dumpers}) == 4
    for dumper in dumpers:
        ids = [g.id for g in load_dump(dumper.path).graphs]
        assert sorted(ids) == [f"{i:03d}_inference" for i in range(10)]
        assert {p.name for p in dumper.path.iterdir()} == {*ids, *BESIDE}


HOSTILE_NAMES = ["../../up", "/etc/passwd", "a/b", "..", ".", "", "a b\n<script>", "C:\\x", "é" * 9]


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "x" * 5000, "a.b", "nul\0byte"])
def test_any_name_stays_inside_the_folder(name, tmp_path):
    folder = tmp_path / "inside"
    dumper = graph_dumper_aot(name, folder)
    dumper(make_fx(torch.sin)(torch.randn(3)), [torch.randn(3)])
    assert dumper.path.parent == folder
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    assert load_dump(dumper.path).name == name


def test_a_relative_folder_is_the_one_it_was_at_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dumper = graph_dumper_aot("net", "here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    dumper(make_fx(torch.sin)(torch.randn(3)), [torch.randn(3)])
    assert (tmp_path / "here" / "net" / "index.json").is_file()


def test_a_dump_may_be_moved(tmp_path):
    dumper = graph_dumper_aot("net", tmp_path / "a")
    dumper(make_fx(torch.sin)(torch.randn(3)), [torch.randn(3)])
    (tmp_path / "a").rename(tmp_path / "b")
    graph = load_dump(tmp_path / "b" / "net").graphs[0]
    assert graph.folder.is_dir()
    assert get_inputs(graph.folder)[0].shape == (3,)


@pytest.mark.parametrize("data", [False, True])
def test_a_folder_that_cannot_be_written_warns_once_and_training_goes_on(data, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    module, x = model(), torch.randn(5, 4)
    expected = train(module, module, x)
    dumper = graph_dumper_aot("net", tmp_path / "file" / "sub", data)
    compiled = torch.compile(module, backend=dumper, dynamic=False)
    torch.testing.assert_close(train(compiled, module, x), expected)
    train(compiled, module, torch.randn(6, 4))  # a second compilation
    warned = [r for r in caplog.records if r.name == "lazyfx_compilers.dump"]
    assert [r.levelname for r in warned] == ["WARNING"]
    assert "cannot write" in warned[0].getMessage()
    assert dumper.path is None


def test_a_disk_that_fills_up_leaves_no_half_graph(tmp_path, caplog, monkeypatch):
    dumper = graph_dumper_aot("net", tmp_path)
    gm, x = make_fx(torch.sin)(torch.randn(3)), torch.randn(3)
    dumper(gm, [x])
    write_text = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == "inputs.json":
            raise OSError(28, "No space left on device")
        return write_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    for _ in range(2):
        torch.testing.assert_close(dumper(gm, [x])(x), x.sin())
    warned = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 1
    assert "No space left" in warned[0].getMessage()
    assert {p.name for p in dumper.path.iterdir()} == {"000_inference", *BESIDE}


def test_a_disk_that_is_full_from_the_beginning_leaves_no_folders(tmp_path, caplog, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    dumper = graph_dumper_aot("net", tmp_path)
    gm, x = make_fx(torch.sin)(torch.randn(3)), torch.randn(3)
    for _ in range(3):
        torch.testing.assert_close(dumper(gm, [x])(x), x.sin())
    assert list(tmp_path.iterdir()) == []
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


def test_an_index_that_cannot_be_written_lists_and_keeps_what_it_did_before(
    tmp_path, caplog, monkeypatch
):
    dumper = graph_dumper_aot("net", tmp_path)
    gm, x = make_fx(torch.sin)(torch.randn(3)), torch.randn(3)
    dumper(gm, [x])
    write_bytes = Path.write_bytes

    def full(self, content):
        if b"001_inference" in content:
            raise OSError(28, "No space left on device")
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    dumper(gm, [x])
    monkeypatch.undo()
    assert {p.name for p in dumper.path.iterdir()} == {"000_inference", *BESIDE}
    dumper(gm, [x])
    assert [graph.id for graph in load_dump(dumper.path)] == ["000_inference", "002_inference"]


def test_a_folder_that_cannot_be_is_one_warning(tmp_path, caplog):
    dumper = graph_dumper_aot("net", f"{tmp_path}/a\0b")
    torch.testing.assert_close(
        torch.compile(torch.sin, backend=dumper)(torch.ones(3)), torch.ones(3).sin()
    )
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


def test_a_folder_removed_in_between_is_one_warning(tmp_path, caplog):
    import shutil

    dumper = graph_dumper_aot("net", tmp_path)
    gm, x = make_fx(torch.sin)(torch.randn(3)), torch.randn(3)
    dumper(gm, [x])
    shutil.rmtree(tmp_path / "net")
    for _ in range(2):
        torch.testing.assert_close(dumper(gm, [x])(x), x.sin())
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


def test_a_failure_inside_the_dumper_itself_does_not_fail_the_compilation(
    tmp_path, caplog, monkeypatch
):
    gm, x = make_fx(torch.sin)(torch.randn(3)), torch.randn(3)
    monkeypatch.setattr(type(gm), "print_readable", lambda *a, **k: 1 / 0)
    torch.testing.assert_close(graph_dumper_aot("net", tmp_path)(gm, [x])(x), x.sin())
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_writes_to_a_folder_of_its_own(tmp_path):
    dumper = graph_dumper_aot("net", tmp_path)
    gm, x = make_fx(torch.sin)(torch.randn(3)), torch.randn(3)
    dumper(gm, [x])
    child = os.fork()
    if child == 0:
        dumper(gm, [x])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "net-2"]
    assert len(load_dump(tmp_path / "net").graphs) == 1


def test_no_file_is_a_pickle(tmp_path):
    dumper = graph_dumper_aot("net", tmp_path, True)
    module = model()
    train(torch.compile(module, backend=dumper), module, torch.randn(3, 4))
    suffixes = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert suffixes == {".json", ".md", ".py", ".safetensors"}


def test_the_dumped_module_is_not_changed(tmp_path):
    gm = make_fx(lambda x: x.sin() + torch.tensor([1.0, 2.0]))(torch.randn(2))
    before = (gm.code, [dict(n.meta) for n in gm.graph.nodes], dict(gm.meta))
    graph_dumper_aot("net", tmp_path)(gm, [torch.randn(2)])
    assert before == (gm.code, [dict(n.meta) for n in gm.graph.nodes], dict(gm.meta))


# --- the backend, and bad arguments --------------------------------------------------------------


def test_the_backend_puts_all_graphs_of_the_same_options_into_one_folder(tmp_path):
    options = {"name": "net", "folder": str(tmp_path), "example_inputs": "data"}
    for f in (torch.sin, torch.cos):
        compiled = torch.compile(lambda x, f=f: f(x) + 1, backend="lazyfx_dump", options=options)
        x = torch.randn(3)
        torch.testing.assert_close(compiled(x), f(x) + 1)
    index = load_dump(tmp_path / "net")
    assert [g.id[:13] for g in index.graphs] == ["000_inference", "001_inference"]
    assert all(g.has_data for g in index.graphs)


def test_the_backend_without_a_folder_says_where_it_writes(caplog):
    x = torch.randn(3)
    torch.compile(torch.sin, backend="lazyfx_dump", options={"name": "somewhere"})(x)
    said = [r.getMessage() for r in caplog.records if "graphs are dumped to" in r.getMessage()]
    assert len(said) == 1
    assert load_dump(said[0].removeprefix("graphs are dumped to ")).graphs


def test_bad_arguments_are_named(tmp_path):
    gm = make_fx(torch.sin)(torch.randn(3))
    with pytest.raises(UnknownOptionError, match="name=5"):
        graph_dumper_aot(5, tmp_path)
    with pytest.raises(UnknownOptionError, match="folder=5"):
        graph_dumper_aot("net", 5)
    with pytest.raises(UnknownOptionError, match="dump_example_input='yes'"):
        graph_dumper_aot("net", tmp_path, "yes")
    with pytest.raises(NotCompilableError, match="compiler=None"):
        graph_dumper_aot("net", tmp_path, compiler=None)
    with pytest.raises(NotCompilableError, match="graph_dumper_aot"):
        graph_dumper_aot("net", tmp_path)(lambda x: x, [])
    with pytest.raises(UnknownOptionError, match="example_inputs='all'"):
        dump_backend(gm, [], example_inputs="all")
    with pytest.raises(UnknownOptionError, match="name=5"):
        dump_backend(gm, [], name=5)


def test_a_wrong_graph_is_refused_as_every_compiler_does(tmp_path):
    gm = make_fx(lambda x: x.sin().cos())(torch.randn(3))
    nodes = list(gm.graph.nodes)
    nodes[2].append(nodes[1])  # sin after cos
    with pytest.raises(InvalidGraphError, match="cos"):
        graph_dumper_aot("net", tmp_path)(gm, [torch.randn(3)])


def test_data_without_safetensors_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(MissingDependencyError, match=r"safetensors.*pip install"):
        graph_dumper_aot("net", tmp_path, True)
    assert list(tmp_path.iterdir()) == []


def test_the_reference_fails_on_every_backward(tmp_path):
    from torch._functorch.compilers import graph_dumper_aot as reference

    x = torch.randn(3, requires_grad=True)
    with pytest.raises(Exception, match="num_fwd_outputs"):
        torch.compile(torch.sin, backend=reference("net", str(tmp_path)))(x).sum().backward()


def test_the_references_folder_aborts_the_compilation(tmp_path):
    from torch._functorch.compilers import graph_dumper_aot as reference

    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"NotADirectoryError|FileExistsError|Not a directory"):
        torch.compile(torch.sin, backend=reference("n", str(tmp_path / "file")))(torch.randn(3))
