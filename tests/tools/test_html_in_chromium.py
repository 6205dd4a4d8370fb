"""What a real browser makes of the HTML file: every view works, and nothing hostile does.

Chromium is driven over a pipe with the protocol of its developer tools, so nothing but a Chromium
is needed. Where there is none these tests are skipped; test_html.py needs no browser.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import zlib
from urllib.parse import quote

import pytest
import torch
from torch import fx

from lazyfx_tools.render import Difference, graph_view, write_html
from lazyfx_tools.render.html import SCRIPTS

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the PATH"),
]

# what the program becomes on its third and fourth descriptor, where Chromium expects the pipes
_EXEC = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 3); os.dup2(w, 4); "
_EXEC += "os.execv(sys.argv[3], sys.argv[3:])"


class Browser:
    """A Chromium with one page."""

    def __init__(self, profile):
        to_read, self._send = os.pipe()
        self._receive, to_write = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        options += [f"--user-data-dir={profile}", "--window-size=1280,800", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(to_read), str(to_write), PROGRAM, *options],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number, self._session = b"", 0, None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=1280,
            height=800,
            deviceScaleFactor=1,
            mobile=False,
        )

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._send, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        while b"\0" not in self._buffer:
            assert select.select([self._receive], [], [], 60)[0], "Chromium does not answer"
            more = os.read(self._receive, 1 << 16)
            assert more, "Chromium ended"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def run(self, code):
        """The value of an expression of JavaScript; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path, address=""):
        """A fresh page from a file, painted."""
        for url in ("about:blank", f"file://{quote(str(path))}{address}"):
            self.events.clear()
            self.call("Page.navigate", url=url)
            while not any(one.get("method") == "Page.loadEventFired" for one in self.events):
                self.events.append(self._next())
        self.settle()

    def settle(self):
        """Wait until what was asked for is painted."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def problems(self):
        """Errors, violations of the policy, and what was fetched besides the file."""
        self.run("1")
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        found = [one for one in self.events if one.get("method") in kinds]
        asked = [one for one in self.events if one.get("method") == "Network.requestWillBeSent"]
        return found + asked[1:]

    def click(self, text, within="body"):
        """Click the first button that shows the text."""
        buttons = f"[...document.querySelector({within!r}).querySelectorAll('button')]"
        self.run(f"{buttons}.find((one) => one.textContent === {json.dumps(text)}).click()")
        self.settle()

    def text(self, selector):
        return self.run(f"document.querySelector({selector!r})?.innerText ?? null")

    def colors(self):
        """How many colors there are on the canvas."""
        return self.run(
            """(() => {
              const canvas = document.querySelector("canvas");
              const { width, height } = canvas;
              const copy = new OffscreenCanvas(width, height).getContext("2d");
              copy.drawImage(canvas, 0, 0);
              const { data } = copy.getImageData(0, 0, width, height);
              return new Set(new Uint32Array(data.buffer)).size;
            })()"""
        )

    def close(self):
        with contextlib.suppress(BrokenPipeError, AssertionError):
            self._session = None
            self.call("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._send)
        os.close(self._receive)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


def layered(blocks=3, prefix="", skip=None):
    """A residual network as AOTAutograd would trace it: modules, lines, tensors."""
    graph = fx.Graph()
    value = torch.empty(8, 16, device="meta")

    def node(target, args, path, line, name=None):
        made = graph.create_node("call_function", target, args, name=name)
        made.meta["val"] = torch.empty(8, 16, device="meta")
        made.meta["stack_trace"] = (
            f'  File "/home/me/model.py", line {line}, in forward\n    line {line}\n'
        )
        parts = path.split(".")
        made.meta["nn_module_stack"] = {
            str(i): (f"L['self'].{'.'.join(parts[: i + 1])}", "torch.nn.Module")
            for i in range(len(parts))
        }
        return made

    aten = torch.ops.aten
    x = graph.placeholder("x")
    x.meta["val"] = value
    for i in range(blocks):
        weight = graph.placeholder(f"weight_{i}")
        weight.meta["val"] = torch.empty(16, 16, device="meta")
        path = f"{prefix}layers.{i}"
        hidden = node(aten.mm.default, (x, weight), f"{path}.linear", 10, f"product_{i}")
        if i != skip:
            hidden = node(aten.relu.default, (hidden,), f"{path}.act", 11, f"relu_{i}")
        x = node(aten.add.Tensor, (x, hidden), path, 12, f"sum_{i}")
    graph.output((x,))
    return fx.GraphModule({}, graph)


def code_of(gm):
    return gm.print_readable(print_output=False)


def views():
    one, other = layered(), layered(skip=1)
    return [
        graph_view(
            one, name="a/forward", phase="forward", code=code_of(one), times={"product_1": 0.25}
        ),
        graph_view(other, name="b/forward", phase="forward", code=code_of(other)),
    ]


DIFFERENCE = Difference(
    old="a/forward",
    new="b/forward",
    pairs=[
        (name, name)
        for name in (
            *("x", "weight_0", "weight_1", "weight_2", "product_0", "relu_0", "sum_0"),
            *("product_1", "sum_1", "product_2", "relu_2", "sum_2", "output"),
        )
    ],
    removed=["relu_1"],
    changed={"product_2": ["dtype: float32 → float64"]},
    rewired={"sum_1": ["args[1]: relu_1 → product_1"]},
    inherited={"relu_2": ["dtype: float32 → float64"]},
    moved=["sum_2"],
    notes=["inputs: 3 → 4"],
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with space #1 ü")
    return write_html(
        folder / "page.html",
        views(),
        title="two stages",
        differences=[DIFFERENCE],
        environment={"torch": torch.__version__},
    )


def test_the_overview_lists_graphs_differences_and_environment(browser, page):
    browser.open(page)
    text = browser.text("#view")
    for expected in ("two stages", "a/forward", "b/forward", "difference 1", torch.__version__):
        assert expected in text
    assert browser.problems() == []


def test_every_view_opens_from_disk_without_an_error_or_a_request(browser, page):
    for view, expected in (
        ("graph", "Color by"),
        ("code", "torch.ops.aten.mm.default"),
        ("tensors", "13 values"),
        ("memory", "in use at step"),
    ):
        browser.open(page, f"#{quote('a/forward', safe='')}/{view}/sum_1")
        assert expected in browser.text("#view")
        assert browser.text("#details h2") == "sum_1"
        assert browser.problems() == []
    browser.open(page, "#~difference/0")
    assert "args[1]: relu_1 → product_1" in browser.text("#view")
    assert browser.problems() == []


def test_an_address_leads_back_to_where_it_came_from(browser, page):
    browser.open(page)
    browser.click("a/forward", "#view")
    browser.click("Tensors")
    browser.click("product_0", "#view")
    address = browser.run("location.hash")
    assert address == "#a%2Fforward/tensors/product_0"
    browser.open(page, address)
    assert browser.text("#details h2") == "product_0"
    assert browser.text("tr.selected td:nth-child(2)") == "product_0"
    browser.open(page, "#a%2Fforward/graph/product_0")
    browser.click("Tensors")
    browser.click("relu_1", "#view")
    browser.run("new Promise((done) => { onpopstate = () => done(1); history.back(); })")
    assert browser.run("location.hash") == "#a%2Fforward/graph/product_0"
    for wrong in ("#nothing", "#%", "#a%2Fforward/graph/nothing", "#~difference/9", "#~9/code/~9"):
        browser.open(page, wrong)
        assert browser.problems() == []
    browser.open(page, "#a%2Fforward/sum_2")
    assert browser.text("#details h2") == "sum_2"


def test_a_node_shows_what_is_known_and_its_neighbors_are_one_click_away(browser, page):
    browser.open(page, "#a%2Fforward/graph/product_1")
    details = browser.text("#details")
    for expected in ("aten.mm.default", "[8, 16]", "float32", "meta", "512 bytes", "250 ms"):
        assert expected in details
    assert "layers \u203a 1" in " ".join(details.split())
    assert browser.run("document.querySelector('#details a.line').href") == (
        "vscode://file/home/me/model.py:10"
    )
    browser.click("relu_1", "#details")
    assert browser.text("#details h2") == "relu_1"
    browser.click("Show in code", "#details")
    assert "relu_1" in browser.text(".row.selected")
    browser.run("document.querySelectorAll('.row.node')[0].click()")
    assert browser.text("#details h2") == "product_0"
    browser.click("Show in graph", "#details")
    assert browser.run("location.hash") == "#a%2Fforward/graph/product_0"
    assert browser.problems() == []


def test_search_goes_through_what_it_finds_and_opens_modules_around_it(browser, page):
    browser.open(page, "#a%2Fforward/graph")
    browser.click("Close all")
    browser.run(
        """new Promise((done) => {
          const input = document.querySelector(".search input");
          input.value = "op:relu";
          input.dispatchEvent(new Event("input"));
          const status = document.querySelector(".found");
          new MutationObserver(done).observe(status, { childList: true });
        })"""
    )
    assert browser.text(".found") == "3 found"
    seen = []
    for key in ("Enter", "Enter", "Enter", "Enter"):
        browser.run(
            "document.querySelector('.search input').dispatchEvent("
            f"new KeyboardEvent('keydown', {{ key: {key!r} }}))"
        )
        seen.append((browser.text("#details h2"), browser.text(".found")))
    assert seen == [
        ("relu_0", "1 of 3"),
        ("relu_1", "2 of 3"),
        ("relu_2", "3 of 3"),
        ("relu_0", "1 of 3"),
    ]
    assert browser.problems() == []


def test_the_picture_is_painted_and_each_coloring_changes_it(browser, page):
    browser.open(page, "#a%2Fforward/graph")
    browser.click("Open all")
    pictures = set()
    for mode in ("family", "bytes", "time", "difference0"):
        browser.run(
            "(() => { const one = document.querySelector('select');"
            f"one.value = {mode!r}; one.dispatchEvent(new Event('change')); }})()"
        )
        browser.settle()
        assert browser.colors() > 20
        shot = browser.call("Page.captureScreenshot", format="png")["data"]
        pictures.add(zlib.crc32(base64.b64decode(shot)))
    assert len(pictures) == 4
    assert browser.problems() == []


def test_the_picture_moves_with_mouse_and_keys(browser, page):
    browser.open(page, "#a%2Fforward/graph")
    seen = {browser.call("Page.captureScreenshot", format="png")["data"]}

    def mouse(kind, x, y, **more):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", **more)

    def looks_new():
        browser.settle()
        seen.add(browser.call("Page.captureScreenshot", format="png")["data"])
        return len(seen)

    mouse("mouseWheel", 700, 400, deltaX=0, deltaY=-120)
    assert looks_new() == 2
    mouse("mousePressed", 300, 700, clickCount=1)
    mouse("mouseMoved", 340, 650, buttons=1)
    mouse("mouseReleased", 340, 650, clickCount=1)
    assert looks_new() == 3
    browser.run("document.querySelector('canvas').focus()")
    for number, key in enumerate(("ArrowDown", "-", "n"), start=4):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert looks_new() == number
    assert browser.text("#details h2") == "x"
    assert browser.problems() == []


def test_a_module_opens_and_closes(browser, page):
    browser.open(page, "#a%2Fforward/graph/relu_1")
    browser.click("1", "#details dl")
    assert browser.text("#details h2") == "layers.1"
    assert "4" in browser.text("#details dl")  # nodes: its weight, product, relu and sum
    browser.click("Close", "#details")
    closed = browser.colors()
    browser.click("Open", "#details")
    assert browser.colors() != closed
    assert browser.problems() == []


def test_the_table_of_tensors_sorts_and_filters(browser, page):
    browser.open(page, "#a%2Fforward/tensors")
    names = "[...document.querySelectorAll('tbody tr td:nth-child(2)')].map((one) => one.innerText)"
    assert browser.run(names)[:3] == ["weight_0", "weight_1", "weight_2"]  # the largest first
    browser.click("name", "thead")
    assert browser.run(names) == sorted(browser.run(names))
    browser.run(
        """new Promise((done) => {
          const input = document.querySelector(".search input");
          input.value = "layers.2";
          input.dispatchEvent(new Event("input"));
          new MutationObserver(done).observe(document.querySelector(".found"), { childList: true });
        })"""
    )
    assert browser.run(names) == ["product_2", "relu_2", "sum_2"]
    assert browser.problems() == []


def test_memory_shows_its_peak_and_what_is_in_it(browser, page):
    (view, _) = views()
    browser.open(page, "#a%2Fforward/memory")
    peak = max(view.memory.live)
    step = view.memory.live.index(peak)
    assert f"step {step}" in browser.text(".memory-view h3")
    assert "(the peak)" in browser.text(".memory-view h3")
    browser.run("document.querySelector('canvas').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    assert f"step {step - 1}" in browser.text(".memory-view h3")
    assert browser.problems() == []


def test_a_difference_shows_what_was_added_removed_changed_and_moved(browser, page):
    browser.open(page, "#~difference/0")
    rows = browser.run(
        "[...document.querySelectorAll('tbody tr')].map((one) => [one.className, one.innerText])"
    )
    assert "inputs: 3 → 4" in browser.text("#view")
    kinds = [kind for kind, _ in rows if kind not in ("same", "skipped")]
    assert kinds == ["removed", "rewired", "changed", "inherited", "moved"]
    by_kind = dict(rows)
    assert "relu_1" in by_kind["removed"]
    assert "relu_1 → product_1" in by_kind["rewired"]
    assert "float32 → float64" in by_kind["changed"]
    assert "sum_2" in by_kind["moved"]
    browser.click("sum_1", "tr.rewired")
    assert browser.text("#details h2") == "sum_1"
    assert "rewired" in browser.text("#details")
    assert browser.problems() == []


# --- the layout, by itself -----------------------------------------------------------------------

LAYOUT = """(() => {
  %s
  const page = readPage();
  return page.graphs.map((graph) => {
    const nesting = buildNesting(graph);
    return [openAtFirst(nesting), new Set([nesting.root]), new Set(nesting.groups)].map((open) => {
      const layout = computeLayout(graph, nesting, open, () => 120);
      const box = ({ item, x, y, w, h }) => [item, x, y, w, h];
      return {
        items: layout.items.map(box),
        frames: layout.groups.map((one) =>
          [...box(one), one.group.parent?.index ?? -1, one.group.index]),
        homes: layout.items.map((one) =>
          one.group ? one.group.parent.index : nesting.home[one.item].index),
        inside: nesting.groups.map((one) => one.count),
        size: graph.size,
      };
    });
  });
})()"""


def layouts(browser, tmp_path, graphs):
    import importlib.resources

    folder = importlib.resources.files("lazyfx_tools.render") / "viewer"
    wanted = ("text.js", "data.js", "nesting.js", "layout.js")
    assert set(wanted) < set(SCRIPTS)
    code = "\n".join((folder / name).read_text(encoding="utf-8") for name in wanted)
    made = [graph_view(gm, name=str(i)) for i, gm in enumerate(graphs)]
    browser.open(write_html(tmp_path / "page.html", made, title="t"))
    return browser.run(LAYOUT % code)


def random_graph(seed, nodes=120):
    """Any shape of graph, with modules that use each other back and forth."""
    generator = torch.Generator().manual_seed(seed)

    def draw(limit):
        return int(torch.randint(limit, (), generator=generator))

    graph = fx.Graph()
    known = [graph.placeholder(f"x{i}") for i in range(1 + draw(5))]
    for _ in range(nodes):
        args = tuple(known[-1 - draw(min(len(known), 1 + draw(30)))] for _ in range(1 + draw(3)))
        node = graph.call_function(torch.sin, args)
        depth = draw(4)
        path = ".".join(str(draw(3)) for _ in range(depth))
        if depth:
            node.meta["nn_module_stack"] = {"0": (f"L['self'].{path}", "M")}
            node.meta["stack_trace"] = '  File "/m.py", line 1, in f\n    x\n'
        known.append(node)
    graph.output(tuple(known[-1 - draw(20)] for _ in range(draw(6))))
    return fx.GraphModule({}, graph)


def test_boxes_do_not_overlap_and_lie_in_the_boxes_of_their_modules(browser, tmp_path):
    graphs = [layered(), fx.GraphModule({}, fx.Graph()), *(random_graph(seed) for seed in range(8))]
    for states in layouts(browser, tmp_path, graphs):
        for state in states:
            frames = {index: (x, y, w, h) for _, x, y, w, h, _, index in state["frames"]}
            inside = {}  # of each open module
            for (_, *box), home in zip(state["items"], state["homes"], strict=True):
                inside.setdefault(home, []).append(box)
            for _, x, y, w, h, parent, _ in state["frames"]:
                if parent >= 0:
                    inside.setdefault(parent, []).append([x, y, w, h])
            for home, boxes in inside.items():
                fx_, fy, fw, fh = frames[home]
                for i, (x, y, w, h) in enumerate(boxes):
                    assert fx_ <= x
                    assert fy <= y
                    assert x + w <= fx_ + fw + 1e-6
                    assert y + h <= fy + fh + 1e-6
                    for x2, y2, w2, h2 in boxes[i + 1 :]:
                        assert (
                            x + w <= x2 + 1e-6
                            or x2 + w2 <= x + 1e-6
                            or y + h <= y2 + 1e-6
                            or y2 + h2 <= y + 1e-6
                        )


def test_every_node_is_seen_once_by_itself_or_in_a_closed_module(browser, tmp_path):
    for states in layouts(browser, tmp_path, [layered(), *(random_graph(s) for s in range(4))]):
        for state in states:
            nodes = [item for item, *_ in state["items"] if item < state["size"]]
            closed = [item - state["size"] for item, *_ in state["items"] if item >= state["size"]]
            assert len(nodes) + sum(state["inside"][one] for one in closed) == state["size"]
            assert len(set(nodes)) == len(nodes)
        assert len(states[2]["items"]) == states[2]["size"]  # all open


def test_lines_go_downwards_where_modules_do_not_use_each_other_back_and_forth(browser, tmp_path):
    ((_, _, everything),) = layouts(browser, tmp_path, [layered(6)])
    boxes = {item: (x, y, w, h) for item, x, y, w, h in everything["items"]}
    names = [node.name for node in layered(6).graph.nodes]
    for node in layered(6).graph.nodes:
        for source in node.all_input_nodes:
            _, above, _, height = boxes[names.index(source.name)]
            assert above + height < boxes[names.index(node.name)][1]


# --- hostile content -----------------------------------------------------------------------------


def test_hostile_texts_are_text_in_every_view(browser, tmp_path):
    texts = [
        "</script><script>window.hacked = 1</script>",
        "<img src=x onerror='window.hacked = 1'>",
        "<svg onload=window.hacked=1>",
        "javascript:window.hacked=1",
        "\u202egnp.exe",
        "nul\0l",
        "half \ud800 pair",
        "__proto__",
        "constructor",
        "a/b#c?d",
        "~0",
        "%",
        " ",
        "x" * 1_000_000,
    ]
    graph = fx.Graph()
    value = graph.placeholder("x")
    value.meta["val"] = torch.empty(4)
    for text in texts:
        value = graph.call_function(torch.ops.aten.sin.default, (value,), {"out": text})
        value.name = text
        value.meta.update(
            val=torch.empty(4),
            stack_trace=f'  File "/{text}", line 1, in {text}\n    {text}\n',
            nn_module_stack={"0": (f"m.{text}", text)},
        )
        value.meta[text] = text
    graph.output(value)
    gm = fx.GraphModule({}, graph)
    code = "def forward(self, x):\n" + "\n".join(f"    a = {text}  # {text}" for text in texts)
    made = [
        graph_view(gm, name=name, phase=name, code=code)
        for name in (texts[0], texts[1], texts[6], "~0", "__proto__")
    ]
    same = Difference(
        old=texts[0],
        new=texts[1],
        pairs=[(text, text) for text in texts[2:]],
        removed=texts[:1],
        added=texts[1:2],
        changed=dict.fromkeys(texts[3:6], texts),
    )
    path = write_html(
        tmp_path / "page.html",
        made,
        title=texts[0],
        differences=[same],
        environment=dict.fromkeys(texts, texts[1]),
    )
    browser.open(path)
    assert "<img src=x onerror='window.hacked = 1'>" in browser.text("#view")
    shown = {4: "\\u202egnp.exe", 5: "nul\\u0000l", 6: "half \\ud800 pair"}
    shown |= {12: "", 13: "x" * 199 + "…"}
    for view in ("graph", "code", "tensors", "memory"):
        for number, text in enumerate(texts):
            browser.run(f"location.hash = '#~0/{view}/~{number + 1}'; 1")
            browser.settle()
            assert browser.text("#details h2") == shown.get(number, text)
        for number in range(1, len(made)):
            browser.run(f"location.hash = '#~{number}/{view}/~2'; 1")
            browser.settle()
            assert browser.text("#details h2") == texts[1]
    browser.run("location.hash = '#~difference/0'; 1")
    browser.settle()
    assert "<svg onload=window.hacked=1>" in browser.text("#view")
    assert browser.run("window.hacked ?? null") is None
    assert (
        browser.run("document.querySelectorAll('img, svg, iframe, script:not([id])').length") == 1
    )
    links = browser.run("[...document.querySelectorAll('a')].map((one) => one.protocol)")
    assert set(links) <= {"vscode:"}
    assert browser.problems() == []


def test_markup_that_got_onto_the_page_would_not_run(browser, page):
    browser.open(page)
    browser.run(
        """document.body.insertAdjacentHTML("beforeend",
          "<img src='https://example.com/x.png' onerror='window.hacked = 1'>" +
          "<iframe src='javascript:parent.hacked = 1'></iframe>");
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);"""
    )
    browser.settle()
    assert browser.run("window.hacked ?? null") is None
    refused = [one for one in browser.problems() if one["method"] == "Log.entryAdded"]
    assert refused
    assert all("Content Security Policy" in one["params"]["entry"]["text"] for one in refused)


def test_ten_thousand_nodes_open_search_and_paint(browser, tmp_path):
    gm = layered(3400, prefix="model.")
    code = code_of(gm)
    path = write_html(
        tmp_path / "page.html",
        [graph_view(gm, name="large", phase="forward", code=code)],
        title="t",
    )
    browser.open(path, "#large/graph")
    browser.click("Open all")
    assert browser.colors() > 5
    browser.run("location.hash = '#large/graph/relu_1700'; 1")
    browser.settle()
    assert browser.text("#details h2") == "relu_1700"
    assert browser.colors() > 20
    for view in ("code", "tensors", "memory"):
        browser.run(f"location.hash = '#large/{view}/relu_1700'; 1")
        browser.settle()
    assert browser.problems() == []
