"""Trains on two processes in many ways and compares each with eager.

Run with ``torchrun --standalone --nproc-per-node 2 tests/compilers/distributed_training.py``, on
CPU over gloo. Words behind it choose among the ways: ``... distributed_training.py FSDP2``.

Every way of wrapping a model trains in float64 for some steps, each process on its half of each
batch. Losses, gradients, parameters and buffers are compared with those of eager on one process
with whole batches. Batch norm's statistics are those of a process's own half, and what
DistributedDataParallel does with a parameter that has no gradient is its own affair: there the
oracle is eager under DistributedDataParallel. Ways that would train wrongly must be refused.

Prints one line for each way; ends with 1 if one of them differs.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.torch_version import TorchVersion

from lazyfx_compilers import NotCompilableError, backends, memory_efficient_fusion, nop

STEPS, BATCH, LENGTH, WIDTH = 3, 8, 6, 16
TOLERANCE = 1e-10
Record = dict[str, torch.Tensor | None]


class Block(nn.Module):
    """Layer norm, attention, a feed-forward net; ``hidden`` is the width of the latter."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1) @ v)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Net(nn.Module):
    def __init__(
        self, blocks: int = 2, hidden: int = 32, batch_norm: bool = False, unused: bool = False
    ) -> None:
        super().__init__()
        self.first = nn.Linear(8, WIDTH)
        self.norm = nn.BatchNorm1d(LENGTH) if batch_norm else nn.Identity()
        self.blocks = nn.ModuleList([Block(hidden) for _ in range(blocks)])
        self.last = nn.Linear(WIDTH, 3)
        self.unused = nn.Linear(3, 3) if unused else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.last(x).tanh()


class Summed(nn.Module):
    """A model with a collective in it: the average of all processes' results."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.model(x)
        average = result.detach().mean()
        dist.all_reduce(average)
        return result * average


# --- how a model is wrapped ------------------------------------------------------------------


def compiled(model: nn.Module, name: str, **options: Any) -> Any:
    """By the backend's name where torch finds it (from 2.7 on), else by its function."""
    backend = name if name in torch.compiler.list_backends() else getattr(backends, name)
    return torch.compile(model, backend=backend, options=options or None)


def fused_blocks(model: Net, **options: Any) -> Net:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = memory_efficient_fusion(block, **options)
    return model


def sharded(model: Net, **options: Any) -> Any:
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)
    return model


def root_sharded(model: Net) -> Any:
    fully_shard(model)
    return model


def with_fused_blocks(wrapped: DDP) -> DDP:
    fused_blocks(wrapped.module, codegen=nop)
    return wrapped


