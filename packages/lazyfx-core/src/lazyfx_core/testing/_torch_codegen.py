"""The seam to torch's code generators: how a graph turns its inputs and outputs into structures.

===============================================  =========================================
private name                                     used for
===============================================  =========================================
``Graph._codegen``                               the kind of generator, compared and drawn
``graph._PyTreeCodeGen``, ``graph._PyTreeInfo``  drawing graphs with nested inputs
``torch.utils._pytree``                          the specs of those inputs
===============================================  =========================================

Nothing is patched. Seen to be there in torch 2.6 to 2.15.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx import graph as _torch_graph
from torch.utils import _pytree

from lazyfx_core.errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Sequence


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
