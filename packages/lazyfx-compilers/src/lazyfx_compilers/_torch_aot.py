"""The seam to AOTAutograd and TorchScript internals.

Nothing here is imported or patched when ``lazyfx_compilers`` is imported: the compile stacks of
torch take seconds to load, so every function imports what it needs.

===================================================  ==========================================
private name                                         used for
===================================================  ==========================================
``functorch.compile.aot_function``                   compiling a function forward and back
``torch.fx.passes._tensorify_python_scalars``        a pass that fails, left out then
``_tensorify_python_scalars._is_tensorify_enabled``  the same (after torch 2.11)
``torch._dynamo.backends.common.aot_autograd``       compiling a Dynamo graph
``torch._dynamo.convert_frame.compile_lock``         compiling one thing at a time
``torch._subclasses.fake_tensor``                    fake mode: stepping out, explaining errors
``torch.fx.experimental.symbolic_shapes``            explaining errors
``torch._decomp.get_decompositions``                 operators taken apart while tracing
``torch._ops``                                       telling ATen graphs from Dynamo graphs
``torch._C._jit_*``, ``torch._C.ScriptList``         TorchScript's autocast, passes and lists
``torch.utils._pytree``                              flattening arguments
===================================================  ==========================================
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from .errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.utils._pytree import TreeSpec

    Partitioner = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]


def tree_flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves and structure of nested containers."""
    return pytree.tree_flatten(tree)


def structure_key(structure: TreeSpec) -> Any:
    """Something that can be hashed for a structure; before torch 2.7 it cannot be itself."""
    try:
        hash(structure)
    except TypeError:
        return repr(structure)
    return structure


def tree_unflatten(leaves: Sequence[Any], structure: TreeSpec) -> Any:
    """Nested containers again."""
    return pytree.tree_unflatten(leaves, structure)


# --- what kind of graph ----------------------------------------------------------------------


def is_dynamo_graph(gm: fx.GraphModule) -> bool:
    """Whether Dynamo made the graph, so that it goes through AOTAutograd before it is compiled.

    What was recorded tells, not what is called: ``x * y`` is ``operator.mul`` in a graph of Dynamo,
    and so is a product of sizes in one of AOTAutograd. A graph without any record is taken as it
    is.
    """
    if any("val" in node.meta for node in gm.graph.nodes):
        return False
    return any("example_value" in node.meta for node in gm.graph.nodes)


def phase(gm: fx.GraphModule) -> str:
    """What a graph is for, by the names of its inputs.

    ``"dynamo"``: it goes through AOTAutograd first. ``"forward"`` and ``"backward"``: it is half of
    a training step. ``"inference"``: anything else.
    """
    if is_dynamo_graph(gm):
        return "dynamo"
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    if any(name.startswith("tangents") for name in names):
        return "backward"
    return "forward" if any(name.startswith("primals") for name in names) else "inference"


def is_higher_order(target: Any) -> bool:
    """Whether a call takes graphs: ``cond``, ``run_and_save_rng_state``, ..."""
    return isinstance(target, HigherOrderOperator)


def must_be_traced(gm: fx.GraphModule) -> bool:
    """Whether a graph is Dynamo's and wrong if it is run as it is, not through AOTAutograd.

    With an activation checkpoint it is: run as it is, it draws other random numbers when it
    computes the forward again, which makes wrong gradients without a word.
    """
    return is_dynamo_graph(gm) and any(
        is_higher_order(node.target) and node.target.name() == "tag_activation_checkpoint"
        for node in gm.graph.nodes
    )


def operator_packet(target: Any) -> Any:
    """The overload packet of an operator overload; anything else as it is."""
    return target.overloadpacket if isinstance(target, OpOverload) else target


def evaluate(number: Any, seen: int, symbols: dict[Any, int]) -> int | None:
    """The value of an int or ``SymInt``, given values for symbols.

    A number that is one symbol without a value yet takes the value ``seen`` and puts it into
    ``symbols``. None if the value cannot be told.
    """
    if not isinstance(number, torch.SymInt):
        return int(number)
    expression = number.node.expr
    if expression.is_Symbol and expression not in symbols:
        symbols[expression] = seen
    value = expression.xreplace(symbols)
    return int(value) if value.is_number else None


def hint(number: Any) -> int:
    """A plain int for a size: the value a symbolic one had while tracing (2 if it had none)."""
    if isinstance(number, int):
        return number
    try:
        return int(number.node.hint)
    except (AttributeError, TypeError, RuntimeError):  # unbacked: only running can tell
        return 2


@functools.cache
def compile_lock() -> contextlib.AbstractContextManager[Any]:
    """The reentrant lock under which Dynamo compiles.

    AOTAutograd and inductor patch process-wide settings and put fake parameters into modules, so
    nothing else may compile meanwhile, ``torch.compile`` in another thread included.
    """
    return attribute("torch._dynamo.convert_frame", "compile_lock")  # type: ignore[no-any-return]


