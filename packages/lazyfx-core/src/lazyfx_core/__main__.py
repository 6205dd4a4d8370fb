"""``python -m lazyfx_core show FILE``: what is in an archive, for people.

Code, counts, tensors. Nothing of the file is run or imported, and it need not be trusted. Functions
that are not torch's are shown by name. The graphs are read without the rules for strangers, since
nobody is going to run them: what a loader would refuse should be visible here. What a file says is
printed without control characters, so that it cannot talk to the terminal.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ._container import read_structure
from ._serialize import GraphReader, from_json
from ._torch_symbolic import FakeReader
from .errors import GraphFormatError, LazyFxError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from torch import fx

    from ._container import TensorInfo


def describe_file(path: str | os.PathLike[str], *, code: bool = True) -> Iterator[str]:
    """Lines that say what the archive at ``path`` holds.

    Args:
        path: A file that ``save_graph`` wrote.
        code: Print the code of each graph.

    Raises:
        GraphFormatError: The file is not an archive, or damaged.
        OSError: It cannot be read.
    """
    text, tensors = read_structure(path)
    structure = from_json(text, "the structure")
    modules = structure.get("modules") if type(structure) is dict else None
    if type(modules) is not list:
        raise GraphFormatError("the structure lists no modules")
    yield _plain(
        f"{path}: schema {structure.get('schema')}, written by lazyfx "
        f"{structure.get('lazyfx')} on torch {structure.get('torch')}"
    )
    total = sum(tensor.storage_nbytes for tensor in tensors if tensor.shares_storage_with is None)
    yield f"{_count(len(modules), 'module')}, {_count(len(tensors), 'tensor')}, {_size(total)}"
    fakes = functools.cache(lambda: FakeReader(structure.get("fakes")))
    for index, entry in enumerate(modules):
        if type(entry) is dict and "graph" in entry:
            yield ""
            yield from _graph(index, entry, tensors, fakes, code=code)
    if tensors:
        yield ""
        yield from _tensor_table(tensors)


def _graph(
    index: int,
    entry: dict[str, Any],
    tensors: list[TensorInfo],
    fakes: Callable[[], FakeReader],
    *,
    code: bool,
) -> Iterator[str]:
    document = entry["graph"]
    rows = document.get("nodes", []) if type(document) is dict else []
    rows = rows if type(rows) is list else []
    yield _plain(f"graph {index}: {entry.get('class_name')}, {_count(len(rows), 'node')}")
    try:
        graph = GraphReader(
            document,
            other={
                "allowed": _stand_in,
                "tensor": lambda number: torch.empty(tensors[number].shape, device="meta"),
                "module": lambda number: f"module {number}",
            },
            trusted=True,
            fakes=fakes,
        ).graph()
        yield from _counts(graph)
        if code:
            yield ""
            for line in _code(graph).strip().splitlines():
                yield _plain(f"    {line}" if line else "")
    except LazyFxError as error:
        yield _plain(f"    cannot be read: {error}")


def _counts(graph: fx.Graph) -> Iterator[str]:
    """How often each operation occurs, most frequent first."""
    counts = Counter((node.op, _target_name(node)) for node in graph.nodes)
    width = max((len(str(count)) for count in counts.values()), default=1)
    for (op, target), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield _plain(f"    {count:>{width}} x {op}{f' {target}' if target else ''}")


def _target_name(node: fx.Node) -> str:
    if node.op in ("placeholder", "output", "get_attr"):
        return ""
    if isinstance(node.target, str):
        return node.target
    return torch.typename(node.target) if isinstance(node.target, type) else _qualified(node.target)


def _qualified(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    if name is None or str(function).count("."):
        shown = str(function)
        return shown if " " not in shown else f"{function.__module__}.{name}"
    return f"{function.__module__}.{name}"


def _code(graph: fx.Graph) -> str:
    try:
        return graph.python_code("self", verbose=True, include_stride=True, include_device=True).src
    except Exception:  # a graph by somebody else, which torch may be unable to print
        return str(graph)


def _tensor_table(tensors: list[TensorInfo]) -> Iterator[str]:
    rows = [
        (
            tensor.name,
            str(tensor.dtype).removeprefix("torch."),
            "x".join(map(str, tensor.shape)) or "scalar",
            str(tensor.device),
            _size(tensor.storage_nbytes)
            if tensor.shares_storage_with is None
            else f"in {tensors[tensor.shares_storage_with].name}",
        )
        for tensor in tensors
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield _plain("  ".join(cells).rstrip())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def _stand_in(name: Any) -> Any:
    """Something callable that has the name of a function which is not there."""

    def stand_in(*args: Any, **kwargs: Any) -> None:
        """Never called."""

    module, _, qualified = str(name).partition(":")
    stand_in.__module__, stand_in.__qualname__ = module, qualified
    stand_in.__name__ = qualified.rpartition(".")[2]
    return stand_in


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lazyfx_core", description="Look into files that lazyfx_core wrote."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print what an archive holds")
    show.add_argument("file", type=Path)
    show.add_argument("--json", action="store_true", help="print the structure as it is stored")
    show.add_argument("--no-code", action="store_true", help="leave the code out")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.json:
            text, _ = read_structure(chosen.file)
            sys.stdout.write(json.dumps(json.loads(text), indent=1) + "\n")
        else:
            for line in describe_file(chosen.file, code=not chosen.no_code):
                sys.stdout.write(line + "\n")
    except BrokenPipeError:  # somebody piped it into head
        sys.stderr.close()
        return 0
    except (LazyFxError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
