"""What is written about a graph besides its archive: readable code and counts."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

from torch import fx

from lazyfx_compilers import _torch_aot, _torch_debug


def readable_code(gm: fx.GraphModule) -> str:
    """The code of a graph with shapes, strides, devices and the user's lines."""
    known = inspect.signature(gm.print_readable).parameters
    wanted: dict[str, Any] = {"include_stride": True, "include_device": True}
    options: Any = {key: value for key, value in wanted.items() if key in known}
    return gm.print_readable(print_output=False, **options) + "\n"


def operator_counts(gm: fx.GraphModule) -> dict[str, int]:
    """How often each target is called, the most frequent first."""
    counts = Counter(
        _torch_debug.target_text(node.target)
        for node in gm.graph.nodes
        if node.op.startswith("call_")
    )
    return dict(counts.most_common())


def output_names(gm: fx.GraphModule) -> list[str]:
    """Names for the outputs: the nodes that make them, or ``output_3``."""
    output = next((node for node in reversed(gm.graph.nodes) if node.op == "output"), None)
    leaves, _ = _torch_aot.tree_flatten(output.args[0] if output is not None else ())
    return [
        each.name if isinstance(each, fx.Node) else f"output_{i}" for i, each in enumerate(leaves)
    ]
