"""One HTML file of graphs: what it holds, that nothing of it can run, that nothing is fetched.

What a browser makes of it is in test_html_in_chromium.py.
"""

import base64
import hashlib
import json
import operator
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import InvalidGraphError, UnknownOptionError, _liveness, nop
from lazyfx_core import NotAGraphModuleError
from lazyfx_tools.render import (
    Difference,
    difference_view,
    graph_view,
    render_html,
    write_html,
)
from lazyfx_tools.render._families import FAMILIES, family

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>",
    "\" onload='x' `${1}`",
    "\u202ecod.exe\u2066",
    "nul\0l",
    "half \ud800 pair",
    "\u2028\u2029",
    "{{DATA}} {{PROGRAM}} \\1 \\g<0>",
    "__proto__",
    "constructor",
    "ünïcödé 🙂",
    "&lt;script&gt;",
]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def halves():
    """Forward and backward of two blocks, as ``torch.compile`` makes them."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    found = {}

    def keep(phase):
        def compiler(gm, example_inputs):
            found[phase] = gm
            return make_boxed_func(gm.forward)

        return compiler

    torch.compiler.reset()
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    backend = aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward"))
    torch.compile(model, backend=backend)(torch.randn(4, 8, requires_grad=True)).sum().backward()
    return found


def views(halves):
    return [
        graph_view(gm, name=f"000_{phase}", phase=phase, compilation=0, code=code_of(gm))
        for phase, gm in halves.items()
    ]


def code_of(gm):
    return gm.print_readable(print_output=False)


def tiny(name="x"):
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4)
    node = graph.call_function(torch.ops.aten.sin.default, (x,))
    node.meta["val"] = torch.empty(4)
    node.name = name
    graph.output((node,))
    return fx.GraphModule({}, graph)


class Page(HTMLParser):
    """The tags of a page, and the text in each."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.current = [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(sorted(dict(attrs)))))
        self.attributes = dict(attrs)
        if self.attributes.get("http-equiv"):
            self.policy = self.attributes["content"]
        self.current = self.attributes.get("id") or tag

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", ()))
        self.current = None

    def handle_data(self, text):
        self.texts[self.current] = self.texts.get(self.current, "") + text

    @property
    def data(self):
        return json.loads(self.texts["data"])


# --- what is in a view ---------------------------------------------------------------------------


def test_a_view_has_every_node_with_what_it_reads(halves):
    gm = halves["backward"]
    view = graph_view(gm, name="b", phase="backward")
    nodes = list(gm.graph.nodes)
    assert view.names == tuple(node.name for node in nodes)
    assert view.kinds == tuple(node.op for node in nodes)
    for node, inputs in zip(nodes, view.inputs, strict=True):
        assert [view.names[place] for place in inputs] == [n.name for n in node.all_input_nodes]
    for node, value in zip(nodes, view.values, strict=True):
        tensor = node.meta.get("val")
        if isinstance(tensor, torch.Tensor):
            assert value.shape == str(list(tensor.shape))
            assert value.stride == str(list(tensor.stride()))
            assert value.dtype == str(tensor.dtype).removeprefix("torch.")
            assert value.nbytes == tensor.numel() * tensor.element_size()


def test_nodes_of_both_halves_know_their_module_and_line(halves):
    for view in views(halves):
        found = {path for path in view.modules if path}
        assert any(path[-1] == "up" for path in found)
        assert {path[0] for path in found} == {"0", "1"}
        assert "Linear" in view.module_classes.values()
        product = next(i for i, name in enumerate(view.targets) if "mm" in name)
        assert "self.down(" in view.lines[product] or "self.up(" in view.lines[product]
        assert "test_html.py" in view.traces[product]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("L['self'].layers.0.up", ("layers", "0", "up")),
        ("L['self']._modules['layers']._modules['0']", ("layers", "0")),
        ("L['self'].layers[3]", ("layers", "3")),
        ("encoder.layers.0", ("encoder", "layers", "0")),
        ("L['self']", ()),
        ("", ()),
        ("a.<img src=x>.b", ("a", "<img src=x>", "b")),
    ],
)
def test_paths_of_modules_are_read_as_each_tracer_writes_them(text, path):
    gm = tiny()
    next(n for n in gm.graph.nodes if n.op == "call_function").meta["nn_module_stack"] = {
        "1": (text, nn.Linear)
    }
    view = graph_view(gm, name="g")
    assert view.modules[1] == path


