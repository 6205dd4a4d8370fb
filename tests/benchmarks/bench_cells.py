"""How many cells each compiler can do, ours beside torch's own of the same name.

A cell counts when outputs and gradients agree with eager on two calls, the second with other values
(and shapes, where it is dynamic).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleave import publish
from torch import nn
from torch._dynamo.backends.common import aot_autograd

sys.path.insert(0, str(Path(__file__).parents[1] / "compilers" / "workloads"))

from compiler_cells import CELLS, Cell, differences, step
from functorch import compile as theirs
from torch._functorch import compilers as their_private

import lazyfx_compilers as ours

Compiler = Callable[..., Any]
Wrap = Callable[[Callable[..., Any], bool], Callable[..., Any]]
COMPARED = ("kinds", "outputs", "gradients")


def in_aot(make: Callable[[], Compiler]) -> Wrap:
    def wrap(subject: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        aot = theirs.aot_module if isinstance(subject, nn.Module) else theirs.aot_function
        return aot(subject, make(), dynamic=dynamic)

    return wrap


def in_torch_compile(make: Callable[[], Compiler]) -> Wrap:
    return lambda subject, dynamic: torch.compile(subject, backend=make(), dynamic=dynamic)


def both(make: Callable[[], Compiler]) -> tuple[Wrap, Wrap]:
    return in_aot(make), in_torch_compile(make)


def both_by_aot_autograd(make: Callable[[], Compiler]) -> tuple[Wrap, Wrap]:
    """For torch's: no one of them is a backend by itself, Dynamo calls unboxed what is boxed."""
    return in_aot(make), in_torch_compile(lambda: aot_autograd(fw_compiler=make()))


def folder() -> str:
    return tempfile.mkdtemp(dir=os.getcwd())


def our_dumper(subject: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    dumper = ours.graph_dumper_aot("cell", folder())
    aot = theirs.aot_module if isinstance(subject, nn.Module) else theirs.aot_function
    parts = (dumper.fw_compiler, dumper.bw_compiler, dumper.partition_fn)
    return aot(subject, *parts, dynamic=dynamic)


def fused(subject: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    return ours.memory_efficient_fusion(subject, dynamic=dynamic)


def fused_by_them(subject: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    return theirs.memory_efficient_fusion(subject, dynamic=dynamic)


def by_name(backend: str) -> Wrap:
    return lambda subject, dynamic: torch.compile(subject, backend=backend, dynamic=dynamic)


# the ways of each compiler: aot_function or aot_module, and torch.compile
COMPILERS: dict[str, tuple[Wrap | None, Wrap | None]] = {
    "nop": both(lambda: ours.nop),
    "nop (torch)": both_by_aot_autograd(lambda: theirs.nop),
    "print_compile": both(lambda: ours.print_compile),
    "print_compile (torch)": both_by_aot_autograd(lambda: theirs.print_compile),
    "ts_compile": both(lambda: ours.ts_compile),
    "ts_compile (torch)": both_by_aot_autograd(lambda: theirs.ts_compile),
    "simple_ts_compile": both(lambda: ours.simple_ts_compile),
    "simple_ts_compile (torch)": both_by_aot_autograd(lambda: their_private.simple_ts_compile),
    "memory_efficient_fusion": (fused, by_name("lazyfx_fusion")),
    "memory_efficient_fusion (torch)": (
        fused_by_them,
        in_torch_compile(
            lambda: aot_autograd(
                fw_compiler=theirs.ts_compile,
                partition_fn=theirs.min_cut_rematerialization_partition,
                decompositions=theirs.default_decompositions,
            )
        ),
    ),
    "debug_nop": both(lambda: ours.debug_nop),
    "debug_nop (torch)": both_by_aot_autograd(lambda: their_private.debug_nop),
    "graph_dumper_aot": (
        our_dumper,
        in_torch_compile(lambda: ours.graph_dumper_aot("cell", folder())),
    ),
    "graph_dumper_aot (torch)": (
        None,  # it is a backend of Dynamo only
        in_torch_compile(lambda: their_private.graph_dumper_aot("cell", folder())),
    ),
    "draw_graph_compile": both(lambda: ours.draw_graph_compile(folder() + "/graph.svg")),
    "draw_graph_compile (torch)": both_by_aot_autograd(
        lambda: theirs.draw_graph_compile(folder() + "/graph.svg")
    ),
    "debug_compile": both(lambda: ours.debug_compile(folder=folder())),
    "debug_compile (torch)": both_by_aot_autograd(lambda: theirs.debug_compile),
}


def why_not(cell: Cell, wrap: Wrap, device: torch.device) -> str | None:
    """What goes wrong, in a line; None if nothing does."""
    torch.compiler.reset()
    subject, eager = cell.subject(device), cell.subject(device)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            compiled = wrap(subject, cell.dynamic)
            for call in (0, 1):
                expected = step(cell, eager, eager, device, call)
                seen = step(cell, compiled, subject, device, call)
                found = differences(seen, expected, cell.tolerance, COMPARED)
                if found:
                    return f"wrong {found[0].split(',')[0].split(':')[0]}"
    except Exception as error:  # any: this is a count of what fails
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        if "raised:" in reason:  # Dynamo says who, the next line says what
            return next(iter(str(error).splitlines()[1:]), reason)
        return f"{type(error).__name__}: {reason}"
    return None


def count(wrap: Wrap | None, cells: list[Cell], device: torch.device) -> tuple[str, str, list[str]]:
    """How many cells work, what failed first, and the names of all that failed."""
    if wrap is None:
        return "none", "", []
    failed = {cell.name: why for cell in cells if (why := why_not(cell, wrap, device))}
    first = next((f"{name}: {why}" for name, why in failed.items()), "")
    return f"{len(cells) - len(failed)}", first, list(failed)


def main() -> None:
    warnings.filterwarnings("ignore")  # TorchScript's deprecation, inductor on complex numbers
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    device = torch.device("cuda" if "--cuda" in sys.argv else "cpu")
    aot = [cell for cell in CELLS if cell.counts_for_aot]
    dynamo = [cell for cell in CELLS if cell.counts_for_compile]
    body, data = [], {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        for name, (in_aot_way, in_compile_way) in COMPILERS.items():
            first, first_why, first_failed = count(in_aot_way, aot, device)
            second, second_why, second_failed = count(in_compile_way, dynamo, device)
            body.append([name, first, second, (first_why or second_why)[:110]])
            data[name] = {
                "aot": first,
                "aot failed": first_failed,
                "torch.compile": second,
                "torch.compile failed": second_failed,
            }
    head = ["compiler", f"aot (of {len(aot)})", f"torch.compile (of {len(dynamo)})", "fails first"]
    publish("cells-each-compiler-can-do", head, body, data)


if __name__ == "__main__":
    main()