def used(model: Any) -> Any:
    """After two steps, when all that is set up at the first ones has been."""
    for _ in range(2):
        model(torch.zeros(2, LENGTH, 8, dtype=torch.float64)).sum().backward()
    model.zero_grad()
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of wrapping a model.

    Attributes:
        wrap: Wraps a model.
        net: Arguments of the model.
        parts: Into how many parts a batch is taken; gradients are exchanged at the last.
        refused: Errors it has to be refused with, by type.
        eager: Wraps the oracle; None: one process, whole batches.
    """

    wrap: Callable[[Any], Any]
    net: dict[str, Any] = field(default_factory=dict)
    parts: int = 1
    refused: tuple[type[Exception], ...] = ()
    eager: Callable[[Any], Any] | None = None


def _unused(model: Any) -> Any:
    return DDP(model, find_unused_parameters=True)


def _mixed(model: Any) -> Any:
    kept = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float64)
    return sharded(model, mp_policy=kept)


def fuse(model: Any, codegen: Any = nop, **options: Any) -> Any:
    return memory_efficient_fusion(model, codegen=codegen, **options)


NORM, UNUSED = {"batch_norm": True}, {"unused": True}
ONE = {"blocks": 1}
REFUSED = (NotCompilableError,)
WIDE = {"hidden": 4096}  # two buckets of DDP, which are a megabyte at least

WAYS: dict[str, Way] = {
    "DDP(fused), inductor": Way(wrap=lambda m: DDP(fuse(m, "inductor")), net=ONE),
    "DDP(fused), ts": Way(wrap=lambda m: DDP(fuse(m, "ts"))),
    "DDP(fused), nop": Way(wrap=lambda m: DDP(fuse(m))),
    "DDP(fused), budget 0.25, ts": Way(wrap=lambda m: DDP(fuse(m, "ts", budget=0.25))),
    "DDP(fused), budget 0.25, nop, no_sync": Way(wrap=lambda m: DDP(fuse(m, budget=0.25)), parts=2),
    "DDP(fused), buffers": Way(wrap=lambda m: DDP(fuse(m)), net=NORM, eager=DDP),
    "DDP(fused), buffers, no_sync": Way(wrap=lambda m: DDP(fuse(m)), net=NORM, eager=DDP, parts=2),
    "DDP(fused), static_graph": Way(wrap=lambda m: DDP(fuse(m), static_graph=True)),
    "DDP(fused), gradient_as_bucket_view": Way(
        wrap=lambda m: DDP(fuse(m), gradient_as_bucket_view=True), parts=2
    ),
    "DDP(fused), find_unused_parameters": Way(
        wrap=lambda m: _unused(fuse(m)), net=UNUSED, eager=_unused
    ),
    "DDP(fused), find_unused_parameters, no_sync": Way(
        wrap=lambda m: _unused(fuse(m)), net=UNUSED, eager=_unused, parts=2
    ),
    "DDP of fused blocks": Way(wrap=lambda m: DDP(fused_blocks(m, codegen=nop))),
    "DDP of sub-modules fused later": Way(wrap=lambda m: with_fused_blocks(DDP(m))),
    "torch.compile(DDP), lazyfx_fusion": Way(
        wrap=lambda m: compiled(DDP(m), "lazyfx_fusion"), net=ONE
    ),
    "torch.compile(DDP), lazyfx_fusion, nop, no_sync": Way(
        wrap=lambda m: compiled(DDP(m), "lazyfx_fusion", codegen=nop), parts=2
    ),
    "torch.compile(DDP), lazyfx_fusion, two buckets, budget 0.25": Way(
        wrap=lambda m: compiled(DDP(m, bucket_cap_mb=1), "lazyfx_fusion", codegen=nop, budget=0.25),
        net=WIDE,
    ),
    "torch.compile(DDP), lazyfx_fusion, find_unused_parameters": Way(
        wrap=lambda m: compiled(_unused(m), "lazyfx_fusion", codegen=nop),
        net=UNUSED,
        eager=_unused,
    ),
    "torch.compile(DDP), lazyfx_fusion, buffers": Way(
        wrap=lambda m: compiled(DDP(m), "lazyfx_fusion", codegen=nop), net=NORM, eager=DDP
    ),
    "torch.compile(DDP), lazyfx_ts, two buckets": Way(
        wrap=lambda m: compiled(DDP(m, bucket_cap_mb=1), "lazyfx_ts"), net=WIDE
    ),
    "torch.compile(DDP), lazyfx_nop": Way(wrap=lambda m: compiled(DDP(m), "lazyfx_nop")),
    "torch.compile(DDP(fused)), lazyfx_nop": Way(
        wrap=lambda m: compiled(DDP(fuse(m)), "lazyfx_nop")
    ),
    "torch.compile(FSDP2), lazyfx_fusion": Way(
        wrap=lambda m: compiled(sharded(m), "lazyfx_fusion"), net=ONE
    ),
    "torch.compile(FSDP2), lazyfx_fusion, nop, budget 0.25, accumulated": Way(
        wrap=lambda m: compiled(sharded(m), "lazyfx_fusion", codegen=nop, budget=0.25), parts=2
    ),
    "torch.compile(FSDP2), lazyfx_ts": Way(wrap=lambda m: compiled(sharded(m), "lazyfx_ts")),
    "FSDP2 of fused blocks, inductor": Way(
        wrap=lambda m: sharded(fused_blocks(m, codegen="inductor")), net=ONE
    ),
    "FSDP2 of fused blocks, ts": Way(wrap=lambda m: sharded(fused_blocks(m, codegen="ts"))),
    "FSDP2 of fused blocks, nop, budget 0.25, accumulated": Way(
        wrap=lambda m: sharded(fused_blocks(m, codegen=nop, budget=0.25)), parts=2
    ),
    "FSDP2 of fused blocks, kept gathered": Way(
        wrap=lambda m: sharded(fused_blocks(m, codegen=nop), reshard_after_forward=False)
    ),
    "FSDP2 of fused blocks in bfloat16": Way(
        wrap=lambda m: _mixed(fused_blocks(m, codegen=nop)), eager=_mixed
    ),
    "FSDP2(fused)": Way(wrap=lambda m: root_sharded(fuse(m))),
    "FSDP2(fused), a parameter unused": Way(
        wrap=lambda m: root_sharded(fuse(m)), net=UNUSED, eager=root_sharded
    ),
    "FSDP2 of the whole, blocks fused later": Way(
        wrap=lambda m: fused_blocks(root_sharded(m), codegen=nop)
    ),
    "torch.compile(FSDP2 of fused blocks), lazyfx_nop": Way(
        wrap=lambda m: compiled(sharded(fused_blocks(m, codegen=nop)), "lazyfx_nop")
    ),
    "DDP(fused), a parameter unused": Way(
        wrap=lambda m: DDP(fuse(m)), net=UNUSED, refused=(RuntimeError,)
    ),
    "DDP(fused with a collective in it)": Way(
        wrap=lambda m: DDP(fuse(Summed(m))),
        refused=(*REFUSED, RuntimeError),  # torch 2.6
    ),
    "fused(DDP)": Way(wrap=lambda m: fuse(DDP(m)), refused=REFUSED),
    "fused(DDP after steps)": Way(wrap=lambda m: fuse(used(DDP(m))), refused=REFUSED),
    "fused(a module with DDP in it)": Way(
        wrap=lambda m: fuse(nn.Sequential(used(DDP(m)))), refused=REFUSED
    ),
    "fused(FSDP2)": Way(wrap=lambda m: fuse(sharded(m)), refused=REFUSED),
    "fused(FSDP2 after steps)": Way(wrap=lambda m: fuse(used(sharded(m))), refused=REFUSED),
    "fused blocks of FSDP2": Way(
        wrap=lambda m: fused_blocks(sharded(m), codegen=nop), refused=REFUSED
    ),
    "fused, its blocks under FSDP2 later": Way(wrap=lambda m: sharded(fuse(m)), refused=REFUSED),
}


# --- training and comparing ------------------------------------------------------------------


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    source = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        x = torch.randn(BATCH, LENGTH, 8, generator=source, dtype=torch.float64)
        yield x, torch.randn(BATCH, LENGTH, 3, generator=source, dtype=torch.float64)


def train(model: Any, parts: int, *, rank: int = 0, processes: int = 1) -> Record:
    """Some steps on this process's share of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    record: Record = {}
    for step, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        halves = [each.chunk(processes)[rank].chunk(parts) for each in (x, y)]
        for part, (inputs, wanted) in enumerate(zip(*halves, strict=True)):
            with exchanged(model, part == parts - 1):
                loss = F.mse_loss(model(inputs), wanted) / parts
                loss.backward()
            total += loss.detach()
        if processes > 1:
            dist.all_reduce(total)
        record[f"loss of step {step}"] = total / processes
        optimizer.step()
    for name, parameter in model.named_parameters():
        record[f"parameter {plain(name)}"] = whole(parameter)
        record[f"gradient of {plain(name)}"] = whole(parameter.grad)
    for name, buffer in model.named_buffers():
        record[f"buffer {plain(name)}"] = whole(buffer)
    return record