def test_lines_of_code_lead_to_nodes(halves):
    for view in views(halves):
        lines = view.code.split("\n")
        for name, kind, number in zip(view.names, view.kinds, view.code_lines, strict=True):
            if kind == "call_function":
                assert re.match(rf"\s+{name}\b.* = ", lines[number])
            elif kind == "placeholder":
                assert "def forward(" in lines[number]
                assert name in lines[number]
            else:
                assert lines[number].lstrip().startswith("return ")


def test_lines_of_a_subgraph_are_not_those_of_the_graph():
    def choose(x):
        return torch.cond(x.sum() > 0, lambda x: x.sin() + 1, lambda x: x.cos() + 1, [x])

    gm = make_fx(choose)(torch.ones(3))
    code = code_of(gm)
    view = graph_view(gm, name="g", code=code)
    nested = next(i for i, line in enumerate(code.split("\n")) if i > 1 and "class " in line)
    assert max(view.code_lines) < nested
    assert "control flow" in view.families


def test_every_operator_has_a_family():
    aten = torch.ops.aten
    expected = {
        aten.addmm.default: "matrix product",
        aten.convolution_backward.default: "matrix product",
        aten._scaled_dot_product_flash_attention_for_cpu.default: "attention",
        aten.native_layer_norm_backward.default: "normalization",
        aten._softmax_backward_data.default: "normalization",
        aten.native_dropout.default: "random",
        aten.sum.dim_IntList: "reduction",
        aten.view.default: "view",
        operator.getitem: "view",
        aten.embedding_dense_backward.default: "copy or index",
        aten._to_copy.default: "copy or index",
        aten.gelu_backward.default: "pointwise",
        aten.add_.Tensor: "pointwise",
        operator.iadd: "pointwise",
        torch.nn.functional.linear: "matrix product",
        torch.ops.higher_order.cond: "control flow",
        print: "other",
        "__proto__": "other",
        "a" * 10_000: "other",
    }
    assert {target: family("call_function", target) for target in expected} == expected
    assert family("placeholder", "sum") == "input"
    assert set(expected.values()) <= set(FAMILIES)


# --- memory --------------------------------------------------------------------------------------


def test_memory_is_what_the_allocator_says(halves, most_bytes_at_a_time):
    forward = halves["forward"]
    view = graph_view(forward, name="f", phase="forward")
    inputs = [torch.randn(n.meta["val"].shape) for n in _liveness.inputs(forward.graph)]
    run = nop(forward, inputs)
    kept = []
    assert most_bytes_at_a_time(lambda: kept.append(run(list(inputs)))) == max(view.memory.live)


def test_memory_of_a_backward_begins_with_what_is_saved(halves):
    gm = halves["backward"]
    view = graph_view(gm, name="b", phase="backward")
    handed = {}
    for node in _liveness.inputs(gm.graph):
        if not node.name.startswith("primals"):
            storage = node.meta["val"].untyped_storage()
            handed[storage._cdata] = storage.nbytes()
    assert view.memory.live[0] == sum(handed.values())
    alone = graph_view(gm, name="b", phase="inference")
    assert max(alone.memory.live) < max(view.memory.live)


def test_what_is_in_memory_at_a_step_adds_up_to_the_timeline(halves):
    for view in views(halves):
        memory = view.memory
        spans = list(zip(memory.sizes, memory.first, memory.last, memory.counted, strict=True))
        for step, live in enumerate(memory.live):
            there = sum(n for n, first, last, counts in spans if counts and first <= step <= last)
            assert there == live


def test_memory_of_a_graph_that_says_nothing_about_tensors_is_not_known():
    view = graph_view(fx.symbolic_trace(lambda x: x + 1), name="g")
    assert view.memory is None
    assert {value.nbytes for value in view.values} == {None}


# --- what is in the page -------------------------------------------------------------------------


