"""``graph_dumper_aot``: a compiler that writes every graph of a compilation down and runs it.

What belongs together is found by what the graphs carry: partitioning a joint graph marks both
halves (``gm.meta``) with the number of the compilation. A backward that is compiled long after its
forward, or after other forwards, still finds it. A graph without the mark is a compilation of its
own.

Dumping never fails a compilation: whatever goes wrong while writing is one warning in the log of
``lazyfx_compilers.dump``, and the graphs run undumped.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
from typing import TYPE_CHECKING, Any, Literal

from torch import fx

import lazyfx_core
from lazyfx_compilers import _torch_aot, _torch_debug
from lazyfx_compilers._nop import nop
from lazyfx_compilers._types import require_graph
from lazyfx_compilers.errors import NotCompilableError, UnknownOptionError

from ._graphs import operator_counts, output_names, readable_code
from ._recording import has_integer_tensor, recording_first_run
from ._schema import CODE, GRAPH, INPUTS
from ._specs import InputSpec, describe_inputs, encode_specs
from ._storages import require_safetensors
from ._writer import DumpFolder, safe_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lazyfx_compilers._types import FxCompiler

    Partitioner = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]

ExampleInputs = Literal["spec", "data", "none"]
EXAMPLE_INPUTS = ("spec", "data", "none")

log = logging.getLogger("lazyfx_compilers.dump")
_marks = itertools.count()


def graph_dumper_aot(
    name: str,
    folder: str | os.PathLike[str] | None,
    dump_example_input: bool = False,
    *,
    example_inputs: ExampleInputs | None = None,
    compiler: FxCompiler = nop,
    partition_fn: Partitioner = _torch_debug.default_partition,
) -> GraphDumper:
    """A compiler that writes joint, forward, backward and inference graphs to a folder.

    Give it to ``torch.compile(backend=...)``, or its parts to whatever takes AOTAutograd's
    settings: ``aot_function(f, dumper.fw_compiler, dumper.bw_compiler, dumper.partition_fn)``,
    ``memory_efficient_fusion(f, fw_compiler=dumper.fw_compiler, ...)``. To dump what another
    backend compiles, use :func:`dump_graphs`. Nothing is ever overwritten; :func:`load_dump` reads
    what was written.

    Args:
        name: Names the folder; what a path cannot hold becomes ``_``.
        folder: The parent folder, made if needed; ``None`` makes a temporary one and logs it.
        dump_example_input: ``True`` means ``example_inputs="data"``.
        example_inputs: ``"spec"``, the default: descriptions of each graph's inputs, and the least
            and greatest value of integer ones at the first run. ``"data"``: also the values of
            inputs and outputs at the first run. ``"none"``: neither. Joint graphs never run.
        compiler: What compiles the graphs after they were written.
        partition_fn: What splits joint graphs; torch's default partitioner.

    Raises:
        UnknownOptionError: A name, folder or option of another type or value.
        NotCompilableError: ``compiler`` or ``partition_fn`` cannot be called.
        MissingDependencyError: ``example_inputs="data"`` without safetensors.
    """
    if not isinstance(dump_example_input, bool):
        raise UnknownOptionError(
            f"graph_dumper_aot(dump_example_input={dump_example_input!r}): expected True or False"
        )
    if example_inputs is None:
        example_inputs = "data" if dump_example_input else "spec"
    elif dump_example_input and example_inputs != "data":
        raise UnknownOptionError(
            f"graph_dumper_aot(dump_example_input=True, example_inputs={example_inputs!r}): these "
            "contradict each other; leave dump_example_input out"
        )
    return make_dumper(
        "graph_dumper_aot", name, folder, example_inputs, compiler=compiler, partition=partition_fn
    )


def make_dumper(
    what: str,
    name: str,
    folder: str | os.PathLike[str] | None,
    example_inputs: str,
    *,
    compiler: FxCompiler = nop,
    partition: Partitioner = _torch_debug.default_partition,
) -> GraphDumper:
    """A :class:`GraphDumper` from a user's arguments, checked; ``what`` is who takes them."""
    if not isinstance(name, str):
        raise UnknownOptionError(f"{what}(name={name!r}): expected a string")
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise UnknownOptionError(
            f"{what}(folder={folder!r}): expected a path, or None for a temporary folder"
        )
    if example_inputs not in EXAMPLE_INPUTS:
        raise UnknownOptionError(
            f"{what}(example_inputs={example_inputs!r}): expected 'spec', 'data' or 'none'"
        )
    for argument, value in (("compiler", compiler), ("partition_fn", partition)):
        if not callable(value):
            raise NotCompilableError(
                f"{what}({argument}={value!r}): expected something that can be called"
            )
    if example_inputs == "data":
        require_safetensors()
    return GraphDumper(
        DumpFolder(folder, name),
        example_inputs=example_inputs,
        compiler=compiler,
        partition=partition,
    )


