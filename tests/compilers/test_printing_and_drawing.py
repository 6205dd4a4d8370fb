"""What print_compile shows and draw_graph_compile writes."""

import io
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import (
    MissingDependencyError,
    UnknownOptionError,
    draw_graph_compile,
    print_compile,
)


@pytest.fixture
def gm():
    return make_fx(lambda x: (x.sin() + x.cos()) * 2)(torch.randn(3))


def test_print_compile_prints_the_readable_code(gm, capsys):
    print_compile(gm, [])
    shown = capsys.readouterr().out
    assert "torch.ops.aten.sin.default" in shown
    assert "def forward" in shown


def test_print_compile_takes_a_stream_and_a_label(gm, capsys):
    stream = io.StringIO()
    x = torch.randn(3)
    run = print_compile(stream=stream, label="my graph")(gm, [x])
    assert stream.getvalue().startswith("# my graph: inference, graph 0\n")
    assert capsys.readouterr().out == ""
    assert torch.equal(run([x]), gm(x))


def test_print_compile_tells_the_phases_apart_and_counts_the_graphs():
    from functorch.compile import aot_function

    stream = io.StringIO()
    run = aot_function(torch.sin, print_compile(stream=stream, label="sine"))
    run(torch.ones(2, requires_grad=True)).sum().backward()
    torch.compile(torch.cos, backend=print_compile(stream=stream, label="cosine"))(torch.ones(2))
    heads = [line for line in stream.getvalue().splitlines() if line.startswith("# ")]
    assert heads == [
        "# sine: forward, graph 0",
        "# sine: backward, graph 1",
        "# cosine: dynamo, graph 0",
    ]


def test_a_picture_has_every_node_and_edge_and_overwrites_nothing(gm, tmp_path):
    compiler = draw_graph_compile(tmp_path / "picture")
    compiler(gm, [])
    compiler(gm, [])
    first = ET.parse(tmp_path / "picture.svg").getroot()
    assert (tmp_path / "picture_1.svg").exists()
    text = [e.text for e in first.iter("{http://www.w3.org/2000/svg}text")]
    for node in gm.graph.nodes:
        assert node.name in text
    edges = sum(len(node.all_input_nodes) for node in gm.graph.nodes)
    paths = [p for p in first.iter("{http://www.w3.org/2000/svg}path") if p.get("marker-end")]
    assert len(paths) == edges


def test_boxes_do_not_overlap(gm, tmp_path):
    from lazyfx_compilers.draw import _BOX_HEIGHT, _layout

    graph = fx.Graph()
    x = graph.placeholder("x")
    for i in range(40):
        graph.create_node("call_function", torch.sin, (x,), name=f"a_rather_long_name_{i}")
    graph.output(x)
    boxes = list(_layout(graph).values())
    for i, (x1, y1, w1) in enumerate(boxes):
        for x2, y2, w2 in boxes[i + 1 :]:
            assert x1 + w1 <= x2 or x2 + w2 <= x1 or abs(y1 - y2) >= _BOX_HEIGHT


def test_hostile_names_are_text(tmp_path):
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.sin, (x,))
    node.name = '<script>"&\\'
    graph.output(node)
    gm = fx.GraphModule({}, graph)
    draw_graph_compile(tmp_path / "a.svg")(gm, [])
    root = ET.parse(tmp_path / "a.svg").getroot()
    assert node.name in [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    draw_graph_compile(tmp_path / "a.dot")(gm, [])
    assert '<script>\\"&\\\\' in (tmp_path / "a.dot").read_text()


def test_dot_files_need_no_program_and_programs_read_them(gm, tmp_path):
    draw_graph_compile(tmp_path / "a.dot")(gm, [])
    text = (tmp_path / "a.dot").read_text()
    assert text.startswith("digraph")
    assert text.count("->") == sum(len(n.all_input_nodes) for n in gm.graph.nodes)
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg", tmp_path / "a.dot", "-o", tmp_path / "b.svg"], check=True)
        draw_graph_compile(tmp_path / "c.png")(gm, [])
        assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_graphviz_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"'graphviz'.*apt-get install graphviz"):
        draw_graph_compile(tmp_path / "a.png")


def test_a_missing_networkx_is_named_with_the_command(gm, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(MissingDependencyError, match=r"'networkx'.*lazyfx-compilers\[draw\]"):
        draw_graph_compile(tmp_path / "a.svg")(gm, [])
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(UnknownOptionError, match=r"'\.jpeg'.*\.svg"):
        draw_graph_compile(tmp_path / "a.jpeg")


def test_what_is_no_path_is_named():
    with pytest.raises(UnknownOptionError, match="expected the path of a file, seen 3"):
        draw_graph_compile(3)
