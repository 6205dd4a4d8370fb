"""The seam to who calls: tracers and transforms that a compiled graph would hide from.

They see the operators that PyTorch's dispatcher sees. Generated code calls few of them or none, so
that a tracer would keep the result of one call as a constant, and a tangent would be dropped.

=====================================================  ===========================================
private name                                           used for
=====================================================  ===========================================
``torch._C._get_dispatch_mode``                        whether the thread's operators go to torch's
                                                       own modes: proxies, fake and functional
                                                       tensors
``torch._C._TorchDispatchModeKey``                     the same
``torch._C._len_torch_function_stack``                 whether functions go to modes
``torch.overrides._get_current_function_mode_stack``   which these are: traces above autograd
``torch._C._functorch.is_functorch_wrapped_tensor``    being inside of ``vmap``, ``grad``, ``jvp``
``torch._C._functorch.peek_interpreter_stack``         the same, whichever tensor it is
``torch.autograd.forward_ad._current_level``           whether tensors may carry tangents
=====================================================  ===========================================
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd import forward_ad

from ._types import as_boxed, boxed
from .errors import NotCompilableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_mode = torch._C._get_dispatch_mode
_KEY = torch._C._TorchDispatchModeKey
_PLAIN = (torch.Tensor, nn.Parameter)


class _Empty:
    """What a class statement leaves behind by itself: Python 3.13 has more of it than 3.12."""


# What a class of tensors may define without computing anything else for it.
_HOUSEKEEPING = frozenset(
    {
        *vars(_Empty),
        *("__new__", "__init__", "__init_subclass__", "__class_getitem__", "__repr__", "__str__"),
        *("__format__", "__hash__", "__dir__", "__slots__", "__annotations__", "__deepcopy__"),
        *("__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"),
        *("__torch_function__", "to", "cpu", "cuda", "__getattr__", "__setattr__", "__delattr__"),
    }
)


def called_while_tracing() -> bool:
    """Whether the caller records operators: ``make_fx``, ``torch.export``, ``torch.jit.trace``.

    Also in a ``FakeTensorMode``, where operators compute shapes only. What other threads do does
    not count.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    if (
        _mode(_KEY.PROXY) is not None
        or _mode(_KEY.FAKE) is not None
        or _mode(_KEY.FUNCTIONAL) is not None
    ):
        return True
    if not torch._C._len_torch_function_stack():
        return False
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return any(type(mode).__name__ == "PreDispatchTorchFunctionMode" for mode in modes)


def called_while_transforming() -> bool:
    """Whether the caller is inside of ``vmap``, ``grad``, ``jvp``, or of forward mode."""
    return (
        forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
    )


def why_not_compiled(tensor: torch.Tensor) -> str | None:
    """What a compiled graph would ignore of this tensor, to read after its name; else None."""
    kind = type(tensor)
    if kind not in _PLAIN and not hasattr(kind, "__tensor_flatten__"):
        if nn.parameter.is_lazy(tensor):
            return "has no shape yet; run the original once, which gives it one"
        why = _why_not_of(kind)
        if why is not None:
            return why
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return (
            "is inside of a transform (vmap, grad, jvp, functionalize), in which a compiled graph "
            "has no part; fuse what the transform returns: "
            "memory_efficient_fusion(torch.vmap(function)), for a module of a function that calls "
            "it by torch.func.functional_call"
        )
    if tensor.is_mkldnn:
        return "is in oneDNN's own layout, which tracing takes for a dense one; use to_dense()"
    if _has_tangent(tensor):
        return (
            "carries a tangent of forward mode, which a compiled graph drops; fuse a function that "
            "computes it, with torch.func.jvp"
        )
    return None


@functools.lru_cache(maxsize=128)
def _why_not_of(kind: type[torch.Tensor]) -> str | None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if _runs_python(kind):
        return f"is a {name}, whose operators are Python code that a compiled graph skips"
    # torch's own disabled one, which makes functions return plain tensors
    if kind.__torch_function__ is not nn.Parameter.__torch_function__:
        return (
            f"is a {name}, whose functions return that type or run its __torch_function__; a "
            "compiled graph does neither; expected a torch.Tensor or nn.Parameter"
        )
    for each in kind.__mro__[: kind.__mro__.index(torch.Tensor)]:
        if each is nn.Parameter or each is torch.nn.Buffer:
            continue
        for own in vars(each):
            if own not in _HOUSEKEEPING and hasattr(torch.Tensor, own):
                return f"is a {name}, whose own {own} a compiled graph does not call"
    return None


def _runs_python(kind: type[torch.Tensor]) -> bool:
    return kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def _has_tangent(tensor: torch.Tensor) -> bool:
    if forward_ad._current_level < 0 or tensor.layout is not torch.strided:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def of_values_only(compiled: Callable[..., Any], phase: str) -> Callable[..., Any]:
    """``compiled``, which reads memory without the dispatcher, for tensors that are just that.

    A backward runs whenever somebody asks for gradients: traced by itself, too, or with fake ones.

    Raises:
        NotCompilableError: On calling, somebody traces, or an input is more than its values.
    """
    run = as_boxed(compiled, "inductor")

    def checked(inputs: list[Any]) -> Any:
        why = _why_not_run(inputs)
        if why is None:
            return run(inputs)
        raise NotCompilableError(
            f"memory_efficient_fusion: the {phase} graph {why}, of which generated code knows "
            "nothing; call the fused function inside of what is traced or transformed, or use "
            "codegen=lazyfx_compilers.nop"
        )

    return boxed(checked, "inductor")


def _why_not_run(inputs: Iterable[Any]) -> str | None:
    if called_while_tracing():
        return "runs while operators are recorded (make_fx, torch.jit.trace, FakeTensorMode)"
    for index, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor):
            continue
        kind = type(value)
        if kind not in _PLAIN and _runs_python(kind):
            return f"was given a {kind.__module__}.{kind.__qualname__}"
        if _has_tangent(value):
            return f"was given a tangent of forward mode with its input {index}"
    return None
