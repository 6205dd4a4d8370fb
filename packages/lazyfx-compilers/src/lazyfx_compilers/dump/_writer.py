"""The folder of one dumper: claimed once, never shared, never overwritten, always whole.

A dumper claims ``{folder}/{name}`` with ``mkdir``, which no two processes can win; whoever comes
second takes ``{name}-2``. So the numbers and the index inside belong to one writer. A graph's
files are written into a hidden folder that is then renamed, and the index is replaced in one step:
a reader, or a crash, never meets half a graph.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._environment import environment, rank
from ._overview import overview
from ._schema import INDEX, OVERVIEW, REPLAY, to_json

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("lazyfx_compilers.dump")

REPLAY_SCRIPT = '''"""Runs what was dumped here again; see `python replay.py --help`."""

import sys
from pathlib import Path

try:
    from lazyfx_cli import main
except ImportError as error:
    sys.exit(f"{error}; install the package lazyfx-tools first")

if __name__ == "__main__":
    sys.exit(main(["replay", str(Path(__file__).resolve().parent), *sys.argv[1:]]))
'''


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
        self._about: dict[str, Any] = {}
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

    def add_graph(
        self,
        wanted: str,
        write: Callable[[Path], None],
        entry: dict[str, Any],
    ) -> Path:
        """Write one graph and list it in the index; returns its folder.

        Args:
            wanted: The name of its folder; a number is added if it is taken.
            write: Fills a folder.
            entry: What the index says about the graph, without ``id``.

        Raises:
            OSError: Something cannot be written; nothing of the graph is left then.
        """
        with self._lock:
            root = self._claim()
            final = _first_free(root / wanted)
            hidden = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=root))
            try:
                write(hidden)
                (hidden / REPLAY).write_text(REPLAY_SCRIPT, encoding="utf-8")
                hidden.chmod(root.stat().st_mode)
                hidden.rename(final)
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise
            self._entries.append({"id": final.name, **entry})
            try:
                replace_file(root / INDEX, to_json("index", self._content()).encode())
                replace_file(root / OVERVIEW, overview(self._content()).encode())
            except BaseException:
                self._entries.pop()  # an index without its graph, or the other way round, is wrong
                with contextlib.suppress(OSError):
                    if self._entries:
                        replace_file(root / INDEX, to_json("index", self._content()).encode())
                    else:
                        (root / INDEX).unlink(missing_ok=True)
                shutil.rmtree(final, ignore_errors=True)
                raise
            return final

    def _content(self) -> dict[str, Any]:
        return {**self._about, "graphs": self._entries}

    def _claim(self) -> Path:
        if self._pid != os.getpid():
            self._forget()
        if self._root is None:
            if self._folder is None:
                parent = Path(tempfile.mkdtemp(prefix="lazyfx_dump_"))
            else:
                parent = self._folder
                parent.mkdir(parents=True, exist_ok=True)
            number = rank()
            suffix = "" if number is None else f"_rank{number}"
            self._about = {"name": self._name, "rank": number, "environment": environment()}
            root = claim_folder(parent / (safe_name(self._name) + suffix))
            try:
                (root / REPLAY).write_text(REPLAY_SCRIPT, encoding="utf-8")
            except BaseException:
                shutil.rmtree(root, ignore_errors=True)  # or every graph would leave one
                raise
            self._root = root
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
    replace_by(file, lambda hidden: hidden.write_bytes(content))


def replace_by(file: Path, write: Callable[[Path], object]) -> None:
    """The same, for content that ``write`` puts into the file it is given."""
    hidden = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
    # not mkstemp: who may read the file is for the umask to say
    descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    try:
        write(hidden)
        hidden.chmod(mode)
        hidden.replace(file)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