def exchanged(model: Any, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Whether gradients are exchanged between processes in this backward."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)
    elif not last and hasattr(model, "no_sync"):
        return model.no_sync()  # type: ignore[no-any-return]
    return contextlib.nullcontext()


def plain(name: str) -> str:
    return name.replace("_orig_mod.", "").replace("module.", "")


def whole(tensor: Any) -> torch.Tensor | None:
    """All of a sharded tensor."""
    if tensor is None:
        return None
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def difference(seen: Record, expected: Record) -> float:
    """The largest, relative to the largest value or to 1; infinite if something is missing."""
    if seen.keys() != expected.keys():
        return float("inf")
    worst = 0.0
    for name, value in expected.items():
        got = seen[name]
        if (got is None) != (value is None):
            return float("inf")
        if got is not None and value is not None:
            scale = max(1.0, float(value.abs().max()))
            apart = float((got.double() - value.double()).abs().max()) / scale
            worst = max(worst, float("inf") if apart != apart else apart)
    return worst


def compare(way: Way) -> tuple[bool, str]:
    """Whether a way does what it has to, and a word on it; the same on all processes."""
    torch.compiler.reset()
    torch.manual_seed(0)
    shared = {"rank": dist.get_rank(), "processes": dist.get_world_size()}
    model = Net(**way.net).double()
    twin = copy.deepcopy(model)
    if way.refused:
        try:
            train(way.wrap(model), way.parts, **shared)
        except way.refused:
            return True, "refused"
        return False, "not refused, and should be"
    try:
        oracle = (
            train(way.eager(twin), way.parts, **shared) if way.eager else train(twin, way.parts)
        )
    except RuntimeError as error:
        if TorchVersion(torch.__version__) >= (2, 12):
            raise
        return True, f"left out, eager fails here too ({type(error).__name__})"
    apart = torch.tensor(difference(train(way.wrap(model), way.parts, **shared), oracle))
    dist.all_reduce(apart, dist.ReduceOp.MAX)
    if apart > TOLERANCE:
        return False, f"DIFFERS by {apart:.1e}"
    return True, f"same within {apart:.1e}"


def fsdp2_runs() -> bool:
    """Whether torch's own FSDP2 runs on CPU; that of torch 2.6 does not."""
    try:
        used(sharded(Net().double()))
    except AttributeError:
        return False
    return True


def main(words: list[str]) -> int:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    wrong, without_fsdp2 = 0, not fsdp2_runs()
    for name, way in WAYS.items():
        if words and not any(word in name for word in words):
            continue
        try:
            if without_fsdp2 and "FSDP2" in name:
                right, said = True, "left out, eager FSDP2 does not run here either"
            else:
                right, said = compare(way)
        except Exception as error:  # the other ways are worth a line too
            right, said = False, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        wrong += not right
        if dist.get_rank() == 0:
            print(f"{name}: {said}", flush=True)
    dist.destroy_process_group()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
