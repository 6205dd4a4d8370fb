"""A compiler that draws each graph and then runs it as it is.

Pictures need no program: an ``fx`` graph is a list in topological order, so a layered layout
(networkx, which torch itself depends on) and a few lines of SVG are enough. Graphviz' ``dot``,
where it is installed, makes PNG and PDF.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ._nop import nop
from ._types import require_graph
from .errors import CompilerError, MissingDependencyError, UnknownOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

    from ._types import FxCompiler

_COLORS = {
    "placeholder": "#dbeafe",
    "get_attr": "#fef3c7",
    "call_function": "#ffffff",
    "call_method": "#ffffff",
    "call_module": "#ede9fe",
    "output": "#dcfce7",
}
_SUFFIXES = (".svg", ".dot", ".png", ".pdf")
_BOX_HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _CHARACTER = 40, 24, 44, 20, 7.2


def draw_graph_compile(name: str | os.PathLike[str]) -> FxCompiler:
    """A compiler that writes a picture of each graph it is given and runs the graph as it is.

    Args:
        name: Where to write. The suffix decides: ``.svg`` (also without a suffix) and ``.dot``
            need nothing installed, ``.png`` and ``.pdf`` need Graphviz. Nothing is overwritten:
            the second picture is ``name_1.svg``, the third ``name_2.svg``.

    Raises:
        UnknownOptionError: Another suffix; lists those that are known.
        MissingDependencyError: ``.png`` or ``.pdf`` without Graphviz; on compiling, ``.svg``
            without networkx, which torch depends on.
        CompilerError: On compiling, Graphviz failed; with what it said.
        NotCompilableError: On compiling, what is given is not a ``torch.fx.GraphModule``.
        InvalidGraphError: On compiling, the graph is wrong; names the node.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise UnknownOptionError(
            f"draw_graph_compile(name): expected the path of a file, seen {name!r:.80}"
        )
    path = Path(name)
    if not path.suffix:
        path = path.with_name(path.name + ".svg")
    if path.suffix not in _SUFFIXES:
        raise UnknownOptionError(
            f"draw_graph_compile({os.fspath(name)!r}) cannot write {path.suffix!r} files; "
            f"expected one of {', '.join(_SUFFIXES)}"
        )
    if path.suffix in (".png", ".pdf") and shutil.which("dot") is None:
        raise MissingDependencyError(
            "graphviz",
            needed_for=f"drawing {path.name}",
            command="apt-get install graphviz   (or use the suffix .svg, which needs nothing)",
        )

    def draw_and_run(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]:
        graph = require_graph(gm, "draw_graph_compile").graph
        _write(graph, path)
        return nop(gm, example_inputs)

    return draw_and_run


