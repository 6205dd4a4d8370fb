"""The seam to the names of torch's own functions, classes and operators.

=================================================  ======================================
private name                                       used for
=================================================  ======================================
``torch._C._VariableFunctions``                    the functions in C behind ``torch.*``
``torch._C._nn``                                   those behind ``torch.nn.functional``
``_ops._higher_order_ops``, ``_ops._OpNamespace``  finding operators without making any
``torch._C._jit_get_operation``                    asking for an operator without a trace
=================================================  ======================================

Functions in C are taken by program: their lists differ between releases, and all of them run a
kernel on what they are given; those that do more are left out by name. Functions in Python are
taken from lists, so that nothing a new release brings is trusted before somebody has read it;
``torch.nn.functional`` is the exception, being what it is.

What somebody put in the place of torch's own function is left out: by that name another process
would find another function. Nothing here imports what is not torch's, loads a
library, or leaves a trace in ``torch.ops``.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import importlib
import math
import operator
import re
import sys
import types
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._ops import _higher_order_ops, _OpNamespace

from ._torch_graph import find_operator, operator_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def words(text: str) -> tuple[str, ...]:
    """Names in a block of text: lists that a person has to read should fit on a screen."""
    return tuple(text.split())


_IN_C = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
# Where the code of torch's own functions comes from, decorators included.
_OWN_CODE = frozenset({"torch", "contextlib", "functools", "typing_extensions", "warnings"})
_OWN_CLASSES = frozenset({"torch", "builtins", "collections"})
_NOT_IN_C = frozenset(
    words("from_file _from_blob frombuffer _print _foobar _reshape_alias _reshape_alias_copy")
)
_TORCH_FUNCTIONS = words("""
    sym_not sym_float sym_int sym_max sym_min sym_sum sym_sqrt sym_ite sym_fresh_size _sym_sqrt
    _sym_cos _sym_cosh _sym_sin _sym_sinh _sym_tan _sym_tanh _sym_asin _sym_acos _sym_atan _sym_log2
    _check _check_with _check_is_size _check_index _check_value _check_type _check_not_implemented
    _check_tensor_all _check_tensor_all_with _assert is_tensor is_storage typename
    atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors cartesian_prod cdist chain_matmul
    einsum meshgrid norm split stft tensordot unique_consecutive broadcast_shapes lu unique
    unravel_index align_tensors pca_lowrank svd_lowrank lstsq eig symeig solve matrix_rank
    get_default_dtype get_default_device is_grad_enabled is_inference_mode_enabled
    is_autocast_enabled get_autocast_dtype is_autocast_cpu_enabled get_autocast_cpu_dtype
    get_autocast_gpu_dtype is_autocast_cache_enabled are_deterministic_algorithms_enabled
    get_num_threads is_anomaly_enabled _segment_reduce _functionalize_sync _constrain_as_size
    _as_tensor_fullprec
""")
_TORCH_CLASSES = words("""
    Tensor Size dtype device layout memory_format qscheme Generator Stream Event Tag finfo iinfo
    SymInt SymFloat SymBool FloatTensor DoubleTensor HalfTensor BFloat16Tensor ByteTensor CharTensor
    ShortTensor IntTensor LongTensor BoolTensor
""")
_BUILTINS = words("""
    abs all any bool bytes complex dict divmod enumerate float frozenset getattr hash int isinstance
    issubclass len list max min object pow range repr reversed round set slice sorted str sum tuple
    zip
""")
_NESTED = words("as_nested_tensor nested_tensor narrow nested_tensor_from_jagged masked_select")
_WINDOWS = words("""
    bartlett blackman cosine exponential gaussian general_cosine general_hamming hamming hann kaiser
    nuttall
""")
_NOT_IN_OPERATOR = frozenset(words("attrgetter call itemgetter methodcaller"))
# It calls its argument.
_NOT_FUNCTIONAL = frozenset({"triplet_margin_with_distance_loss"})
# Methods of tensors that do more than compute: they call what they are given, reach into memory,
# into files (shared memory is one) or into the autograd graph, or make classes.
_NOT_METHODS = frozenset(
    words("""
    apply_ map_ map2_ register_hook register_post_accumulate_grad_hook backward reinforce
    module_load as_subclass share_memory_ storage untyped_storage storage_type data_ptr
    const_data_ptr
