"""The seam of the debugging half: symbols, fake storages, names of operators, the partitioner.

=======================================  ==============================================
private name                             used for
=======================================  ==============================================
``SymNode.expr``                         the expression behind a symbolic size
``UntypedStorage._cdata``                which tensors share storage, fake ones too
``torch._ops``                           writing the target of a node as text
``functorch.compile.default_partition``  the dumper's partitioner
``torch._neg_view``                      restoring the negative bit of an input
``torch._guards.CompileContext``         Dynamo's compile id
``torch._C._set_mkldnn_enabled``         a flag that ``torch.backends`` may have frozen
``torch._C._set_cudnn_benchmark``        the same
``torch._C._set_cudnn_deterministic``    the same
=======================================  ==============================================

Nothing of it is imported when ``lazyfx_compilers`` is imported.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from .errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

_BUILTIN_NAMESPACES = frozenset({"aten", "prims", "prim", "higher_order", "inductor", "rngprims"})


# --- symbols ---------------------------------------------------------------------------------


def expression(value: Any) -> Any | None:
    """The sympy expression of a ``SymInt``, ``SymFloat`` or ``SymBool``; ``None`` if it has none.

    An ``int`` is given back if the expression has no symbols left.
    """
    expr = getattr(getattr(value, "node", None), "expr", None)
    if expr is None:
        return None
    return int(expr) if getattr(expr, "is_Integer", False) else expr


def is_symbol(expr: Any) -> bool:
    """Whether an expression is one bare symbol."""
    return bool(getattr(expr, "is_Symbol", False))


def evaluate(expr: Any, bindings: Mapping[Any, int]) -> Any | None:
    """The number or truth value of ``expr`` with numbers for symbols; ``None`` if some are left."""
    import sympy  # type: ignore[import-untyped]

    symbols = {symbol: sympy.Integer(value) for symbol, value in bindings.items()}
    value = sympy.sympify(expr).xreplace(symbols)
    if value.free_symbols:
        return None
    if value in (sympy.true, sympy.false):
        return bool(value)
    return int(value) if value.is_integer else float(value)


def hint(value: Any) -> Any | None:
    """The number a symbolic value stood for while tracing; ``None`` where only data decides."""
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value
    node = value.node
    try:
        known = node.hint if node.has_hint() else None
    except AttributeError as error:
        raise SeamError(
            f"torch {torch.__version__} has no hints on symbolic values ({error}), which "
            "lazyfx-compilers relies on; use a release of it that knows this torch"
        ) from error
    return known


def free_symbols(expr: Any) -> set[Any]:
    """The symbols of an expression."""
    return set(getattr(expr, "free_symbols", ()))


# --- storages --------------------------------------------------------------------------------


def storage_key(tensor: torch.Tensor) -> int:
    """A number that tensors have in common if they share storage, while they are alive."""
    return int(tensor.untyped_storage()._cdata)


def neg_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same data with the negative bit set."""
    return torch._neg_view(tensor)


BACKEND_FLAGS = {
    "mkldnn": "_set_mkldnn_enabled",
    "cudnn_benchmark": "_set_cudnn_benchmark",
    "cudnn_deterministic": "_set_cudnn_deterministic",
}


def set_backend_flag(name: str, value: bool) -> None:
    """Set one of :data:`BACKEND_FLAGS` and nothing else.

    ``torch.backends`` refuses after ``disable_global_flags``, and sets other things with it.
    """
    getattr(torch._C, BACKEND_FLAGS[name])(value)


def compile_id() -> str | None:
    """Dynamo's id of the compilation that is going on in this thread, such as ``0/1``."""
    guards = importlib.import_module("torch._guards")
    found = guards.CompileContext.current_compile_id()
    return None if found is None else str(found)


# --- names -----------------------------------------------------------------------------------


def python_name(target: Any) -> str | None:
    """An expression that evaluates to ``target`` after its modules are imported, if there is one.

    What it names is looked up and compared: a name that leads elsewhere is no name.
    """
    if isinstance(target, OpOverload):
        return f"torch.ops.{target}"
    if isinstance(target, OpOverloadPacket):
        return f"torch.ops.{str(target).replace('::', '.')}"
    if isinstance(target, HigherOrderOperator):
        return f"torch.ops.higher_order.{target.__name__}"
    name = getattr(target, "__name__", None)
    if not isinstance(name, str):
        return None
    if getattr(builtins, name, None) is target:
        return name
    own = str(getattr(target, "__module__", None) or "").replace("_operator", "operator")
    qualified = getattr(target, "__qualname__", name)
    for module, path in (
        (own, qualified),
        ("torch", name),
        ("torch.nn.functional", name),
        ("torch._C._nn", name),
        ("torch", f"Tensor.{name}"),
        ("math", name),
        ("operator", name),
    ):
        if _look_up(module, path) is target:
            return f"{module}.{path}"
    return None


def module_of(target: Any) -> str | None:
    """The module to import before the expression of :func:`python_name` can be evaluated."""
    if isinstance(target, HigherOrderOperator):
        return type(target).__module__  # where it is registered
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        return None
    parts = (python_name(target) or "").split(".")[:-1]
    while parts and ".".join(parts) not in sys.modules:
        parts.pop()
    return ".".join(parts) or None


def foreign_namespace(target: Any) -> str | None:
    """The namespace of an operator that a library other than torch registered."""
    if not isinstance(target, (OpOverload, OpOverloadPacket)):
        return None
    namespace = str(target).replace("::", ".").split(".")[0]
    return None if namespace in _BUILTIN_NAMESPACES else namespace


def target_text(target: Any) -> str:
    """What a node runs, short enough for a message or an index; never fails."""
    if isinstance(target, str):
        return target
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        return str(target)
    return python_name(target) or repr(target)


def _look_up(module: str, path: str) -> Any:
    found: Any = sys.modules.get(module)
    for atom in path.split("."):
        found = getattr(found, atom, None)
    return found


# --- partitioning ----------------------------------------------------------------------------


def default_partition(
    joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The default partitioner of torch; settings this torch does not know are left out."""
    try:
        partition: Callable[..., Any] = importlib.import_module(
            "functorch.compile"
        ).default_partition
    except (ImportError, AttributeError) as error:
        raise SeamError(
            f"torch {torch.__version__} has no functorch.compile.default_partition, which "
            "lazyfx-compilers relies on; use a release of it that knows this torch"
        ) from error
    known = inspect.signature(partition).parameters
    return partition(joint, joint_inputs, **{k: v for k, v in settings.items() if k in known})  # type: ignore[no-any-return]
