"""The seam to torch's values and code generators: what to compare of them, and how.

===================================================  ===============================================
private name                                         used for
===================================================  ===============================================
``torch._ops.OperatorBase``                          operators, which are compared by identity
``torch._ops.OpOverloadPacket``                      the same
``_subclasses.fake_tensor.FakeTensor``               tensors without elements; never imported here
``_subclasses.functional_tensor.FunctionalTensor``   the same
``torch._is_functional_tensor``                      the same
``_python_dispatch._disable_current_modes``          reading tensors whatever modes are active
``torch._C.DisableTorchFunctionSubclass``            reading subclasses past their own functions
``Tensor._indices``, ``Tensor._values``              sparse tensors as they are, not coalesced
``NodeSource._dict``, ``NodeSource._action_string``  texts that it works out when first asked (after
                                                     torch 2.6)
``Graph._codegen``                                   the kind of generator, compared and drawn
``graph._PyTreeCodeGen``, ``graph._PyTreeInfo``      drawing graphs with nested inputs
``torch.utils._pytree``                              the specs of those inputs
===================================================  ===============================================

Nothing is patched. Sizes are compared as text where they are symbolic, since comparing symbolic
numbers adds guards. Seen to be there in torch 2.6 to 2.15.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch._ops import OperatorBase, OpOverloadPacket
from torch.fx import graph as _torch_graph
from torch.utils import _pytree
from torch.utils._python_dispatch import _disable_current_modes

from lazyfx_core.errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPERATORS: tuple[type, ...] = (OperatorBase, OpOverloadPacket)
"""Operators of torch's registries: one object each in a process."""
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
"""Numbers that add a guard to their shape environment when they are compared."""

_CACHES = {("torch.fx.traceback", "NodeSource"): frozenset({"_dict", "_action_string"})}
_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


def cached_fields(cls: type) -> frozenset[str]:
    """Attributes in which objects of ``cls`` keep what they worked out from the others."""
    return _CACHES.get((cls.__module__, cls.__qualname__), frozenset())


def is_expression(value: object) -> bool:
    """Whether ``value`` is a sympy expression. Does not import sympy."""
    return _is_of("sympy", "Basic", value)


def tensor_facts(tensor: torch.Tensor) -> dict[str, Any]:
    """All about ``tensor`` but its elements; comparing the facts of two tensors adds no guards."""
    with _reading():
        facts: dict[str, Any] = {
            "dtype": tensor.dtype,
            "device": tensor.device,
            "layout": tensor.layout,
            "requires_grad": tensor.requires_grad,
        }
        if not tensor.is_nested:  # those have a size in each of their parts
            facts["size"] = _lengths(tensor.size())
            if tensor.layout is torch.strided:
                facts["stride"] = _lengths(tensor.stride())
        if _has_no_elements(tensor):
            facts["parameter"] = isinstance(tensor, nn.Parameter)
            if tensor.layout is torch.strided:
                facts["storage_offset"] = _lengths((tensor.storage_offset(),))
        if tensor.layout is torch.strided and type(tensor) not in (torch.Tensor, nn.Parameter):
            facts["conjugated"] = tensor.is_conj()
            facts["negated"] = tensor.is_neg()
        if tensor.layout is torch.sparse_coo:
            facts["coalesced"] = tensor.is_coalesced()
            facts["sparse_dim"] = tensor.sparse_dim()
    return facts


def tensor_parts(tensor: torch.Tensor) -> dict[str, Any] | None:
    """Values of which ``tensor`` consists, or None if its elements are to be compared themselves.

    Empty for fake, functional and meta tensors: they have no elements. A wrapper subclass consists
    of what ``__tensor_flatten__`` names, or of its attributes if it lacks that; another subclass
    of its attributes and its elements as a plain tensor, a sparse tensor of indices and values.
    """
    with _reading():
        if _has_no_elements(tensor):
            return {}
        flatten = getattr(tensor, "__tensor_flatten__", None)
        if flatten is not None:
            names, context = flatten()
            return {**{name: getattr(tensor, name) for name in names}, "context": context}
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            parts: dict[str, Any] = {"attributes": dict(vars(tensor))}
            elements = _elements(tensor)
            return parts if elements is None else {**parts, "elements": elements}
        tensor = tensor.detach()
        if tensor.is_nested:
            return {"parts": list(tensor.unbind())}
        if tensor.layout is torch.sparse_coo:
            return {"indices": tensor._indices(), "values": tensor._values()}
        if tensor.layout in _COMPRESSED:
            names = (*_COMPRESSED[tensor.layout], "values")
            return {name: getattr(tensor, name)() for name in names}
    return None


