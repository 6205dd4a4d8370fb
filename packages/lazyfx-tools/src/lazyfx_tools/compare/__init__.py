"""``compare_compiled``: which node a compiler gets wrong.

A compiled model that gives wrong results is searched by hand by cutting it in pieces. Here the
graphs of one call, forward and backward, are run by a reference and compiled, and compared node by
node; the first node that is wrong is named, with the user's line, the size of the error and what
the node was given. How it is found is described in ``_search``, what counts as wrong in
``_values``.
"""

from ._compiled import compare_compiled, compare_graph
from ._report import ComparedGraph, Comparison, Divergence, InputStatistics
from ._values import ErrorSizes

__all__ = [
    "ComparedGraph",
    "Comparison",
    "Divergence",
    "ErrorSizes",
    "InputStatistics",
    "compare_compiled",
    "compare_graph",
]