""")
)
_OPERATOR_METHODS = frozenset(
    f"__{name}__"
    for name in words("""
    add radd iadd sub rsub isub mul rmul imul matmul rmatmul imatmul truediv rtruediv itruediv
    floordiv rfloordiv ifloordiv mod rmod imod divmod rdivmod pow rpow ipow div rdiv idiv
    lshift rlshift ilshift rshift rrshift irshift and rand iand or ror ior xor rxor ixor
    neg pos abs invert eq ne lt le gt ge
    getitem setitem delitem contains len bool nonzero int long float complex index round trunc
    floor ceil
""")
)
_NOT_DATA = frozenset(words("grad_fn name output_nr volatile"))

_EXTRA = frozenset(
    words("""
    torch._C._set_grad_enabled torch._C._is_torch_function_enabled torch._C._log_api_usage_once
    torch._C._set_fwd_grad_enabled torch._C._enter_dual_level torch._C._exit_dual_level
    torch.autograd.grad_mode._enter_inference_mode torch.autograd.grad_mode._exit_inference_mode
    torch.amp.autocast_mode._enter_autocast torch.amp.autocast_mode._exit_autocast
    torch._C._autograd._saved_tensors_hooks_disable torch._C._autograd._saved_tensors_hooks_enable
    torch._C._functorch._vmap_increment_nesting torch._C._functorch._vmap_decrement_nesting
    torch._C._functorch._grad_increment_nesting torch._C._functorch._grad_decrement_nesting
    torch._C._functorch._jvp_increment_nesting torch._C._functorch._jvp_decrement_nesting
    torch._C._functorch._add_batch_dim torch._C._functorch._remove_batch_dim
    torch._C._functorch._wrap_for_grad torch._C._functorch._unwrap_for_grad
    torch._C._functorch._unwrap_batched torch._C._functorch.set_inplace_requires_grad_allowed
    torch._C._functorch.get_inplace_requires_grad_allowed
    torch._functorch.predispatch._vmap_increment_nesting
    torch._functorch.predispatch._vmap_decrement_nesting
    torch._functorch.predispatch._add_batch_dim torch._functorch.predispatch._remove_batch_dim
    torch._functorch.predispatch._enter_dual_level torch._functorch.predispatch._exit_dual_level
    torch._functorch.predispatch._jvp_increment_nesting
    torch._functorch.predispatch._jvp_decrement_nesting
    torch._functorch.predispatch._make_dual torch._functorch.predispatch._unpack_dual
    torch._functorch.predispatch._unwrap_for_grad
    torch._functorch.predispatch.lazy_load_decompositions
    torch._functorch.vmap.lazy_load_decompositions torch._functorch.vmap._add_batch_dim
    torch._functorch.vmap._remove_batch_dim
    torch._functorch.eager_transforms._set_tensor_requires_grad
    torch._functorch.eager_transforms._autograd_grad
    torch.autograd.grad torch.autograd.function.FunctionCtx
    torch.autograd.forward_ad.make_dual torch.autograd.forward_ad.unpack_dual
    torch.autograd.forward_ad.enter_dual_level torch.autograd.forward_ad.exit_dual_level
    torch.autograd.forward_ad._set_fwd_grad_enabled
    torch.autograd.forward_ad._maybe_load_decompositions
    torch._dynamo.create_parameter_op.tracable_create_parameter
    torch.fx.experimental.symbolic_shapes.guard_size_oblivious
    torch.fx.experimental.symbolic_shapes.guard_or_false
    torch.fx.experimental.symbolic_shapes.guard_or_true
    torch.fx.experimental.symbolic_shapes.sym_eq torch.fx.experimental.symbolic_shapes.sym_and
    torch.fx.experimental.symbolic_shapes.sym_or torch.fx._symbolic_trace._assert_is_none
    torch.nn.utils.rnn.PackedSequence
