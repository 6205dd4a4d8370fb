"""``diff_graphs``."""

from __future__ import annotations

from torch import fx

import lazyfx_core
from lazyfx_compilers.errors import NotCompilableError

from ._compare import compare_graphs
from ._data import (
    GraphDiff,
)


def diff_graphs(a: fx.GraphModule, b: fx.GraphModule, *, values: bool = True) -> GraphDiff:
    """How ``b`` differs from ``a``: nodes added, removed and changed.

    Nodes are matched by what they compute from what, and for what. So these are no differences:
    other names, another order of nodes that do not depend on each other, other names of symbolic
    sizes. What is: see :class:`GraphDiff`.

    What was recorded about results (``node.meta["val"]`` or ``["example_value"]``) is compared
    where both graphs have it. Which of several accelerators it is (``cuda:0``, ``cuda:1``) counts
    only for graphs that use more than one of a kind.

    Args:
        a: The old graph. Read only; no code is generated.
        b: The new graph. Read only; no code is generated.
        values: Whether contents of the tensors that the graphs hold count, besides their dtype,
            shape, strides and device.

    Raises:
        NotCompilableError: One of them is not a ``torch.fx.GraphModule``.

    Example:
        >>> import torch
        >>> from torch import fx
        >>> one = fx.symbolic_trace(lambda x: torch.relu(x * 2) + 1)
        >>> two = fx.symbolic_trace(lambda y: torch.relu(y * 3) + 1)
        >>> print(diff_graphs(one, two))
        5 -> 5 nodes: 1 changed
          ~ mul (operator.mul)
              args[1]: 2 -> 3
    """
    for name, gm in (("a", a), ("b", b)):
        try:
            lazyfx_core.require_graph_module(gm, f"diff_graphs({name})")
        except lazyfx_core.NotAGraphModuleError as error:
            raise NotCompilableError(str(error)) from None
    return compare_graphs(a, b, values=values)