def same_elements(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors of equal :func:`tensor_facts` and no parts hold the same elements.

    ``nan`` is ``nan``, ``-0.0`` is not ``0.0``; in complex numbers both halves have to agree.
    """
    with _reading():
        pair = [left.detach(), right.detach()]
        if left.is_quantized:
            return torch.equal(*pair)
        if left.layout is not torch.strided:
            pair = [tensor.to_dense() for tensor in pair]
        for dim, (size, stride) in enumerate(zip(left.size(), pair[0].stride(), strict=True)):
            if stride == 0 and size > 1:  # an expanded tensor may be larger than the memory
                pair = [tensor.narrow(dim, 0, 1) for tensor in pair]
        pair = [tensor.resolve_conj().resolve_neg() for tensor in pair]
        if left.is_complex():
            pair = [torch.view_as_real(tensor) for tensor in pair]
        elif left.is_floating_point() and left.dtype.itemsize == 1:
            pair = [_widened(tensor) for tensor in pair]
        one, other = pair
        if not one.is_floating_point():
            return torch.equal(one, other)
        same = (one == other) & (one.signbit() == other.signbit())
        return bool((same | ((one != one) & (other != other))).all())


def describe_tensor(tensor: torch.Tensor) -> str:
    """One line about ``tensor``, with its elements if they are few and at hand."""
    with _reading():
        kind = "tensor" if type(tensor) is torch.Tensor else type(tensor).__name__
        size = "nested" if tensor.is_nested else f"[{', '.join(map(str, tensor.size()))}]"
        text = f"{kind} of {tensor.dtype}, {size}"
        at_hand = tensor.device.type == "cpu" and type(tensor) is torch.Tensor
        if tensor.layout is not torch.strided:
            return f"{text}, {tensor.layout}"
        if at_hand and not (tensor.is_nested or _has_no_elements(tensor)) and tensor.numel() <= 8:
            text += f", {tensor.tolist()}"
    return text


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Outside all modes, since a fake tensor mode would answer for real tensors."""
    with _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
        yield


def _has_no_elements(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "meta"
        or _is_of("torch._subclasses.fake_tensor", "FakeTensor", tensor)
        or _is_of("torch._subclasses.functional_tensor", "FunctionalTensor", tensor)
        or torch._is_functional_tensor(tensor)
    )


def _is_of(module: str, name: str, value: object) -> bool:
    """Whether ``value`` is of a class of ``module``, which is not imported for that."""
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(value, cls)


def _lengths(numbers: Any) -> tuple[Any, ...]:
    return tuple(n if type(n) is int else str(n) for n in numbers)


def _elements(tensor: torch.Tensor) -> torch.Tensor | None:
    """A plain tensor over the storage of a subclass, or None if it has no storage of its own."""
    try:
        storage = tensor.untyped_storage()
        storage.data_ptr()
    except (RuntimeError, NotImplementedError):
        return None
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    size, stride = tuple(tensor.size()), tuple(tensor.stride())
    return plain.set_(storage, tensor.storage_offset(), size, stride)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    try:
        return tensor.to(torch.float32)
    except (RuntimeError, NotImplementedError):  # packed numbers have no arithmetic at all
        return tensor.contiguous().view(torch.uint8)


def describe_codegen(graph: fx.Graph) -> dict[str, Any]:
    """Everything about the code generator of ``graph`` that two equal graphs share. Reads only.

    Returns:
        The class, every attribute (the body transformer among them), and for pytree generators
        the argument names and the two specs.
    """
    codegen = graph._codegen
    attributes = dict(vars(codegen))
    info = attributes.pop("pytree_info", None)
    found: dict[str, Any] = {
        "class": type(codegen),
        "body transformer": attributes.pop("_body_transformer", None),
        "argument names": None if info is None else list(info.orig_args),
        "input spec": None if info is None else info.in_spec,
        "output spec": None if info is None else info.out_spec,
    }
    # In no order that means anything.
    return found | {name: attributes[name] for name in sorted(attributes)}


def copy_codegen(graph: fx.Graph, new: fx.Graph) -> None:
    """Give ``new`` a code generator like that of ``graph``; the specs inside are shared."""
    new.set_codegen(copy.copy(graph._codegen))


def give_pytree_signature(
    graph: fx.Graph, names: Sequence[str], arguments: Sequence[Any], result: Any
) -> None:
    """Let ``graph`` take ``arguments`` as they are nested, and return what ``result`` looks like.

    Args:
        graph: Changed: its code generator is replaced. It needs one placeholder for each leaf of
            ``arguments`` and an output that is the flat list of leaves of ``result``.
        names: How the nested arguments are called.
        arguments: One structure for each name; only its shape is used.
        result: The structure of what is returned; only its shape is used.

    Raises:
        SeamError: This release of torch builds pytree signatures in another way.
    """
    try:
        info = _torch_graph._PyTreeInfo(
            list(names),
            _pytree.tree_flatten(tuple(arguments))[1],
            _pytree.tree_flatten(result)[1],
        )
        codegen = _torch_graph._PyTreeCodeGen(info)
    except (AttributeError, TypeError) as error:
        raise SeamError(
            f"torch {torch.__version__} has no torch.fx.graph._PyTreeCodeGen(_PyTreeInfo(...)), so "
            "lazyfx_core.testing cannot draw graphs with nested inputs; draw with pytree=False"
        ) from error
    graph.set_codegen(codegen)


def tree_leaves(value: Any) -> list[Any]:
    """The leaves of nested lists, tuples and dicts, in order."""
    leaves: list[Any] = _pytree.tree_flatten(value)[0]
    return leaves


def tree_map(function: Any, value: Any) -> Any:
    """``value`` with ``function`` applied to each leaf."""
    return _pytree.tree_map(function, value)