""")
)
_EXTRA_BY_NAME: dict[str, list[str]] = {}
for _path in sorted(_EXTRA):
    _EXTRA_BY_NAME.setdefault(_path.rpartition(".")[2], []).append(_path)


def public_tables() -> Iterator[tuple[str, dict[str, Any]]]:
    """Namespaces and what is in them, in the order in which one object prefers its names.

    An object may be in several of them, so that any of its public names finds it.
    """
    own = _functions_in_c(torch._C._VariableFunctions)
    own = {name: value for name, value in own.items() if hasattr(torch, name)}
    for name in _TORCH_FUNCTIONS:
        own.pop(name, None)  # the public one is in Python and calls the one in C
    yield "torch", {**own, **_pick(torch, (*_TORCH_FUNCTIONS, *_TORCH_CLASSES))}
    yield "torch.nn.functional", _functional()
    for module in (torch.special, torch.linalg, torch.fft):
        yield module.__name__, _functions_of(module)
    for module, listed in (
        (torch.sparse, ("sum", "to_sparse_semi_structured")),
        (torch.nested, _NESTED),
    ):
        yield module.__name__, {**_functions_of(module), **_pick(module, listed)}
    yield "torch.signal.windows", _pick(torch.signal.windows, _WINDOWS)
    yield "torch.Tensor", {name: getattr(torch.Tensor, name) for name in tensor_methods()}
    yield "operator", _functions_of(operator, _NOT_IN_OPERATOR)
    yield "math", _functions_of(math)
    yield "builtins", _pick(builtins, _BUILTINS)
    yield "types", {"NoneType": type(None), "EllipsisType": type(...)}
    yield "collections", _pick(collections, ("OrderedDict", "defaultdict", "deque"))
    immutable = torch.fx.immutable_collections
    yield immutable.__name__, _pick(immutable, ("immutable_list", "immutable_dict"))
    yield "torch.return_types", return_types()
    yield from _module_classes()
    for name in ("_VariableFunctions", "_nn", "_special", "_linalg", "_fft", "_sparse", "_nested"):
        found = _functions_in_c(getattr(torch._C, name, None))
        yield "torch.extra", {f"torch._C.{name}.{key}": value for key, value in found.items()}


def find_extra(path: str) -> Any | None:
    """What is at ``path`` if the path is listed here, else None. Imports its module of torch."""
    if path not in _EXTRA:
        return None
    with contextlib.suppress(ImportError):
        importlib.import_module(path.rpartition(".")[0])
    return _loaded_extra(path)


def _loaded_extra(path: str) -> Any | None:
    module_name, _, name = path.rpartition(".")
    found = vars(sys.modules[module_name]).get(name) if module_name in sys.modules else None
    return found if _is_own(found) else None


def extra_path(value: object) -> str | None:
    """The listed path at which ``value`` is found, else None."""
    kind = type(value)
    if kind is types.FunctionType or kind is types.BuiltinFunctionType or kind is type:
        name: str = value.__name__  # type: ignore[attr-defined]
        for path in _EXTRA_BY_NAME.get(name, ()):
            if _loaded_extra(path) is value:
                return path
    return None


def tensor_methods() -> list[str]:
    """Methods of tensors that compute and do nothing else, operators of the language included."""
    return [
        name
        for cls in torch.Tensor.__mro__[:-1]
        for name, value in vars(cls).items()
        if (name in _OPERATOR_METHODS or (name[0] != "_" and name not in _NOT_METHODS))
        and getattr(torch.Tensor, name) is value
        and not isinstance(value, type)
        and _is_own(value)
    ]


def tensor_data() -> set[str]:
    """Attributes of tensors that are data."""
    return {
        name
        for cls in torch.Tensor.__mro__[:-1]
        for name, value in vars(cls).items()
        if isinstance(value, types.GetSetDescriptorType)
        and name[0] != "_"
        and name not in _NOT_DATA
    }


def return_types() -> dict[str, Any]:
    """The named tuples that functions of torch return."""
    return {
        name: value
        for name, value in vars(torch.return_types).items()
        if isinstance(value, type) and value.__name__ == name and hasattr(value, "n_fields")
    }


_ATOM = re.compile(r"[A-Za-z0-9_]{1,200}\Z")
_ATOMS = {"overload": 3, "packet": 2}


def find_operator_safely(kind: str, name: str) -> Any | None:
    """The operator of this kind and exactly this name, for names that a stranger wrote.

    Looks in torch's registries and nowhere else: nothing is imported, loaded or called, and a name
    that is not there leaves no namespace behind in ``torch.ops``. Thread-safe.

    Args:
        kind: ``"overload"``, ``"packet"`` or ``"higher_order"``, as
            :func:`~lazyfx_core._torch_graph.operator_name` says.
        name: The qualified name as it says.

    Returns:
        None if there is no such operator in this process.
    """
    found: Any
    if kind == "higher_order":
        found = _higher_order_ops.get(name.partition(".")[2])
    else:
        atoms = name.split(".", 3)
        if len(atoms) != _ATOMS.get(kind) or not all(map(_ATOM.match, atoms)):
            return None
        held = vars(torch.ops).get(atoms[0])
        if held is None:
            if not _is_registered(f"{atoms[0]}::{atoms[1]}"):
                return None
        elif type(held) is not _OpNamespace:
            return None
        found = find_operator(kind, name)
    return found if operator_name(found) == (kind, name) else None


def _is_registered(qualified_name: str) -> bool:
    try:
        found, _ = torch._C._jit_get_operation(qualified_name)
    except RuntimeError:
        return False
    return found is not None


def _functional() -> dict[str, Any]:
    """Functions of ``torch.nn.functional``, those behind its public ones included."""
    module = nn.functional
    found = {}
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType):
            # Where both dispatch on a flag, the code is elsewhere and the name says it is here.
            places = (value.__globals__.get("__name__"), value.__module__)
            is_here = module.__name__ in places and _is_own(value)
        else:
            is_here = _is_public_in_c(name, value) and not name.startswith("has_torch_function")
        if is_here and name not in _NOT_FUNCTIONAL:
            found[name] = value
    return found


def _functions_of(
    module: types.ModuleType, without: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Public functions of ``module`` that are written in C."""
    return {
        name: value
        for name, value in vars(module).items()
        if _is_public_in_c(name, value) and name not in without
    }