def _write(graph: fx.Graph, path: Path) -> Path:
    picture = _render(graph, path.suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        target = path if number == 0 else path.with_stem(f"{path.stem}_{number}")
        try:
            with target.open("xb") as file:  # claims the name, also among processes
                file.write(picture)
        except FileExistsError:
            continue
        return target
    raise AssertionError("itertools.count() ended")


def _render(graph: fx.Graph, suffix: str) -> bytes:
    if suffix == ".svg":
        return to_svg(graph).encode()
    if suffix == ".dot":
        return to_dot(graph).encode()
    done = subprocess.run(
        ["dot", f"-T{suffix[1:]}"], input=to_dot(graph).encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise CompilerError(
            f"draw_graph_compile: Graphviz' dot could not draw a graph of {len(graph.nodes)} nodes "
            f"as {suffix} (exit code {done.returncode}): {done.stderr.decode(errors='replace')}; "
            "use the suffix .svg, which does without it"
        )
    return done.stdout


def to_dot(graph: fx.Graph) -> str:
    """The graph in Graphviz' language. Every name is quoted and escaped."""
    lines = ["digraph fx {", '  node [shape=box, style="rounded,filled", fontname="monospace"];']
    number = {node: i for i, node in enumerate(graph.nodes)}
    for node, i in number.items():
        label = "\\n".join(_quote(text) for text in _label(node))
        lines.append(f'  n{i} [label="{label}", fillcolor="{_COLORS[node.op]}"];')
    for node, i in number.items():
        lines += [f"  n{number[source]} -> n{i};" for source in node.all_input_nodes]
    return "\n".join([*lines, "}", ""])


def _quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def to_svg(graph: fx.Graph) -> str:
    """The graph as a picture: inputs on top, one layer below the other, arrows downwards."""
    place = _layout(graph)
    width = max((x + w for x, _, w in place.values()), default=0) + _MARGIN
    height = max((y for _, y, _ in place.values()), default=0) + _BOX_HEIGHT + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="monospace" font-size="12">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#64748b"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
    ]
    for node, (x, y, w) in place.items():
        for source in node.all_input_nodes:
            sx, sy, sw = place[source]
            x1, y1, x2, y2 = sx + sw / 2, sy + _BOX_HEIGHT, x + w / 2, y
            bend = (y2 - y1) / 2
            # arrows over many layers, mostly what is saved for the backward, must not hide the rest
            strength = 1.0 if y2 - y1 < 4 * (_BOX_HEIGHT + _GAP_Y) else 0.35
            parts.append(
                f'<path d="M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} '
                f'{x2:.1f} {y2:.1f}" fill="none" stroke="#64748b" stroke-opacity="{strength}" '
                'marker-end="url(#tip)"/>'
            )
    for node, (x, y, w) in place.items():
        name, what = _label(node)
        parts.append(
            f"<g><title>{escape(node.format_node() or node.name)}</title>"
            f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="{_BOX_HEIGHT}" rx="6" '
            f'fill="{_COLORS[node.op]}" stroke="#334155"/>'
            f'<text x="{x + w / 2:.1f}" y="{y + 17}" text-anchor="middle" font-weight="bold">'
            f"{escape(name)}</text>"
            f'<text x="{x + w / 2:.1f}" y="{y + 32}" text-anchor="middle" fill="#475569">'
            f"{escape(what)}</text></g>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _label(node: fx.Node) -> tuple[str, str]:
    target = node._pretty_print_target(node.target).removeprefix("torch.ops.")
    value = node.meta.get("val", node.meta.get("example_value"))
    shape = f" {list(value.shape)}" if isinstance(value, torch.Tensor) else ""
    text = target if node.op not in ("placeholder", "output") else node.op
    return node.name, (text if len(text) <= 40 else text[:39] + "…") + shape


def _layout(graph: fx.Graph) -> dict[fx.Node, tuple[float, int, float]]:
    """Left edge, top edge and width of each node's box."""
    try:
        import networkx  # type: ignore[import-untyped]  # its stubs are a package of their own
    except ImportError as error:
        raise MissingDependencyError(
            "networkx",
            needed_for="drawing a graph as .svg",
            command="python -m pip install 'lazyfx-compilers[draw]'",
        ) from error

    directed = networkx.DiGraph()
    directed.add_nodes_from(graph.nodes)
    directed.add_edges_from((s, node) for node in graph.nodes for s in node.all_input_nodes)
    center: dict[fx.Node, float] = {}
    place: dict[fx.Node, tuple[float, int, float]] = {}
    order = {node: i for i, node in enumerate(graph.nodes)}
    for depth, layer in enumerate(networkx.topological_generations(directed)):
        # below the middle of what it uses, so that arrows cross as little as one pass allows
        wanted = {
            node: sum(center[s] for s in node.all_input_nodes) / len(node.all_input_nodes)
            if node.all_input_nodes
            else 0.0
            for node in layer
        }
        x = float(_MARGIN)
        for node in sorted(layer, key=lambda node: (wanted[node], order[node])):
            w = max(len(text) for text in _label(node)) * _CHARACTER + 20
            left = max(x, wanted[node] - w / 2)
            place[node] = (left, _MARGIN + depth * (_BOX_HEIGHT + _GAP_Y), w)
            center[node] = left + w / 2
            x = left + w + _GAP_X
    return place
