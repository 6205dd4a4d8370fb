"""The seam to AOTAutograd and TorchScript internals.

Nothing here is imported or patched when ``lazyfx_compilers`` is imported: the compile stacks of
torch take seconds to load, so every function imports what it needs.

=====================================================  =====================================
private name                                           used for
=====================================================  =====================================
``functorch.compile`` (aot_function, partitioners)     compiling a function forward and back
``torch._dynamo.backends.common.aot_autograd``         compiling a Dynamo graph
``torch._dynamo.convert_frame.compile_lock``           compiling one thing at a time
``torch._subclasses.fake_tensor``                      fake mode: stepping out, explaining errors
``torch._ops``                                         telling ATen graphs from Dynamo graphs
``torch._C._jit_*``                                    TorchScript's autocast and mutation pass
``torch.utils._pytree``                                flattening arguments
=====================================================  =====================================
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import operator
import os
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from .errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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


def min_cut_partition(
    joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Torch's min-cut rematerialization partitioner."""
    partition = attribute("functorch.compile", "min_cut_rematerialization_partition")
    known = inspect.signature(partition).parameters
    kept = {k: v for k, v in settings.items() if k in known}
    return partition(joint, joint_inputs, **kept)  # type: ignore[no-any-return]


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


# --- values that tracing left behind -----------------------------------------------------------


def storage_of(value: torch.Tensor) -> tuple[int, int]:
    """Something that tells the storage of a (fake) tensor from others, and its size in bytes."""
    storage = value.untyped_storage()
    return int(storage._cdata), hint(storage.nbytes())


@functools.cache
def _flop_formulas() -> dict[Any, Callable[..., Any]]:
    return dict(attribute("torch.utils.flop_counter", "flop_registry"))


def flops(node: fx.Node) -> int:
    """Floating-point operations of a product, convolution or attention; 0 for all else."""
    formula = _flop_formulas().get(operator_packet(node.target))
    if formula is None:
        return 0

    def described(value: Any) -> Any:
        return value.meta.get("val") if isinstance(value, fx.Node) else value

    args = fx.node.map_aggregate(node.args, described)
    kwargs = fx.node.map_aggregate(node.kwargs, described)
    try:
        return hint(formula(*args, **kwargs, out_val=node.meta.get("val")))
    except Exception:  # a formula for other arguments; it is an estimate
        return 0


def symbols(nodes: Iterable[fx.Node]) -> set[Any]:
    """The symbols in the sizes of some values."""
    free = attribute("torch.fx.experimental.symbolic_shapes", "free_symbols")
    found: set[Any] = set()
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat)):
            found |= set(free(value))
    return found


def meta_of_copy(node: fx.Node) -> dict[str, Any]:
    """The metadata of a copy of a node's value."""
    value = node.meta["val"]
    with getattr(value, "fake_mode", contextlib.nullcontext()):
        return {"val": value.clone(), "stack_trace": node.meta.get("stack_trace")}


def viewed(node: fx.Node) -> fx.Node:
    """The node whose memory a node's value is a view of, through views of views; or itself.

    Operators tell. What tracing recorded does not: inductor's passes drop a copy and leave the
    record that what was made of the copy has memory of its own.
    """
    while _is_view(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def describe_views(node: fx.Node) -> None:
    """Record of each view that ``node`` is made of that it shares memory with what it views.

    Without that, inductor takes a copy of it for one that can be left out.
    """
    if not _is_view(node):
        return
    source: Any = node.args[0]
    describe_views(source)
    mode = getattr(node.meta["val"], "fake_mode", None)
    if node.target is operator.getitem or mode is None:
        return
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    with mode:
        node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]


def _is_view(node: fx.Node) -> bool:
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    unsafe = node.target in (torch.ops.aten._unsafe_view.default, torch.ops.aten.alias.default)
    return unsafe or (isinstance(node.target, OpOverload) and node.target.is_view)


def is_pure(target: Any) -> bool:
    """Whether a call computes its result from its arguments and does nothing else."""
    if isinstance(target, OpOverload):
        return not target._schema.is_mutable and target.namespace in ("aten", "prims")
    return getattr(target, "__module__", "") in ("_operator", "math", "torch", "builtins")


