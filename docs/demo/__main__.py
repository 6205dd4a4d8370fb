"""The main job of each package on real input; run by ``nox -s demo``.

(a) a sentence encoder with its real weights, captured and replayed; (b) a small net trained on
scanned digits with less memory; (c) 200 graph rewrites with one code generation; (d) the graphs of
a training step in a folder, run again from there, and as a page. Ends with one table.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from minilm import need

if TYPE_CHECKING:
    from rich.console import Console

Rows = list[tuple[str, str, str, str, str]]


def main() -> int:
    """Run all parts and print the table; 0 if every part agreed with eager."""
    need("rich", "rich", "the demo's table")
    from rich.console import Console

    from lazyfx_core import LazyFxError

    # transformers and TorchScript speak of their own deprecations; this output is for a newcomer
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    console = Console(width=110)
    started = time.perf_counter()
    rows: Rows = []
    agreed = True
    try:
        for part in (replay_sentences, train_digits, rewrite_graph, dump_graphs):
            part_agreed, part_rows = part(console)
            agreed &= part_agreed
            rows += part_rows
    except LazyFxError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: {error}", soft_wrap=True)
        return 1
    show(console, rows, time.perf_counter() - started)
    if not agreed:
        console.print("[bold red]something did not agree with eager: see the table")
    return 0 if agreed else 1


def replay_sentences(console: Console) -> tuple[bool, Rows]:
    """Part (a)."""
    import minilm
    import sentences

    console.rule("(a) MiniLM on the lazy device")
    with console.status("loading weights and tokenizer"):
        encoder, folder = minilm.load_encoder()
        inputs = minilm.tokenize(folder, minilm.SENTENCES)
    with console.status("tracing and capturing"):
        graph = minilm.trace(encoder, inputs)
        result = sentences.compare(encoder, folder, graph)
    for one, other, similarity in result.pairs:
        console.print(f"  {similarity:.2f}  {one}", highlight=False)
        console.print(f"        [dim]{other}[/]", highlight=False)
    agrees = result.same_neighbors and result.largest_difference < 1e-4
    console.print(f"  {result.compiled!r}", highlight=False)
    return agrees, [
        (
            "(a) MiniLM, 12 sentences",
            "ms per call",
            f"{result.eager_ms:.1f}",
            f"{result.replay_ms:.1f}",
            f"same neighbors: {'yes' if result.same_neighbors else 'NO'}; "
            f"largest difference {result.largest_difference:.1e}",
        )
    ]


def train_digits(console: Console) -> tuple[bool, Rows]:
    """Part (b)."""
    import digits

    console.rule("(b) handwritten digits through memory_efficient_fusion")
    batches, test = digits.load_digits()
    net, twin, fused = digits.eager_and_fused()
    runs = {}
    for name, module, run in (("eager", net, net), ("fused", twin, fused)):
        with console.status(f"{name}: compiling, then {digits.EPOCHS} epochs"):
            for epoch, state in enumerate(digits.train(module, run, batches, test), start=1):
                console.print(
                    f"  {name} epoch {epoch}: loss {state.losses[-1]:.4f}, "
                    f"test accuracy {state.accuracy:.1%}",
                    highlight=False,
                )
        runs[name] = state
    eager, less = runs["eager"], runs["fused"]
    apart = max(abs(a - b) for a, b in zip(eager.losses, less.losses, strict=True))
    steps = len(eager.losses)
    return apart < 1e-3, [
        (
            f"(b) digits, {steps} steps",
            "MB saved for backward",
            f"{eager.saved_bytes / 1e6:.2f}",
            f"{less.saved_bytes / 1e6:.2f}",
            f"loss curves apart by at most {apart:.1e}",
        ),
        (
            "",
            "test accuracy",
            f"{eager.accuracy:.1%}",
            f"{less.accuracy:.1%}",
            "297 images nobody trained on",
        ),
        (
            "",
            "ms per step",
            f"{eager.seconds_per_step * 1e3:.1f}",
            f"{less.seconds_per_step * 1e3:.1f}",
            "median, compilation not counted",
        ),
    ]


def rewrite_graph(console: Console) -> tuple[bool, Rows]:
    """Part (c)."""
    import torch

    import minilm
    import rewrites

    console.rule("(c) 200 small rewrites over MiniLM's graph")
    with console.status("exporting the graph"):
        encoder, folder = minilm.load_encoder()
        inputs = minilm.tokenize(folder, minilm.SENTENCES)
        graph = minilm.export_graph(encoder, inputs)
    outcomes = {}
    for name, lazy in (("fx.GraphModule", False), ("LazyGraphModule", True)):
        with console.status(f"rewriting with {name}"):
            outcomes[name] = rewrites.run(lambda: copy.deepcopy(graph), lazy=lazy)
    plain, lazily = outcomes["fx.GraphModule"], outcomes["LazyGraphModule"]
    with torch.no_grad():
        expected = encoder(*inputs)
        apart = max((o.module(*inputs) - expected).abs().max().item() for o in outcomes.values())
    console.print(
        f"  {plain.asked} rewrites took the graph from {plain.nodes_before} to "
        f"{plain.nodes_after} nodes",
        highlight=False,
    )
    return apart < 1e-4 and plain.nodes_after == lazily.nodes_after, [
        (
            f"(c) {plain.asked} rewrites",
            "recompiles asked for",
            str(plain.asked),
            str(lazily.asked),
            f"rewritten model differs by {apart:.1e}",
        ),
        ("", "recompiles done", str(plain.done), str(lazily.done), ""),
        ("", "seconds", f"{plain.seconds:.3f}", f"{lazily.seconds:.3f}", ""),
    ]


def dump_graphs(console: Console) -> tuple[bool, Rows]:
    """Part (d)."""
    import digits
    from lazyfx_compilers import load_dump
    from lazyfx_tools import graph_view, write_html

    console.rule("(d) the graphs of a training step")
    with console.status("compiling and dumping"):
        folder = digits.dump_training_graphs(Path(tempfile.mkdtemp(prefix="lazyfx-demo-")))
    dump = load_dump(folder)
    console.print(f"  dumped to {folder}", soft_wrap=True, highlight=False)
    replays = [graph.replay() for graph in dump if graph.phase != "joint"]
    for replay in replays:
        console.print(f"  {replay}", highlight=False)
    views = [
        graph_view(graph.module(), name=graph.id, phase=graph.phase, code=graph.code)
        for graph in dump
    ]
    page = write_html(folder / "graphs.html", views, title="digits")
    console.print(f"  to look at: {page}", soft_wrap=True, highlight=False)
    found = [graph.phase for graph in dump]
    complete = sorted(found) == ["backward", "forward", "joint"]
    equal = sum(replay.bit_equal for replay in replays)
    return complete and equal == len(replays), [
        ("(d) graphs dumped", "graphs", "", str(len(dump)), ", ".join(found)),
        ("", "replayed bit by bit", "", str(equal), f"of {len(replays)} that ran"),
    ]


def show(console: Console, rows: Rows, seconds: float) -> None:
    """Print the closing table."""
    from rich.table import Table

    table = Table(title=f"lazyfx demo, {seconds:.0f} s")
    for title, side in (
        *(("part", "left"), ("what", "left"), ("torch", "right")),
        *(("lazyfx", "right"), ("agreement", "left")),
    ):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
