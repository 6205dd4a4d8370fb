"""lazyfx-ltc beside what a user would pick instead, with one thread and with two.

Eager, torch's own extraction, TorchScript traced and frozen, inductor, ``aot_eager``; and the time
and the memory that a capture takes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from interleave import medians, publish, save_folder, show
from torch import fx, nn
from torch.utils._pytree import tree_leaves

import lazyfx_ltc
from lazyfx_ltc import extract_compiled_graph, initialize

ZOO = Path(__file__).parents[1] / "ltc" / "zoo" / "models.py"


class Block(nn.Module):
    """A transformer block: 64 wide, 4 heads, on 16 tokens."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, w = 2, 16, self.width
        q, k, v = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-1, -2)) * (w // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, w))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


def mlp(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))


def chain(x: torch.Tensor) -> torch.Tensor:
    for _ in range(10):
        x = ((x * 1.01 + 0.5).tanh() - 0.25).sigmoid()
    return x


def forty() -> fx.GraphModule:
    graph = fx.Graph()
    places = [graph.placeholder(f"x{number}") for number in range(40)]
    graph.output(graph.call_function(torch.add, (places[0], places[39])))
    return fx.GraphModule(nn.Module(), graph)


def from_zoo(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    full = "ltc_zoo_models"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, ZOO)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    entry = sys.modules[full].ZOO[name]
    return entry.make(), entry.inputs(0)


CASES: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "x + 1, 64 x 64": lambda: (fx.symbolic_trace(lambda x: x + 1), (torch.randn(64, 64),)),
    "tiny MLP": lambda: (mlp(16, 32), (torch.randn(4, 16),)),
    "MLP, 1024 wide": lambda: (mlp(1024, 1024), (torch.randn(16, 1024),)),
    "2 of 40 arguments": lambda: (forty(), tuple(torch.randn(8) for _ in range(40))),
    "50 elementwise operators": lambda: (chain, (torch.randn(64, 64),)),
    "transformer block": lambda: (Block(), (torch.randn(2, 16, 64),)),
    "mixer": lambda: from_zoo("mlp mixer"),
    "ResNet-18, 32 x 32": lambda: from_zoo("resnet18"),
    "MobileNet, 32 x 32": lambda: from_zoo("mobilenet v3"),
    "BERT, small": lambda: from_zoo("bert sdpa"),
}


def traced(model: Any, inputs: tuple[Any, ...]) -> fx.GraphModule:
    if isinstance(model, fx.GraphModule):
        return model
    try:
        return fx.symbolic_trace(model)
    except Exception:  # python that symbolic tracing cannot follow
        from torch.fx.experimental.proxy_tensor import make_fx

        return make_fx(model)(*inputs)


