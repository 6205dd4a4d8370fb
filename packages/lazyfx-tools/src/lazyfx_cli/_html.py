"""``lazyfx html``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._dumps import allow_option, dump_or_graph, graphs_at, path_argument
from ._main import FAILED, UNREADABLE, USAGE, Failure
from ._output import Progress, emit, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyfx_compilers.dump import DumpedGraph


@click.command()
@path_argument()
@path_argument("other", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    default=Path("graphs.html"),
    show_default=True,
    help="Where to write the page.",
)
@click.option("--times", is_flag=True, help="Run the graphs and color nodes by time.")
@click.option("--open", "show_it", is_flag=True, help="Open it in a browser.")
@allow_option
def html(
    path: Path,
    other: Path | None,
    output: Path,
    times: bool,
    show_it: bool,
    allow: tuple[Any, ...],
) -> int:
    """Write the graphs at PATH as one page that opens from disk.

    With OTHER the page has both, and their difference. Prints the path of the page.
    """
    from lazyfx_tools.render import write_html

    if not output.parent.is_dir():
        raise Failure(f"{output}: the folder {output.parent} does not exist; make it first", USAGE)
    old = graphs_at(path, allow)
    new = [] if other is None else graphs_at(other, allow)
    names = _names(old, "old/" if new else ""), _names(new, "new/")
    views, missing = _views([*old, *new], [*names[0], *names[1]], times)
    differences = [] if other is None else _differences(path, other, allow, set(views))
    if not views:
        raise Failure(f"{path}: none of its graphs can be read", UNREADABLE)
    write_html(
        output,
        list(views.values()),
        title=str(path) if other is None else f"{path} - {other}",
        differences=differences,
        environment={key: str(value) for key, value in old[0].environment.items()},
    )
    emit(str(output))
    if show_it:
        import webbrowser

        if not webbrowser.open(output.resolve().as_uri()):
            raise Failure(f"{output}: there is no browser to open it with", FAILED)
    return UNREADABLE if missing else 0


def _names(graphs: Sequence[DumpedGraph], prefix: str) -> list[str]:
    several = len({graph.folder.parent for graph in graphs}) > 1
    return [
        prefix + (f"{graph.folder.parent.name}/" if several else "") + graph.id for graph in graphs
    ]


def _views(
    graphs: Sequence[DumpedGraph], names: Sequence[str], times: bool
) -> tuple[dict[str, Any], int]:
    from lazyfx_compilers.errors import DumpFormatError
    from lazyfx_tools.render import graph_view

    views: dict[str, Any] = {}
    with Progress("reading") as progress:
        for number, (graph, name) in enumerate(zip(graphs, names, strict=True)):
            progress.step(number, len(graphs), graph.id)
            try:
                views[name] = graph_view(
                    graph.module(),
                    name=name,
                    phase=graph.phase,
                    compilation=graph.compilation,
                    code=graph.code,
                    times=graph.times() if times else None,
                )
            except DumpFormatError as error:
                say(f"lazyfx: left out: {error}")
    return views, len(graphs) - len(views)


def _differences(
    path: Path,
    other: Path,
    allow: tuple[Any, ...],
    there: set[str],
) -> list[Any]:
    from lazyfx_tools.diff import diff_dumps
    from lazyfx_tools.render import difference_view

    one, another = dump_or_graph(path, allow), dump_or_graph(other, allow)
    with Progress("comparing") as progress:
        found = diff_dumps(one, another, progress=progress.step)
    return [
        difference_view(pair.diff, old=f"old/{pair.old}", new=f"new/{pair.new}")
        for pair in found.graphs
        if pair.diff is not None and there.issuperset((f"old/{pair.old}", f"new/{pair.new}"))
    ]
