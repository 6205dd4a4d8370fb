"""Run a graph node by node and compare each result with what tracing recorded.

Tracing leaves a description of every result in the graph: a fake tensor in ``meta["val"]``
(AOTAutograd) or ``meta["example_value"]`` (Dynamo). When a compiled model is wrong, the first node
whose real result does not fit its description is where to look.

Symbolic sizes are bound from the inputs of each run. A size that only running can tell (the rows of
``nonzero``) is bound where it first appears and must be the same wherever it appears again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from . import _repro, _torch_aot
from ._types import FxCompiler, boxed, require_graph
from .errors import MetadataMismatchError
from .torchscript import ts_compile

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

log = logging.getLogger("lazyfx_compilers.debug")


class DebugInterpreter(fx.Interpreter):
    """An ``fx.Interpreter`` that checks each node's result against the recorded metadata.

    Compared, for tensors: dtype, device, size and significant strides (of dimensions longer than
    one in tensors that are not empty); for containers, the number of results; for symbolic
    numbers, the value. A node without metadata is run and not checked.

    Use one interpreter for one run: it holds the symbol values of that run. Values are dropped
    after their last use. Not thread-safe; make one per thread, they are cheap.

    Raises:
        MetadataMismatchError: From ``run``: names node, property, expected, seen, user's line.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(require_graph(module, "DebugInterpreter"))
        self._symbols: dict[Any, int] = {}

    def run(
        self,
        *args: Any,
        initial_env: dict[fx.Node, Any] | None = None,
        enable_io_processing: bool = True,
    ) -> Any:
        """Run the graph; see ``fx.Interpreter.run``."""
        self._symbols = {}
        # with boxed_run the inputs arrive here and placeholders are never run
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        given = initial_env or {}
        for node in placeholders:
            if node in given:
                self._check(node, given[node])
        try:
            return super().run(
                *args, initial_env=initial_env, enable_io_processing=enable_io_processing
            )
        finally:
            self.env = {}  # fx.Interpreter keeps what the output used

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and check its result."""
        result = super().run_node(n)
        if n.op != "output":
            self._check(n, result)
        return result

    def _check(self, node: fx.Node, result: Any) -> None:
        recorded = node.meta.get("val", node.meta.get("example_value"))
        if recorded is None:
            return
        expected, _ = _torch_aot.tree_flatten(recorded)
        seen, _ = _torch_aot.tree_flatten(result)
        if len(expected) != len(seen):
            raise _mismatch(node, "number of results", len(expected), len(seen))
        for index, (want, got) in enumerate(zip(expected, seen, strict=True)):
            part = f"result {index}: " if len(expected) > 1 else ""
            self._check_leaf(node, part, want, got)

    def _check_leaf(self, node: fx.Node, part: str, want: Any, got: Any) -> None:
        if isinstance(want, (torch.SymInt, int)) and not isinstance(want, bool):
            if isinstance(got, int):
                self._check_number(node, part + "value", want, got)
            elif isinstance(got, torch.Tensor):
                raise _mismatch(node, part + "kind", "a number", "a tensor")
            return
        if not isinstance(want, torch.Tensor):
            return
        if not isinstance(got, torch.Tensor):
            raise _mismatch(node, part + "kind", "a tensor", type(got).__name__)
        for name in ("dtype", "device", "layout"):
            if getattr(want, name) != getattr(got, name):
                raise _mismatch(node, part + name, getattr(want, name), getattr(got, name))
        if want.ndim != got.ndim:
            raise _mismatch(node, part + "size", tuple(want.shape), tuple(got.shape))
        for dim, (size, real) in enumerate(zip(want.shape, got.shape, strict=True)):
            self._check_number(node, f"{part}size of dimension {dim}", size, real)
        if want.layout is not torch.strided or got.numel() == 0:
            return
        for dim, (stride, real) in enumerate(zip(want.stride(), got.stride(), strict=True)):
            if got.shape[dim] > 1:
                self._check_number(node, f"{part}stride of dimension {dim}", stride, real)

    def _check_number(self, node: fx.Node, what: str, want: Any, got: int) -> None:
        value = _torch_aot.evaluate(want, got, self._symbols)
        if value is not None and value != got:
            written = f"{value}" if isinstance(want, int) else f"{value} ({want})"
            raise _mismatch(node, what, written, got)


def debug_nop(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Run ``gm`` as it is, node by node, checking each result; slow on purpose.

    Args:
        gm: ATen or Dynamo graph, lazy or plain; kept, not copied, not changed.
        example_inputs: Not looked at, not kept.

    Returns:
        A callable that takes the graph's inputs as one list, which it empties, or one by one. Each
        call uses an interpreter of its own: safe from several threads, nothing is kept alive.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: The graph is wrong; names the node.
        MetadataMismatchError: On calling, see :class:`DebugInterpreter`.
    """
    checked = require_graph(gm, "debug_nop")

    def run(inputs: list[Any]) -> Any:
        return DebugInterpreter(checked).boxed_run(inputs)

    return boxed(run, "debug_nop")