class GraphDumper:
    """What :func:`graph_dumper_aot` makes.

    Thread-safety: may compile in several threads; graphs of one compilation stay together.
    """

    def __init__(
        self,
        folder: DumpFolder,
        *,
        example_inputs: str,
        compiler: FxCompiler,
        partition: Partitioner,
    ) -> None:
        self._folder = folder
        self._example_inputs = example_inputs
        self._compiler = compiler
        self._partition = partition
        self._mark = f"lazyfx_dump_{next(_marks)}"
        self._lock = threading.Lock()
        self._warned = False

    def __repr__(self) -> str:
        return f"<graph dumper to {self.path or 'a folder that is not made yet'}>"

    @property
    def path(self) -> Path | None:
        """The folder with ``index.json``; ``None`` while nothing was written."""
        return self._folder.root

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile: Dynamo's graph forward and backward, any other as it is.

        A graph that is not Dynamo's counts as a compilation of its own; its phase is told by the
        names AOTAutograd gives to placeholders.

        Raises:
            NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
            InvalidGraphError: The graph is wrong; names the node.
        """
        checked = require_graph(gm, "graph_dumper_aot")
        if not _torch_aot.is_dynamo_graph(checked):
            phase = _torch_aot.phase(checked)
            return self.dump_and_compile(checked, example_inputs, self._compiler, phase=phase)
        return _torch_aot.compile_dynamo_graph(
            checked,
            example_inputs,
            fw_compiler=self.fw_compiler,
            bw_compiler=self.bw_compiler,
            partition_fn=self.partition_fn,
        )

    def fw_compiler(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """AOTAutograd's ``fw_compiler``, and its ``inference_compiler``."""
        return self.dump_and_compile(gm, example_inputs, self._compiler)

    def bw_compiler(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """AOTAutograd's ``bw_compiler``."""
        return self.dump_and_compile(gm, example_inputs, self._compiler, phase="backward")

    def partition_fn(
        self, joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """AOTAutograd's ``partition_fn``: writes the joint graph, splits it, marks the halves."""
        return self.dump_and_partition(joint, joint_inputs, self._partition, **settings)

    def dump_and_partition(
        self,
        joint: fx.GraphModule,
        joint_inputs: Sequence[Any],
        partition: Partitioner,
        **settings: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """What :meth:`partition_fn` does, with another partitioner."""
        compilation = self._number(joint)
        if compilation is not None:
            self._write(joint, joint_inputs, "joint", compilation)
        forward, backward = partition(joint, joint_inputs, **settings)
        forward.meta[self._mark] = backward.meta[self._mark] = compilation
        if isinstance(settings.get("num_fwd_outputs"), int):
            forward.meta[f"{self._mark}_results"] = settings["num_fwd_outputs"]
        return forward, backward

    def dump_and_compile(
        self,
        gm: fx.GraphModule,
        example_inputs: Sequence[Any],
        compiler: FxCompiler,
        *,
        phase: str | None = None,
    ) -> Callable[..., Any]:
        """Write ``gm``, then compile it with ``compiler``.

        Args:
            gm: Not Dynamo's.
            example_inputs: Fake or real.
            compiler: Given what this was given.
            phase: ``None``: forward if its joint graph was seen, else inference.
        """
        if phase is None:
            phase = "forward" if self._mark in gm.meta else "inference"
        compilation = self._number(gm)
        written = None
        if compilation is not None:
            written = self._write(gm, example_inputs, phase, compilation)
        names = output_names(gm)
        compiled = compiler(gm, example_inputs)
        if written is None or self._example_inputs == "none":
            return compiled
        folder, specs = written
        values = self._example_inputs == "data"
        if not values and not has_integer_tensor(specs):
            return compiled
        return recording_first_run(
            compiled,
            folder,
            specs,
            names,
            results=gm.meta.get(f"{self._mark}_results"),
            values=values,
            exact=compiler is nop,
            failed=self._warn,
        )

    def _number(self, gm: fx.GraphModule) -> int | None:
        """The compilation that ``gm`` belongs to; ``None`` if there is no folder."""
        number = gm.meta.get(self._mark)
        if number is not None:
            return int(number)
        try:
            return self._folder.new_compilation()
        except Exception as error:  # a dump must never be why a training does not start
            self._warn(error)
            return None

    def _write(
        self, gm: fx.GraphModule, inputs: Sequence[Any], phase: str, compilation: int
    ) -> tuple[Path, tuple[InputSpec, ...]] | None:
        try:
            specs = _describe(gm, inputs)
            compile_id = _torch_debug.compile_id()
            wanted = f"{compilation:03d}_{phase}"
            if compile_id is not None:
                wanted += f"_{safe_name(re.sub('[^0-9]+', '-', compile_id))}"
            entry = {
                "phase": phase,
                "compilation": compilation,
                "compile_id": compile_id,
                "inputs": len(specs),
                "nodes": len(gm.graph.nodes),
                "ops": operator_counts(gm),
            }

            def write(folder: Path) -> None:
                (folder / CODE).write_text(readable_code(gm), encoding="utf-8")
                if self._example_inputs != "none":
                    text = encode_specs("inputs", specs)
                    (folder / INPUTS).write_text(text, encoding="utf-8")
                try:
                    lazyfx_core.save_graph(gm, folder / GRAPH, warn=False)
                except lazyfx_core.SerializationError as error:
                    entry["not_stored"] = str(error)
                    self._warn(error)

            return self._folder.add_graph(wanted, write, entry), specs
        except Exception as error:  # a dump must never be why a training does not start
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            log.warning(
                "graph_dumper_aot cannot write everything (%s: %s); the graphs run all the same. "
                "%sThis is said once",
                type(error).__name__,
                error,
                "Give it a folder that can be written. " if isinstance(error, OSError) else "",
                exc_info=None if isinstance(error, OSError) else error,
            )


def _describe(gm: fx.GraphModule, inputs: Sequence[Any]) -> tuple[InputSpec, ...]:
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    names = [node.name for node in placeholders]
    specs = describe_inputs(names, inputs)
    if len(specs) == len(placeholders):
        return specs
    # torch tells no inputs when it splits the joint graph of an invoke_subgraph
    return describe_inputs(names, [node.meta.get("val") for node in placeholders])
