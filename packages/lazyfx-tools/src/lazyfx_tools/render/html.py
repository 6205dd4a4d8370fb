"""Graphs as one HTML file that opens from disk: no server, no network, nothing to install.

The file has three parts: a skeleton, data, and a program (``viewer/``). The data are JSON in an
element that browsers do not run, with every character escaped that could end it; the program puts
them on the page as text and never as markup. A content security policy with the hashes of the one
style and the one program forbids all else, fetching included: should a name of a node get onto the
page as markup after all, nothing in it would run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyfx_compilers.errors import UnknownOptionError

from ._columns import Strings, graph_columns
from ._difference import difference_columns
from ._families import FAMILIES
from ._view import GraphView

if TYPE_CHECKING:
    import os

    from ._difference import Difference

SCRIPTS = (
    "text.js",
    "data.js",
    "dom.js",
    "nesting.js",
    "layout.js",
    "paths.js",
    "colors.js",
    "paint.js",
    "camera.js",
    "search.js",
    "graph.js",
    "details.js",
    "code.js",
    "tensors.js",
    "memory.js",
    "difference.js",
    "overview.js",
    "main.js",
)
"""The program, in the order in which its files are put together."""

EDITOR = "vscode://file/{file}:{line}"


def render_html(
    graphs: Sequence[GraphView],
    *,
    title: str,
    differences: Sequence[Difference] = (),
    environment: Mapping[str, str] | None = None,
    editor: str | None = EDITOR,
) -> str:
    """One page with an overview, each graph, its code, tensors and memory, and differences.

    Args:
        graphs: Each with a name of its own.
        title: Any text.
        differences: Between graphs of the page.
        environment: Shown in the overview, such as versions.
        editor: Where a user's line leads, with ``{file}`` and ``{line}``; None for no links. Paths
            are those of the machine that traced, and stand in the page as they were recorded.

    Raises:
        UnknownOptionError: Two graphs have the same name, or ``editor`` is not such an address.
        InvalidGraphError: A difference names a graph or node that is not there.
    """
    names = [graph.name for graph in graphs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UnknownOptionError(
            f"render_html(graphs): more than one is named {twice[0][:80]!r}; expected a name of "
            "its own for each, such as 'before/000_forward'"
        )
    if editor is not None and not re.match(
        r"(?!javascript|data|vbscript)[a-z][a-z0-9+.-]*:", editor
    ):
        raise UnknownOptionError(
            f"render_html(editor={editor!r}): expected an address like {EDITOR!r}, or None"
        )
    strings = Strings()
    page = {
        "title": title,
        "environment": [[str(key), str(value)] for key, value in (environment or {}).items()],
        "editor": editor,
        "families": FAMILIES,
        "graphs": [graph_columns(graph, strings) for graph in graphs],
        "differences": [difference_columns(one, graphs) for one in differences],
        "strings": strings.known(),
    }
    skeleton, style, program = _viewer()
    parts = {
        "TITLE": html.escape(title.encode("utf-8", "replace").decode()).replace("\0", "\ufffd"),
        "POLICY": (
            f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(program)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        "STYLE": style,
        "DATA": _json(page),
        "PROGRAM": program,
    }
    # in one pass, so that nothing in a part is taken for a place of another
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], skeleton)


def write_html(
    path: str | os.PathLike[str],
    graphs: Sequence[GraphView],
    *,
    title: str,
    differences: Sequence[Difference] = (),
    environment: Mapping[str, str] | None = None,
    editor: str | None = EDITOR,
) -> Path:
    """Write what :func:`render_html` makes to ``path``, in one step; returns the path.

    Raises:
        TypeError: ``graphs`` has something else than :func:`graph_view` gives.
        OSError: It cannot be written; what was there before still is.
    """
    from lazyfx_compilers.dump._writer import replace_file

    graphs = list(graphs)
    for one in graphs:
        if not isinstance(one, GraphView):
            raise TypeError(
                f"write_html(graphs): expected GraphViews, seen {type(one).__qualname__}; make one "
                "with graph_view(gm, name=...)"
            )
    page = render_html(
        graphs, title=title, differences=differences, environment=environment, editor=editor
    )
    file = Path(path)
    replace_file(file, page.encode("utf-8"))
    return file


@functools.cache
def _viewer() -> tuple[str, str, str]:
    """Skeleton, style and program."""
    folder = importlib.resources.files(__package__) / "viewer"
    files = [folder / name for name in ("page.html", "style.css", *SCRIPTS)]
    skeleton, style, *scripts = [file.read_text(encoding="utf-8") for file in files]
    program = '"use strict";\n(() => {\n' + "\n".join(scripts) + "\n})();\n"
    return skeleton, style, program


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: Any) -> str:
    """JSON that can stand in an HTML element: ASCII, and without what could end it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, check_circular=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
