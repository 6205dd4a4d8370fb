"""Compilers for finding out what is wrong: one that checks, one that writes a reproduction.

``debug_nop`` checks every node: its result is held against what tracing recorded about it.

A compiled model is wrong in the first place where a real operator does what its description (its
fake kernel, a decomposition, a pass that edited the graph) does not say. Here each node runs by
itself and its result is compared at once, so the error names the node and the user's line instead
of a crash three kernels later.

Checked: tensor or not, dtype, device, layout, size, the strides that matter, the number of
outputs, symbolic numbers; what was recorded is ``node.meta["val"]`` (AOTAutograd) or
``node.meta["example_value"]`` (Dynamo). A node without a record is run unchecked, and so are the
nodes inside the subgraphs of higher-order operators. See :mod:`lazyfx_compilers._metadata` for the
rules. Values are freed at their last use, as compiled code would.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, overload

from torch import fx

from . import _metadata, _torch_aot
from ._checks import check, describe, record_graph
from ._repro import compiler_name, write_repro
from ._types import boxed, require_graph
from .errors import MetadataMismatchError
from .partition import budget_partitioner
from .torchscript import ts_compile

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from ._types import FxCompiler

log = logging.getLogger("lazyfx_compilers.debug")


def debug_nop(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Run ``gm`` node by node and check each result against what tracing recorded.

    Args:
        gm: Kept, not copied, not changed; no code is generated. What it recorded is read now:
            later edits of the graph are not seen by the checks.
        example_inputs: Not kept. A Python number that AOTAutograd has baked into the graph is
            remembered by value, so that a call with another one is an error and not a replay of
            the old one.

    Returns:
        A callable that takes the graph's inputs as one list, which it empties, or one by one. It
        raises :class:`MetadataMismatchError` at the first node whose result differs. Several
        threads may call it at a time.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: The graph is wrong; names the node.
    """
    checked = require_graph(gm, "debug_nop")
    if _torch_aot.must_be_traced(checked):
        return _torch_aot.compile_dynamo_graph(
            checked, example_inputs, fw_compiler=debug_nop, partition_fn=budget_partitioner()
        )
    template = DebugInterpreter(checked, example_inputs=example_inputs)

    def run(inputs: list[Any]) -> Any:
        return copy.copy(template).boxed_run(inputs)

    return boxed(run, "debug_nop")


@overload
def debug_compile(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]: ...


@overload
def debug_compile(
    *, folder: str | os.PathLike[str] | None = None, compiler: FxCompiler = ts_compile
) -> FxCompiler: ...


def debug_compile(
    gm: Any = None,
    example_inputs: Sequence[Any] = (),
    /,
    *,
    folder: str | os.PathLike[str] | None = None,
    compiler: FxCompiler = ts_compile,
) -> Any:
    """Write a program that reproduces this compilation, then compile.

    A compiler by itself, ``debug_compile(gm, example_inputs)``; without a graph,
    ``debug_compile(folder=..., compiler=...)`` makes one. Dynamo's graph goes through AOTAutograd
    first; each of the graphs that makes gets a program of its own.

    Each program has a folder of its own with ``repro.py`` (the graph node by node, inputs made
    from their descriptions, a comparison of the graph with what ``compiler`` makes of it),
    ``graph.py`` (readable code), ``inputs.json`` and the constants the graph holds. It runs from
    anywhere, with torch alone; where the compiler's package is missing it runs the graph only.
    Nothing of it is a pickle. The path of ``repro.py`` is logged as a warning.

    Args:
        gm: Not changed.
        example_inputs: Fake or real; only described, never run.
        folder: Where the programs' folders ``000``, ``001``, ... are made; never overwrites.
            ``None`` makes a temporary folder for each.
        compiler: What compiles the graph; must be importable by its name.

    Returns:
        What ``compiler`` returns.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: The graph is wrong; names the node.
        ReproError: The graph cannot be written as a program, names the node; or the folder cannot
            be written, or the compiler has no importable name. Before anything was compiled.
        Exception: Whatever ``compiler`` raises, with a note that says where the program is.
    """
    where = compiler_name(compiler)

    def compile_aten(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]:
        script = write_repro(gm, example_inputs, folder, where)
        log.warning("run this to compile the graph again: %s", script)
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
    return compile_any if gm is None else compile_any(gm, example_inputs)


