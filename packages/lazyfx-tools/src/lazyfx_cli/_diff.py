"""``lazyfx diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ._dumps import allow_option, dump_or_graph, json_option, path_argument
from ._main import DIFFERENT, UNREADABLE
from ._output import Progress, emit_difference, emit_json

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@path_argument("old")
@path_argument("new")
@click.option("--no-values", is_flag=True, help="Contents of tensors in the graphs do not count.")
@click.option(
    "--rows",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many nodes of each kind are named.",
)
@allow_option
@json_option
def diff(
    old: Path, new: Path, no_values: bool, rows: int, allow: tuple[Any, ...], as_json: bool
) -> int:
    """Compare the dumps OLD and NEW, or the graphs OLD/ID and NEW/ID.

    Nodes are matched by structure: names, the order of independent nodes and names of symbolic
    sizes do not count. Another environment is reported, and is no difference.
    """
    from lazyfx_tools.diff import diff_dumps

    one, other = dump_or_graph(old, allow), dump_or_graph(new, allow)
    with Progress("comparing") as progress:
        found = diff_dumps(one, other, values=not no_values, progress=progress.step)
    if as_json:
        emit_json(found.to_data())
    else:
        emit_difference(found.lines(rows))
    if any(pair.problem for pair in found.graphs):
        return UNREADABLE
    return 0 if found.identical else DIFFERENT
