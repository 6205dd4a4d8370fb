"""Training steps: what is live after the forward, the peak, and the time, against eager.

Eager, ``torch.utils.checkpoint``, torch's own ``memory_efficient_fusion``, ``torch.compile`` (with
eager's random numbers), also at torch's memory budgets, and ours: inductor at five budgets, and
TorchScript. Each cell is *live after the forward / peak / time*, as a fraction of eager's; memory
is what torch's allocator was asked for, without parameters and inputs. A number in brackets is how
far gradients are off, relative to eager's largest, where that is more than rounding.

``--only NAME`` runs the workloads whose name contains NAME (or ``solvers``: torch's solvers for a
budget beside ours); ``--device cuda`` runs them there.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._functorch.config as functorch_config
from interleave import medians, publish, save_folder
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lazyfx_compilers import budget_partitioner, memory_efficient_fusion, memory_report, nop
from lazyfx_compilers._torch_profiler import allocations

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "compilers" / "workloads"), str(HERE.parents[1] / "docs" / "demo")]

from training_workloads import WORKLOADS, made  # noqa: E402

BUDGETS = (1, 0.5, 0.25, 0.1, 0)
TORCHS_BUDGETS = (1, 0.5, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A training step: a module, its inputs, and what becomes of its result.

    Attributes:
        module: In train mode.
        inputs: Its arguments.
        loss: Of its result; its gradient is taken for all that requires it.
        parts: Submodules that ``checkpoint`` is put around; none means around the whole.
        draws: How many operators draw random numbers: with more than one, compilers draw in an
            order of their own, and gradients cannot be compared with eager's.
    """

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    loss: Callable[[Any], torch.Tensor]
    parts: tuple[str, ...] = ()
    draws: int = 0


