"""``index.md``: the index of a dump as a page that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_OPERATORS = 5


def overview(index: Mapping[str, Any]) -> str:
    """Markdown for the content of an ``index.json``; whatever it holds is shown as text."""
    environment = index["environment"]
    about = [f"torch {environment['torch']}", f"Python {environment['python']}"]
    if index["rank"] is not None:
        about.append(f"rank {index['rank']}")
    lines = [
        f"# {_text(index['name'])}",
        "",
        _text(", ".join(about)),
        "",
        "| graph | nodes | inputs | what it calls most |",
        "| --- | ---: | ---: | --- |",
    ]
    lines += [_row(entry) for entry in index["graphs"]]
    lines += [
        "",
        "`graph.py` in each folder is readable code; `python replay.py` runs the graphs again; "
        "`lazyfx html` makes a page of them. Both need the package lazyfx-tools.",
    ]
    return "\n".join(lines) + "\n"


def _row(entry: Mapping[str, Any]) -> str:
    counts = list(entry["ops"].items())
    calls = ", ".join(f"{_code(name)} {count}" for name, count in counts[:_MOST_OPERATORS])
    more = f", {len(counts) - _MOST_OPERATORS} others" if len(counts) > _MOST_OPERATORS else ""
    link = f"[{_code(entry['id'])}]({entry['id']}/graph.py)"
    return f"| {link} | {entry['nodes']} | {entry['inputs']} | {calls}{more} |"


def _code(text: str) -> str:
    return f"`{_one_line(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _text(text: str) -> str:
    escaped = _one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    for character in "\\`*_[]#!|>":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:500]
