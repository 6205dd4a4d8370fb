"""The seam of the checks: what operators declare, and which real tensors share memory.

==============================================  ===============================================
private name                                    used for
==============================================  ===============================================
``torch._ops``                                  telling kinds of operators apart
``OpOverload._schema``                          what an operator declares to write and to alias
``OpOverload.has_kernel_for_dispatch_key``      operators that are made of others
``torch._C.DispatchKey``                        the same
``Tensor._version``                             how often a tensor was written
``torch._C._is_alias_of``                       whether two tensors share memory
``torch._C._data_address``                      the same, where another library wrapped it
``torch._C._len_torch_dispatch_stack``          whether operators pass through modes
``torch._C._functorch.peek_interpreter_stack``  being inside of ``vmap``, ``grad`` and the like
``symbolic_shapes.free_unbacked_symbols``       sizes that only data decides
==============================================  ===============================================
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from lazyfx_compilers import _torch_aot, _torch_callers

if TYPE_CHECKING:
    from torch import fx

_PLAIN = (torch.Tensor, torch.nn.Parameter)

# Their schemas say that the result is fresh, and it is the argument or a view of it: so that
# autograd takes it for fresh (native_functions.yaml).
_SAID_FRESH = frozenset(
    {"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "lift"}
)

# They call a graph as it is given, with the tensors they were given, where autograd has no part.
_CALLS_ITS_GRAPH = frozenset(
    {
        *("cond", "hints_wrapper", "invoke_subgraph", "map_impl", "scan", "strict_mode"),
        *("while_loop", "wrap", "wrap_with_autocast", "wrap_with_set_grad_enabled"),
    }
)
_WITH_AUTOGRAD = frozenset({"wrap", "wrap_with_autocast", "wrap_with_set_grad_enabled"})


# They write running statistics, and no version counter moves.
_WRITES_UNCOUNTED = frozenset({"batch_norm", "instance_norm"})

# They return a copy with the offset of the original, where their fake kernels say none: nobody
# relies on either.
_KEEPS_OFFSET = frozenset({"copy", "copy_"}) | frozenset(
    {"as_strided_scatter", "diagonal_scatter", "select_scatter", "slice_scatter"}
)


# --- what operators declare --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What an operator's schema says of a call.

    Attributes:
        written: Arguments that it writes to, nested containers and all.
        others: The other arguments.
        results: For each result, the arguments that it may share memory with; ``None`` where the
            schema cannot be believed.
    """

    written: tuple[Any, ...]
    others: tuple[Any, ...]
    results: tuple[tuple[Any, ...] | None, ...]


def declared(node: fx.Node) -> Declared | None:
    """What the operator of a node declares, about the node's own arguments.

    ``None`` if it is no operator, or one made of others, whose schemas count and not its own.
    """
    target: Any = node.target
    if isinstance(target, OpOverloadPacket):
        overloads: list[str] = target.overloads()  # type: ignore[no-untyped-call]
        target = getattr(target, overloads[0]) if len(overloads) == 1 else None
    if not isinstance(target, OpOverload):
        return None
    if _is_made_of_others(target):
        return None
    schema = target._schema
    given = [
        (argument.alias_info, node.args[place])
        if place < len(node.args)
        else (argument.alias_info, node.kwargs.get(argument.name))
        for place, argument in enumerate(schema.arguments)
    ]
    believed = schema.name.partition("::")[2] not in _SAID_FRESH
    return Declared(
        written=tuple(value for alias, value in given if alias is not None and alias.is_write),
        others=tuple(value for alias, value in given if alias is None or not alias.is_write),
        results=tuple(
            tuple(value for alias, value in given if _may_share(alias, result.alias_info))
            if believed
            else None
            for result in schema.returns
        ),
    )


@functools.cache
def _is_made_of_others(operator: OpOverload) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    try:
        return bool(operator.has_kernel_for_dispatch_key(key))
    except RuntimeError:  # one of TorchScript's own, as aten::size
        return True


