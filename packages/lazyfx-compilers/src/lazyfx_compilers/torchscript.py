"""Compilers that go through TorchScript.

torch deprecates TorchScript; it still works on every release this package supports, and its
deprecation warnings are silenced here and only here.

TorchScript knows operators by name, not by overload, and it scripts source text. So a graph is
copied (the caller's is never touched), overloads become packets, device objects become text, and
whatever the copy refers to is shared with the original. All of it happens outside the ambient fake
mode: AOTAutograd compiles under one, and freezing would fold fake constants into the program.
"""

from __future__ import annotations

import copy
import functools
import operator
import re
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from lazyfx_core import LazyGraphModule

from . import _torch_aot
from ._types import boxed, require_graph
from .errors import TorchScriptUnsupportedError
from .partition import budget_partitioner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def ts_compile(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile ``gm`` with TorchScript: script, remove mutation, freeze, optimize.

    A graph of Python functions (what Dynamo hands to ``torch.compile(backend=ts_compile)``) goes
    through AOTAutograd first, so that it trains.

    Args:
        gm: Not changed. Parameters and constants it holds are frozen into the program.
        example_inputs: Fake or real; real ones are not run.

    Returns:
        A callable that takes the graph's inputs as one list, which it empties, or one by one.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: The graph is wrong; names the node.
        TorchScriptUnsupportedError: TorchScript cannot take a node; names it.

    Thread-safety: silencing the deprecation warning uses ``warnings.catch_warnings``, which is
    global to the process; compile in one thread at a time.
    """
    return _compile(require_graph(gm, "ts_compile"), example_inputs, ts_compile, optimize=True)


def simple_ts_compile(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile ``gm`` with TorchScript: script and freeze, nothing else.

    Arguments, result and errors are those of :func:`ts_compile`.
    """
    checked = require_graph(gm, "simple_ts_compile")
    return _compile(checked, example_inputs, simple_ts_compile, optimize=False)


def nnc_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """``aot_function(function, simple_ts_compile)``: forward and backward through TorchScript.

    The result has no guards: it replays the first graph for whatever it is called with, like
    every ``aot_function``. Use ``memory_efficient_fusion`` where that matters.
    """
    return _torch_aot.aot_function(function, fw_compiler=simple_ts_compile)


def _compile(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    compiler: Callable[..., Any],
    *,
    optimize: bool,
) -> Callable[..., Any]:
    if _torch_aot.is_dynamo_graph(gm):
        return _torch_aot.compile_dynamo_graph(
            gm, example_inputs, fw_compiler=compiler, partition_fn=budget_partitioner()
        )
    name = compiler.__name__
    with _torch_aot.outside_fake_mode(), _torch_aot.jit_autocast_disabled(), _quiet():
        prepared, in_box = _prepare(gm, example_inputs, name)
        try:
            program: torch.jit.ScriptModule = torch.jit.script(prepared)
            if optimize:
                _torch_aot.jit_remove_mutation(program.graph)
            if not _calls_modules_that_train(gm):  # freezing would put them in evaluation mode
                program = torch.jit.freeze(program.eval())
                if optimize:
                    program = torch.jit.optimize_for_inference(program)
        except Exception as error:
            raise TorchScriptUnsupportedError(_explain(prepared, error, name)) from error
    owned = _with_fresh_constants(program, gm.graph)
    return boxed(functools.partial(_run, owned, in_box), name)


def _calls_modules_that_train(gm: fx.GraphModule) -> bool:
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    return any(gm.get_submodule(target).training for target in called)


def _with_fresh_constants(program: Callable[..., Any], graph: fx.Graph) -> Callable[..., Any]:
    """``program``, copying those results that freezing has made constants.

    The caller owns the results and may write to them; the next call must not give that back.
    """
    depends: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not depends.isdisjoint(node.all_input_nodes):
            depends.add(node)
    leaves, _ = _torch_aot.tree_flatten(graph.output_node().args[0])
    fixed = [
        place
        for place, node in enumerate(leaves)
        if isinstance(node, fx.Node) and node not in depends
    ]
    if not fixed:
        return program

    def run(*inputs: Any) -> Any:
        results, structure = _torch_aot.tree_flatten(program(*inputs))
        for place in fixed:
            if isinstance(results[place], torch.Tensor):
                results[place] = results[place].clone()
        return _torch_aot.tree_unflatten(results, structure)

    return run


def _run(program: Callable[..., Any], in_box: Sequence[bool], inputs: list[Any]) -> Any:
    """Call the program so that nobody but itself holds the tensors."""
    others = [one for one, boxes in zip(inputs, in_box, strict=True) if not boxes]
    if len(others) == len(inputs):
        inputs.clear()
        return program(*others)
    box = _torch_aot.jit_list([one for one, boxes in zip(inputs, in_box, strict=True) if boxes])
    inputs.clear()
    return program(box, *others)


def _prepare(
    gm: fx.GraphModule, example_inputs: Sequence[Any], compiler: str
) -> tuple[LazyGraphModule, list[bool]]:
    """A copy of the graph in TorchScript's words, over the same attributes.

    It takes its tensors in one list, which it empties. Positional arguments would be held by
    whoever called until the program returns, and the memory of what it is done with with them.

    Returns:
        The copy, and of each input whether it goes into the list.
    """
    copied = LazyGraphModule(gm, copy.deepcopy(gm.graph), type(gm).__name__)
    for node in copied.graph.nodes:
        # the user's annotations: text where they are not evaluated, or types it does not know
        if node.op == "output" or isinstance(node.type, str):
            node.type = None
        if _torch_aot.is_higher_order(node.target):
            raise TorchScriptUnsupportedError(
                f"{compiler}: TorchScript cannot take node {node.name!r} ({node.op} "
                f"{node.target}): it has no operators on graphs; use another compiler (nop, or "
                "memory_efficient_fusion with codegen='inductor')"
            )
    placeholders = [node for node in copied.graph.nodes if node.op == "placeholder"]
    in_box = []
    for index, node in enumerate(placeholders):
        example = example_inputs[index] if index < len(example_inputs) else node.meta.get("val")
        in_box.append(isinstance(example, torch.Tensor))
        for symbolic, plain in _SCALARS:
            if isinstance(example, symbolic):
                node.type = plain
                break
    _take_from_a_list(
        copied.graph, [n for n, boxes in zip(placeholders, in_box, strict=True) if boxes]
    )
    for node in copied.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is torch.ops.aten._to_copy.default and set(node.kwargs) == {"dtype"}:
            # TorchScript's fuser knows `to`; without copy=True it may return its argument itself
            node.target = torch.ops.aten.to
            node.args = (node.args[0], node.kwargs["dtype"], False, True)
            node.kwargs = {}
        node.target = _NUMBERS.get(node.target, _torch_aot.operator_packet(node.target))
        node.args = fx.node.map_aggregate(node.args, _device_as_text)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _device_as_text)
    copied.recompile()
    return copied, in_box


