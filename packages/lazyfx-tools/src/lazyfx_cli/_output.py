"""What the command prints, and where to.

Data go to standard output, everything else to standard error. Names in a dump are a stranger's
text: nothing that is not printable reaches the terminal, so they cannot talk to it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COLORS = {"+": "32", "-": "31", "~": "33", ">": "36", "^": "36"}


def plain(text: object) -> str:
    """One line without anything that a terminal could take for a command."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def emit(text: str = "") -> None:
    """A line of data."""
    sys.stdout.write(_encodable(plain(text), sys.stdout) + "\n")


def emit_lines(text: str) -> None:
    """Several lines of data."""
    for line in text.split("\n"):
        emit(line.replace("\t", "    "))


def emit_json(data: Any) -> None:
    """Data as JSON, in ASCII."""
    sys.stdout.write(json.dumps(data, indent=1, allow_nan=False) + "\n")


def emit_difference(lines: Iterable[str]) -> None:
    """Lines of a difference, in color where that is wanted."""
    colored = _wants_color(sys.stdout)
    for line in lines:
        code = _COLORS.get(line.strip()[:1]) if colored and line.startswith(" ") else None
        text = _encodable(plain(line), sys.stdout)
        sys.stdout.write((f"\x1b[{code}m{text}\x1b[0m" if code else text) + "\n")


def emit_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns; numbers to the right."""
    texts = [[plain("-" if each is None else each) for each in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    numeric = [
        bool(rows) and all(type(row[k]) is int or row[k] is None for row in rows)
        for k in range(len(head))
    ]
    for row in (head, *texts):
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        ]
        emit("  ".join(cells).rstrip())


def say(text: str) -> None:
    """A message for people."""
    sys.stderr.write(_encodable(plain(text), sys.stderr) + "\n")


class Progress:
    """A line on the terminal that says how far something is; nothing where there is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the line away, before something else is printed."""
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            sys.stderr.flush()
            self._shown = 0

    def step(self, number: int, total: int, name: str = "") -> None:
        """Say that ``number`` of ``total`` is being done."""
        if not sys.stderr.isatty():
            return
        line = plain(f"{self._what} {number + 1}/{total} {name}")[:79]
        sys.stderr.write("\r" + _encodable(line.ljust(self._shown), sys.stderr))
        sys.stderr.flush()
        self._shown = len(line)


def _wants_color(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding, "replace")