class DebugInterpreter(fx.Interpreter):
    """An ``fx.Interpreter`` that checks each node's result against what tracing recorded.

    Unlike its base it keeps nothing: results and inputs are freed at their last use, and after
    ``run`` the interpreter holds no value (with ``garbage_collect_values=False`` all of them stay
    in ``env``, as in the base). One run at a time; ``copy.copy`` gives an independent one.

    Args:
        module: Kept, not changed.
        garbage_collect_values: Free each value at its last use.
        graph: Run this instead of ``module.graph``.
        example_inputs: What the graph was traced with; see :func:`debug_nop`.

    Raises:
        NotCompilableError: ``module`` is not a ``torch.fx.GraphModule``, and no graph was given.
        InvalidGraphError: The graph is wrong; names the node.
    """

    def __init__(
        self,
        module: nn.Module,
        garbage_collect_values: bool = True,
        graph: fx.Graph | None = None,
        *,
        example_inputs: Sequence[Any] = (),
    ) -> None:
        if graph is None:
            require_graph(module, "DebugInterpreter")
        super().__init__(module, garbage_collect_values, graph)
        self._placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        self._facts = record_graph(self.graph, self._placeholders, example_inputs)
        self._last_uses = _last_uses(self.graph)
        self._bindings: _metadata.Bindings = {}

    def run(
        self,
        *args: Any,
        initial_env: dict[fx.Node, Any] | None = None,
        enable_io_processing: bool = True,
    ) -> Any:
        """Run the graph on positional inputs.

        Args:
            *args: The inputs. The caller holds them for the whole run; ``boxed_run`` lets go.
            initial_env: Values of nodes that are not to be run. Emptied as the run goes on.
            enable_io_processing: Flatten inputs and restore outputs as the graph's codegen says.

        Raises:
            MetadataMismatchError: At the first difference; names the node.
        """
        inputs = list(self.graph.process_inputs(*args) if enable_io_processing else args)
        return self._run(inputs, initial_env or {}, enable_io_processing)

    def boxed_run(self, args_list: list[Any]) -> Any:
        """Run the graph on the inputs in ``args_list``, which is emptied at once."""
        inputs = list(self.graph.process_inputs(*args_list))
        args_list.clear()
        return self._run(inputs, {}, True)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and check its result.

        Raises:
            MetadataMismatchError: The result is not what tracing recorded; names the node.
        """
        result = super().run_node(n)
        facts = self._facts.get(n)
        if facts is not None:
            check(n, facts, result, self._bindings)
        return result

    def _run(self, inputs: list[Any], env: dict[fx.Node, Any], process_outputs: bool) -> Any:
        if not env:
            self._check_count(len(inputs))
        self._bindings = _metadata.bind_inputs(
            [self._facts.get(node) for node in self._placeholders], inputs
        )
        self.env = env
        self.args_iter = _drain(inputs)
        try:
            return self._run_nodes(process_outputs)
        finally:
            self.args_iter = iter(())
            if self.garbage_collect_values:
                self.env = {}

    def _run_nodes(self, process_outputs: bool) -> Any:
        collect = self.garbage_collect_values
        for node in self.graph.nodes:
            if node.op == "output":
                result = self.env[node] if node in self.env else self._run_named(node)
                self.env = {} if collect else {**self.env, node: result}
                return self.graph.process_outputs(result) if process_outputs else result
            if node not in self.env:
                self.env[node] = self._run_named(node)
            if collect:
                for used in self._last_uses.get(node, ()):
                    self.env.pop(used, None)
        return None

    def _run_named(self, node: fx.Node) -> Any:
        try:
            return self.run_node(node)
        except MetadataMismatchError:
            raise
        except Exception as error:
            error.add_note(f"while running {describe(node)}")
            raise

    def _check_count(self, seen: int) -> None:
        starred = any(str(node.target).startswith("*") for node in self._placeholders)
        required = sum(
            not node.args and not str(node.target).startswith("*") for node in self._placeholders
        )
        most = seen if starred else len(self._placeholders)
        if required <= seen <= most:
            return
        error = MetadataMismatchError(
            f"the graph takes {required} inputs "
            f"({', '.join(node.name for node in self._placeholders[:8])}"
            f"{', ...' if len(self._placeholders) > 8 else ''}), got {seen}; call it with as many "
            "as it was compiled with"
        )
        error.checked, error.expected, error.seen = "number of inputs", required, seen
        raise error


def _drain(inputs: list[Any]) -> Iterator[Any]:
    # so that an input lives no longer than its last use
    inputs.reverse()
    while inputs:
        yield inputs.pop()


def _last_uses(graph: fx.Graph) -> Mapping[fx.Node, list[fx.Node]]:
    """Which values are needed no more after each node, those that nobody uses included."""
    seen: set[fx.Node] = set()
    uses: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        for value in (node, *node.all_input_nodes):
            if value not in seen:
                seen.add(value)
                uses.setdefault(node, []).append(value)
    return uses