def _take_from_a_list(graph: fx.Graph, placeholders: Sequence[fx.Node]) -> None:
    if not placeholders:
        return
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(next(iter(graph.nodes))):
        box = graph.placeholder("box", list[torch.Tensor])
    with graph.inserting_before(first):
        for index, node in enumerate(placeholders):
            taken = graph.call_function(operator.getitem, (box, index))
            node.replace_all_uses_with(taken)
            graph.erase_node(node)
        graph.call_method("clear", (box,))


_SCALARS: tuple[tuple[Any, type], ...] = (
    (bool, bool),
    ((int, torch.SymInt), int),
    ((float, torch.SymFloat), float),
    (str, str),
)
_NUMBERS: dict[Any, Any] = {
    torch.sym_float: float,
    torch.sym_int: int,
    torch.sym_max: max,
    torch.sym_min: min,
}


def _device_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, torch.device) else value


def _explain(gm: LazyGraphModule, error: Exception, compiler: str) -> str:
    text = str(error)
    match = re.search(r"^\s*(\w+) = .*\n\s*~+.*<--- HERE", text, re.MULTILINE)
    names = {node.name: node for node in gm.graph.nodes}
    node = names.get(match.group(1)) if match else None
    reason = next((line.strip() for line in text.splitlines() if line.strip()), repr(error))
    if node is None:
        where = f"this graph of {len(names)} nodes"
    else:
        where = f"node {node.name!r} ({node.op} {node.target})"
    return (
        f"{compiler}: TorchScript cannot take {where}: {reason}; decompose the operator, or use "
        "another compiler (nop, or memory_efficient_fusion with codegen='inductor')"
    )


class _quiet(warnings.catch_warnings):
    """Silence what TorchScript says about itself on every use."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.")
        warnings.filterwarnings("ignore", message=r"The TorchScript type system doesn't support")
        return entered
