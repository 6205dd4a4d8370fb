"""lazyfx-ltc beside eager, torch's private extraction and a traced and frozen TorchScript."""

from __future__ import annotations

import warnings

import torch
from interleave import medians, show
from torch import fx, nn

from lazyfx_ltc import extract_compiled_graph

CASES = {
    "x + 1": (lambda: fx.symbolic_trace(lambda x: x + 1), (64, 64)),
    "tiny MLP": (lambda: _mlp(16, 32), (4, 16)),
    "MLP 1024": (lambda: _mlp(1024, 1024), (16, 1024)),
}


def _mlp(width: int, hidden: int) -> fx.GraphModule:
    layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)).eval()
    return fx.symbolic_trace(layers)


def main() -> None:
    warnings.filterwarnings("ignore")  # TorchScript's deprecation
    from torch._lazy.extract_compiled_graph import extract_compiled_graph as theirs

    torch.set_num_threads(1)
    rows = {}
    with torch.no_grad():
        for name, (make, size) in CASES.items():
            model, x = make(), torch.randn(size)
            functions = {
                "eager": model,
                "ours": extract_compiled_graph(model, (x,)),
                "torch's private": theirs(model, (x,)),
                "trace + freeze": torch.jit.freeze(torch.jit.trace(model, x).eval()),
            }
            rows[name] = medians({n: (lambda f=f, x=x: f(x)) for n, f in functions.items()})
    show("lazyfx-ltc, one call", rows, baseline="eager")


if __name__ == "__main__":
    main()
