"""The compiler that changes nothing: what other compilers are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _torch_aot
from ._types import boxed_graph, require_graph
from .partition import budget_partitioner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx


def nop(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Run ``gm`` as it is.

    Takes ATen graphs and Dynamo graphs, lazy and plain modules, and can be given directly to
    ``aot_function``, ``aot_module`` and ``torch.compile(backend=...)``.

    Args:
        gm: Kept, not changed. The graph is run as it is now, over the parameters and constants
            that ``gm`` has when it is called.
        example_inputs: Not looked at, not kept.

    Returns:
        A callable that takes the graph's inputs as one list, or one by one. It empties the list
        and frees each input after its last use. As thread-safe as ``gm`` itself.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: The graph is wrong; names the node.
    """
    checked = require_graph(gm, "nop")
    if _torch_aot.must_be_traced(checked):
        return _torch_aot.compile_dynamo_graph(
            checked, example_inputs, fw_compiler=nop, partition_fn=budget_partitioner()
        )
    return boxed_graph(checked, "nop")
