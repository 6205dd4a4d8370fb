"""The workload laziness was made for: inductor compiles a training step of BERT.

Counts recompiles asked for and done, and the seconds spent generating code, for eager modules,
torch's private lazy class (what ``torch.compile`` uses by default) and ours, narrow and wide. Each
contender compiles the same step in turn; the losses must agree to the bit.

``--layers N`` sets the depth (12 is BERT base).
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from interleave import publish
from torch.fx import _lazy_graph_module
from transformers import BertConfig, BertForMaskedLM

from lazyfx_core import force_skip_lazy_graph_module, recompile_stats, use_lazy_graph_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ROUNDS = 3
CONTENDERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "eager modules": force_skip_lazy_graph_module,
    "torch lazy": contextlib.nullcontext,
    "ours": use_lazy_graph_module,
    "ours, everywhere": lambda: use_lazy_graph_module(True, everywhere=True),
}


@contextlib.contextmanager
def marks_of_torchs_lazy_class() -> Iterator[list[type]]:
    """The recompiles that torch's lazy class is asked for; nobody else can count them."""
    cls, seen = _lazy_graph_module._LazyGraphModule, []
    original = vars(cls)["recompile"]

    def recompile(asked: type) -> None:
        seen.append(asked)
        original.__func__(asked)

    cls.recompile = classmethod(recompile)
    try:
        yield seen
    finally:
        cls.recompile = original


def train_once(model: torch.nn.Module, ids: torch.Tensor, flags: Any) -> dict[str, float]:
    torch.compiler.reset()
    torch.manual_seed(0)
    model.zero_grad()
    mask = torch.zeros(ids.shape[0], 1, ids.shape[1], ids.shape[1])
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
        flags,
        marks_of_torchs_lazy_class() as marks,
        recompile_stats() as stats,
    ):
        start = time.perf_counter()
        step = torch.compile(lambda ids: model(ids, attention_mask=mask, labels=ids).loss)
        loss = step(ids)
        loss.backward()
        total = time.perf_counter() - start
    seen = stats.snapshot()
    return {
        "asked": seen.asked + len(marks),
        "done": seen.done,
        "seconds": seen.seconds,
        "total": total,
        "loss": loss.item(),
    }


def main() -> None:
    torch.set_num_threads(1)
    words = sys.argv[1:]
    layers = int(words[words.index("--layers") + 1]) if "--layers" in words else 12
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=layers, vocab_size=2_000, hidden_size=256)
    config.num_attention_heads, config.intermediate_size = 4, 1_024
    model = BertForMaskedLM(config).train()
    ids = torch.randint(0, 2_000, (2, 64))
    train_once(model, ids, contextlib.nullcontext())  # compiles the C++ kernels
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(ROUNDS):
        for name, flags in CONTENDERS.items():
            runs[name].append(train_once(model, ids, flags()))
    losses = {run["loss"] for several in runs.values() for run in several}
    if len(losses) != 1:
        raise SystemExit(f"the contenders computed different losses: {sorted(losses)}")
    rows = []
    seconds = {n: statistics.median(run["seconds"] for run in r) for n, r in runs.items()}
    for name, several in runs.items():
        rows.append(
            [
                name,
                f"{several[-1]['asked']:.0f}",
                f"{several[-1]['done']:.0f}",
                f"{seconds[name]:.4f}",
                f"{seconds[name] / seconds['torch lazy']:.3g}",
                f"{statistics.median(run['total'] for run in several):.1f}",
            ]
        )
    head = ["graph modules", "asked", "done", "generating [s]", "÷ torch lazy", "compiling [s]"]
    publish(f"inductor-bert-{layers}-layers", head, rows, runs)


if __name__ == "__main__":
    main()
