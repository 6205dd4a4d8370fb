"""The seam to AOTAutograd's partitions: joint graphs, their halves, and what tracing left in them.

=========================================================  =========================================
private name                                               used for
=========================================================  =========================================
``functorch.compile.min_cut_rematerialization_partition``  what a budget begins with
``torch._functorch.config``                                its settings, and the budget among them
``torch._functorch.compile_utils.rand_ops``                the random operators that it does not
                                                           compute again
``torch._guards.TracingContext``                           which inputs are written
``torch._functorch._aot_autograd.descriptors``             the same, on the graph; what is saved
                                                           (after torch 2.6)
``descriptors.SavedForBackwardsNoVcCheckAOTOutput``        what is saved, and written later on
                                                           purpose (after torch 2.9)
``torch.utils.flop_counter``                               what a product costs
``torch.fx.experimental.symbolic_shapes``                  the symbols in a size
``torch.fx.node``                                          going through arguments
``torch._ops.OpOverload``, ``OpOverload._schema``          what may be computed again
``torch.ops.aten._unsafe_view``                            a view that says it is none
``UntypedStorage._cdata``                                  which tensors share storage, fake ones
                                                           too
=========================================================  =========================================
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._ops import OpOverload

from ._torch_aot import attribute, hint, operator_packet, tree_flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


def min_cut_partition(
    joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Torch's min-cut rematerialization partitioner."""
    partition = attribute("functorch.compile", "min_cut_rematerialization_partition")
    known = inspect.signature(partition).parameters
    kept = {k: v for k, v in settings.items() if k in known}
    return partition(joint, joint_inputs, **kept)  # type: ignore[no-any-return]


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
    primals = [node.name for node in _primals(joint)]
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


def _primals(joint: fx.GraphModule) -> list[fx.Node]:
    """The inputs of a joint graph but for the gradients of results."""
    return [
        node
        for node in joint.graph.nodes
        if node.op == "placeholder" and "tangents" not in str(node.target)
    ]


def unused_inputs(joint: fx.GraphModule, inputs: int) -> set[int]:
    """The positions of inputs that nothing in a joint graph reads, if it has ``inputs`` of them."""
    primals = _primals(joint)
    if len(primals) != inputs:  # one came twice, or they are views of one tensor
        return set()
    return {index for index, node in enumerate(primals) if not node.users}


def would_be_merged(draws: Sequence[fx.Node]) -> bool:
    """Whether torch's pass for common subexpressions may take two draws for one.

    It has a list of operators that it leaves alone, which lacks the functional forms of
    ``normal_``, ``exponential_`` and ``rrelu``, among others.
    """
    left_alone = attribute("torch._functorch.compile_utils", "rand_ops")
    others = [one.target for one in draws if operator_packet(one.target) not in left_alone]
    return len(set(others)) < len(others)


_DEFAULTS = {  # of the settings under which torch's partitioner may recompute random operators
    "activation_memory_budget": 1.0,
    "aggressive_recomputation": False,
    "ban_recompute_not_in_allowlist": True,
}


@contextlib.contextmanager
def partitioner_settings(*, merging: bool) -> Iterator[None]:
    """Torch's partitioner as it is by default, whatever the process's settings say.

    But for one: in a checkpoint on a GPU torch draws from a generator of the graph's own, which
    gives other numbers than eager's. As on the CPU, the state is saved and set again instead.

    Args:
        merging: Whether common subexpressions are merged.
    """
    config = importlib.import_module("torch._functorch.config")
    wanted = {**_DEFAULTS, "cse": merging, "graphsafe_rng_functionalization": False}
    with config.patch({name: value for name, value in wanted.items() if hasattr(config, name)}):
        yield


def recomputation_setting() -> str | None:
    """The torch setting, if any, under which its partitioner recomputes more than by default."""
    config = importlib.import_module("torch._functorch.config")
    for name, default in _DEFAULTS.items():
        value = getattr(config, name, default)
        if value != default:
            return f"torch._functorch.config.{name} = {value}"
    return None


def budget_setting() -> float:
    """Torch's own setting of a budget for saved activations, as a fraction."""
    config = importlib.import_module("torch._functorch.config")
    return float(getattr(config, "activation_memory_budget", 1.0))