class Notebook(nn.Module):
    """What functorch's notebook compiles, as near as it can be told from its text."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return sum(inputs).cos().cos()  # type: ignore[union-attr]


def digits() -> Step:
    from digits import DigitNet, load_digits

    torch.manual_seed(0)
    images, labels = load_digits()[0][0]
    return Step(
        module=DigitNet(),
        inputs=(images,),
        loss=lambda scores: F.cross_entropy(scores, labels.to(scores.device)),
        draws=1,
    )


def minilm() -> Step:
    """Fine-tuning the sentence encoder: neighbors in the list are pairs that belong together."""
    from minilm import SENTENCES, load_encoder, tokenize

    encoder, folder = load_encoder()
    encoder.bert.pooler = None  # which nothing reads
    ids, mask = tokenize(folder, SENTENCES)

    def contrastive(vectors: torch.Tensor) -> torch.Tensor:
        first, second = vectors[0::2], vectors[1::2]
        wanted = torch.arange(len(first), device=vectors.device)
        return F.cross_entropy(first @ second.T * 20, wanted)

    layers = tuple(f"bert.encoder.layer.{index}" for index in range(6))
    return Step(
        module=encoder.train(), inputs=(ids, mask), loss=contrastive, parts=layers, draws=19
    )


def steps() -> dict[str, Callable[[], Step]]:
    def of_workload(name: str) -> Step:
        module, x = made(name, large=True)
        workload = WORKLOADS[name]
        draws = 9 if "GPT" in name and workload.random else int(workload.random)
        return Step(
            module=module,
            inputs=(x,),
            loss=lambda result: result.sum(),
            parts=workload.parts,
            draws=draws,
        )

    def notebook() -> Step:
        inputs = tuple(torch.randn(1024, 2048, requires_grad=True) for _ in range(4))
        return Step(module=Notebook(), inputs=inputs, loss=lambda result: result.sum())

    return {
        "functorch's notebook": notebook,
        **{name: lambda name=name: of_workload(name) for name in WORKLOADS},
        "digits": digits,
        "MiniLM fine-tuning": minilm,
    }


class Checkpointed(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.module, *args, use_reentrant=False, **kwargs)


def checkpointed(step: Step) -> nn.Module:
    if not step.parts:
        return Checkpointed(step.module)
    module = copy.deepcopy(step.module)
    for name in step.parts:
        module.set_submodule(name, Checkpointed(module.get_submodule(name)))
    return module


def contenders(step: Step) -> dict[str, Callable[[], Callable[..., Any]]]:
    """How to make each; ``torch.compile`` at several budgets needs options that differ."""
    from functorch.compile import memory_efficient_fusion as reference

    found: dict[str, Callable[[], Callable[..., Any]]] = {
        "eager": lambda: step.module,
        "checkpoint": lambda: checkpointed(step),
        "reference": lambda: reference(step.module),
    }
    for number, budget in enumerate(TORCHS_BUDGETS):
        name = f"torch.compile{'' if budget == 1 else f' {budget}'}"
        options: Any = {"fallback_random": True, "kernel_name_max_ops": 10 + number}
        found[name] = lambda options=options: torch.compile(step.module, options=options)
    for budget in BUDGETS:
        name = f"ours{'' if budget == 1 else f' {budget}'}"
        found[name] = lambda budget=budget: memory_efficient_fusion(step.module, budget=budget)
    found["ours, ts"] = lambda: memory_efficient_fusion(step.module, codegen="ts")
    return found


def run_once(step: Step, run: Callable[..., Any]) -> tuple[torch.Tensor, ...]:
    loss = step.loss(run(*step.inputs))
    return torch.autograd.grad(loss, wanted(step, run))


def wanted(step: Step, run: Callable[..., Any]) -> list[torch.Tensor]:
    module = run if isinstance(run, nn.Module) else step.module
    return [one for one in (*step.inputs, *module.parameters()) if one.requires_grad]


def error(seen: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> float:
    largest = max(float(one.abs().max()) for one in expected)
    pairs = zip(seen, expected, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs) / largest


def measure(name: str, step: Step) -> tuple[list[str], dict[str, Any]]:
    device = step.inputs[0].device
    runs, memory, off, failed = {}, {}, {}, {}
    torch.manual_seed(1)
    expected = run_once(step, step.module)
    for who, make in contenders(step).items():
        budget = float(who.split()[1]) if who.startswith("torch.compile ") else 1.0
        try:
            with functorch_config.patch(activation_memory_budget=budget):
                run = make()
                for _ in range(2):
                    torch.manual_seed(1)
                    gradients = run_once(step, run)
            used = allocations(
                lambda run=run: step.loss(run(*step.inputs)),
                lambda loss, run=run: torch.autograd.grad(loss, wanted(step, run)),
                device,
            )
        except Exception as problem:
            failed[who] = type(problem).__name__
            continue
        memory[who] = (used.live_after_forward, used.peak)
        if step.draws <= 1:
            off[who] = error(gradients, expected)
        runs[who] = lambda run=run: synchronized(device, run_once(step, run))
    times = medians(runs, rounds=9)
    live, peak = memory["eager"]
    cells = [f"{live / 1e6:.1f} MB / {peak / 1e6:.1f} MB / {times['eager'] * 1e3:.1f} ms"]
    for who in list(contenders(step))[1:]:
        if who in failed:
            cells.append("fails")
            continue
        ratios = (memory[who][0] / live, memory[who][1] / peak, times[who] / times["eager"])
        wrong = f" ({off[who]:.1g})" if off.get(who, 0) > 1e-3 else ""
        cells.append("/".join(f"{one:.2f}" for one in ratios) + wrong)
    data = {"memory": memory, "seconds": times, "error": off, "failed": failed}
    return [name, *cells], data


def solvers() -> None:
    """What partitions come to that torch's solvers choose, and ours; nothing is fused."""
    from functorch.compile import min_cut_rematerialization_partition as min_cut

    module, x = made("GPT, SDPA", large=True)  # no dropout: torch's would be wrong
    whole = memory_report(module, x, codegen=nop)
    rows, data = [], {}
    for budget in (0.75, 0.5, 0.25, 0.1, 0):
        for solver in ("dp", "greedy", "ilp", "ours"):
            seconds = []

            def timed(*args: Any, partition: Any, seconds: Any = seconds, **settings: Any) -> Any:
                start = time.perf_counter()
                halves = partition(*args, **settings)
                seconds.append(time.perf_counter() - start)
                return halves

            partition = budget_partitioner(budget) if solver == "ours" else min_cut
            chosen = {"activation_memory_budget": budget, "activation_memory_budget_solver": solver}
            with functorch_config.patch({} if solver == "ours" else chosen):
                partitioner = functools.partial(timed, partition=partition)
                report = memory_report(module, x, codegen=nop, partitioner=partitioner)
            assert report.compiled is not None
            assert whole.compiled is not None
            rows.append(
                [
                    f"{budget} {solver}",
                    f"{report.saved_bytes / whole.saved_bytes:.2f}",
                    f"{report.compiled.peak / whole.compiled.peak:.2f}",
                    f"{report.recompute_seconds * 1e3:.0f}",
                    f"{seconds[0]:.2f}",
                ]
            )
            data[rows[-1][0]] = rows[-1][1:]
    head = ["budget, solver", "saved ÷ no budget", "measured peak ÷ no budget"]
    publish("budget-solvers", [*head, "recomputed, est. ms", "partitioning, s"], rows, data)


