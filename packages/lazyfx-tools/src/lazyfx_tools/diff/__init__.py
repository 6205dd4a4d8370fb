"""``diff_graphs`` and ``diff_dumps``: how graphs differ, by structure and not by text.

``_nodes`` and ``_facts`` read a graph, ``_match`` finds which nodes are the same (``_align``,
``_sources`` and ``_torch_effects`` help), ``_compare`` tells what differs about them, ``_data`` is
what comes out, ``_dumps`` pairs the graphs of two dumps.
"""

from ._compare import describe_nodes
from ._data import FieldChange, GraphDiff, NodeChange, NodeSummary, OpCount, Rewiring, SubgraphDiff
from ._dumps import DumpDiff, GraphPair, diff_dumps
from ._graphs import diff_graphs

__all__ = [
    "DumpDiff",
    "FieldChange",
    "GraphDiff",
    "GraphPair",
    "NodeChange",
    "NodeSummary",
    "OpCount",
    "Rewiring",
    "SubgraphDiff",
    "describe_nodes",
    "diff_dumps",
    "diff_graphs",
]