def debug_compile(
    gm: Any = None,
    example_inputs: Sequence[Any] = (),
    /,
    *,
    folder: str | os.PathLike[str] | None = None,
    compiler: FxCompiler = ts_compile,
) -> Any:
    """Write a program that reproduces the compilation, then compile ``gm``.

    A compiler by itself, ``debug_compile(gm, example_inputs)``; without a graph,
    ``debug_compile(folder=..., compiler=...)`` makes one.

    The program, ``repro.py``, holds the graph as code, builds inputs of the same description,
    runs the graph as it is, then compiled by ``compiler``, and compares. Where it was written is
    logged as a warning on ``lazyfx_compilers.debug`` and named by the error if compiling fails.

    Args:
        gm: Not changed. A Dynamo graph goes through AOTAutograd; each graph gets its own program.
        example_inputs: Fake or real; described, not stored.
        folder: Where to make the folder of each program; ``None`` means the system's temporary
            folder. Nothing is overwritten.
        compiler: A compiler at the top level of a module, by default :func:`ts_compile`.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``, or ``compiler`` cannot be
            imported by name.
        InvalidGraphError: The graph is wrong; names the node.
        OSError: The program cannot be written.
        Exception: Whatever ``compiler`` raises, with a note that says where the program is.
    """
    command = _repro.import_line(compiler)

    def compile_and_keep(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Any:
        checked = require_graph(gm, "debug_compile")
        if not _torch_aot.is_aten_graph(checked):
            return _torch_aot.compile_dynamo_graph(
                checked, example_inputs, fw_compiler=compile_and_keep
            )
        program = _repro.write_repro(checked, example_inputs, folder, command)
        log.warning("to reproduce this compilation: python %s", program)
        try:
            return compiler(checked, example_inputs)
        except Exception as error:
            error.add_note(f"to reproduce: python {program}")
            raise

    return compile_and_keep if gm is None else compile_and_keep(gm, example_inputs)


def _mismatch(node: fx.Node, what: str, expected: object, seen: object) -> MetadataMismatchError:
    return MetadataMismatchError(
        f"node {node.name!r} ({node.op} {node.target}): {what} is {seen}, tracing recorded "
        f"{expected}; {_user_line(node)}; whatever changed the graph after tracing, or this "
        "operator's fake implementation, is wrong"
    )


def _user_line(node: fx.Node) -> str:
    trace = node.meta.get("stack_trace")
    if not trace:
        return "no source line was recorded"
    lines = [line.strip() for line in trace.strip().splitlines()]
    places = [i for i, line in enumerate(lines) if line.startswith("File ")]
    return "from " + " ".join(lines[places[-1] :]) if places else f"from {lines[-1]}"
