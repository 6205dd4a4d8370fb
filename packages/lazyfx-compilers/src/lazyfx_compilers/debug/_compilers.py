"""Compilers for finding out what is wrong: one that checks, one that writes a reproduction.

``debug_nop`` checks every node: its result is held against what tracing recorded about it.

A compiled model is wrong in the first place where a real operator does what its description (its
fake kernel, a decomposition, a pass that edited the graph) does not say. Here each node runs by
itself and its result is compared at once, so the error names the node and the user's line instead
of a crash three kernels later.

What was recorded is ``node.meta["val"]`` (AOTAutograd) or ``node.meta["example_value"]`` (Dynamo);
a node without a record is run unchecked. :mod:`lazyfx_compilers.debug._checks` lists the checks.
Values are freed at their last use, as compiled code would.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, Literal, overload

from lazyfx_compilers import _torch_aot
from lazyfx_compilers._repro import announcement, importable_name, place_of, write_repro
from lazyfx_compilers._types import boxed, require_graph
from lazyfx_compilers.errors import ReproError
from lazyfx_compilers.partition import budget_partitioner
from lazyfx_compilers.torchscript import ts_compile

from . import _checks
from ._interpreter import DebugInterpreter

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Sequence

    from torch import fx

    from lazyfx_compilers._types import FxCompiler

log = logging.getLogger("lazyfx_compilers.debug")


@overload
def debug_nop(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]: ...


@overload
def debug_nop(
    *,
    checks: Collection[str] | None = None,
    action: Literal["raise", "warn"] = "raise",
    ignore: Iterable[tuple[str, str]] = (),
) -> FxCompiler: ...


def debug_nop(
    gm: Any = ...,
    example_inputs: Sequence[Any] = (),
    /,
    *,
    checks: Collection[str] | None = None,
    action: Literal["raise", "warn"] = "raise",
    ignore: Iterable[tuple[str, str]] = (),
) -> Any:
    """Run ``gm`` node by node and check each result against what tracing recorded.

    A compiler by itself, ``debug_nop(gm, example_inputs)``; without a graph,
    ``debug_nop(checks=..., action=..., ignore=...)`` makes one.

    Args:
        gm: Kept, not copied, not changed; no code is generated. What it recorded is read now:
            later edits of the graph are not seen by the checks.
        example_inputs: Not kept. A Python number that AOTAutograd has baked into the graph is
            remembered by value, so that a call with another one is an error and not a replay of
            the old one.
        checks: Names from :data:`CHECKS`; ``None`` means :data:`DEFAULT_CHECKS`, all that a right
            graph never fails and that cost no pass over the data. ``DEFAULT_CHECKS | {"nan"}``
            names the node that makes the first NaN.
        action: ``"raise"`` at the first difference. ``"warn"`` logs each, once for each node and
            check, as a warning of ``lazyfx_compilers.debug``, and goes on.
        ignore: Pairs of what a node runs and a check that it need not pass, as ``target`` and
            ``check`` of an error say: ``("aten.native_layer_norm.default", "dtype")``.

    Returns:
        A callable that takes the graph's inputs as one list, which it empties, or one by one. It
        raises :class:`MetadataMismatchError` at the first node whose result differs. Several
        threads may call it at a time.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: The graph is wrong; names the node.
        UnknownOptionError: A check or an action is unknown.
    """
    chosen = _checks.settings(checks, action, ignore)

    def compiler(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]:
        checked = require_graph(gm, "debug_nop")
        if _torch_aot.must_be_traced(checked):
            return _torch_aot.compile_dynamo_graph(
                checked, example_inputs, fw_compiler=compiler, partition_fn=budget_partitioner()
            )
        template = DebugInterpreter(
            checked,
            example_inputs=example_inputs,
            checks=chosen.checks,
            action=chosen.action,
            ignore=chosen.ignore,
        )
        return boxed(lambda inputs: copy.copy(template).boxed_run(inputs), "debug_nop")

    compiler.__name__ = "debug_nop"  # what Dynamo calls the backend in its errors
    return compiler if gm is ... else compiler(gm, example_inputs)


@overload
def debug_compile(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]: ...


@overload
def debug_compile(
    *,
    folder: str | os.PathLike[str] | None = None,
    compiler: FxCompiler = ts_compile,
    verify: bool = True,
) -> FxCompiler: ...


def debug_compile(
    gm: Any = ...,
    example_inputs: Sequence[Any] = (),
    /,
    *,
    folder: str | os.PathLike[str] | None = None,
    compiler: FxCompiler = ts_compile,
    verify: bool = True,
) -> Any:
    """Write a program that reproduces this compilation, then compile.

    A compiler by itself, ``debug_compile(gm, example_inputs)``; without a graph,
    ``debug_compile(folder=..., compiler=...)`` makes one. Dynamo's graph goes through AOTAutograd
    first; each of the graphs that makes gets a program of its own.

    Each program has a folder of its own with ``repro.py`` (the graph node by node, inputs made
    from their descriptions, a comparison of the graph with what ``compiler`` makes of it),
    ``graph.py`` (readable code), ``inputs.json`` and the constants the graph holds. It runs from
    anywhere, with torch alone; where the compiler's package is missing it runs the graph only.
    Nothing of it is a pickle. Its exit status is 0 if both agree, 1 if compiling fails or they
    differ, and 125 if that cannot be told; ``--device cpu`` runs it elsewhere.

    The program runs once in a fresh process before its path is logged as a warning, and before
    ``compiler`` runs here; the warning says what it did.

    Args:
        gm: Not changed.
        example_inputs: Fake or real; only described, never run.
        folder: Where the programs' folders ``000``, ``001``, ... are made; never overwrites.
            ``None`` makes a temporary folder for each.
        compiler: What compiles the graph; must be importable by its name.
        verify: Run each program before announcing it, which takes about as long as importing
            torch and compiling. Otherwise the warning says that it has not run.

    Returns:
        What ``compiler`` returns.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: The graph is wrong; names the node.
        ReproError: The graph cannot be written as a program, names the node; or the folder cannot
            be written, or the compiler has no importable name. Before anything was compiled.
        Exception: Whatever ``compiler`` raises, with a note that says where the program is.
    """
    name = importable_name(compiler)
    if name is None:
        raise ReproError(
            f"debug_compile(compiler={compiler!r}): expected a function at the top level of an "
            "importable module, so that the program can import it; move it there"
        )
    fault = {"kind": "any", "compiler": name, "places": place_of(name)}

    def compile_aten(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]:
        script = write_repro(gm, example_inputs, folder, fault, writer="debug_compile", data=False)
        what = announcement(script, verify=verify)
        log.warning("run this to compile the graph again: %s", what)
        try:
            return compiler(gm, example_inputs)
        except Exception as error:
            error.add_note(f"run this to compile the graph again: {script}")
            raise

    def compile_any(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]:
        checked = require_graph(gm, "debug_compile")
        if _torch_aot.is_dynamo_graph(checked):
            return _torch_aot.compile_dynamo_graph(
                checked,
                example_inputs,
                fw_compiler=compile_aten,
                partition_fn=budget_partitioner(),
            )
        return compile_aten(checked, example_inputs)

    compile_any.__name__ = "debug_compile"  # what Dynamo calls the backend in its errors
    return compile_any if gm is ... else compile_any(gm, example_inputs)