def sizes() -> None:
    """Seconds that a budget takes beyond torch's min-cut, by size of the joint graph."""
    from functorch.compile import aot_function
    from functorch.compile import min_cut_rematerialization_partition as min_cut

    rows, data = [], {}
    for length in (50, 200, 800):

        def chain(x: torch.Tensor, w: torch.Tensor, length: int = length) -> torch.Tensor:
            for _ in range(length):
                x = (x @ w).tanh() + x * 0.5
            return x.sum()

        found: list[Any] = []

        def noted(joint: Any, inputs: Any, found: Any = found, **settings: Any) -> Any:
            found.append(len(joint.graph.nodes))
            for partition in (min_cut, budget_partitioner(0.2)):
                start = time.perf_counter()
                halves = partition(copy.deepcopy(joint), inputs, **settings)
                found.append(time.perf_counter() - start)
            return halves

        x, w = (torch.randn(64, 64, requires_grad=True) for _ in range(2))
        aot_function(chain, nop, partition_fn=noted)(x, w)
        nodes, alone, whole = found
        rows.append([f"{nodes}", f"{alone:.2f}", f"{whole - alone:.2f}"])
        data[nodes] = found
    publish("budget-size", ["nodes", "torch's min-cut, s", "the budget beyond, s"], rows, data)


def picture() -> None:
    """What the documentation shows of ``memory_report``."""
    folder = save_folder()
    module, x = made("GPT, explicit attention, dropout", large=True)
    report = memory_report(module, x, budget=0.3)
    print(report)
    if folder is not None:
        (folder / "memory-report.md").write_text(f"```text\n{report}```\n")
        report.plot(folder / "memory-report.svg")


def synchronized(device: torch.device, result: object) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def moved(step: Step, device: str) -> Step:
    module = step.module.to(device)
    inputs = tuple(one.detach().to(device).requires_grad_(one.requires_grad) for one in step.inputs)
    return Step(module=module, inputs=inputs, loss=step.loss, parts=step.parts, draws=step.draws)


def argument(name: str, default: str) -> str:
    words = sys.argv[1:]
    return words[words.index(name) + 1] if name in words else default


def main() -> None:
    warnings.filterwarnings("ignore")  # TorchScript's deprecation, budgets that cannot be kept
    torch.set_num_threads(1)
    only, device = argument("--only", ""), argument("--device", "cpu")
    rows, data = [], {}
    for name, make in steps().items():
        if only not in name or only == "solvers":
            continue
        torch.compiler.reset()
        with contextlib.redirect_stdout(sys.stderr):
            row, data[name] = measure(name, moved(make(), device))
        rows.append(row)
        print(*row, sep=" | ", flush=True)
    head = ["live / peak / time", *contenders(Step(module=nn.Identity(), inputs=(), loss=sum))]
    # the names are short enough to be read in one table only if it stands on its side
    sides = [[head[column], *(row[column] for row in rows)] for column in range(1, len(head))]
    if only in ("", "solvers"):
        solvers()
        sizes()
        picture()
    publish(f"training-steps-{device}", [head[0], *(row[0] for row in rows)], sides, data)


if __name__ == "__main__":
    main()