def test_the_page_holds_the_views(halves):
    page = Page(render_html(views(halves), title="two blocks", environment={"torch": "2"})).data
    strings = page["strings"]
    assert page["title"] == "two blocks"
    assert page["environment"] == [["torch", "2"]]
    for graph, (phase, gm) in zip(page["graphs"], halves.items(), strict=True):
        assert graph["phase"] == phase
        assert [strings[i] for i in graph["names"]] == [node.name for node in gm.graph.nodes]
        for column in ("kinds", "targets", "inputs", "modules", "code_lines", "nbytes", "meta"):
            assert len(graph[column]) == len(gm.graph.nodes)


def test_the_same_graphs_make_the_same_page(halves):
    pages = {render_html(views(halves), title="t") for _ in range(2)}
    assert len(pages) == 1


def test_only_the_one_program_and_the_one_style_may_run_and_nothing_is_fetched(halves):
    text = render_html(views(halves), title="t")
    page = Page(text)
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    for source, content in (
        ("script-src", page.texts["script"]),
        ("style-src", page.texts["style"]),
    ):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(source) == f"'sha256-{digest}'"
    assert rules == {"base-uri": "'none'", "form-action": "'none'"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {"src", "href", "style", "onload"} & names
    assert not re.search(r"url\(|@import|https?:", page.texts["style"])
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(|fetch\("
        r"|XMLHttpRequest|import\(|localStorage|https?:",
        page.texts["script"],
    )


@pytest.mark.parametrize("text", [*HOSTILE, "x" * 1_000_000], ids=range(len(HOSTILE) + 1))
def test_whatever_a_text_says_the_page_has_the_same_elements(text):
    plain = Page(render_html([graph_view(tiny(), name="g")], title="t"))
    gm = tiny(text)
    node = next(n for n in gm.graph.nodes if n.op == "call_function")
    node.meta.update(
        stack_trace=f'  File "{text}", line 1, in {text}\n    {text}\n',
        nn_module_stack={"1": (text, text)},
        note=text,
    )
    node.kwargs = {"out": text}
    node.target = text
    node.op = "call_method"
    view = graph_view(gm, name=text, phase=text, code=text)
    difference = Difference(old=text, new=text, pairs=[(text, text)], changed={text: [text]})
    written = render_html([view], title=text, differences=[difference], environment={text: text})
    page = Page(written)
    assert page.tags == plain.tags
    data = page.data
    assert data["title"] == text
    graph = data["graphs"][0]
    assert graph["name"] == graph["code"] == graph["phase"] == text
    assert [data["strings"][i] for i in graph["names"]] == ["x", text, "output"]
    assert data["differences"][0]["changed"] == [[1, [text]]]
    assert not re.search(r"[<>&\u2028\u2029]", page.texts["data"])
    written.encode("utf-8")


def test_numbers_that_json_does_not_have_are_texts_or_refused():
    gm = tiny()
    node = next(n for n in gm.graph.nodes if n.op == "call_function")
    node.kwargs = {"a": float("nan"), "b": -float("inf"), "c": 10**400, "d": 10**5000, "e": -1j}
    node.meta.update(a=float("nan"), b=10**5000)
    page = Page(render_html([graph_view(gm, name="g")], title="t")).data
    arguments = page["strings"][page["graphs"][0]["arguments"][1]]
    assert arguments.startswith("x, a=nan, b=-inf, c=1000")
    assert arguments.endswith("d=<int>, e=(-0-1j)")  # Python writes no int of 5000 digits


# --- graphs of all kinds -------------------------------------------------------------------------


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no")


def odd_meta():
    gm = tiny()
    x, node, _ = gm.graph.nodes
    x.meta["val"] = (torch.ones(2), None, [torch.ones(3, dtype=torch.int64)], 4, "text")
    node.meta["val"] = torch.eye(3).to_sparse()
    node.meta["stack_trace"] = 7
    node.meta["nn_module_stack"] = "text"
    node.meta[("a", "key")] = Unspeakable()
    return gm


def odd_values():
    gm = tiny()
    _, node, _ = gm.graph.nodes
    node.kwargs = {"a": slice(None, 3), "b": {"k": [1, (2,)]}}
    node.meta["recompute"] = node.meta["val"] = Unspeakable()
    node.type = Unspeakable()
    return gm


def without_output():
    graph = fx.Graph()
    graph.call_function(torch.sin, (graph.placeholder("x"),))
    return fx.GraphModule({}, graph)


ODD = {
    "empty": lambda: fx.GraphModule({}, fx.Graph()),
    "no output": without_output,
    "modules": lambda: fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
    "attributes": lambda: make_fx(lambda x: x + torch.ones(2))(torch.ones(2)),
    "odd meta": odd_meta,
    "odd values": odd_values,
}


@pytest.mark.parametrize("kind", ODD)
def test_any_graph_can_be_shown(kind):
    gm = ODD[kind]()
    view = graph_view(gm, name=kind)
    assert len(view.names) == len(gm.graph.nodes)
    assert Page(render_html([view], title=kind)).data["graphs"][0]["name"] == kind


def test_a_stack_that_is_none_does_not_take_for_ever():
    gm = tiny()
    node = next(n for n in gm.graph.nodes if n.op == "call_function")
    node.meta["stack_trace"] = 'File "' * 300_000
    assert graph_view(gm, name="g").lines == ("", "", "")


def test_a_page_without_graphs_says_so():
    assert Page(render_html([], title="none")).data["graphs"] == []


def test_symbolic_sizes_are_shown_and_counted_by_what_they_stood_for():
    gm = make_fx(lambda x: (x * 2).view(x.shape[0] * x.shape[1]), tracing_mode="symbolic")(
        torch.ones(6, 5)
    )
    view = graph_view(gm, name="g")
    product = view.families.index("pointwise")
    assert view.values[product].nbytes == 6 * 5 * 4
    assert re.fullmatch(r"\[s\w+, s\w+\]", view.values[product].shape)
    assert "SymInt" in {value.dtype for value in view.values}
    assert max(view.memory.live) >= 6 * 5 * 4


def test_a_graph_of_dynamo_shows_what_it_recorded():
    seen = []

    def backend(gm, example_inputs):
        seen.append(graph_view(gm, name="dynamo", code=code_of(gm)))
        return gm.forward

    torch.compile(Block(), backend=backend)(torch.randn(4, 8))
    (view,) = seen
    assert "[4, 32]" in {value.shape for value in view.values}
    assert "matrix product" in view.families
    assert any(path[-1:] == ("up",) for path in view.modules)
    assert view.memory is None


def test_nothing_of_the_graph_is_changed(halves):
    gm = halves["forward"]
    before = (code_of(gm), [dict(node.meta) for node in gm.graph.nodes])
    render_html([graph_view(gm, name="g", phase="forward", code=code_of(gm))], title="t")
    after = (code_of(gm), [dict(node.meta) for node in gm.graph.nodes])
    assert before[0] == after[0]
    assert all(a.keys() == b.keys() for a, b in zip(before[1], after[1], strict=True))
    assert all(a[k] is b[k] for a, b in zip(before[1], after[1], strict=True) for k in a)


def test_the_page_grows_with_the_graph_and_not_with_its_square():
    def chain(length):
        graph = fx.Graph()
        node = graph.placeholder("x")
        trace = '  File "/model.py", line 3, in forward\n    x = x.sin()\n'
        for _ in range(length):
            node = graph.call_function(torch.ops.aten.sin.default, (node,))
            node.meta.update(val=torch.empty(4, device="meta"), stack_trace=trace * 10)
        graph.output(node)
        return len(render_html([graph_view(fx.GraphModule({}, graph), name="g")], title="t"))

    empty, small, large = chain(0), chain(100), chain(1000)
    assert large - empty < 11 * (small - empty)


# --- what is refused, and writing ----------------------------------------------------------------


def test_times_are_shown_and_checked():
    gm = tiny("sine")
    view = graph_view(gm, name="g", times={"sine": 0.5})
    assert view.seconds == (None, 0.5, None)
    with pytest.raises(InvalidGraphError, match="no node 'cosine'"):
        graph_view(gm, name="g", times={"cosine": 0.5})
    for wrong in (float("nan"), -1.0, float("inf"), "1"):
        with pytest.raises(InvalidGraphError, match="time of node 'sine'"):
            graph_view(gm, name="g", times={"sine": wrong})


def test_graphs_need_names_of_their_own():
    view = graph_view(tiny(), name="g")
    with pytest.raises(UnknownOptionError, match="more than one is named 'g'"):
        render_html([view, view], title="t")


@pytest.mark.parametrize(
    "wrong", ["old", "new", "pairs", "added", "removed", "changed", "rewired", "inherited", "moved"]
)
def test_a_difference_names_what_is_on_the_page(wrong):
    view = graph_view(tiny("sine"), name="g")
    good = {"old": "g", "new": "g", "pairs": [("sine", "sine")]}
    bad = {
        "old": "h",
        "new": "h",
        "pairs": [("sine", "cosine")],
        "changed": {"cosine": ["dtype"]},
        "rewired": {"cosine": ["dtype"]},
        "inherited": {"cosine": ["dtype"]},
    }.get(wrong, ["cosine"])
    render_html([view], title="t", differences=[Difference(**good)])
    with pytest.raises(InvalidGraphError, match=r"no graph is named 'h'|no node 'cosine'"):
        render_html([view], title="t", differences=[Difference(**{**good, wrong: bad})])


def test_what_diff_graphs_finds_is_shown():
    diff_graphs = pytest.importorskip("lazyfx_tools.diff").diff_graphs
    old = make_fx(lambda x, y: (x.sin() + y).sum(0))(torch.ones(3, 4), torch.ones(3, 4))
    new = make_fx(lambda x, y: (x.sin().exp() + y).sum(1))(torch.ones(3, 4), torch.ones(3, 4))
    found = diff_graphs(old, new)
    difference = difference_view(found, old="before", new="after")
    graphs = [graph_view(old, name="before"), graph_view(new, name="after")]
    data = Page(render_html(graphs, title="t", differences=[difference])).data
    (shown,) = data["differences"]
    names = [data["strings"][i] for i in data["graphs"][1]["names"]]
    assert [names[i] for i in shown["added"]] == [one.name for one in found.added] == ["exp"]
    assert len(shown["pairs"]) == len(found.matched)
    texts = [text for _, one in shown["changed"] for text in one]
    assert any("[0]" in text and "[1]" in text for text in texts)
    assert any("sin" in text and "exp" in text for _, one in shown["rewired"] for text in one)


def test_an_editor_is_an_address_that_runs_nothing():
    for good in (None, "vscode://file/{file}:{line}", "pycharm://open?file={file}&line={line}"):
        render_html([], title="t", editor=good)
    for wrong in ("javascript:alert(1)", "data:text/html,x", "JavaScript:x", "", "code {file}"):
        with pytest.raises(UnknownOptionError, match="expected an address like 'vscode"):
            render_html([], title="t", editor=wrong)


def test_a_file_is_written_in_one_step_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")
    assert write_html(path, [graph_view(tiny(), name="g")], title="t") == path
    written = path.read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>")
    write_html(path, iter([graph_view(tiny(), name="g")]), title="t")
    assert path.read_text(encoding="utf-8") == written
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UnknownOptionError):
        write_html(path, [], title="t", editor="javascript:")
    assert path.read_text(encoding="utf-8") == written
    with pytest.raises(OSError, match="missing"):
        write_html(tmp_path / "missing" / "page.html", [], title="t")


def test_every_file_of_the_program_is_used():
    import importlib.resources

    from lazyfx_tools.render import html

    folder = importlib.resources.files("lazyfx_tools.render") / "viewer"
    there = {file.name for file in folder.iterdir() if file.name.endswith(".js")}
    assert there == set(html.SCRIPTS)
    assert len(html.SCRIPTS) == len(set(html.SCRIPTS))


def test_what_is_no_graph_and_no_view_is_named(tmp_path):
    with pytest.raises(NotAGraphModuleError, match=r"graph_view\(gm\) takes.*Linear"):
        graph_view(nn.Linear(1, 1), name="one")
    with pytest.raises(TypeError, match=r"expected GraphViews, seen .*; make one with graph_view"):
        write_html(tmp_path / "page.html", [fx.symbolic_trace(nn.Linear(1, 1))], title="one")
    assert not list(tmp_path.iterdir())
