"""``compare_compiled`` and ``compare_graph``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lazyfx_compilers import _torch_aot
from lazyfx_compilers._types import require_graph
from lazyfx_compilers.errors import NotCompilableError, UnknownOptionError
from lazyfx_compilers.fusion import make_recipe
from lazyfx_compilers.partition import budget_partitioner

from . import _torch_compare
from ._capture import Capture, Recipe
from ._reference import RandomState, duplicate
from ._report import Comparison
from ._values import Judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import fx

    from lazyfx_compilers._types import FxCompiler


def compare_compiled(
    fn: Callable[..., Any] | nn.Module,
    args: Sequence[Any],
    compiler: str | FxCompiler,
    reference: Literal["eager", "float64"] = "eager",
    *,
    kwargs: Mapping[str, Any] | None = None,
    backward: bool = True,
    grads: Sequence[torch.Tensor] | None = None,
    dynamic: bool | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    every_node: bool = True,
    check_determinism: bool = False,
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
) -> Comparison:
    """Run ``fn`` forward and backward, compare each graph with its reference, name what is wrong.

    Dynamo and AOTAutograd trace ``fn(*args)`` as for ``torch.compile``: graph breaks, modules and
    dynamic shapes are welcome. Each graph is compared the first time it runs. What goes on from
    there are the reference's values, so that a later graph's errors are its own. The reference is
    the traced graph, run operator by operator: compilers are judged here, not the tracing.

    Args:
        fn: A function or module. It is run once.
        args: Its arguments. Tensors are copied, so that these here stay as they are.
        compiler: ``(gm, example_inputs) -> callable``, for graphs of ATen operators; or
            ``"inductor"``; or the name of a ``torch.compile`` backend, which is then given ATen
            graphs. Called many times, with parts of a graph: nodes keep their names.
        reference: ``"eager"``: values may differ as :func:`torch.testing.assert_close` allows for
            their dtype, and where they differ more, as ``"float64"`` allows. ``"float64"``: the
            error against a computation in float64 may be ten times eager's own, and a few units
            in the last place; it finds smaller errors.
        kwargs: Arguments by name.
        backward: Whether to go backward, if a result requires grad.
        grads: What the backward is given: one tensor for each result that requires grad. None:
            random normal numbers, the same each time.
        dynamic: As for ``torch.compile``.
        rtol: Relative tolerance instead of the dtype's, for ``reference="eager"``. With one of
            the two given, nothing is held against float64.
        atol: Absolute tolerance, likewise.
        every_node: Also look inside graphs whose results are right: an error may be too small to
            be seen there. With ``False`` that takes half the time and memory.
        check_determinism: Also look for operators that differ from run to run where nothing else
            differs.
        decompositions: Operators to take apart while tracing, instead of those the compiler is
            best with.

    Returns:
        The report: ``print`` it, read its fields, or call its ``raise_if_diverged()``.

    Raises:
        NotCompilableError: ``fn`` is no function or module, or nothing of it was traced, so there
            is nothing to compare.
        UnknownOptionError: ``reference`` or the compiler's name is unknown, or there is a
            tolerance for ``"float64"``.

    Afterwards torch's random number generators, the ``.grad`` of all tensors and what parameters
    and buffers hold are as before: of ``fn``, if it is a module or a method of one, and of modules
    in its closure. Whatever else ``fn`` changes stays changed. Not thread-safe.
    """
    judge = _judge(reference, rtol, atol)
    if not callable(fn):
        raise NotCompilableError(
            f"compare_compiled(fn): expected a function or an nn.Module, got {type(fn)!r}"
        )
    require_arguments(args, "compare_compiled(args)")
    recipe = _recipe(compiler, decompositions)
    capture = Capture(recipe, judge, every_node=every_node, check_determinism=check_determinism)
    with _unchanged(fn), _torch_compare.settings(inductor=compiler == "inductor"):
        positional, named = _copied(args, kwargs or {})
        call = _torch_compare.never_compiled_before(fn)
        compiled = torch.compile(call, backend=capture.backend, dynamic=dynamic)
        results = compiled(*positional, **named)
        if backward:
            _backward(results, grads)
    name = str(getattr(fn, "__qualname__", type(fn).__qualname__))
    if not capture.graphs:
        raise NotCompilableError(
            f"compare_compiled(fn): expected at least one graph of {name}, seen none: it runs no "
            "tensor operator that torch.compile can trace, or torch.compile is switched off"
        )
    return Comparison(
        name=name,
        compiler=compiler if isinstance(compiler, str) else _name(compiler),
        reference=reference,
        graphs=tuple(capture.graphs),
    )


def require_arguments(args: object, where: str) -> None:
    """Raise :class:`NotCompilableError` unless ``args`` is a sequence of them: no tensor."""
    if not isinstance(args, Sequence) or isinstance(args, str):
        raise NotCompilableError(
            f"{where}: expected a tuple or list of arguments, seen {type(args).__qualname__}; pass "
            "(x,) for a single one"
        )


def compare_graph(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    compiler: str | FxCompiler,
    reference: Literal["eager", "float64"] = "eager",
    *,
    rtol: float | None = None,
    atol: float | None = None,
    every_node: bool = True,
    check_determinism: bool = False,
) -> Comparison:
    """What :func:`compare_compiled` does with each graph, for one that is there already.

    Args:
        gm: A graph of ATen operators with the descriptions that tracing leaves
            (``node.meta["val"]``): from AOTAutograd, ``make_fx`` or a dump. Not changed.
        inputs: Its inputs, in order. Copied.
        compiler: As in :func:`compare_compiled`.
        reference: As in :func:`compare_compiled`.
        rtol: As in :func:`compare_compiled`.
        atol: As in :func:`compare_compiled`.
        every_node: As in :func:`compare_compiled`.
        check_determinism: As in :func:`compare_compiled`.

    Returns:
        The report, with one graph.

    Raises:
        NotCompilableError: ``gm`` is no graph module, is one of Python functions (Dynamo's), has
            no descriptions, or takes another number of inputs.
        InvalidGraphError: The graph is wrong; names the node.
        UnknownOptionError: As for :func:`compare_compiled`.
    """
    judge = _judge(reference, rtol, atol)
    checked = require_graph(gm, "compare_graph")
    require_arguments(inputs, "compare_graph(inputs)")
    steps = [node for node in checked.graph.nodes if node.op in ("placeholder", "call_function")]
    takes = sum(node.op == "placeholder" for node in steps)
    if takes != len(inputs):
        raise NotCompilableError(
            f"compare_graph(inputs): expected {takes}, one for each placeholder, got {len(inputs)}"
        )
    undescribed = next((node for node in steps if "val" not in node.meta), None)
    if undescribed is not None:
        raise NotCompilableError(
            f"compare_graph(gm): node {undescribed.name!r} has no node.meta['val'], the description"
            " that tracing leaves; give a graph of ATen operators from AOTAutograd, make_fx or a"
            " dump, or use compare_compiled, which traces"
        )
    recipe = _recipe(compiler, None)
    capture = Capture(recipe, judge, every_node=every_node, check_determinism=check_determinism)
    phase: Any = _torch_aot.phase(checked)
    examples = [node.meta["val"] for node in steps if node.op == "placeholder"]
    state = RandomState.now()
    with _torch_compare.settings(inductor=compiler == "inductor"):
        try:
            capture.comparing(phase, checked, examples)(duplicate(inputs))
        finally:
            state.restore()
    return Comparison(
        name=f"{phase} graph",
        compiler=compiler if isinstance(compiler, str) else _name(compiler),
        reference=reference,
        graphs=tuple(capture.graphs),
    )


def _judge(reference: Any, rtol: float | None, atol: float | None) -> Judge:
    if reference not in ("eager", "float64"):
        raise UnknownOptionError(f"reference={reference!r}: expected 'eager' or 'float64'")
    if reference == "float64" and not (rtol is None and atol is None):
        raise UnknownOptionError(
            f"rtol={rtol!r}, atol={atol!r}: expected none with reference='float64', where eager's "
            "own error is the measure; leave them out, or use reference='eager'"
        )
    return Judge(reference=reference, rtol=rtol, atol=atol)


def _recipe(
    compiler: str | FxCompiler, decompositions: Mapping[Any, Callable[..., Any]] | None
) -> Recipe:
    if compiler == "inductor":
        made = make_recipe("inductor", budget=None, overrides={"decompositions": decompositions})
        return Recipe(
            compilers={
                "forward": made.fw_compiler,
                "backward": made.bw_compiler,
                "inference": made.inference_compiler,
            },
            partition=made.partition_fn,
            decompositions=made.decompositions,
        )
    named = isinstance(compiler, str)
    one: Any = _torch_compare.registered_backend(compiler) if named else compiler  # type: ignore[arg-type]
    if not callable(one):
        raise NotCompilableError(
            "compare_compiled(compiler): expected (gm, example_inputs) -> callable or a name, got "
            f"{type(one)!r}"
        )
    return Recipe(
        compilers={"forward": one, "backward": one, "inference": one},
        partition=budget_partitioner(),
        decompositions=decompositions or {},
        real=named,
    )


def _name(compiler: Any) -> str:
    return str(getattr(compiler, "__name__", type(compiler).__qualname__))


# --- running -----------------------------------------------------------------------------------


def _copied(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    leaves, structure = _torch_aot.tree_flatten((tuple(args), dict(kwargs)))
    copies = duplicate(leaves)
    for index, (leaf, made) in enumerate(zip(leaves, copies, strict=True)):
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
            made.requires_grad_()
            if not leaf.is_leaf:
                copies[index] = made.clone()  # what is no leaf may be written
    return _torch_aot.tree_unflatten(copies, structure)  # type: ignore[no-any-return]


def _backward(results: Any, grads: Sequence[torch.Tensor] | None) -> None:
    outputs = [
        one
        for one in _torch_aot.tree_flatten(results)[0]
        if isinstance(one, torch.Tensor) and one.grad_fn is not None
    ]
    leaves = _leaves(outputs)
    if grads is None:
        generator = torch.Generator().manual_seed(0)
        grads = [_random_like(one, generator) for one in outputs]
    elif len(grads) != len(outputs):
        raise NotCompilableError(
            f"compare_compiled(grads): expected one tensor for each of the {len(outputs)} results "
            f"that require grad, got {len(grads)}"
        )
    if leaves:
        torch.autograd.grad(outputs, leaves, list(grads), allow_unused=True)


def _random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    dtype = torch.complex64 if tensor.is_complex() else torch.float32
    drawn = torch.randn(tensor.shape, generator=generator, dtype=dtype)
    return drawn.to(device=tensor.device, dtype=tensor.dtype)


def _leaves(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors that gradients of ``outputs`` go to: what eager would put in ``.grad``."""
    found: dict[int, torch.Tensor] = {}
    seen = {one.grad_fn for one in outputs}
    waiting: list[Any] = list(seen)
    while waiting:
        function = waiting.pop()
        leaf = getattr(function, "variable", None)
        if isinstance(leaf, torch.Tensor):
            found[id(leaf)] = leaf
        for following, _ in function.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return list(found.values())


@contextlib.contextmanager
def _unchanged(fn: Any) -> Iterator[None]:
    """Put torch's random number generators, parameters and buffers back afterwards."""
    state = RandomState.now()
    modules = [one for held in _modules(fn) for one in held.modules()]
    parameters = [one for module in modules for one in module.parameters(recurse=False)]
    before = duplicate(parameters)
    homes = [(one._buffers, dict(one._buffers)) for one in modules]
    # copies take the place of buffers, since a write to these themselves would break a backward
    # that the user has not run yet
    copies = iter(duplicate([one for _, held in homes for one in held.values()]))
    for home, held in homes:
        home.update({name: next(copies) for name in held})
    try:
        yield
    finally:
        state.restore()
        for home, held in homes:
            home.clear()
            home.update(held)
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                if not torch.equal(parameter, value):
                    parameter.copy_(value)


def _modules(fn: Any) -> list[nn.Module]:
    cells = getattr(fn, "__closure__", None) or ()
    held = [fn, getattr(fn, "__self__", None)]
    for cell in cells:
        with contextlib.suppress(ValueError):  # an empty cell
            held.append(cell.cell_contents)
    return [one for one in held if isinstance(one, nn.Module)]
