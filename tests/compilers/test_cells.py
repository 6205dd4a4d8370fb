"""Every cell in every way to compile it, against eager: all that a training step gives and changes.

What cannot be done, by a compiler or by torch itself, is in ``CANNOT``, with the error that says
so.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from compiler_cells import CELLS, CLOSE, EXACT, Cell, differences, step
from functorch.compile import (
    aot_function,
    aot_module,
    default_partition,
    min_cut_rematerialization_partition,
)
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.torch_version import TorchVersion
from torch.utils import _pytree as pytree

from lazyfx_compilers import (
    MetadataMismatchError,
    TorchScriptUnsupportedError,
    debug_nop,
    draw_graph_compile,
    graph_dumper_aot,
    memory_efficient_fusion,
    nop,
    print_compile,
    simple_ts_compile,
    ts_compile,
)

pytestmark = pytest.mark.once


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to compile.

    Attributes:
        compile: From the subject, whether it is dynamic, and an empty folder, to what is called.
        left_behind: What must be there afterwards: a check of the folder.
        tuples_become_lists: Torch's own ``aot_function`` gives a flat tuple back as a list.
        alike: There is another way through the same code: the cells that do not count are slow.
    """

    compile: Callable[[Callable[..., Any], bool, Path], Callable[..., Any]]
    left_behind: Callable[[Path], bool] = lambda folder: True
    tuples_become_lists: bool = False
    alike: bool = False


def aot(compiler: Callable[..., Any], subject: Callable[..., Any], **settings: Any) -> Any:
    make = aot_module if isinstance(subject, nn.Module) else aot_function
    # torch's default partitioner leaves a dropout in the backward that nobody uses, but that draws
    settings.setdefault("partition_fn", min_cut_rematerialization_partition)
    return make(subject, compiler, **settings)


def in_aot(make_compiler: Callable[[Path], Callable[..., Any]], **settings: Any) -> Any:
    return lambda subject, dynamic, folder: aot(
        make_compiler(folder), subject, dynamic=dynamic, **settings
    )


def dumped_in_aot(subject: Callable[..., Any], dynamic: bool, folder: Path) -> Any:
    dumper = graph_dumper_aot("cell", folder, partition_fn=min_cut_rematerialization_partition)
    return aot(
        dumper.fw_compiler,
        subject,
        bw_compiler=dumper.bw_compiler,
        partition_fn=dumper.partition_fn,
        dynamic=dynamic,
    )


def fused(**settings: Any) -> Any:
    return lambda subject, dynamic, folder: memory_efficient_fusion(
        subject, dynamic=dynamic, **settings
    )


def in_torch_compile(
    backend: Any, options: Callable[[Path], dict[str, Any]] = lambda folder: {}
) -> Any:
    return lambda subject, dynamic, folder: torch.compile(
        subject, backend=backend, dynamic=dynamic, options=options(folder) or None
    )


