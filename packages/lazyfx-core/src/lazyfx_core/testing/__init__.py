"""Tools to test what makes, changes or stores fx graphs: ours, and yours.

- :func:`graph_cases`, :func:`edits` and :func:`invalid_edits`: hypothesis strategies for graphs
  that run, for changes of graphs, and for changes that make them invalid.
- :func:`graph_diff` and :func:`assert_graphs_equal`: structural equality with a readable diff.
- :class:`GraphModuleMachine`: a state machine that compares a graph module class with
  ``torch.fx.GraphModule``.

Needs hypothesis: ``python -m pip install 'lazyfx-core[testing]'``. Importing it without raises
:class:`lazyfx_core.MissingDependencyError`. ``lazyfx_core`` itself never imports this package.
"""

from lazyfx_core.errors import MissingDependencyError

try:
    import hypothesis as _hypothesis  # noqa: F401  # fails first, and says what to install
except ImportError as error:
    raise MissingDependencyError(
        "hypothesis",
        needed_for="lazyfx_core.testing",
        command="python -m pip install 'lazyfx-core[testing]'",
    ) from error

from ._case import GraphCase
from ._diff import assert_graphs_equal, graph_diff
from ._edits import Edit, InvalidEdit, apply_edit, broken, edits, invalid_edits
from ._graphs import graph_cases
from ._machine import GraphModuleMachine

__all__ = [
    "Edit",
    "GraphCase",
    "GraphModuleMachine",
    "InvalidEdit",
    "apply_edit",
    "assert_graphs_equal",
    "broken",
    "edits",
    "graph_cases",
    "graph_diff",
    "invalid_edits",
]
