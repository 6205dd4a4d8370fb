"""``lazyfx replay``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from ._dumps import allow_option, graphs_at, json_option, look_in_current_folder, path_argument
from ._main import DIFFERENT, UNREADABLE
from ._output import Progress, emit_json, emit_lines, plain, say

if TYPE_CHECKING:
    from pathlib import Path

    from lazyfx_compilers.dump import DumpedGraph


def find_compiler(name: str | None) -> Any:
    """The function or backend of that name; modules in the current folder count."""
    if name is None:
        return None
    import torch

    from lazyfx_compilers._torch_standalone import find_compiler as find

    if ":" in name:
        look_in_current_folder()
    known = torch.compiler.list_backends(exclude_tags=())
    if ":" not in name and name not in known:
        raise click.BadParameter(
            f"{name!r} is no backend of torch.compile ({', '.join(known)}); a function is "
            "module:name",
            param_hint="--compiler",
        )
    try:
        return find(name)
    except (ImportError, AttributeError, LookupError, ValueError, RuntimeError) as error:
        raise click.BadParameter(
            f"{name!r} cannot be found ({' '.join(str(error).split())[:200]}); expected "
            "module:name of a function, or a backend of torch.compile",
            param_hint="--compiler",
        ) from error


@click.command()
@path_argument()
@click.option(
    "--compiler",
    metavar="MODULE:NAME",
    help="Compile with this first; also a backend of torch.compile by name.",
)
@click.option("--seed", default=0, show_default=True, help="For inputs that are not recorded.")
@click.option("--repeat", default=0, metavar="N", type=click.IntRange(min=0), help="Time N runs.")
@click.option("--device", metavar="DEVICE", help="Run there instead of on the recorded devices.")
@allow_option
@json_option
def replay(
    path: Path,
    compiler: str | None,
    seed: int,
    repeat: int,
    device: str | None,
    allow: tuple[Any, ...],
    as_json: bool,
) -> int:
    """Run the graphs at PATH, or PATH/ID, again and compare with what was recorded.

    Recorded inputs, random state and settings are used where they are there. With --compiler and
    without recorded outputs the graph itself is what is compared with.
    """
    function = find_compiler(compiler)
    _check_device(device)
    graphs = graphs_at(path, allow)
    options = {"seed": seed, "repeat": repeat, "compiler": function, "device": device}
    found: list[dict[str, Any]] = []
    status = 0
    with Progress("replaying") as progress:
        for number, graph in enumerate(graphs):
            progress.step(number, len(graphs), graph.id)
            entry, text, severity = _replayed(graph, options)
            status = max(status, severity)
            found.append(entry)
            if not as_json:
                progress.clear()
                (say if severity == UNREADABLE else emit_lines)(text)
    if as_json:
        emit_json(found)
    return status


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without it
        first = str(error).strip().split("\n")[0]
        raise click.BadParameter(
            f"{device!r} cannot be used here: {first}", param_hint="--device"
        ) from None


def _replayed(graph: DumpedGraph, options: dict[str, Any]) -> tuple[dict[str, Any], str, int]:
    """What came of it as data, as text, and the exit status that it means."""
    from lazyfx_compilers.errors import DumpFormatError

    blank = {"graph": graph.id, "path": str(graph.folder), "ok": False, "error": None}
    ctx = click.get_current_context().find_root()
    try:
        result = graph.replay(**options)
    except DumpFormatError as error:
        return {**blank, "error": str(error)}, f"{graph.id}: {error}", UNREADABLE
    except Exception as error:  # whatever a compiler or an operator raises is what was found
        if ctx.params.get("traceback"):
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return {**blank, "error": text}, plain(f"{graph.id}: RAISES {text}"), DIFFERENT
    data = {
        field.name: _json_value(getattr(result, field.name)) for field in dataclasses.fields(result)
    }
    return {**blank, **data, "ok": result.ok}, str(result), 0 if result.ok else DIFFERENT


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_value(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_json_value(each) for each in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value
