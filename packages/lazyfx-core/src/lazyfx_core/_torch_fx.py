"""The seam to ``torch.fx``: every private name of torch that lazyfx-core touches.

One function of torch decides which class ``symbolic_trace``, ``make_fx``, ``Transformer``, Dynamo,
the AOT partitioners, ``split_module`` and unpickling build:
``torch.fx._lazy_graph_module._get_graph_module_cls``. :func:`install` puts a chooser in its place
and :func:`remove` puts the very same object back. Nothing is patched at import.

=================================================  =========================================
private name                                       used for
=================================================  =========================================
``_lazy_graph_module._get_graph_module_cls``       replaced while installed
``_lazy_graph_module._make_graph_module``          checked: must look the former up by name
``_lazy_graph_module._force_skip_…_flag``          read: torch's own "never lazy" wins
``graph_module.reduce_graph_module``               first half of ``__reduce__``
``graph_module._format_import_block``              second half of ``__reduce__``
``graph._PyTreeCodeGen`` / ``Graph._codegen``      pytree specs at marking time; storing
``Graph._tracer_cls`` / ``_tracer_extras``         storing
``_ops.OpOverload``, packets, higher-order ops     storing operators by name
``fn._dynamo_marked_constant``                     lets Dynamo evaluate a call while tracing
=================================================  =========================================

Seen to be there in torch 2.6 to 2.15; a release that moves one of the patched names makes
:func:`install` raise :class:`~lazyfx_core.errors.SeamError`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.fx._lazy_graph_module as _torch_lazy
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx.graph import CodeGen, _PyTreeCodeGen
from torch.fx.graph_module import _format_import_block, reduce_graph_module
from torch.package import sys_importer

from .errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

    ChooseClass = Callable[[Callable[[], type[fx.GraphModule]]], type[fx.GraphModule]]

_F = TypeVar("_F", bound="Callable[..., Any]")

GENERATED_FIELDS = ("_code", "_lineno_map", "_prologue_start")
"""Instance attributes that torch writes when it generates code and reads directly elsewhere."""

_TARGET = "_get_graph_module_cls"
_lock = threading.Lock()
_original: Callable[[], type[fx.GraphModule]] | None = None
_replacement: Callable[[], type[fx.GraphModule]] | None = None


def install(choose: ChooseClass) -> None:
    """Let ``choose(original)`` decide which class torch builds. Idempotent and thread-safe.

    Args:
        choose: Called with torch's own chooser each time torch is about to build a module.

    Raises:
        SeamError: This release of torch does not have the function to replace, or no longer
            asks it; nothing was patched.
    """
    global _original, _replacement
    if _replacement is not None:
        return
    with _lock:
        if _replacement is not None:
            return
        original = getattr(_torch_lazy, _TARGET, None)
        maker = getattr(_torch_lazy, "_make_graph_module", None)
        if not callable(original) or _TARGET not in _names_used_by(maker):
            raise SeamError(
                f"torch {torch.__version__} has no {_torch_lazy.__name__}.{_TARGET} that "
                "_make_graph_module asks, so lazyfx-core cannot reach torch's own constructions; "
                "use LazyGraphModule(...) directly, or a release of lazyfx-core that knows this "
                "torch"
            )
        kept: Callable[[], type[fx.GraphModule]] = original

        def get_graph_module_cls() -> type[fx.GraphModule]:
            return choose(kept)

        setattr(_torch_lazy, _TARGET, get_graph_module_cls)
        _original, _replacement = kept, get_graph_module_cls


def remove() -> None:
    """Put torch's own function back, the very same object. Does nothing if not installed.

    Raises:
        SeamError: Somebody else has replaced the function after us; putting the original back
            would silently undo their patch.
    """
    global _original, _replacement
    with _lock:
        if _replacement is None:
            return
        current = getattr(_torch_lazy, _TARGET, None)
        if current is not _replacement:
            raise SeamError(
                f"{_torch_lazy.__name__}.{_TARGET} is now {current!r}, not what lazyfx-core "
                "installed; remove the later patch first, then call remove_seam() again"
            )
        setattr(_torch_lazy, _TARGET, _original)
        _original = _replacement = None


def installed() -> bool:
    """Whether torch asks lazyfx-core which class to build."""
    return _replacement is not None


def torchs_choice() -> type[fx.GraphModule]:
    """The class that torch would build if lazyfx-core were not there."""
    original = _original
    if original is not None:
        return original()
    return _torch_lazy._get_graph_module_cls()


def torch_forbids_laziness() -> bool:
    """Whether torch is inside its own ``_force_skip_lazy_graph_module``."""
    return bool(getattr(_torch_lazy, "_force_skip_lazy_graph_module_flag", False))


def pytree_specs(graph: fx.Graph) -> tuple[Any, Any] | None:
    """The input and output tree specs of a graph with pytree code generation, else None."""
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        return codegen.pytree_info.in_spec, codegen.pytree_info.out_spec
    return None


def torch_reduction(body: dict[str, Any], code: fx.graph.PythonCode) -> tuple[Any, tuple[Any, str]]:
    """What ``fx.GraphModule.__reduce__`` returns for this state and generated code."""
    return (reduce_graph_module, (body, _format_import_block(code.globals, sys_importer)))


def graph_parts(graph: fx.Graph) -> tuple[CodeGen, type[fx.Tracer] | None, dict[str, Any] | None]:
    """Code generator, tracer class and tracer extras: what a graph holds besides its nodes.

    A tracer class that lives inside a function cannot be found again by name and is left out, as
    ``fx.GraphModule`` leaves it out.
    """
    tracer_cls = graph._tracer_cls
    if tracer_cls is not None and "<locals>" in tracer_cls.__qualname__:
        tracer_cls = None
    return graph._codegen, tracer_cls, graph._tracer_extras


def dynamo_constant(function: _F) -> _F:
    """Let Dynamo run ``function`` while tracing and take its result as a constant."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def operator_name(value: object) -> tuple[str, str] | None:
    """``(kind, qualified name)`` of an operator of torch's registries, else None."""
    if isinstance(value, OpOverload):
        return (
            "overload",
            f"{value.namespace}.{value._schema.name.partition('::')[2]}.{value._overloadname}",
        )
    if isinstance(value, OpOverloadPacket):
        return "packet", value._qualified_op_name.replace("::", ".")
    if isinstance(value, HigherOrderOperator):
        return "higher_order", f"{value.namespace}.{value._name}"
    return None


def find_operator(kind: str, name: str) -> Any | None:
    """The operator that :func:`operator_name` named, or None if this torch does not have it."""
    found: Any = torch.ops
    for atom in name.split("."):
        try:
            found = getattr(found, atom)
        except AttributeError:
            return None
    expected = {
        "overload": OpOverload,
        "packet": OpOverloadPacket,
        "higher_order": HigherOrderOperator,
    }
    return found if isinstance(found, expected[kind]) else None


def _names_used_by(function: object) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    return getattr(code, "co_names", ())
