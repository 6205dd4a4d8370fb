"""The seam to AOTAutograd, inductor and TorchScript internals.

Nothing here is imported or patched when ``lazyfx_compilers`` is imported: the compile stacks of
torch take seconds to load, so every function imports what it needs.

=====================================================  =====================================
private name                                           used for
=====================================================  =====================================
``functorch.compile`` (aot_function, partitioners)     compiling a function forward and back
``torch._dynamo.backends.common.aot_autograd``         compiling a Dynamo graph
``torch._functorch.config.activation_memory_budget``   refusing recomputed random numbers
``torch._inductor.compile_fx`` (inner, joint passes)   ``codegen="inductor"``
``torch._inductor.config``                             eager's random stream, no layout changes
``torch._subclasses.fake_tensor``                      stepping out of the ambient fake mode
``torch._ops``                                         telling ATen graphs from Dynamo graphs
``torch._C._jit_*``                                    TorchScript's autocast and mutation pass
``torch.utils._pytree``                                flattening arguments
=====================================================  =====================================
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from .errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.utils._pytree import TreeSpec

    Partitioner = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]


def tree_flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves and structure of nested containers."""
    return pytree.tree_flatten(tree)


# --- what kind of graph ----------------------------------------------------------------------


def is_aten_graph(gm: fx.GraphModule) -> bool:
    """Whether the graph holds operators, AOTAutograd's kind, not Python functions, Dynamo's."""
    for node in gm.graph.nodes:
        if node.op in ("call_module", "call_method"):
            return False
        if node.op == "call_function" and not _is_operator(node.target):
            return False
    return True


def _is_operator(target: Any) -> bool:
    if isinstance(target, (OpOverload, OpOverloadPacket, HigherOrderOperator)):
        return True
    # symbolic sizes are computed with operator and math functions, in both kinds of graph
    return target is operator.getitem or getattr(target, "__module__", "") in (
        "_operator",
        "math",
        "torch.utils._sympy.functions",
    )


def operator_packet(target: Any) -> Any:
    """The overload packet of an operator overload; anything else as it is."""
    return target.overloadpacket if isinstance(target, OpOverload) else target


