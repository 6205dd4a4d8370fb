"""What a path on the command line leads to."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._main import UNREADABLE, USAGE, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazyfx_compilers.dump import Dump, DumpedGraph

INDEX = "index.json"


def path_argument(name: str = "path", **settings: Any) -> Callable[[Any], Any]:
    """An argument that is a folder of a dump or of a graph."""
    return click.argument(name, type=click.Path(path_type=Path), **settings)


def json_option(command: Any) -> Any:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def allow_option(command: Any) -> Any:
    """``--allow``."""
    return click.option(
        "--allow",
        multiple=True,
        metavar="MODULE:NAME",
        callback=_functions,
        help="A function outside of torch that graphs may refer to; may be given again.",
    )(command)


def look_in_current_folder() -> None:
    """Let modules in the current folder be found, before all others."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _functions(
    context: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[Any, ...]:
    if not names or context.resilient_parsing:  # completing a line imports nothing
        return ()
    from lazyfx_compilers._torch_standalone import find_compiler as find

    look_in_current_folder()
    found = []
    for name in names:
        try:
            function = find(name) if ":" in name else None
        except (ImportError, AttributeError, ValueError) as error:
            raise click.BadParameter(
                f"{name!r} cannot be found ({' '.join(str(error).split())[:200]})",
                context,
                parameter,
            ) from error
        if not callable(function):
            raise click.BadParameter(
                f"{name!r} is no function; expected module:name", context, parameter
            )
        found.append(function)
    return tuple(found)


def dumps_below(path: Path, allow: Sequence[Any]) -> list[Dump]:
    """Every dump at or below ``path``; at least one."""
    from lazyfx_compilers.dump import load_dump

    return [load_dump(each, allow=allow) for each in folders_below(path)]


def folders_below(path: Path) -> list[Path]:
    """The folders of the dumps at or below ``path``; at least one."""
    from lazyfx_compilers.dump import find_dumps

    if path.name == INDEX:
        path = path.parent
    if not path.exists():
        raise Failure(f"{path}: there is no such folder", UNREADABLE)
    if (path / INDEX).is_file():
        return [path]
    found = [each for each in find_dumps(path) if _is_ours(each / INDEX)]
    if not found:
        raise Failure(
            f"{path}: no {INDEX} in it or below; give the folder that graph_dumper_aot has written",
            UNREADABLE,
        )
    return found


def _is_ours(index: Path) -> bool:
    """Whether a file that was found by its name is an index of ours; other tools have some too."""
    try:
        with index.open("rb") as file:
            return b"lazyfx.index" in file.read(256)
    except OSError:
        return True  # so that somebody says why it cannot be read


def graphs_at(path: Path, allow: Sequence[Any]) -> list[DumpedGraph]:
    """The graph that ``path`` leads to, or all graphs of the dumps there."""
    graph = _graph(path, allow)
    return [graph] if graph else [each for dump in dumps_below(path, allow) for each in dump.graphs]


def one_graph(path: Path, allow: Sequence[Any]) -> DumpedGraph:
    """The graph that ``path`` leads to: itself, or the only one of the dump there."""
    graphs = graphs_at(path, allow)
    if len(graphs) != 1:
        known = ", ".join(each.id for each in graphs[:8]) + (", ..." if len(graphs) > 8 else "")
        raise Failure(
            f"{path}: expected one graph, there are {len(graphs)}; add its id: {path}/ID, with ID "
            f"one of {known or 'none'}",
            USAGE,
        )
    return graphs[0]


def dump_or_graph(path: Path, allow: Sequence[Any]) -> Dump | DumpedGraph:
    """The graph, or the one dump, that ``path`` leads to."""
    graph = _graph(path, allow)
    if graph:
        return graph
    dumps = dumps_below(path, allow)
    if len(dumps) > 1:
        known = ", ".join(str(each.folder) for each in dumps[:5])
        raise Failure(f"{path}: there are {len(dumps)} dumps; give one of {known}", USAGE)
    return dumps[0]


def _graph(path: Path, allow: Sequence[Any]) -> DumpedGraph | None:
    from lazyfx_compilers.dump import load_dump

    if path.name in ("", ".."):
        path = path.resolve()  # inside the folder of a graph it is "."
    parent = path.parent
    if path.name == INDEX or (path / INDEX).exists() or not (parent / INDEX).is_file():
        return None
    dump = load_dump(parent, allow=allow)
    same = [each for each in dump.graphs if each.id == path.name]
    like = same or [each for each in dump.graphs if each.id.startswith(path.name)]
    if len(like) == 1:
        return like[0]
    if not like and path.exists():
        return None
    known = ", ".join(each.id for each in (like or dump.graphs)[:8])
    problem = f"{len(like)} graphs begin with it" if like else "no graph has this id"
    raise Failure(f"{path}: {problem}; there are: {known or 'none'}", USAGE)