def locked(compiler: Callable[..., Any]) -> Callable[..., Any]:
    """``compiler`` under the lock: torch compiles a backward when, and where, it first runs."""

    @functools.wraps(compiler)
    def compile_alone(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        with compile_lock():
            return compiler(gm, example_inputs)  # type: ignore[no-any-return]

    return compile_alone


# --- AOTAutograd -----------------------------------------------------------------------------


def aot_function(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """``functorch.compile.aot_function``; settings this torch does not know are left out."""
    aot = attribute("functorch.compile", "aot_function")
    known = inspect.signature(aot).parameters
    compiled = aot(function, **{k: v for k, v in settings.items() if k in known})
    if not settings.get("dynamic"):
        return compiled  # type: ignore[no-any-return]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # A pass over the joint graph fails on some numbers computed from sizes (the n / (n - 1)
        # of a batch norm), since only Dynamo puts the sizes into the graph as it expects.
        try:
            return compiled(*args, **kwargs)
        except KeyError as error:
            if not (error.args and getattr(error.args[0], "is_Symbol", False)):
                raise
        with _no_tensorify():
            return compiled(*args, **kwargs)

    return call


@contextlib.contextmanager
def _no_tensorify() -> Iterator[None]:
    passes = importlib.import_module("torch.fx.passes._tensorify_python_scalars")
    asked = "_is_tensorify_enabled"  # older releases look at the environment each time
    enabled = getattr(passes, asked, None)
    variable = "TENSORIFY_PYTHON_SCALARS"
    before = os.environ.get(variable)
    os.environ[variable] = "0"
    if enabled is not None:
        setattr(passes, asked, lambda: False)
    try:
        yield
    finally:
        if enabled is not None:
            setattr(passes, asked, enabled)
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def compile_dynamo_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    fw_compiler: Callable[..., Any],
    partition_fn: Partitioner,
    bw_compiler: Callable[..., Any] | None = None,
    inference_compiler: Callable[..., Any] | None = None,
    decompositions: Mapping[Any, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a graph of Python functions through AOTAutograd."""
    aot_autograd = attribute("torch._dynamo.backends.common", "aot_autograd")
    settings: dict[str, Any] = {
        "fw_compiler": fw_compiler,
        "bw_compiler": bw_compiler or fw_compiler,
        "inference_compiler": inference_compiler or fw_compiler,
        "decompositions": dict(decompositions or {}),
        "partition_fn": partition_fn,
    }
    return aot_autograd(**settings)(gm, example_inputs)  # type: ignore[no-any-return]


def why_untraceable(error: Exception) -> str | None:
    """What a traced function did that tracing cannot follow, if that is what ``error`` says."""
    fake = importlib.import_module("torch._subclasses.fake_tensor")
    symbolic = importlib.import_module("torch.fx.experimental.symbolic_shapes")
    looks = [
        getattr(module, name, ())
        for module, name in (
            (fake, "DataDependentOutputException"),
            (fake, "DynamicOutputShapeException"),
            (symbolic, "GuardOnDataDependentSymNode"),
        )
    ]
    if any(isinstance(error, kind) for kind in looks):
        return (
            f"depends on the values of a tensor ({getattr(error, 'func', None) or error}), as in a "
            "branch, .item() or nonzero(); there are no values while it is traced. Compute that "
            "outside and pass it as an argument, or use torch.where and masks"
        )
    text = str(error)
    if "convert all Tensors to FakeTensors" in text:
        return (
            "uses a tensor that is neither an argument nor a registered parameter or buffer; pass "
            "it as an argument, register_buffer it, or give memory_efficient_fusion the module "
            f"itself instead of a function that calls it ({text.split('Found in')[-1].strip()})"
        )
    return None


def get_decompositions(operators: Sequence[Any]) -> dict[Any, Callable[..., Any]]:
    """Torch's decompositions of these operators."""
    return dict(attribute("torch._decomp", "get_decompositions")(operators))


# --- TorchScript -----------------------------------------------------------------------------


def outside_fake_mode() -> contextlib.AbstractContextManager[Any]:
    """Step out of the ambient fake mode, so that real constants stay real."""
    unset = attribute("torch._subclasses.fake_tensor", "unset_fake_temporarily")
    return unset()  # type: ignore[no-any-return]


def is_fake(value: object) -> bool:
    """Whether a tensor has no data, only a description."""
    return isinstance(value, attribute("torch._subclasses.fake_tensor", "FakeTensor"))


@contextlib.contextmanager
def jit_autocast_disabled() -> Iterator[None]:
    """TorchScript must not apply autocast again to a graph that has the casts in it."""
    before = torch._C._jit_set_autocast_mode(False)
    try:
        yield
    finally:
        torch._C._jit_set_autocast_mode(before)


def jit_list(tensors: list[torch.Tensor]) -> Any:
    """A list that TorchScript takes as it is, so that it can empty it; others are copied."""
    return torch._C.ScriptList(tensors)


def jit_remove_mutation(graph: Any) -> None:
    """TorchScript's pass that turns safe in-place operators into functional ones."""
    torch._C._jit_pass_remove_mutation(graph)


def attribute(module: str, name: str) -> Any:
    """``module.name``, or a named error if this torch has moved it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SeamError(
            f"torch {torch.__version__} has no {module}.{name}, which lazyfx-compilers relies on; "
            "use a release of lazyfx-compilers that knows this torch"
        ) from error
