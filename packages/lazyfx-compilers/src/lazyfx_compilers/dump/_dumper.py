"""``graph_dumper_aot``: a compiler that writes every graph of a compilation down and runs it.

What belongs together is found by what the graphs carry: partitioning a joint graph marks both
halves (``gm.meta``) with the number of the compilation. A backward that is compiled long after its
forward, or after other forwards, still finds it. A graph without the mark is a compilation of its
own.

Dumping never fails a compilation: whatever goes wrong while writing is one warning in the log of
``lazyfx_compilers.dump``, and the graphs run undumped.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyfx_compilers import _torch_aot, _torch_debug
from lazyfx_compilers._types import boxed, require_graph
from lazyfx_compilers.errors import NotCompilableError, UnknownOptionError
from lazyfx_compilers.nop import nop

from ._data import encode_data, require_safetensors
from ._graphs import graph_content, operator_counts, readable_code
from ._schema import CODE, DATA, GRAPH, INPUTS, to_json
from ._specs import InputSpec, describe_inputs, encode_spec, with_expressions
from ._writer import DumpFolder, GraphFiles, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

    from lazyfx_compilers._types import FxCompiler

    Partitioner = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]

log = logging.getLogger("lazyfx_compilers.dump")
_marks = itertools.count()


def graph_dumper_aot(
    current_name: str,
    folder_name: str | os.PathLike[str] | None,
    dump_example_input: bool = False,
    *,
    compiler: FxCompiler = nop,
    partition_fn: Partitioner = _torch_debug.default_partition,
) -> GraphDumper:
    """A compiler that writes joint, forward, backward and inference graphs to a folder.

    Give it to ``torch.compile(backend=...)``, or its parts to whatever takes AOTAutograd's
    settings: ``aot_function(f, dumper.fw_compiler, dumper.bw_compiler, dumper.partition_fn)``,
    ``memory_efficient_fusion(f, fw_compiler=dumper.fw_compiler, ...)``. The layout of the folder
    is in :mod:`lazyfx_compilers.dump._schema`. Nothing is ever overwritten.

    Args:
        current_name: Names the folder; what a path cannot hold becomes ``_``.
        folder_name: The parent folder, made if needed; ``None`` makes a temporary one and logs it.
        dump_example_input: Also store the values of each graph's inputs, those of its first run
            (while compiling there are only descriptions). Joint graphs never run: no values.
        compiler: What compiles the graphs after they were written.
        partition_fn: What splits joint graphs; torch's default partitioner.

    Raises:
        UnknownOptionError: A name, folder or flag of another type.
        NotCompilableError: ``compiler`` or ``partition_fn`` cannot be called.
        MissingDependencyError: ``dump_example_input=True`` without safetensors.
    """
    if not isinstance(current_name, str):
        raise UnknownOptionError(
            f"graph_dumper_aot(current_name={current_name!r}): expected a string"
        )
    if folder_name is not None and not isinstance(folder_name, (str, os.PathLike)):
        raise UnknownOptionError(
            f"graph_dumper_aot(folder_name={folder_name!r}): expected a path, or None for a "
            "temporary folder"
        )
    if not isinstance(dump_example_input, bool):
        raise UnknownOptionError(
            f"graph_dumper_aot(dump_example_input={dump_example_input!r}): expected True or False"
        )
    for name, value in (("compiler", compiler), ("partition_fn", partition_fn)):
        if not callable(value):
            raise NotCompilableError(
                f"graph_dumper_aot({name}={value!r}): expected something that can be called"
            )
    if dump_example_input:
        require_safetensors()
    return GraphDumper(
        DumpFolder(folder_name, current_name),
        with_data=dump_example_input,
        compiler=compiler,
        partition=partition_fn,
    )


class GraphDumper:
    """What :func:`graph_dumper_aot` makes.

    Thread-safety: may compile in several threads; graphs of one compilation stay together.
    """

    def __init__(
        self,
        folder: DumpFolder,
        *,
        with_data: bool,
        compiler: FxCompiler,
        partition: Partitioner,
    ) -> None:
        self._folder = folder
        self._with_data = with_data
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
            return self._dump_and_compile(checked, example_inputs, _torch_aot.phase(checked))
        return _torch_aot.compile_dynamo_graph(
            checked,
            example_inputs,
            fw_compiler=self.fw_compiler,
            bw_compiler=self.bw_compiler,
            partition_fn=self.partition_fn,
        )

    def fw_compiler(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """AOTAutograd's ``fw_compiler``, and its ``inference_compiler``."""
        phase = "forward" if self._mark in gm.meta else "inference"
        return self._dump_and_compile(gm, example_inputs, phase)

    def bw_compiler(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """AOTAutograd's ``bw_compiler``."""
        return self._dump_and_compile(gm, example_inputs, "backward")

    def partition_fn(
        self, joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """AOTAutograd's ``partition_fn``: writes the joint graph, splits it, marks the halves."""
        compilation = self._number(joint)
        if compilation is not None:
            self._write(joint, joint_inputs, "joint", compilation)
        forward, backward = self._partition(joint, joint_inputs, **settings)
        forward.meta[self._mark] = backward.meta[self._mark] = compilation
        return forward, backward

    def _dump_and_compile(
        self, gm: fx.GraphModule, example_inputs: Sequence[Any], phase: str
    ) -> Callable[..., Any]:
        compilation = self._number(gm)
        written = None
        if compilation is not None:
            written = self._write(gm, example_inputs, phase, compilation)
        compiled = self._compiler(gm, example_inputs)
        if written is None or not self._with_data:
            return compiled
        return self._keeping_first_inputs(compiled, *written)

    def _number(self, gm: fx.GraphModule) -> int | None:
        """The compilation that ``gm`` belongs to; ``None`` if there is no folder."""
        number = gm.meta.get(self._mark)
        if number is not None:
            return int(number)
        try:
            return self._folder.new_compilation()
        except OSError as error:
            self._warn(error)
            return None

    def _write(
        self, gm: fx.GraphModule, inputs: Sequence[Any], phase: str, compilation: int
    ) -> tuple[Path, tuple[InputSpec, ...]] | None:
        try:
            names = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
            specs = describe_inputs(names, inputs)
            about = {"phase": phase, "compilation": compilation}
            texts = {
                CODE: readable_code(gm),
                GRAPH: to_json("graph", {**about, **graph_content(gm)}),
                INPUTS: _inputs_text(specs),
            }
            files = GraphFiles(texts=texts, nodes=len(gm.graph.nodes), ops=operator_counts(gm))
            return self._folder.add_graph(compilation, phase, files), specs
        except Exception as error:  # a dump must never be why a training does not start
            self._warn(error)
            return None

    def _keeping_first_inputs(
        self, compiled: Callable[..., Any], folder: Path, traced: tuple[InputSpec, ...]
    ) -> Callable[..., Any]:
        takes_list = getattr(compiled, "_boxed_call", False)
        pending = [folder]

        def keep_and_run(inputs: list[Any]) -> Any:
            with self._lock:
                target = pending.pop() if pending else None
            if target is not None:
                self._write_data(target, traced, inputs)
            if takes_list:
                return compiled(inputs)
            arguments = tuple(inputs)
            inputs.clear()
            return compiled(*arguments)

        return boxed(keep_and_run, "graph_dumper_aot")

    def _write_data(
        self, folder: Path, traced: tuple[InputSpec, ...], inputs: Sequence[Any]
    ) -> None:
        try:
            leaves, _ = _torch_aot.tree_flatten(list(inputs))
            if any(_torch_aot.is_fake(leaf) for leaf in leaves):
                self._warn(ValueError("the graph was run with fake tensors, which have no values"))
                return
            real = describe_inputs([spec.name for spec in traced], inputs)
            specs = with_expressions(real, traced)
            replace_file(folder / DATA, encode_data(specs, inputs))
            replace_file(folder / INPUTS, _inputs_text(specs).encode())
        except Exception as error:  # as above
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            log.warning(
                "graph_dumper_aot cannot write everything (%s: %s); the graphs run all the same. "
                "Give it a folder that can be written; this is said once",
                type(error).__name__,
                error,
                exc_info=None if isinstance(error, OSError) else error,
            )


def dump_backend(
    gm: fx.GraphModule,
    graph_inputs: Sequence[Any],
    /,
    *,
    name: str = "graph",
    folder: str | os.PathLike[str] | None = None,
    example_inputs: str = "spec",
) -> Callable[..., Any]:
    """What the backend ``lazyfx_dump`` does for one graph.

    Graphs dumped under the same options in one process go into one folder.

    Args:
        gm: The graph, Dynamo's or AOTAutograd's.
        graph_inputs: Its inputs.
        name: See :func:`graph_dumper_aot`.
        folder: See :func:`graph_dumper_aot`.
        example_inputs: ``"spec"`` for descriptions, ``"data"`` for values too.

    Raises:
        UnknownOptionError: Another value for an option.
    """
    if example_inputs not in ("spec", "data"):
        raise UnknownOptionError(
            f"lazyfx_dump(example_inputs={example_inputs!r}): expected 'spec' or 'data'"
        )
    parent = os.fspath(folder) if isinstance(folder, os.PathLike) else folder
    if not isinstance(parent, str | None) or not isinstance(name, str):
        return graph_dumper_aot(name, folder)(gm, graph_inputs)  # says which one is wrong
    absolute = None if parent is None else os.path.abspath(parent)
    return _dumper_for(name, absolute, example_inputs == "data")(gm, graph_inputs)


@functools.cache
def _dumper_for(name: str, folder: str | None, with_data: bool) -> GraphDumper:
    return graph_dumper_aot(name, folder, with_data)


def _inputs_text(specs: Sequence[InputSpec]) -> str:
    return to_json("inputs", {"inputs": [encode_spec(spec) for spec in specs]})
