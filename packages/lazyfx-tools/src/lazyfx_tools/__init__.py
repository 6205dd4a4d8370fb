"""Find what a compiler gets wrong: compare, minify, diff and look at graphs and dumps.

Any compiler of graphs can be looked at, of lazyfx or not: ``compare_compiled`` names the first node
whose result is not the reference's, ``minify`` makes a small program of a graph that shows a fault,
``diff_graphs`` and ``diff_dumps`` say what differs by structure, ``write_html`` draws graphs on a
page that opens from disk. The command ``lazyfx`` does the same to dumps. Importing this package
loads no compile stack.
"""

from typing import TYPE_CHECKING

from lazyfx_core._lazy_names import lazy_names

from .errors import DivergenceError, FaultNotFoundError

if TYPE_CHECKING:
    from .compare import Comparison, Divergence, compare_compiled, compare_graph
    from .diff import DumpDiff, GraphDiff, diff_dumps, diff_graphs
    from .minimize import Fault, Minified, crashes, diagnose, differs, minify, raises
    from .render import Difference, GraphView, difference_view, graph_view, render_html, write_html

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Difference",
    "Divergence",
    "DivergenceError",
    "DumpDiff",
    "Fault",
    "FaultNotFoundError",
    "GraphDiff",
    "GraphView",
    "Minified",
    "__version__",
    "compare_compiled",
    "compare_graph",
    "crashes",
    "diagnose",
    "diff_dumps",
    "diff_graphs",
    "difference_view",
    "differs",
    "graph_view",
    "minify",
    "raises",
    "render_html",
    "write_html",
]

# What stands where, and is imported when it is first asked for.
_MODULES: dict[str, tuple[str, ...]] = {
    "compare": ("Comparison", "Divergence", "compare_compiled", "compare_graph"),
    "diff": ("DumpDiff", "GraphDiff", "diff_dumps", "diff_graphs"),
    "minimize": ("Fault", "Minified", "crashes", "diagnose", "differs", "minify", "raises"),
    "render": (
        "Difference",
        "GraphView",
        "difference_view",
        "graph_view",
        "render_html",
        "write_html",
    ),
}
if not TYPE_CHECKING:  # for which any name would be there
    __getattr__, __dir__ = lazy_names(globals(), _MODULES)
