"""Which facts a graph's nodes carry, and the error when a result is not what they say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from . import _metadata, _torch_debug
from ._metadata import Bindings, Difference, Facts
from .errors import MetadataMismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

_BAKED = (bool, int, float, str)


def record_graph(
    graph: fx.Graph, placeholders: Sequence[fx.Node], example_inputs: Sequence[Any]
) -> dict[fx.Node, tuple[Facts, ...]]:
    """What tracing recorded about each node, as facts; nodes it says nothing about are left out.

    Args:
        graph: Read only.
        placeholders: Its placeholders.
        example_inputs: What it was traced with. A Python value that no node uses has been baked
            into the graph: it becomes a fact about its placeholder.
    """
    facts: dict[fx.Node, tuple[Facts, ...]] = {}
    recorded_later: set[int] = set()
    for node in reversed(graph.nodes):
        if node.op == "output":
            continue
        if "val" in node.meta:
            # an input without a description is a Python value, see below
            if node.meta["val"] is not None or node.op != "placeholder":
                facts[node] = _metadata.record(node.meta["val"])
        elif "example_value" in node.meta:
            value = node.meta["example_value"]
            # Dynamo records the very tensor it traces with: after `a.t_()` the record of `a` has
            # the sizes that it got there, so only the last node of a tensor tells its sizes.
            facts[node] = _metadata.record(value, with_geometry=id(value) not in recorded_later)
            if isinstance(value, torch.Tensor):
                recorded_later.add(id(value))
    for node, example in zip(placeholders, example_inputs, strict=False):
        if node not in facts and not node.users and type(example) in _BAKED:
            facts[node] = _metadata.record(example)
    return facts


def check(
    node: fx.Node,
    facts: tuple[Facts, ...],
    result: Any,
    bindings: Bindings,
) -> None:
    """Hold a node's result against what was recorded.

    Raises:
        MetadataMismatchError: At the first difference.
    """
    if len(facts) == 1 and isinstance(result, torch.Tensor):
        difference = _metadata.compare(facts[0], result, bindings)
        if difference is not None:
            raise _mismatch(node, difference, "")
        return
    leaves = _metadata.leaves(result)
    if len(leaves) != len(facts):
        if None in facts and len(facts) == 1:
            return  # an object that tracing knew nothing about
        raise _mismatch(
            node,
            Difference(checked="number of outputs", expected=len(facts), seen=len(leaves)),
            "",
        )
    for index, (fact, leaf) in enumerate(zip(facts, leaves, strict=True)):
        difference = _metadata.compare(fact, leaf, bindings)
        if difference is not None:
            which = f" of output {index} of {len(leaves)}" if len(leaves) > 1 else ""
            raise _mismatch(node, difference, which)


def _mismatch(node: fx.Node, difference: Difference, which: str) -> MetadataMismatchError:
    if node.op == "placeholder":
        advice = (
            "the graph was called with other inputs than it was compiled for: compile it for "
            "these, or guard the call"
        )
    else:
        advice = (
            "the operator's fake kernel or decomposition says something else than its real "
            "kernel, or a pass changed the graph and not node.meta"
        )
    error = MetadataMismatchError(
        f"{describe(node)}: the {difference.checked}{which} is {difference.seen}, tracing "
        f"recorded {difference.expected}; {advice}"
    )
    error.node = node.name
    error.target = _torch_debug.target_text(node.target)
    error.checked = difference.checked
    error.expected = difference.expected
    error.seen = difference.seen
    error.user_line = user_line(node)
    return error


def describe(node: fx.Node) -> str:
    """A node in a message: its name, what it runs and the user's line."""
    line = user_line(node)
    where = f", from {line}" if line else ""
    return f"node {node.name!r} ({node.op} {_torch_debug.target_text(node.target)}{where})"


def user_line(node: fx.Node) -> str | None:
    """The line of the user's code a node was traced from: ``file:line in function: code``."""
    trace = node.meta.get("stack_trace")
    if not isinstance(trace, str):
        return None
    frames = re.findall(r'File "(.+?)", line (\d+), in (\S+)(?:\n[ \t]*(?!File )(\S.*))?', trace)
    if not frames:
        return None
    file, line, function, code = frames[-1]
    return f"{file}:{line} in {function}" + (f": {code.strip()}" if code else "")
