"""Pages that show graphs: plain data in, text out; nothing here runs a graph.

- ``_view``: an ``fx`` graph as columns of plain data (:class:`GraphView`)
- ``_families``, ``_lifetimes``, ``_values``: parts of it
- ``_difference``: how two graphs of a page differ (:class:`Difference`)
- ``html``: views as one HTML file that opens from disk
- ``viewer/``: the program, style and skeleton of that file
"""

from __future__ import annotations

from ._difference import Difference, difference_view
from ._view import GraphView, graph_view
from .html import render_html, write_html

__all__ = [
    "Difference",
    "GraphView",
    "difference_view",
    "graph_view",
    "render_html",
    "write_html",
]