def reference(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> Callable[..., Any] | None:
    """torch's private extraction, where it works at all."""
    from torch._lazy.extract_compiled_graph import extract_compiled_graph as theirs

    try:
        found = theirs(gm, inputs)
        torch.testing.assert_close(tree_leaves(found(*inputs)), tree_leaves(gm(*inputs)))
    except Exception:  # it refuses most models
        return None
    return found  # type: ignore[no-any-return]


def contenders(model: Any, inputs: tuple[Any, ...]) -> dict[str, Callable[[], object]]:
    model = model.eval() if isinstance(model, nn.Module) else model
    gm = traced(model, inputs)
    found: dict[str, Any] = {"eager": model, "ours": extract_compiled_graph(gm, inputs)}
    found["ours, frozen"] = extract_compiled_graph(gm, inputs, freeze=True)
    found["ours, compile()"] = lazyfx_ltc.compile(model)
    found["torch's private"] = reference(gm, inputs)
    module = model if isinstance(model, nn.Module) else gm
    found["trace + freeze"] = torch.jit.freeze(
        torch.jit.trace(module, inputs, strict=False, check_trace=False).eval()
    )
    for name, backend in (
        ("ours, torch.compile", "lazyfx_ltc"),
        ("aot_eager", "aot_eager"),
        ("inductor", "inductor"),
    ):
        torch._dynamo.reset()
        found[name] = torch.compile(model, backend=backend)
        found[name](*inputs)
    for _ in range(10):  # ours tries ways to run a program in the first calls
        for one in found.values():
            if one is not None:
                one(*inputs)
    return {name: partial(one, *inputs) for name, one in found.items() if one is not None}


def calls(threads: int) -> None:
    torch.set_num_threads(threads)
    rows: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for name, make in CASES.items():
            rows[name] = medians(contenders(*make()))
    names = list(dict.fromkeys(one for values in rows.values() for one in values))
    order = ["eager", "ours", *(one for one in names if one not in ("eager", "ours"))]
    nan = float("nan")
    complete = {case: {one: values.get(one, nan) for one in order} for case, values in rows.items()}
    show(f"ltc-calls-{threads}-threads", complete, baseline="eager")
    folder = save_folder()
    if folder is not None and threads == 1:
        plot(complete, folder / "ltc-calls.svg")


def plot(rows: dict[str, dict[str, float]], path: Path) -> None:
    """Time of a call beside eager's, a row of dots for each model."""
    from matplotlib.figure import Figure

    looks = {
        "ours": ("o", "#1b6ca8"),
        "ours, frozen": ("D", "#5fa8d3"),
        "trace + freeze": ("s", "#d98324"),
        "inductor": ("^", "#7b5ea7"),
        "aot_eager": ("v", "#8a8f98"),
    }
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    panel = figure.subplots()
    for name, (marker, color) in looks.items():
        ratios = [values[name] / values["eager"] for values in rows.values()]
        panel.plot(ratios, range(len(rows)), marker, label=name, color=color, markersize=8)
    panel.axvline(1.0, color="#444444", linewidth=1)
    panel.annotate("eager", (1.0, -0.7), ha="center", annotation_clip=False)
    panel.set_xscale("log")
    ticks = [0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2, 3, 5]
    panel.set_xticks(ticks, [f"{one:g}" for one in ticks])
    panel.minorticks_off()
    panel.set_yticks(range(len(rows)), list(rows))
    panel.invert_yaxis()
    panel.set_xlabel("time of a call ÷ eager's (one thread; left is faster)")
    panel.grid(axis="x", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, metadata={"Date": None})


WIDE = 2048
LAYERS = 6


def resident(name: str, queue: Any) -> None:
    """Put the MB that making and calling a contender adds to this process, and peaks at, there."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    layers = [nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU()) for _ in range(LAYERS)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(16, WIDE)
    with torch.no_grad():
        model(x)
        tiny = nn.Linear(2, 2).eval()  # so that code that is loaded once does not count
        for one, given in ((tiny, torch.randn(1, 2)), (model, x)):
            before = megabytes("VmRSS")
            made = CONTENDERS[name](one, given)
            for _ in range(10):
                made(given)
    peak = megabytes("VmHWM")
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but not given back, does not count
    queue.put((megabytes("VmRSS") - before, max(0.0, peak - before)))


def megabytes(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


CONTENDERS: dict[str, Callable[[Any, Any], Callable[..., Any]]] = {
    "eager": lambda model, x: model,
    "ours": lambda model, x: extract_compiled_graph(fx.symbolic_trace(model), (x,)),
    "ours, frozen": lambda model, x: extract_compiled_graph(
        fx.symbolic_trace(model), (x,), freeze=True
    ),
    "trace + freeze": lambda model, x: torch.jit.freeze(torch.jit.trace(model, (x,)).eval()),
    "inductor": lambda model, x: torch.compile(model),
}


def memory() -> None:
    """What making and calling adds to a process, beside the weights."""
    context = multiprocessing.get_context("spawn")
    body: list[list[str]] = []
    data: dict[str, tuple[float, float]] = {}
    for name in CONTENDERS:
        queue = context.Queue()
        process = context.Process(target=resident, args=(name, queue))
        process.start()
        data[name] = queue.get()
        process.join()
        body.append([name, *(f"{one:.0f}" for one in data[name])])
    weights = LAYERS * WIDE * (WIDE + 1) * 4 / 2**20
    head = ["", f"MB kept, beside {weights:.0f} of weights", "MB at most, while it is made"]
    publish("ltc-memory", head, body, data)


def captures() -> None:
    """Seconds of a capture, which grow with the graph and no faster."""
    body, data = [], {}
    for count in (50, 500, 5000):
        graph = fx.Graph()
        node = graph.placeholder("x")
        for _ in range(count):
            node = graph.call_function(torch.tanh, (node,))
        graph.output(node)
        gm = fx.GraphModule(nn.Module(), graph)
        start = time.perf_counter()
        extract_compiled_graph(gm, (torch.randn(8),))
        took = time.perf_counter() - start
        body.append([str(count), f"{took * 1e3:.0f}", f"{took / count * 1e6:.0f}"])
        data[str(count)] = took
    publish("ltc-capture-time", ["operators", "capture [ms]", "per operator [µs]"], body, data)


def main() -> None:
    warnings.filterwarnings("ignore")  # TorchScript's deprecation
    initialize()  # torch's own extraction does not do it
    for threads in (1, 2):
        calls(threads)
    captures()
    memory()


if __name__ == "__main__":
    main()
