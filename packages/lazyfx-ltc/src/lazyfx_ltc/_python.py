"""Whether a model runs python code of the user's own, which may ask for anything.

torch's functions and modules see shapes, dtypes and modes, which are guarded, and operators, which
are compared. Code of the user's own may also ask whether a tensor requires grad, is a parameter, or
is the same object as another: for such models more is guarded (``_guards.py``).
"""

from __future__ import annotations

import operator
import types
from typing import Any

from torch import fx, nn

from ._structure import Structure, has_objects
from ._torch_tracing import is_operator

_ABOUT_GRADIENTS = ("requires_grad", "is_leaf", "grad", "grad_fn")


def may_ask_anything(graph: fx.Graph, structure: Structure, code: set[Any]) -> bool:
    """Whether a call may run code of the user's own.

    Args:
        graph: What a call runs.
        structure: Of its arguments; objects among them may have methods.
        code: What :func:`python_code` found.
    """
    return (
        _asks_as_python_may(graph)
        or has_objects(structure)
        or not all(is_torchs(one) for one in code)
    )


def _asks_as_python_may(graph: fx.Graph) -> bool:
    """Whether a node asks what its tensors record, or whether they are one object."""
    return any(
        node.op == "call_function"
        and (
            node.target in (operator.is_, operator.is_not)
            or (node.target is getattr and node.args[1] in _ABOUT_GRADIENTS)
        )
        for node in graph.nodes
    )


def is_torchs(code: Any) -> bool:
    """Whether a function or class belongs to torch or to Python."""
    if isinstance(code, types.MethodType):
        return False
    module = getattr(code, "__module__", None) or ""
    if isinstance(code, types.ModuleType):
        module = code.__name__
    if isinstance(code, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        return True
    return module.partition(".")[0] in ("torch", "operator", "_operator", "math", "builtins")


def python_code(model: nn.Module, graph: fx.Graph) -> set[Any]:
    """The functions and classes of modules that a call of the model runs, operators left out."""
    found: set[Any] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            found.update(type(inner) for inner in module.modules())
        elif node.op == "call_function" and not (
            is_operator(node.target) or isinstance(node.target, types.BuiltinFunctionType)
        ):
            found.add(node.target)
    return found
