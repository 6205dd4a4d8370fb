"""An interpreter that checks each node's result, and that keeps nothing."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx import traceback

from lazyfx_compilers import _messages
from lazyfx_compilers._types import require_graph
from lazyfx_compilers.errors import MetadataMismatchError

from . import _checks, _metadata, _node_check, _torch_checks
from ._formula import Bindings

log = logging.getLogger("lazyfx_compilers.debug")

# whoever overrides one of these wants to see every node
_HOOKS = (
    *("run_node", "placeholder", "get_attr", "call_function", "call_method", "call_module"),
    *("output", "fetch_attr", "fetch_args_kwargs_from_env", "map_nodes_to_values"),
)


class DebugInterpreter(fx.Interpreter):
    """An ``fx.Interpreter`` that checks each node's result against what tracing recorded.

    Unlike its base it keeps nothing: results and inputs are freed at their last use, and after
    ``run`` the interpreter holds no value (with ``garbage_collect_values=False`` all of them stay
    in ``env``, as in the base). One run at a time; ``copy.copy`` gives an independent one. A
    subclass may override what it may override in the base.

    Args:
        module: Kept, not changed.
        garbage_collect_values: Free each value at its last use.
        graph: Run this instead of ``module.graph``.
        example_inputs: What the graph was traced with; see :func:`debug_nop`.
        checks: See :func:`debug_nop`.
        action: See :func:`debug_nop`.
        ignore: See :func:`debug_nop`.

    Raises:
        NotCompilableError: ``module`` is not a ``torch.fx.GraphModule``, and no graph was given.
        InvalidGraphError: The graph is wrong; names the node.
        UnknownOptionError: A check or an action is unknown.
    """

    def __init__(
        self,
        module: nn.Module,
        garbage_collect_values: bool = True,
        graph: fx.Graph | None = None,
        *,
        example_inputs: Sequence[Any] = (),
        checks: Collection[str] | None = None,
        action: str = "raise",
        ignore: Iterable[tuple[str, str]] = (),
    ) -> None:
        if graph is None:
            require_graph(module, "DebugInterpreter")
        settings = _checks.settings(checks, action, ignore)
        super().__init__(module, garbage_collect_values, graph)
        self._settings = settings
        self._placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        self._known = _node_check.of_graph(self.graph, self._placeholders, example_inputs, settings)
        self._symbolic = _symbolic_inputs(self._placeholders, self._known)
        self._bindings: Bindings = {}
        self._unlike: set[fx.Node] = set()  # as recorded, but excused
        self._warned: set[tuple[fx.Node, str, str]] = set()  # shared by all copies
        self._checked = _checked_graphs(self.module, self.graph, settings)
        self._counts = _counts(self._placeholders)
        self._traced_with_grad = _traced_with_grad(self._known)
        self._follows_grad = True
        last_uses = _last_uses(self.graph)
        self._steps = [
            (node, _caller(node), self._known.get(node), last_uses.get(node, ()))
            for node in self.graph.nodes
        ]
        self._is_hooked = any(getattr(type(self), name) is not _OWN[name] for name in _HOOKS)

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
        known = self._known.get(n)
        if known is None:
            return super().run_node(n)
        before = known.before(self.env)
        result = super().run_node(n)
        if not known.accept(result, self.env, before, self._bindings):
            self._report(known, result, before)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function; the graphs that a higher-order operator takes are checked as well."""
        if self._checked and _torch_checks.is_higher_order(target):
            args, kwargs = self._with_checked_graphs(target, args, kwargs)
        return super().call_function(target, args, kwargs)

    def _run(self, inputs: list[Any], env: dict[fx.Node, Any], process_outputs: bool) -> Any:
        if not env:
            self._check_count(len(inputs))
        self._bindings = _metadata.bind_inputs(self._symbolic, inputs) if self._symbolic else {}
        # Dynamo guards the grad mode; whoever runs a graph by hand may be in another one
        self._follows_grad = self._traced_with_grad in (None, torch.is_grad_enabled())
        self._unlike = set()
        self.env = env
        self.args_iter = _drain(inputs)
        try:
            return self._run_nodes(process_outputs)
        finally:
            self.args_iter = iter(())
            if self.garbage_collect_values:
                self.env = {}

    def _run_nodes(self, process_outputs: bool) -> Any:
        env, bindings, collect = self.env, self._bindings, self.garbage_collect_values
        # somebody who traces this run wants to know which node is running
        by_hooks = self._is_hooked or traceback.has_preserved_node_meta()
        result: Any = None
        for node, call, known, last_used in self._steps:
            if node in env:
                result = env[node]
            else:
                try:
                    if by_hooks:
                        result = self.run_node(node)
                    elif known is None:
                        result = call(self, env)
                    else:
                        before: Any = known.before(env)
                        result = call(self, env)
                        if not known.accept(result, env, before, bindings):
                            self._report(known, result, before)
                        before = None  # it holds values
                except MetadataMismatchError as error:
                    if _torch_checks.is_higher_order(node.target) and error.node != node.name:
                        error.add_note(f"in a graph that is called by {_messages.describe(node)}")
                    raise
                except Exception as error:
                    error.add_note(f"while running {_messages.describe(node)}")
                    raise
                env[node] = result
            if node.op == "output":
                self.env = {} if collect else env
                return self.graph.process_outputs(result) if process_outputs else result
            result = None
            if collect:
                for used in last_used:
                    env.pop(used, None)
        return None

    def _report(self, known: _node_check.NodeCheck, result: Any, before: Any) -> None:
        node = known.node
        follows = not self._unlike.isdisjoint(node.all_input_nodes)
        for difference, which in known.differences(result, self.env, before, self._bindings):
            if difference.check in _checks.OF_METADATA:
                self._unlike.add(node)
                if follows:
                    continue  # from one that was reported
            if _checks.ignored(node, difference.check, self._settings):
                continue
            if difference.check == "requires_grad" and not self._follows_grad:
                continue
            error = _checks.mismatch(node, difference, which)
            if self._settings.action == "raise":
                raise error
            once = (node, difference.check, which)
            if once not in self._warned:
                self._warned.add(once)
                log.warning("%s", error)

    def _with_checked_graphs(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not _torch_checks.calls_its_graph(target, (args, kwargs)):
            return args, kwargs
        found = {name: self._checked.get(id(value), value) for name, value in kwargs.items()}
        return tuple(self._checked.get(id(value), value) for value in args), found

    def _check_count(self, seen: int) -> None:
        least, most, starred = self._counts
        if least <= seen and (starred or seen <= most):
            return
        names = [node.name for node in self._placeholders]
        error = MetadataMismatchError(
            f"the graph takes {least} inputs ({', '.join(names[:8])}"
            f"{', ...' if len(names) > 8 else ''}), got {seen}; call it with as many as it was "
            "compiled with"
        )
        error.check, error.checked = "kind", "number of inputs"
        error.expected, error.seen = least, seen
        raise error


_OWN = {name: getattr(DebugInterpreter, name) for name in _HOOKS}


# --- what runs a node ----------------------------------------------------------------------------

_Caller = Callable[[DebugInterpreter, dict[fx.Node, Any]], Any]


def _caller(node: fx.Node) -> _Caller:
    """What runs a node as the base does, without the steps that find out how each time."""
    arguments = _arguments(node.args)
    keywords = _keywords(node.kwargs)
    target: Any = node.target
    if node.op == "call_function" and not _torch_checks.is_higher_order(target):
        if keywords is None:
            return lambda self, env: target(*arguments(env))
        return lambda self, env: target(*arguments(env), **keywords(env))
    if node.op == "output":
        return lambda self, env: self.output(target, arguments(env), {})
    handler = node.op
    return lambda self, env: getattr(self, handler)(
        target, tuple(arguments(env)), {} if keywords is None else keywords(env)
    )


def _arguments(args: Any) -> Callable[[dict[fx.Node, Any]], Any]:
    if any(_has_nodes(each) for each in args if not isinstance(each, fx.Node)):
        return lambda env: fx.node.map_arg(args, env.__getitem__)
    return lambda env: [env[each] if type(each) is fx.Node else each for each in args]


def _keywords(kwargs: Any) -> Callable[[dict[fx.Node, Any]], dict[str, Any]] | None:
    if not kwargs:
        return None
    if any(_has_nodes(each) for each in kwargs.values()):
        return lambda env: dict(fx.node.map_arg(kwargs, env.__getitem__))
    given = dict(kwargs)
    return lambda env: given.copy()


def _has_nodes(argument: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(argument, found.append)
    return bool(found)


# --- reading a graph -----------------------------------------------------------------------------


def _symbolic_inputs(
    placeholders: Sequence[fx.Node], known: Mapping[fx.Node, _node_check.NodeCheck]
) -> list[tuple[int, _metadata.Facts]]:
    """The inputs that give symbols their numbers, with their places."""
    return [
        (place, known[node].leaves[0].facts)
        for place, node in enumerate(placeholders)
        if node in known
        and known[node].leaves
        and _metadata.has_symbols(known[node].leaves[0].facts)
    ]


def _checked_graphs(
    module: nn.Module, graph: fx.Graph, settings: _checks.Settings
) -> dict[int, _CheckedGraph]:
    """The graphs that higher-order operators take, by identity, as what checks them."""
    found: dict[int, _CheckedGraph] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not _torch_checks.is_higher_order(node.target):
            continue
        for source in node.all_input_nodes:
            inner: Any = module
            for name in str(source.target).split(".") if source.op == "get_attr" else ():
                inner = getattr(inner, name, None)
            if isinstance(inner, fx.GraphModule) and inner is not module and id(inner) not in found:
                found[id(inner)] = _CheckedGraph(inner, settings)
    return found


class _CheckedGraph:
    """A graph within a graph, checked where it is called."""

    def __init__(self, gm: fx.GraphModule, settings: _checks.Settings) -> None:
        self._template = DebugInterpreter(
            gm, checks=settings.checks, action=settings.action, ignore=settings.ignore
        )
        self.__name__ = type(gm).__name__

    def __call__(self, *args: Any) -> Any:
        return copy.copy(self._template).boxed_run(list(args))


def _counts(placeholders: Sequence[fx.Node]) -> tuple[int, int, bool]:
    """The least and the largest number of inputs, and whether there is no largest."""
    starred = [str(node.target).startswith("*") for node in placeholders]
    least = sum(
        not node.args and not star for node, star in zip(placeholders, starred, strict=True)
    )
    return least, len(placeholders), any(starred)


def _traced_with_grad(known: Mapping[fx.Node, _node_check.NodeCheck]) -> bool | None:
    """Whether a graph was traced where autograd follows; ``None`` if that makes no difference."""
    followed = [
        node.op
        for node, check in known.items()
        for leaf in check.leaves
        if isinstance(leaf.facts, _metadata.TensorFacts) and leaf.facts.requires_grad
    ]
    return any(op != "placeholder" for op in followed) if followed else None


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
