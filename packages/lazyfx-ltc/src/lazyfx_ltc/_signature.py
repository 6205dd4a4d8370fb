"""From a call's arguments to the values of a graph's placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from ._torch_tracing import pytree_input_spec, spec_children, tree_flatten
from .errors import InputError


def placeholder_values(
    graph: fx.Graph, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """One value for each placeholder of ``graph``, in order.

    Args:
        graph: Read only.
        args: What the model is called with.
        kwargs: The same, by name.

    Raises:
        InputError: They do not fit its signature; names the argument.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    spec = pytree_input_spec(graph)
    if spec is not None:
        kinds = [one.type for one in spec_children(spec)]
        with_names = spec.type is tuple and kinds == [tuple, dict]
        leaves, seen = tree_flatten((tuple(args), dict(kwargs)) if with_names else tuple(args))
        if (kwargs and not with_names) or len(leaves) != len(placeholders) or seen != spec:
            raise InputError(
                f"arguments: expected the structure {spec}, as the model was traced with, seen"
                f" {seen}"
            )
        return leaves
    names = [str(node.target) for node in placeholders]
    starred = next((name for name in names if name.startswith("*")), None)
    if starred is not None:
        raise InputError(
            f"the model takes {starred}: expected one placeholder for each argument; trace a"
            " function that takes them one by one"
        )
    listed = ", ".join(names) or "none"
    if len(args) > len(names):
        raise InputError(f"arguments: expected at most {len(names)} ({listed}), seen {len(args)}")
    values = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise InputError(f"argument {name!r}: the model takes no such argument, only {listed}")
        if name in values:
            raise InputError(f"argument {name!r}: given twice, by place and by name")
        values[name] = value
    for name, node in zip(names, placeholders, strict=True):
        if name not in values:
            if not node.args:
                raise InputError(
                    f"argument {name!r}: expected a value, seen none; the model takes {listed}"
                )
            values[name] = node.args[0]
    return [values[name] for name in names]
