"""``graph_dumper_aot``: a compiler that writes every graph of a compilation and runs it."""

from __future__ import annotations

import logging
import tempfile
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyfx_compilers import _torch_aot
from lazyfx_compilers._types import boxed, require_graph
from lazyfx_compilers.decompositions import default_decompositions
from lazyfx_compilers.errors import UnknownOptionError
from lazyfx_compilers.nop import nop

from ._inputs import safetensors_missing
from ._writer import claim_folder, claim_number, safe_name, write_data, write_graph, write_index

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from torch import fx

log = logging.getLogger("lazyfx_compilers.dump")
_ID = "lazyfx_dump"


def graph_dumper_aot(
    current_name: str, folder_name: str | os.PathLike[str], dump_example_input: bool = False
) -> GraphDumper:
    """A compiler that writes joint, forward and backward graphs under ``folder_name``.

    ::

        folder_name/current_name/
            index.json               every graph: folder, phase, node and op counts
            000/                     the first compilation
                joint/  forward/  backward/
                    graph.py         readable code with shapes
                    graph.json       nodes, for tools
                    inputs.json      what the graph takes; see get_inputs
                    inputs.safetensors   values of the first run, if asked for
            001/                     the next one

    Give it to ``torch.compile(backend=...)``, or its parts to ``aot_function`` and ``aot_module``:
    ``fw_compiler=dumper.forward, bw_compiler=dumper.backward, partition_fn=dumper.partition``.

    Nothing is overwritten, in this process or another. Dumping never fails a compilation: if
    a file cannot be written there is one warning and the graphs run undumped.

    Args:
        current_name: The folder's name; characters that are not letters, digits, ``_`` or ``-``
            become ``_``.
        folder_name: Made if needed; made absolute at once, so changing directory does no harm.
        dump_example_input: Store the values of each graph's inputs when it first runs.

    Raises:
        MissingDependencyError: ``dump_example_input=True`` without safetensors.

    Thread-safety: may be used from several threads; graphs of one compilation stay together.
    """
    return GraphDumper(current_name, folder_name, with_data=dump_example_input)


class GraphDumper:
    """What :func:`graph_dumper_aot` makes. ``root`` is the folder that everything is under."""

    def __init__(self, name: str, folder: str | os.PathLike[str], *, with_data: bool) -> None:
        if with_data:
            _require_safetensors()
        self.root = Path(folder).absolute() / safe_name(name)
        self._with_data = with_data
        self._lock = threading.Lock()
        self._warned = False

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile a Dynamo graph forward and back, or dump one ATen graph as an inference graph."""
        checked = require_graph(gm, "graph_dumper_aot")
        if _torch_aot.is_aten_graph(checked):
            return self._dump_and_run(checked, example_inputs, "inference")
        return _torch_aot.compile_dynamo_graph(
            checked,
            example_inputs,
            fw_compiler=self.forward,
            bw_compiler=self.backward,
            partition_fn=self.partition,
            decompositions=default_decompositions,
        )

    def forward(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The ``fw_compiler``; without a backward it writes an inference graph."""
        phase = "forward" if _ID in gm.meta else "inference"
        return self._dump_and_run(gm, example_inputs, phase)

    def backward(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The ``bw_compiler``."""
        return self._dump_and_run(gm, example_inputs, "backward")

    def partition(
        self, joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The ``partition_fn``: writes the joint graph, then partitions it by min-cut."""
        folder = self._write(joint, joint_inputs, "joint", None)
        forward, backward = _torch_aot.min_cut_partition(joint, joint_inputs, **settings)
        # the two halves find their way back to this compilation by what they carry
        forward.meta[_ID] = backward.meta[_ID] = folder.parent if folder is not None else None
        return forward, backward

    def _dump_and_run(
        self, gm: fx.GraphModule, example_inputs: Sequence[Any], phase: str
    ) -> Callable[..., Any]:
        run = nop(gm, example_inputs)
        folder = self._write(gm, example_inputs, phase, gm.meta.get(_ID))
        if folder is None or not self._with_data:
            return run
        return self._storing_first_inputs(run, folder)

    def _storing_first_inputs(self, run: Callable[..., Any], folder: Path) -> Callable[..., Any]:
        pending = [folder]

        def store_and_run(inputs: list[Any]) -> Any:
            # example inputs are fake while compiling: real ones come with the first run
            with self._lock:
                target = pending.pop() if pending else None
            if target is not None:
                try:
                    write_data(target, inputs)
                except (OSError, ValueError) as error:
                    self._warn(error)
            return run(inputs)

        return boxed(store_and_run, "graph_dumper_aot")

    def _write(
        self, gm: fx.GraphModule, inputs: Sequence[Any], phase: str, compilation: Path | None
    ) -> Path | None:
        try:
            with self._lock:
                parent = compilation if compilation is not None else claim_number(self.root)
                folder = claim_folder(parent, phase)
            write_graph(folder, gm, inputs)
            with self._lock:
                write_index(self.root)
        except OSError as error:
            self._warn(error)
            return None
        log.info("dumped the %s graph to %s", phase, folder)
        return folder

    def _warn(self, error: Exception) -> None:
        with self._lock:
            if self._warned:
                return
            self._warned = True
        warnings.warn(
            f"graph_dumper_aot cannot write under {self.root} ({error}); graphs run undumped. "
            "Give it a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )


def dump_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    name: str = "graph",
    folder: str | os.PathLike[str] | None = None,
    example_inputs_mode: str = "spec",
) -> Callable[..., Any]:
    """What the backend ``lazyfx_dump`` does for one graph.

    Args:
        gm: See :func:`graph_dumper_aot`.
        example_inputs: See :func:`graph_dumper_aot`.
        name: See :func:`graph_dumper_aot`.
        folder: ``None`` makes a fresh temporary folder and logs it.
        example_inputs_mode: ``"spec"`` for descriptions, ``"data"`` for values too.

    Raises:
        UnknownOptionError: Another mode.
    """
    if example_inputs_mode not in ("spec", "data"):
        raise UnknownOptionError(
            f"lazyfx_dump(example_inputs={example_inputs_mode!r}): expected 'spec' or 'data'"
        )
    if folder is None:
        folder = tempfile.mkdtemp(prefix="lazyfx-dump-")
        log.warning("dumping graphs to %s", folder)
    return graph_dumper_aot(name, folder, example_inputs_mode == "data")(gm, example_inputs)


def _require_safetensors() -> None:
    try:
        import safetensors.torch  # noqa: F401
    except ImportError:
        raise safetensors_missing() from None
