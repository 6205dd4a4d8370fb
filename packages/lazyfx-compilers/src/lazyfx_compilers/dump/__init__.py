"""Graphs of a compilation as files: written by a compiler, read by people and tools.

No file is a pickle, and reading one executes nothing. ``_schema`` has the layout, ``_writer`` the
folder, ``_specs`` and ``_graphs`` what is said about inputs and graphs, ``_data`` their values,
``_reader`` and ``_inputs`` the way back, ``_dumper`` the compiler.
"""

from ._dumper import GraphDumper, dump_backend, graph_dumper_aot
from ._inputs import get_inputs
from ._reader import DumpIndex, GraphEntry, load_index, read_inputs_spec
from ._specs import InputSpec, OpaqueSpec, ScalarSpec, TensorSpec

__all__ = [
    "DumpIndex",
    "GraphDumper",
    "GraphEntry",
    "InputSpec",
    "OpaqueSpec",
    "ScalarSpec",
    "TensorSpec",
    "dump_backend",
    "get_inputs",
    "graph_dumper_aot",
    "load_index",
    "read_inputs_spec",
]
