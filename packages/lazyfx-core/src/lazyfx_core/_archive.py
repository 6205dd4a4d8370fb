"""The safe archive: a graph module in one file that can be opened without trusting who wrote it.

``save_graph`` writes a file of :mod:`lazyfx_core._container` whose structure is JSON::

    {"schema": 1, "lazyfx": "0.1.0", "torch": "2.13.0",
     "modules": [{…}, …],      the first is the module itself; children stand after their parents
     "fakes": …}               what the fake tensors of all graphs have in common

Each module is ``{"class", "training", "parameters", "buffers", "unsaved_buffers", "modules",
"attributes"}``; graph modules have ``"graph"`` (see :mod:`lazyfx_core._serialize`),
``"class_name"`` and ``"meta"`` besides. Tensors are numbers of tensors in the file.

``load_graph`` imports nothing and calls nothing that the file could choose: classes are those of
``torch.nn`` (made without their constructors, as pickle makes them), targets come from torch's
operator registry and the table of :mod:`lazyfx_core._names`, everything else has to be passed in
``allow``. The whole file is read and checked before a module is returned.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ._collector import BYTES_OF_A_NODE, collector_paused
from ._container import MAX_STRUCTURE_BYTES, read_container, write_container
from ._graph_module import require_graph_module
from ._module_tree import ModuleReader, ModuleWriter, allowed_by_name
from ._serialize import from_json, to_json
from .errors import GraphFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SCHEMA = 1
"""Version of the structure; a reader refuses what is newer than itself."""

# A chain of 40,000 nodes that are all alike is compressed tenfold; a bomb, a thousandfold.
_EXPANSION = 64
_SMALL_STRUCTURE = 16 << 20


def save_graph(
    gm: fx.GraphModule,
    path: str | os.PathLike[str],
    *,
    strict: bool = False,
    meta: bool = True,
    warn: bool = True,
) -> None:
    """Write ``gm`` to one file that :func:`load_graph` reads without running anything of it.

    Stored are the graph as it is (names, unused nodes, annotations, code generator, metadata),
    parameters, buffers and tensor attributes (storages once, views as views), submodules of
    ``torch.nn``, nested graph modules, plain attributes. Functions and classes of your own are
    stored by name; whoever loads the file passes them in ``allow``. ``gm`` is not changed, no code
    is generated. The file is written beside ``path`` and moved there when it is complete.

    Args:
        gm: A graph module, lazy or plain; comes back as what it is.
        path: Where to write. A file that is there is replaced.
        strict: Raise for metadata and attributes of graph modules that cannot be stored, instead
            of leaving them out with one :class:`DroppedMetadataWarning` per module.
        meta: Store ``node.meta`` and ``gm.meta``.
        warn: Say what was left out. ``False`` suits callers for whom metadata is a courtesy.

    Raises:
        NotAGraphModuleError: ``gm`` is not a ``torch.fx.GraphModule``.
        SerializationError: Something the graph needs cannot be stored (a hook, a function without
            a name, a sparse tensor); names the module, node and field.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from torch import fx
        >>> from lazyfx_core import LazyGraphModule, load_graph, save_graph
        >>> gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(torch.nn.Linear(2, 1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_graph(gm, f"{folder}/linear.safetensors")
        ...     back = load_graph(f"{folder}/linear.safetensors")
        >>> torch.equal(back(torch.ones(2)), gm(torch.ones(2)))
        True
    """
    from . import __version__

    require_graph_module(gm, "save_graph(gm, path)")
    writer = ModuleWriter(strict=strict, meta=meta)
    structure = {
        "schema": SCHEMA,
        "lazyfx": __version__,
        "torch": str(torch.__version__),
        **writer.write(gm),
    }
    text = to_json(structure, type(gm).__name__)
    write_container(path, text, writer.tensors, names=writer.tensor_names)
    if warn:
        writer.warn(stacklevel=3)


def load_graph(
    path: str | os.PathLike[str],
    *,
    allow: Iterable[Callable[..., Any] | type | str] = (),
    map_location: torch.device | str | None = None,
    check_tensors: bool = True,
    warn: bool = True,
) -> fx.GraphModule:
    """Read what :func:`save_graph` wrote. Executes nothing, imports torch's own modules only.

    Tensors are mapped from the file, copy on write: changing one does not change the file.

    Args:
        path: The file.
        allow: Functions and classes outside of torch that the graph may refer to, and names of
            methods that it may call, besides those of ``torch.Tensor``.
        map_location: Device for all tensors; by default each goes to where it was.
        check_tensors: Compare the tensors with their checksum, which reads all of them now.
        warn: Say which metadata was left out because this torch does not have it, with one
            :class:`DroppedMetadataWarning`.

    Returns:
        A :class:`LazyGraphModule`, stale, or a plain module with its code, as it was saved.

    Raises:
        GraphFormatError: The file is damaged, altered, newer than this lazyfx, or refers to what is
            neither torch's nor in ``allow``; names node and field.
        ValueError: ``map_location`` is a device that cannot be used here.
        OSError: The file cannot be read.
    """
    text, tensors = read_container(
        path,
        check_tensors=check_tensors,
        map_location=map_location,
        max_structure_bytes=largest_structure(path),
    )
    reader = _reader(text, tensors, allowed_by_name(allow))
    gm = reader.read()
    if warn:
        reader.warn(type(gm).__name__, stacklevel=3)
    return gm


def largest_structure(path: str | os.PathLike[str]) -> int:
    """Most bytes that the structure in a file of this size may expand to."""
    return min(MAX_STRUCTURE_BYTES, _SMALL_STRUCTURE + _EXPANSION * os.stat(path).st_size)


def _reader(text: bytes, tensors: list[torch.Tensor], allowed: dict[str, Any]) -> ModuleReader:
    """What reads the module that the structure of an archive describes."""
    with collector_paused(len(text) // BYTES_OF_A_NODE):
        structure = from_json(text, "the structure")
    if type(structure) is not dict or type(structure.get("schema")) is not int:
        raise GraphFormatError("the structure has no schema number")
    if structure["schema"] != SCHEMA:
        raise GraphFormatError(
            f"schema {structure['schema']}, this lazyfx-core reads {SCHEMA}; load it with a newer "
            "lazyfx-core"
        )
    return ModuleReader(structure, tensors, allowed)