def _may_share(argument: Any, result: Any) -> bool:
    if argument is None or result is None:
        return False
    # a list has no names of its own, and `a -> *` may be anything afterwards
    mine, theirs = argument.before_set | argument.after_set, result.before_set | result.after_set
    return not mine or not theirs or "*" in mine or "*" in theirs or bool(mine & theirs)


def base_name(target: Any) -> str:
    """The name of a function, a method or an operator, without namespace and overload."""
    return str(getattr(target, "__name__", target)).split(".")[0]


def writes_uncounted(target: Any) -> bool:
    """Whether a target may write to an argument although neither schema nor counters say so."""
    return base_name(target) in _WRITES_UNCOUNTED


def has_any_offset(target: Any) -> bool:
    """Whether the storage offset of a target's result means nothing."""
    name = base_name(target)
    return name in _KEEPS_OFFSET or name.startswith("as_strided")


def is_operator(target: Any) -> bool:
    """Whether a target has a schema."""
    return isinstance(target, (OpOverload, OpOverloadPacket))


def is_higher_order(target: Any) -> bool:
    """Whether a target takes graphs."""
    return isinstance(target, HigherOrderOperator)


def is_functorch(target: Any) -> bool:
    """Whether a target begins or ends a ``vmap`` or ``grad`` that Dynamo has traced."""
    return "functorch" in str(getattr(target, "__module__", ""))


def has_unbacked(value: Any) -> bool:
    """Whether a recorded tensor has a size that only data decides."""
    free: Callable[[Any], Any] = _torch_aot.attribute(
        "torch.fx.experimental.symbolic_shapes", "free_unbacked_symbols"
    )
    return any(
        isinstance(extent, torch.SymInt) and bool(free(extent))
        for extent in (*value.shape, *value.stride(), value.storage_offset())
    )


# --- real tensors ------------------------------------------------------------------------------


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor with memory of its own kind: no subclass, dense."""
    return type(value) in _PLAIN and value.layout is torch.strided


def version(tensor: torch.Tensor) -> int | None:
    """How often a tensor, or one that it is a view of, was written; ``None`` if nobody counts."""
    try:
        return tensor._version
    except RuntimeError:  # made under inference_mode
        return None


shares_storage: Callable[[torch.Tensor, torch.Tensor], bool] = _torch_aot.attribute(
    "torch._C", "_is_alias_of"
)
"""Whether two real tensors share memory that torch itself has allocated or taken over, once."""

_address: Callable[[torch.Tensor], int] = _torch_aot.attribute("torch._C", "_data_address")


def shares_any(one: Any, other: Any) -> bool:
    """Whether two values are plain tensors that share memory, be it through another library."""
    if not is_plain(one) or not is_plain(other):
        return False
    if shares_storage(one, other):
        return True
    address = _address(one)
    return bool(address) and address == _address(other)


# --- graphs in graphs --------------------------------------------------------------------------


def calls_its_graph(target: Any, values: tuple[Any, ...]) -> bool:
    """Whether a higher-order operator now calls the graphs it is given, with what it is given.

    It does not where it traces them instead: for autograd, or since somebody traces the call.
    """
    if not isinstance(target, HigherOrderOperator) or target.__name__ not in _CALLS_ITS_GRAPH:
        return False
    if _somebody_traces():
        return False
    if not torch.is_grad_enabled() or target.__name__ in _WITH_AUTOGRAD:
        return True
    leaves = _torch_aot.tree_flatten(values)[0]
    return not any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)


def modes_are_active() -> bool:
    """Whether a dispatch mode is on: what operators of other libraries write is not counted then.

    AOTAutograd calls each graph with operators of other libraries under one, the first time.
    """
    return bool(torch._C._len_torch_dispatch_stack())


def _somebody_traces() -> bool:
    functorch = importlib.import_module("torch._C._functorch")
    if functorch.peek_interpreter_stack() is not None:
        return True
    return _torch_callers.called_while_tracing()