class Printed(io.StringIO):
    """What is printed, kept in a file too."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._file = folder / "printed"

    def write(self, text: str) -> int:
        with self._file.open("a") as file:
            file.write(text)
        return super().write(text)


def has_printed(folder: Path) -> bool:
    return "def forward" in (folder / "printed").read_text()


def way_in_aot(
    make_compiler: Callable[[Path], Callable[..., Any]],
    left_behind: Callable[[Path], bool] = lambda folder: True,
    *,
    alike: bool = False,
    **settings: Any,
) -> Way:
    return Way(
        compile=in_aot(make_compiler, **settings),
        left_behind=left_behind,
        tuples_become_lists=True,
        alike=alike,
    )


def has_index(folder: Path) -> bool:
    return (folder / "cell" / "index.json").exists()


WAYS = {
    "aot nop": way_in_aot(lambda folder: nop),
    "aot print": way_in_aot(
        lambda folder: print_compile(stream=Printed(folder)), has_printed, alike=True
    ),
    "aot ts": way_in_aot(lambda folder: ts_compile, partition_fn=default_partition),
    "aot simple ts": way_in_aot(lambda folder: simple_ts_compile),
    "aot debug": way_in_aot(lambda folder: debug_nop),
    "aot draw": way_in_aot(
        lambda folder: draw_graph_compile(folder / "graph.svg"),
        lambda folder: (folder / "graph.svg").stat().st_size > 0,
        alike=True,
    ),
    "aot dump": Way(compile=dumped_in_aot, left_behind=has_index, tuples_become_lists=True),
    "fusion nop": Way(compile=fused(codegen=nop), alike=True),
    "fusion nop, default partition": Way(
        compile=fused(codegen=nop, partition_fn=default_partition)
    ),
    "fusion ts": Way(compile=fused(codegen="ts")),
    "fusion inductor": Way(compile=fused()),
    "compile nop": Way(compile=in_torch_compile("lazyfx_nop")),
    "compile print": Way(
        compile=in_torch_compile("lazyfx_print", lambda folder: {"stream": Printed(folder)}),
        left_behind=has_printed,
        alike=True,
    ),
    "compile debug": Way(compile=in_torch_compile("lazyfx_debug")),
    "compile ts": Way(compile=in_torch_compile("lazyfx_ts")),
    "compile ts_compile": Way(compile=in_torch_compile(ts_compile), alike=True),
    "compile fusion": Way(compile=in_torch_compile("lazyfx_fusion"), alike=True),
    "compile dump": Way(
        compile=in_torch_compile(
            "lazyfx_dump",
            lambda folder: {"folder": str(folder), "name": "cell", "example_inputs": "data"},
        ),
        left_behind=has_index,
    ),
}
IN_AOT = [name for name, way in WAYS.items() if way.tuples_become_lists]
TORCHSCRIPT = [name for name in WAYS if "ts" in name.replace(",", "").split()]
TORCHSCRIPT += ["compile ts_compile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The error of a cell in a way.

    Attributes:
        error: Its type; Dynamo's own error says the name of what a backend raised.
        says: A pattern in its text.
        devices: Where it is one.
    """

    error: type[Exception]
    says: str
    devices: tuple[str, ...] = ("cpu", "cuda")


def _refused(cell: str, ways: list[str], says: str) -> dict[tuple[str, str], Refusal]:
    return {
        (cell, way): Refusal(
            error=BackendCompilerFailed, says=f"TorchScriptUnsupportedError.*{says}"
        )
        if way.startswith("compile")
        else Refusal(error=TorchScriptUnsupportedError, says=says)
        for way in ways
    }


CANNOT: dict[tuple[str, str], Refusal] = {
    # torch's fake kernel says bfloat16 of the saved mean, its CPU kernel makes float32 of it:
    # finding that is what debug_nop is for
    ("convolution and batch norm, bfloat16 autocast", "aot debug"): Refusal(
        error=MetadataMismatchError,
        says=r"the dtype of output 1 of 5 is torch\.float32, tracing recorded torch\.bfloat16",
        devices=("cpu",),
    ),
    # torch's aot_module ties parameters by itself and gives both names
    **{
        ("tied parameters", way): Refusal(error=ValueError, says="multiple values for keys")
        for way in IN_AOT
    },
    # torch's partitioners save an input, or a view of it, that is transposed in place afterwards
    **{
        ("mutation of strides", way): Refusal(error=RuntimeError, says="inplace operation")
        for way in [*IN_AOT, "fusion nop, default partition"]
    },
    **_refused("graphs in the graph", TORCHSCRIPT, "node 'cond'"),
    # outside torch.compile a checkpoint is gone before there is a graph
    **_refused(
        "checkpoint",
        [way for way in TORCHSCRIPT if way.startswith("compile")],
        "node 'run_and_save_rng_state'",
    ),
}


def names_of(cell: Cell) -> str:
    return cell.name


def pairs() -> Iterator[Any]:
    for cell in CELLS:
        for name, way in WAYS.items():
            alike = way.alike or (name == "fusion inductor" and "mutation" not in cell.name)
            slow = alike and not cell.counts_for_aot
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(cell, name, id=f"{cell.name}-{name}", marks=marks)


