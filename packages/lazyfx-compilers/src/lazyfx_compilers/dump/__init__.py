"""Write the graphs of a compilation to a folder, and make inputs for them.

No file is a pickle and reading one executes nothing.
"""

from ._dumper import GraphDumper, dump_backend, graph_dumper_aot
from ._inputs import get_inputs
from ._schema import InputSpec, read_inputs

__all__ = [
    "GraphDumper",
    "InputSpec",
    "dump_backend",
    "get_inputs",
    "graph_dumper_aot",
    "read_inputs",
]
