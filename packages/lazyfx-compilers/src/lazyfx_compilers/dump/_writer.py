"""The folder of one dumper: claimed once, never shared, never overwritten, always whole.

A dumper claims ``{folder}/{name}`` with ``mkdir``, which no two processes can win; whoever comes
second takes ``{name}-2``. So the numbers and the index inside belong to one writer. A graph's
files are written into a hidden folder that is then renamed, and the index is replaced in one step:
a reader, or a crash, never meets half a graph.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ._schema import INDEX, to_json

log = logging.getLogger("lazyfx_compilers.dump")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFiles:
    """What is written for one graph: texts by file name, and its line in the index."""

    texts: dict[str, str]
    nodes: int
    ops: dict[str, int]


class DumpFolder:
    """Where one dumper writes. Nothing is made before the first graph.

    Args:
        folder: The parent; ``None`` makes a fresh temporary one. Made absolute at once, so that
            changing the working directory does no harm.
        name: Any text; :func:`safe_name` makes a folder name of it.

    Thread-safety: all methods may be called from several threads. After a fork the child claims a
    folder of its own.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, name: str) -> None:
        self._folder = None if folder is None else Path(folder).absolute()
        self._name = name
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._root: Path | None = None
        self._pid = os.getpid()
        self._compilations = 0
        self._entries: list[dict[str, Any]] = []

    @property
    def root(self) -> Path | None:
        """The claimed folder, or ``None`` while nothing was written."""
        return self._root if self._pid == os.getpid() else None

    def new_compilation(self) -> int:
        """A number that the graphs of one compilation share."""
        with self._lock:
            self._claim()
            number = self._compilations
            self._compilations += 1
            return number

    def add_graph(self, compilation: int, phase: str, files: GraphFiles) -> Path:
        """Write one graph and list it in the index; returns its folder.

        Raises:
            OSError: Something cannot be written; nothing of the graph is left then.
        """
        with self._lock:
            root = self._claim()
            final = _first_free(root / f"{compilation:03d}_{phase}")
            hidden = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=root))
            try:
                for name, text in files.texts.items():
                    (hidden / name).write_text(text, encoding="utf-8")
                hidden.chmod(root.stat().st_mode)
                hidden.rename(final)
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise
            entry = {
                "id": final.name,
                "phase": phase,
                "compilation": compilation,
                "nodes": files.nodes,
                "ops": files.ops,
            }
            self._entries.append(entry)
            content = {"name": self._name, "torch": torch.__version__, "graphs": self._entries}
            replace_file(root / INDEX, to_json("index", content).encode())
            return final

    def _claim(self) -> Path:
        if self._pid != os.getpid():
            self._forget()
        if self._root is None:
            if self._folder is None:
                parent = Path(tempfile.mkdtemp(prefix="lazyfx_dump_"))
            else:
                parent = self._folder
                parent.mkdir(parents=True, exist_ok=True)
            self._root = claim_folder(parent / safe_name(self._name))
            # a folder nobody chose has to be shown to be found
            level = logging.WARNING if self._folder is None else logging.INFO
            log.log(level, "graphs are dumped to %s", self._root)
        return self._root


def claim_folder(wanted: Path) -> Path:
    """Make a folder that did not exist: ``wanted``, or the first free of ``wanted-2``, ``-3``.

    Raises:
        OSError: It cannot be made.
    """
    while True:
        candidate = _first_free(wanted)
        try:
            candidate.mkdir()
        except FileExistsError:
            continue  # somebody else was faster
        return candidate


def _first_free(wanted: Path) -> Path:
    candidate, number = wanted, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = wanted.with_name(f"{wanted.name}-{number}")
    return candidate


def safe_name(name: str) -> str:
    """``name`` as one component of a path on any system: never empty, hidden or a parent."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100].strip("._-")
    return cleaned or "graph"


def replace_file(file: Path, content: bytes) -> None:
    """Write a file in one step: a reader finds the old one or the new one.

    Raises:
        OSError: It cannot be written; the old one is still there.
    """
    descriptor, hidden = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        Path(hidden).chmod(0o644)
        Path(hidden).replace(file)
    except BaseException:
        Path(hidden).unlink(missing_ok=True)
        raise