def random_operators(gm: fx.GraphModule) -> list[fx.Node]:
    """Nodes that draw from a random number generator."""
    return [
        node
        for node in gm.graph.nodes
        if isinstance(node.target, OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    ]


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


# --- AOTAutograd -----------------------------------------------------------------------------


def aot_function(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """``functorch.compile.aot_function``; settings this torch does not know are left out."""
    aot = _attribute("functorch.compile", "aot_function")
    known = inspect.signature(aot).parameters
    return aot(function, **{k: v for k, v in settings.items() if k in known})  # type: ignore[no-any-return]


def compile_dynamo_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    fw_compiler: Callable[..., Any],
    bw_compiler: Callable[..., Any] | None = None,
    partition_fn: Partitioner | None = None,
    decompositions: Mapping[Any, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a graph of Python functions through AOTAutograd."""
    aot_autograd = _attribute("torch._dynamo.backends.common", "aot_autograd")
    settings: dict[str, Any] = {
        "fw_compiler": fw_compiler,
        "bw_compiler": bw_compiler or fw_compiler,
        "inference_compiler": fw_compiler,
        "decompositions": dict(decompositions or {}),
        "partition_fn": partition_fn or min_cut_partition,
    }
    return aot_autograd(**settings)(gm, example_inputs)  # type: ignore[no-any-return]


def min_cut_partition(
    joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Torch's min-cut rematerialization partitioner."""
    partition = _attribute("functorch.compile", "min_cut_rematerialization_partition")
    known = inspect.signature(partition).parameters
    kept = {k: v for k, v in settings.items() if k in known}
    return partition(joint, joint_inputs, **kept)  # type: ignore[no-any-return]


def recomputes_freely() -> str | None:
    """The torch setting, if any, under which the partitioner recomputes random operators too."""
    config = __import__("torch._functorch.config", fromlist=["config"])
    budget = getattr(config, "activation_memory_budget", 1.0)
    if budget < 1.0:
        return f"torch._functorch.config.activation_memory_budget = {budget}"
    if getattr(config, "aggressive_recomputation", False):
        return "torch._functorch.config.aggressive_recomputation = True"
    return None


def get_decompositions(operators: Sequence[Any]) -> dict[Any, Callable[..., Any]]:
    """Torch's decompositions of these operators."""
    return dict(_attribute("torch._decomp", "get_decompositions")(operators))


# --- inductor --------------------------------------------------------------------------------


@contextlib.contextmanager
def _inductor_settings() -> Iterator[None]:
    config = __import__("torch._inductor.config", fromlist=["config"])
    # fallback_random: dropout draws what eager draws. layout_optimization: the joint graph was
    # traced with eager's strides, and the backward was compiled against them.
    with config.patch(fallback_random=True, layout_optimization=False):
        yield


def inductor_decompositions() -> dict[Any, Callable[..., Any]]:
    """The decompositions that inductor's code generator expects to have been applied."""
    with _inductor_settings():
        return dict(_attribute("torch._inductor.decomposition", "select_decomp_table")())


def inductor_compiler(*, is_backward: bool) -> Callable[..., Any]:
    """An AOTAutograd compiler that generates code with inductor."""
    inner = _attribute("torch._inductor.compile_fx", "compile_fx_inner")

    def compile_with_inductor(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        with _inductor_settings():
            return inner(gm, list(example_inputs), is_backward=is_backward)

    return compile_with_inductor


def inductor_partition(partition: Partitioner) -> Partitioner:
    """``partition`` after inductor's passes over the joint graph, which its codegen relies on."""

    def run_passes_and_partition(
        joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        passes = _attribute("torch._inductor.compile_fx", "_recursive_joint_graph_passes")
        with _inductor_settings(), _graphs_fake_mode(joint):
            prepared = passes(joint)
            return partition(
                prepared or joint, joint_inputs, **{"compiler": "inductor", **settings}
            )

    return run_passes_and_partition


@contextlib.contextmanager
def _graphs_fake_mode(gm: fx.GraphModule) -> Iterator[None]:
    """The fake mode that the graph was traced in: the passes trace replacements with it."""
    values = [node.meta["val"] for node in gm.graph.nodes if "val" in node.meta]
    mode = _attribute("torch._guards", "detect_fake_mode")(values)
    with mode if mode is not None else contextlib.nullcontext():
        yield


# --- TorchScript -----------------------------------------------------------------------------


def outside_fake_mode() -> contextlib.AbstractContextManager[Any]:
    """Step out of the ambient fake mode, so that real constants stay real."""
    unset = _attribute("torch._subclasses.fake_tensor", "unset_fake_temporarily")
    return unset()  # type: ignore[no-any-return]


def is_fake(value: object) -> bool:
    """Whether a tensor has no data, only a description."""
    return isinstance(value, _attribute("torch._subclasses.fake_tensor", "FakeTensor"))


@contextlib.contextmanager
def jit_autocast_disabled() -> Iterator[None]:
    """TorchScript must not apply autocast again to a graph that has the casts in it."""
    before = torch._C._jit_set_autocast_mode(False)
    try:
        yield
    finally:
        torch._C._jit_set_autocast_mode(before)


def jit_remove_mutation(graph: Any) -> None:
    """TorchScript's pass that turns safe in-place operators into functional ones."""
    torch._C._jit_pass_remove_mutation(graph)


def _attribute(module: str, name: str) -> Any:
    """``module.name``, or a named error if this torch has moved it."""
    try:
        return getattr(__import__(module, fromlist=[name]), name)
    except (ImportError, AttributeError) as error:
        raise SeamError(
            f"torch {torch.__version__} has no {module}.{name}, which lazyfx-compilers relies on; "
            "use a release of lazyfx-compilers that knows this torch"
        ) from error
