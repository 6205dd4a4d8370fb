"""What the backend ``lazyfx_dump`` does, which is made anew for every graph."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from ._dumper import ExampleInputs, GraphDumper, make_dumper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx


def dump_backend(
    gm: fx.GraphModule,
    graph_inputs: Sequence[Any],
    /,
    *,
    name: str = "graph",
    folder: str | os.PathLike[str] | None = None,
    example_inputs: ExampleInputs = "spec",
) -> Callable[..., Any]:
    """What the backend ``lazyfx_dump`` does for one graph.

    Graphs dumped under the same options in one process go into one folder.

    Args:
        gm: The graph, Dynamo's or AOTAutograd's.
        graph_inputs: Its inputs.
        name: See :func:`graph_dumper_aot`.
        folder: See :func:`graph_dumper_aot`.
        example_inputs: See :func:`graph_dumper_aot`.

    Raises:
        UnknownOptionError: Another value for an option.
    """
    parent = os.fspath(folder) if isinstance(folder, os.PathLike) else folder
    options = (name, parent, example_inputs)
    if not all(isinstance(each, str | None) for each in options):
        make_dumper("lazyfx_dump", *options)  # says which one is wrong
    absolute = None if parent is None else os.path.abspath(parent)
    return _dumper_for(name, absolute, example_inputs)(gm, graph_inputs)


@functools.cache
def _dumper_for(name: str, folder: str | None, example_inputs: str) -> GraphDumper:
    return make_dumper("lazyfx_dump", name, folder, example_inputs)
