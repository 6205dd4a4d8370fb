"""What a compiler is, and how that which it returns is called.

A compiler takes an ``fx.GraphModule`` and example inputs and returns a callable. AOTAutograd calls
that callable *boxed*: with one list, which the callee empties as soon as it holds the inputs, so
that each input can be freed as soon as it was used for the last time. Dynamo calls it unboxed,
with the inputs as positional arguments. :func:`boxed` makes a callable that takes both: a graph's
inputs are never lists, so a single list argument is the boxed form.

A caller that passes a list and a callee that empties it are not enough: a Python call with
positional arguments holds all of them until it returns. :func:`boxed_graph` therefore runs a graph
with code that takes the list itself.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any, Protocol

from torch import fx

import lazyfx_core

from .errors import InvalidGraphError, NotCompilableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class FxCompiler(Protocol):
    """Anything that turns a graph and example inputs into a callable."""

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]:
        """Compile ``gm``; the result takes the graph's inputs."""
        ...


def boxed(run: Callable[[list[Any]], Any], name: str) -> Callable[..., Any]:
    """A callable around ``run`` that takes its inputs as one list, or one by one.

    Args:
        run: Called with the list; must take the inputs out of it (``list.clear``).
        name: Shown by ``repr``.
    """

    def call(*args: Any) -> Any:
        if len(args) == 1 and type(args[0]) is list:
            return run(args[0])
        return run(list(args))

    # A plain function, not an object with __call__: Dynamo wraps results, and a wrapper keeps the
    # attributes of a function only.
    call.__name__ = call.__qualname__ = name
    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def boxed_from_positional(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """What :func:`boxed` makes, around a function that takes its inputs as positional arguments.

    The list is emptied before the call; what keeps the inputs alive then is ``function`` alone.
    """

    def run(inputs: list[Any]) -> Any:
        arguments = tuple(inputs)
        inputs.clear()
        return function(*arguments)

    return boxed(run, name)


def as_boxed(compiled: Callable[..., Any], name: str) -> Callable[..., Any]:
    """What a compiler returned, as something that takes one list: itself if it does already."""
    if getattr(compiled, "_boxed_call", False):
        return compiled
    return boxed_from_positional(compiled, name)


def boxed_graph(gm: fx.GraphModule, name: str) -> Callable[..., Any]:
    """What :func:`boxed` makes, around the graph: an input is freed after its last use.

    Args:
        gm: Not changed. Its graph is copied, since the code is another; what the graph refers to
            (parameters, constants, submodules) is looked up in ``gm`` at each call. A module with
            hooks, a ``forward`` of its own or unusual inputs is called as it is instead, and then
            holds its inputs until it returns.
        name: Shown by ``repr``.
    """
    if not _is_plain(gm):
        return boxed_from_positional(gm, name)
    graph = copy.deepcopy(gm.graph)
    graph.set_codegen(_TakesAList())
    method: Any = lazyfx_core.LazyGraphModule(gm, graph).forward
    return boxed(functools.partial(method.__func__, gm), name)


def _is_plain(gm: fx.GraphModule) -> bool:
    hooks = (gm._forward_hooks, gm._forward_pre_hooks, gm._backward_hooks, gm._backward_pre_hooks)
    return (
        type(gm.graph._codegen) is fx.graph.CodeGen
        and "forward" not in vars(gm)
        and not any(hooks)
        and all(
            not node.args and str(node.target).isidentifier()
            for node in gm.graph.nodes
            if node.op == "placeholder"
        )
    )


class _TakesAList(fx.graph.CodeGen):
    """Code for ``forward(self, inputs)``; as elsewhere in fx, names are dropped after use."""

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, **_unused: Any) -> str:
        names = [each.split(":")[0].strip() for each in free_vars if each != "self"]
        box = "_inputs"
        while box in names:
            box += "_"
        takes = f"[{', '.join(names)}] = {box}; " if names else ""
        header = f"def forward(self, {box}){maybe_return_annotation}:"
        return f"{header}\n    {takes}{box}.clear()"


def require_graph(gm: object, compiler: str) -> fx.GraphModule:
    """``gm``, checked: a graph module whose graph can be run.

    Raises:
        NotCompilableError: It is not a ``torch.fx.GraphModule``.
        InvalidGraphError: Its graph is wrong; names the node.
    """
    try:
        lazyfx_core.require_graph_module(gm, f"{compiler}(gm)")
    except lazyfx_core.NotAGraphModuleError as error:
        raise NotCompilableError(str(error)) from None
    assert isinstance(gm, fx.GraphModule)
    try:
        lazyfx_core.check_graph(gm.graph)
    except lazyfx_core.InvalidGraphError as error:
        raise InvalidGraphError(f"{compiler}(gm): {error}") from None
    return gm
