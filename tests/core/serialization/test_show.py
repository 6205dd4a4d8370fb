"""``python -m lazyfx_core show``: what a person sees of an archive."""

import json
import subprocess
import sys

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_core import LazyGraphModule, load_graph, save_graph
from lazyfx_core.__main__ import main
from lazyfx_core._container import read_container, write_container


def scale(x):
    return x * 2


fx.wrap("scale")


@pytest.fixture
def show(capsys, tmp_path):
    def run(gm, *options, change=None):
        path = tmp_path / "graph.safetensors"
        save_graph(gm, path)
        if change is not None:
            text, tensors = read_container(path)
            data = json.loads(text)
            change(data)
            write_container(path, json.dumps(data).encode(), tensors)
        status = main(["show", *options, str(path)])
        seen = capsys.readouterr()
        return status, seen.out, seen.err

    return run


def test_code_counts_and_tensors_are_shown(show):
    gm = make_fx(lambda x: (x.relu() + 1).relu())(torch.ones(2, 3))
    status, text, errors = show(gm)
    assert (status, errors) == (0, "")
    lines = text.splitlines()
    assert "schema 1, written by lazyfx" in lines[0]
    assert lines[1] == "1 module, 0 tensors, 0 B"
    assert lines[3].endswith("5 nodes")
    assert "    2 x call_function aten.relu.default" in lines
    assert "def forward(self" in text
    assert "f32[2, 3][3, 1]cpu" in text


def test_storages_are_counted_once_and_views_say_where_they_are(show):
    root, base = nn.Module(), torch.zeros(1000)
    root.register_buffer("base", base)
    root.register_buffer("part", base[10:20].view(2, 5))
    root.weight = nn.Parameter(torch.zeros(250))
    graph = fx.Graph()
    graph.output(tuple(graph.get_attr(name) for name in ("base", "part", "weight")))
    _, text, _ = show(fx.GraphModule(root, graph))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[1] == "1 module, 3 tensors, 5.0 kB"
    assert lines[-3:] == [
        "weight float32 250 cpu 1.0 kB",
        "base float32 1000 cpu 4.0 kB",
        "part float32 2x5 cpu in base",
    ]


def test_code_can_be_left_out(show):
    gm = fx.symbolic_trace(lambda x: x.relu())
    assert "def forward" not in show(gm, "--no-code")[1]
    assert "call_method relu" in show(gm, "--no-code")[1]


def test_the_structure_can_be_had_as_json(show):
    _, text, _ = show(fx.symbolic_trace(lambda x: x.relu()), "--json")
    assert json.loads(text)["schema"] == 1


def test_functions_that_are_not_torchs_are_shown_by_name(show):
    status, text, _ = show(fx.symbolic_trace(lambda x: scale(x)))
    assert status == 0
    assert "scale" in text
    assert "cannot be read" not in text


def test_nested_graphs_are_shown_too(show):
    child = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: x.cos()))
    graph = fx.Graph()
    graph.output(graph.call_module("child", (graph.placeholder("x"),)))
    _, text, _ = show(fx.GraphModule({"child": child}, graph))
    assert "call_module child" in text
    assert "call_method cos" in text


ANSI = "\x1b[31m\x1b]0;title\x07\x9b\u202e"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["modules"][0].update(class_name=ANSI),
        lambda d: d.update(torch=ANSI, lazyfx=ANSI),
        lambda d: d["modules"][0]["graph"]["nodes"][1].__setitem__(1, ANSI),
        lambda d: d["modules"][0]["graph"]["nodes"][1].__setitem__(2, ANSI),
        lambda d: d["modules"][0]["graph"]["nodes"][1][3].append(ANSI),
        lambda d: d["modules"][0]["graph"]["nodes"][1].append({ANSI: 1}),
        lambda d: d["modules"][0]["graph"].update(codegen={"codegen": ANSI}),
        lambda d: d["modules"][0]["graph"]["targets"].append({"fn": [ANSI, ANSI]}),
    ],
)
@pytest.mark.parametrize("option", [[], ["--no-code"], ["--json"]])
def test_what_a_file_says_cannot_talk_to_the_terminal(show, change, option):
    status, text, errors = show(fx.symbolic_trace(lambda x: x.relu()), *option, change=change)
    assert status in (0, 1)
    assert all(c.isprintable() or c == "\n" for c in text + errors)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["modules"][0].update(graph=[]),
        lambda d: d["modules"][0]["graph"].update(nodes=5),
        lambda d: d["modules"][0]["graph"].update(nodes=[[]]),
        lambda d: d["modules"][0]["graph"]["nodes"][1].__setitem__(3, [{"tensor": 99}]),
        lambda d: d["modules"][0]["graph"]["nodes"][1].__setitem__(3, [{"tensor": "x"}]),
        lambda d: d["modules"][0]["graph"]["nodes"][1].__setitem__(3, [{"module": []}]),
        lambda d: d["modules"][0]["graph"]["nodes"][1].__setitem__(2, "a b"),
        lambda d: d["modules"].append({"graph": None}),
        lambda d: d["modules"].append([]),
        lambda d: d.update(fakes=[]),
    ],
)
def test_a_graph_that_cannot_be_read_is_said_to_be_so(show, change):
    status, text, errors = show(fx.symbolic_trace(lambda x: x.relu()), change=change)
    assert status == 0, errors
    assert "graph 0" in text


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"\0" * 100, None], ids=["empty", "text", "zeros", "absent"]
)
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_file_that_is_no_archive_is_one_line_and_status_1(tmp_path, capsys, content, option):
    path = tmp_path / "broken"
    if content is not None:
        path.write_bytes(content)
    assert main(["show", *option, str(path)]) == 1
    seen = capsys.readouterr()
    assert seen.out == ""
    assert len(seen.err.splitlines()) == 1
    assert str(path) in seen.err


def test_it_runs_from_a_shell(tmp_path):
    path = tmp_path / "graph"
    save_graph(fx.symbolic_trace(nn.Sequential(nn.Linear(2, 1))), path)
    done = subprocess.run(
        [sys.executable, "-m", "lazyfx_core", "show", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0.weight  float32  1x2  cpu  8 B" in done.stdout
    assert len(load_graph(path).graph.nodes) == 3