# Where torch's own default_partition stops at symbolic sizes, up to torch 2.9.
PARTED_BY_DEFAULT = ("aot ts", "fusion nop, default partition", "compile dump")


@pytest.mark.filterwarnings(
    # said by torch.cond to itself, and by inductor of what it leaves to eager
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:Torchinductor does not support code generation for complex operators",
)
@pytest.mark.parametrize(("cell", "way"), [*pairs()])
def test_it_agrees_with_eager(cell, way, device, tmp_path, caplog):
    is_old = TorchVersion(torch.__version__) < (2, 10)
    if is_old and cell.name == "masked attention, dynamic" and way in PARTED_BY_DEFAULT:
        pytest.skip("an assertion in default_partition about symbolic sizes, up to torch 2.9")
    subject, eager = cell.subject(device), cell.subject(device)
    compiled = WAYS[way].compile(subject, cell.dynamic, tmp_path)
    refusal = CANNOT.get((cell.name, way))
    if refusal is not None and device.type in refusal.devices:
        with pytest.raises(refusal.error, match=refusal.says):
            step(cell, compiled, subject, device, 0)
        return
    with caplog.at_level(logging.WARNING, "lazyfx_compilers"):
        for call in (0, 1):  # the second call replays
            expected = step(cell, eager, eager, device, call)
            seen = step(cell, compiled, subject, device, call)
            if WAYS[way].tuples_become_lists:
                expected["structure"] = as_list(expected["structure"])
            found = differences(seen, expected, cell.tolerance, EXACT + CLOSE)
            assert not found, f"call {call}: " + "\n".join(found)
    assert WAYS[way].left_behind(tmp_path)
    assert not [each for each in caplog.records if each.name.startswith("lazyfx_compilers")]


def as_list(structure: pytree.TreeSpec) -> pytree.TreeSpec:
    """What ``aot_function`` makes of a flat tuple: a list."""
    has_method = hasattr(structure, "children")  # the leaves of some releases have none
    children = structure.children() if has_method else structure.children_specs
    flat = all(child.is_leaf() for child in children)
    if structure.type is not tuple or not flat:
        return structure
    return pytree.tree_structure([0] * structure.num_leaves)


DIRECT = {
    "nop": lambda folder: nop,
    "print": lambda folder: print_compile(stream=Printed(folder)),
    "ts": lambda folder: ts_compile,
    "simple ts": lambda folder: simple_ts_compile,
    "debug": lambda folder: debug_nop,
    "draw": lambda folder: draw_graph_compile(folder / "graph.svg"),
    "dump": lambda folder: graph_dumper_aot("cell", folder),
}
GRAPHS = [cell for cell in CELLS if "graph module" in cell.name]


@pytest.mark.parametrize("compiler", DIRECT)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cell", GRAPHS, ids=names_of)
def test_a_graph_given_directly_runs_as_it_does_in_eager(
    cell, training, compiler, device, tmp_path
):
    """Submodules in train mode draw, and update their statistics; nobody traces them."""
    subject, eager = (cell.subject(device).train(training) for _ in range(2))
    torch.manual_seed(0)
    compiled = DIRECT[compiler](tmp_path)(subject, cell.inputs(device))
    with torch.no_grad():
        for call in (0, 1):
            expected = step(cell, eager, eager, device, call)
            seen = step(cell, compiled, subject, device, call)
            # a list of results is a tuple to TorchScript
            same = [name for name in EXACT + CLOSE if name != "structure"]
            assert not differences(seen, expected, cell.tolerance, tuple(same))


def test_sixteen_cells_count_for_aot_and_fifteen_for_torch_compile():
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert sum(cell.counts_for_aot for cell in CELLS) == 16
    assert sum(cell.counts_for_compile for cell in CELLS) == 15


def test_what_cannot_be_done_is_about_cells_and_ways_that_there_are():
    assert {way for _, way in CANNOT} <= set(WAYS)
    assert {cell for cell, _ in CANNOT} <= {cell.name for cell in CELLS}
