"""``lazyfx minify``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from ._dumps import allow_option, json_option, one_graph, path_argument
from ._main import DIFFERENT
from ._output import Progress, emit, emit_json, emit_lines, say
from ._replay import find_compiler


@click.command()
@path_argument()
@click.option("--compiler", required=True, metavar="MODULE:NAME", help="The one to be checked.")
@click.option(
    "--fault",
    type=click.Choice(["auto", "raises", "differs", "crashes"]),
    default="auto",
    show_default=True,
    help="What to look for; auto finds out in a process of its own.",
)
@click.option("--match", metavar="PATTERN", help="With raises: what the error matches.")
@click.option("--seed", default=0, show_default=True, help="For inputs that are not recorded.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where the program goes; a temporary folder by default.",
)
@click.option("--max-tries", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop looking after that.")
@allow_option
@json_option
def minify(
    path: Path,
    compiler: str,
    fault: str,
    match: str | None,
    seed: int,
    output: Path | None,
    max_tries: int,
    timeout: float | None,
    allow: tuple[Any, ...],
    as_json: bool,
) -> int:
    """Find the smallest part of the graph PATH/ID that a compiler gets wrong.

    Writes a program that shows it and prints where. Exit status 1: a fault was found; 0: none.
    """
    find_compiler(compiler)  # says at once if there is none
    # not `from lazyfx_tools import minify`, which is the function
    tools: Any = importlib.import_module("lazyfx_tools.minimize")
    errors: Any = importlib.import_module("lazyfx_tools.errors")
    graph = one_graph(path, allow)
    gm, inputs = graph.module(), graph.inputs(seed=seed)
    with Progress("tries") as progress:
        predicate = {
            "auto": lambda: tools.diagnose(compiler, gm, inputs),
            "raises": lambda: tools.raises(compiler, match=match),
            "differs": lambda: tools.differs(compiler),
            "crashes": lambda: tools.crashes(compiler),
        }[fault]()
        found = None
        if predicate is not None:
            try:
                found = tools.minify(
                    gm,
                    inputs,
                    predicate,
                    folder=output,
                    max_tries=max_tries,
                    timeout=timeout,
                    progress=lambda at: progress.step(at.tries - 1, max_tries, f"{at.nodes} nodes"),
                )
            except errors.FaultNotFoundError as error:
                say(f"lazyfx: {error}")
    if as_json:
        emit_json(_data(graph.id, found))
    elif found is None:
        emit(f"{graph.id}: no fault found")
    else:
        emit_lines(str(found))
    return 0 if found is None else DIFFERENT


def _data(identity: str, found: Any) -> dict[str, Any]:
    keys = (
        *("nodes_before", "nodes_after", "inputs_before", "bytes_before", "bytes_after", "tries"),
        *("complete", "flaky", "verified", "verification"),
    )
    data: dict[str, Any] = {"graph": identity, "found": found is not None}
    if found is not None:
        data |= {key: getattr(found, key) for key in keys}
        data["script"] = None if found.script is None else str(found.script)
    return data
