"""Writes the files of this folder: run once per release, never for a version that has its files.

    python tests/compat/write_files.py 0.1.0

``graph()``, ``loss()`` and ``inputs()`` stay as they are: the tests build the graph anew, compute
the loss and its gradient anew, and compare.
"""

import pickle
import sys
from pathlib import Path

import torch
from torch import fx, nn

from lazyfx_compilers import dump_graphs
from lazyfx_core import LazyGraphModule, save_graph

FILES = Path(__file__).parent / "files"


def graph():
    """A module with one of everything that is the same on every torch."""
    root = nn.Module()
    root.linear = nn.Linear(3, 4)
    root.norm = nn.BatchNorm1d(4).eval()
    root.weight = nn.Parameter(torch.arange(4.0), requires_grad=False)
    root.register_buffer("base", torch.arange(6).to(torch.bfloat16))
    with torch.no_grad():
        root.linear.weight.copy_(torch.arange(12.0).view(4, 3) / 10)
        root.linear.bias.fill_(0.5)
    inside = fx.Graph()
    x = inside.placeholder("x")
    inside.output(inside.call_method("add_", (x, 1)))
    root.child = LazyGraphModule(nn.Module(), inside, "Child")
    made = fx.Graph()
    x = made.placeholder("x", type_expr=torch.Tensor)
    factor = made.placeholder("factor", default_value=2.0)
    made.placeholder("unused", default_value=None)
    y = made.call_module("norm", (made.call_module("linear", (x,)),))
    y = made.call_function(torch.mul, (y, made.get_attr("weight")))
    y = made.call_function(torch.ops.aten.add.Tensor, (y, factor), {"alpha": 3})
    y = made.call_function(torch.nn.functional.gelu, (y,), {"approximate": "tanh"})
    y.meta.update(stack_trace="File somewhere\n" * 5, note={"a": [1, (2.5, None)], "b": {1j}})
    for node in made.nodes:
        node.meta["nn_module_stack"] = {"L__self__": ("", nn.Linear)}
    part = made.call_method("__getitem__", (y, (slice(0, 1, None), ...)))
    y = made.call_module("child", (y,))
    as_double = made.call_method("to", (y,), {"dtype": torch.float64})
    made.call_function(torch.full, ((2, 3), float("inf")), {"device": torch.device("cpu")})
    made.output({"out": y, "part": part, "double": [as_double, made.get_attr("base")]})
    gm = LazyGraphModule(root, made, "Compatible")
    gm.child.train()
    gm.meta["written"] = ("here", 1)
    gm.note = {"limits": [range(3), torch.float16, -0.0]}
    return gm


def loss(x, weight):
    """What is trained; every torch and every machine computes it bit by bit alike.

    It calls no Python function of torch, so that no path of a machine is among its lines.
    """
    return ((x * weight).relu().t()[1:] * 2).sum()


def inputs():
    """What the dumped training step was given: small integers, so that sums are exact."""
    return torch.arange(-3.0, 3.0).view(2, 3), torch.tensor([1.0, -2.0, 4.0], requires_grad=True)


def main(version):
    """Write a pickle, an archive and a dump for this version."""
    FILES.mkdir(exist_ok=True)
    for name in (f"pickle-{version}.pkl", f"archive-{version}.safetensors", f"dump-{version}"):
        if (FILES / name).exists():
            raise SystemExit(f"{name} is there already: files of a version never change")
    (FILES / f"pickle-{version}.pkl").write_bytes(pickle.dumps(graph(), protocol=4))
    save_graph(graph(), FILES / f"archive-{version}.safetensors")
    with dump_graphs(f"dump-{version}", FILES, example_inputs="data"):
        torch.compile(loss, backend="aot_eager")(*inputs()).backward()


if __name__ == "__main__":
    main(*sys.argv[1:])
