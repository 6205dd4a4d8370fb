"""Graphs of a compilation as files: written by a compiler, read by people and tools.

No file is a pickle, and reading one executes nothing. ``_schema`` has the layout. Written by:
``_dumper`` (the compiler), ``_backend`` (by its name), ``_context`` (what others compile),
``_writer`` (the folder), ``_graphs`` and ``_specs`` (what is said about graphs and inputs),
``_recording`` and ``_storages`` (their values), ``_environment``, ``_overview``. Read by:
``_dump``, ``_inputs``, ``_replay``, ``_comparison``.
"""

from ._backend import dump_backend
from ._context import dump_graphs
from ._dump import Dump, DumpedGraph, find_dumps, load_dump
from ._dumper import GraphDumper, graph_dumper_aot
from ._inputs import get_inputs, read_inputs_spec
from ._replay import Replay
from ._specs import InputSpec, OpaqueSpec, ScalarSpec, TensorSpec

__all__ = [
    "Dump",
    "DumpedGraph",
    "GraphDumper",
    "InputSpec",
    "OpaqueSpec",
    "Replay",
    "ScalarSpec",
    "TensorSpec",
    "dump_backend",
    "dump_graphs",
    "find_dumps",
    "get_inputs",
    "graph_dumper_aot",
    "load_dump",
    "read_inputs_spec",
]