def output_meta(
    output: fx.Node, results: int, tensors: Sequence[fx.Node], sizes: Sequence[fx.Node]
) -> dict[str, Any]:
    """The metadata of a forward's output node, where it saves other values for the backward."""
    meta = {key: value for key, value in output.meta.items() if key != "output_stack_traces"}
    before = meta.get("desc")
    if before is None:  # torch before 2.9
        return meta
    module = importlib.import_module("torch._functorch._aot_autograd.descriptors")
    plain = module.SavedForBackwardsAOTOutput
    last = getattr(module, "SavedForBackwardsNoVcCheckAOTOutput", plain)
    saved = [
        (last if node.meta.get("saved_tensor_with_no_vc_check", False) else plain)(index)
        for index, node in enumerate((*tensors, *sizes))
    ]
    return {**meta, "desc": [*before[:results], *saved]}


def graph_module(sources: Sequence[fx.GraphModule], graph: fx.Graph) -> fx.GraphModule:
    """A graph as a module like the first of ``sources``; attributes come from any that has them."""
    found: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            target = str(node.target)
            found[target] = next(
                value for one in sources if (value := _attribute_of(one, target)) is not None
            )
    made = fx.GraphModule(found, graph, type(sources[0]).__name__)
    made.meta.update(sources[0].meta)
    return made


def _attribute_of(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def written_inputs(joint: fx.GraphModule, results: int) -> frozenset[str]:
    """The names of inputs that may be written to by the time the backward runs.

    Torch says so on the graph since 2.9, and in the context it traces in. Where neither does, all
    that do not require grad may be.
    """
    primals = [
        node.name
        for node in joint.graph.nodes
        if node.op == "placeholder" and "tangents" not in str(node.target)
    ]
    output = next(iter(reversed(joint.graph.nodes)))
    metadata = getattr(attribute("torch._guards", "TracingContext").try_get(), "fw_metadata", None)
    described = output.meta.get("desc")
    if metadata is not None:
        infos = getattr(metadata, "input_info", ())
        pairs = zip(primals, infos, strict=False)
        return frozenset(
            name
            for name, one in pairs
            # a change of strides (`t_`) counts as a write to autograd too
            if getattr(one, "mutates_data", True) or getattr(one, "mutates_metadata", False)
        )
    if described is not None:
        module = importlib.import_module("torch._functorch._aot_autograd.descriptors")
        kind = module.InputMutationAOTOutput
        written = [one.mutated_input for one in described[:results] if isinstance(one, kind)]
        return frozenset(
            node.name
            for node in joint.graph.nodes
            if node.op == "placeholder" and node.meta.get("desc") in written
        )
    returned: Any = output.args[0]
    flat = tree_flatten(returned)[0]
    pairs = zip(primals, flat[results:], strict=False)
    return frozenset(name for name, gradient in pairs if gradient is None)


def unused_inputs(joint: fx.GraphModule, inputs: int) -> set[int]:
    """The positions of inputs that nothing in a joint graph reads, if it has ``inputs`` of them."""
    primals = [
        node
        for node in joint.graph.nodes
        if node.op == "placeholder" and "tangents" not in str(node.target)
    ]
    if len(primals) != inputs:  # one came twice, or they are views of one tensor
        return set()
    return {index for index, node in enumerate(primals) if not node.users}


@contextlib.contextmanager
def partitioner_settings(*, random: bool) -> Iterator[None]:
    """Torch's partitioner as it is by default, whatever the process's settings say.

    Args:
        random: Whether the graph draws random numbers more than once. Then common subexpressions
            are not merged: torch takes two draws with the same arguments for one, if they are of
            ``normal_``, ``exponential_`` or ``rrelu``.
    """
    config = importlib.import_module("torch._functorch.config")
    wanted = {
        "activation_memory_budget": 1.0,
        "aggressive_recomputation": False,
        "ban_recompute_not_in_allowlist": True,
        **({"cse": False} if random else {}),
    }
    with config.patch({name: value for name, value in wanted.items() if hasattr(config, name)}):
        yield


def budget_setting() -> float:
    """Torch's own setting of a budget for saved activations, as a fraction."""
    config = importlib.import_module("torch._functorch.config")
    return float(getattr(config, "activation_memory_budget", 1.0))