def _functions_in_c(holder: Any) -> dict[str, Any]:
    return {
        name: value
        for name in dir(holder)
        if not name.startswith(("__", "_test_")) and name not in _NOT_IN_C
        if isinstance(value := getattr(holder, name), types.BuiltinFunctionType)
    }


def _is_public_in_c(name: str, value: object) -> bool:
    return name[0] != "_" and isinstance(value, types.BuiltinFunctionType)


def _pick(module: types.ModuleType, listed: Iterable[str]) -> dict[str, Any]:
    """What ``listed`` names, as far as this release has it and nobody has replaced it."""
    found = {name: getattr(module, name, None) for name in listed}
    return {name: value for name, value in found.items() if _is_own(value)}


def _module_classes() -> Iterator[tuple[str, dict[str, Any]]]:
    public: dict[str, Any] = _pick(nn, ("Parameter", "Buffer"))
    others: dict[str, Any] = {}
    prefix = "torch.nn.modules."
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith(prefix):
            continue
        for name, value in vars(module).items():
            if not isinstance(value, type) or value.__module__ != module_name:
                continue
            if not issubclass(value, nn.Module):
                continue
            if getattr(nn, name, None) is value:
                public[name] = value
            else:
                others[f"{module_name.removeprefix(prefix)}.{name}"] = value
    yield "torch.nn", public
    yield "torch.nn.modules", others


def _is_own(value: Any) -> bool:
    """Whether ``value`` is a function or class, and one of torch's or Python's own."""
    if isinstance(value, types.FunctionType):
        code_from = str(value.__globals__.get("__name__"))
        return (
            code_from.partition(".")[0] in _OWN_CODE
            and str(value.__module__).partition(".")[0] == "torch"
        )
    if isinstance(value, type):
        return value.__module__.partition(".")[0] in _OWN_CLASSES
    return isinstance(value, _IN_C)
