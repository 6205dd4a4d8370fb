"""Reading a dump: the index of its graphs and the descriptions of their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ._schema import DATA, INDEX, INPUTS, Field, read_json
from ._specs import InputSpec, decode_spec

if TYPE_CHECKING:
    import os


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEntry:
    """One dumped graph. Graphs of one compilation have the same ``compilation``."""

    id: str
    phase: str
    compilation: int
    folder: Path
    nodes: int
    ops: dict[str, int]
    has_data: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpIndex:
    """What one dumper has written so far."""

    name: str
    torch: str
    folder: Path
    graphs: tuple[GraphEntry, ...]


def load_index(path: str | os.PathLike[str]) -> DumpIndex:
    """Read the index of a dump.

    Args:
        path: The folder ``{folder}/{name}``, or the ``index.json`` in it.

    Raises:
        DumpFormatError: Names the file and the field.
    """
    file = _file(path, INDEX)
    root = read_json(file, "index")
    return DumpIndex(
        name=root.get("name").text(),
        torch=root.get("torch").text(),
        folder=file.parent,
        graphs=tuple(_entry(each, file.parent) for each in root.get("graphs").items()),
    )


def read_inputs_spec(path: str | os.PathLike[str]) -> tuple[InputSpec, ...]:
    """Read the descriptions of a graph's inputs.

    Args:
        path: A graph's folder, or the ``inputs.json`` in it.

    Raises:
        DumpFormatError: Names the file and the field.
    """
    root = read_json(_file(path, INPUTS), "inputs")
    return tuple(decode_spec(each) for each in root.get("inputs").items())


def inputs_file(path: str | os.PathLike[str]) -> Path:
    """The ``inputs.json`` that ``path`` means."""
    return _file(path, INPUTS)


def _file(path: str | os.PathLike[str], name: str) -> Path:
    given = Path(path)
    return given / name if given.is_dir() else given


def _entry(field: Field, parent: Path) -> GraphEntry:
    identity = field.get("id")
    name = identity.text()
    if Path(name).name != name or name in ("", ".", ".."):
        raise identity.wrong("the name of a folder beside the index")
    ops = field.get("ops")
    if not isinstance(ops.value, dict):
        raise ops.wrong("an object")
    return GraphEntry(
        id=name,
        phase=field.get("phase").text(),
        compilation=field.get("compilation").integer(least=0),
        folder=parent / name,
        nodes=field.get("nodes").integer(least=0),
        ops={key: ops.get(key).integer(least=0) for key in ops.value},
        has_data=(parent / name / DATA).is_file(),
    )
