"""What checking every node costs: ``debug_nop`` and torch's own, beside ``nop``.

Tiny graphs measure the cost of a node; large ones show that it does not depend on the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from functorch.compile import aot_function, aot_module
from interleave import medians, show
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx_compilers import debug_nop, nop
from lazyfx_compilers.debug._checks import DEFAULT_CHECKS

Compiler = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in self.qkv(self.first(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


def mlp(width: int, depth: int) -> nn.Module:
    layers = [each for _ in range(depth) for each in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers)


def chain(x: torch.Tensor) -> torch.Tensor:
    for _ in range(25):
        x = (x + 1).relu() * x.sin().neg()
    return x


# the subject, the shape of its input, and whether its sizes are symbols
CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...], bool]] = {
    "MLP, 3 by 4": (lambda: mlp(4, 2), (3, 4), False),
    "MLP, 3 by 4, dynamic": (lambda: mlp(4, 2), (3, 4), True),
    "chain of 125, 8": (lambda: chain, (8,), False),
    "chain of 125, 8, dynamic": (lambda: chain, (8,), True),
    "MLP of 4, 256 by 1024": (lambda: mlp(1024, 4), (256, 1024), False),
    "transformer block, 4 by 256 by 512": (lambda: Block(512, 8), (4, 256, 512), False),
    "transformer block, dynamic": (lambda: Block(512, 8), (4, 256, 512), True),
}


def graph_of(subject: Any, x: torch.Tensor, dynamic: bool) -> tuple[fx.GraphModule, list[Any]]:
    """The inference graph of a subject, and what it is called with."""
    taken: list[tuple[fx.GraphModule, list[Any]]] = []

    def take(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compiled = nop(gm, inputs)

        def run(values: list[Any]) -> Any:
            taken.append((gm, list(values)))
            return compiled(values)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    aot = aot_module if isinstance(subject, nn.Module) else aot_function
    aot(subject, take, dynamic=dynamic)(x)
    return taken[0]


def theirs(gm: fx.GraphModule) -> Callable[[list[Any]], Any]:
    """Torch's own, which fails on every graph of AOTAutograd unless it is given an environment."""
    from torch._functorch.compilers import DebugInterpreter

    gm.shape_env = ShapeEnv()
    return boxed(DebugInterpreter(gm))


def boxed(interpreter: fx.Interpreter) -> Callable[[list[Any]], Any]:
    """What runs an interpreter on a list of inputs."""
    return lambda values: interpreter.run(*values)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = {}
    for name, (make, shape, dynamic) in CASES.items():
        torch.manual_seed(0)
        with torch.no_grad():
            gm, inputs = graph_of(make(), torch.randn(shape), dynamic)
            contenders: dict[str, Callable[[list[Any]], Any]] = {
                "nop": nop(gm, inputs),
                "debug_nop": debug_nop(gm, inputs),
                "with nan and inf": debug_nop(checks=DEFAULT_CHECKS | {"nan", "inf"})(gm, inputs),
                "fx.Interpreter": boxed(fx.Interpreter(gm)),
            }
            if not dynamic:
                contenders["debug_nop (torch)"] = theirs(gm)
            calls = {
                each: lambda run=run, inputs=inputs: run(list(inputs))
                for each, run in contenders.items()
            }
            if dynamic:
                calls["debug_nop (torch)"] = lambda: None
            rows[name] = medians(calls, rounds=25 if shape[-1] < 100 else 9)
        if dynamic:
            rows[name]["debug_nop (torch)"] = float("nan")
    show("checking-every-node", rows, baseline="nop")


if __name__ == "__main__":
    main()
