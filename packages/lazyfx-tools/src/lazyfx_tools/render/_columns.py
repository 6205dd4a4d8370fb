"""A view of a graph as the JSON that the page's program reads: columns, and texts by number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._view import GraphView


class Strings:
    """Texts that are written once and meant by their number; most columns have few of them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def numbers(self, texts: Iterable[str]) -> list[int]:
        """The numbers of some texts."""
        known = self._numbers
        return [known.setdefault(text, len(known)) for text in texts]

    def known(self) -> list[str]:
        """All texts, by number."""
        return list(self._numbers)


def graph_columns(graph: GraphView, strings: Strings) -> dict[str, Any]:
    """What ``viewer/data.js`` reads."""
    numbers = strings.numbers
    paths = {path: i for i, path in enumerate(dict.fromkeys(graph.modules))}
    memory = graph.memory
    return {
        "name": graph.name,
        "phase": graph.phase,
        "compilation": graph.compilation,
        "code": graph.code,
        "names": numbers(graph.names),
        "kinds": numbers(graph.kinds),
        "targets": numbers(graph.targets),
        "families": numbers(graph.families),
        "inputs": graph.inputs,
        "arguments": numbers(graph.arguments),
        "shapes": numbers([value.shape for value in graph.values]),
        "strides": numbers([value.stride for value in graph.values]),
        "dtypes": numbers([value.dtype for value in graph.values]),
        "devices": numbers([value.device for value in graph.values]),
        "nbytes": [value.nbytes for value in graph.values],
        "modules": [paths[path] for path in graph.modules],
        "paths": list(paths),
        "classes": [[list(path), name] for path, name in graph.module_classes.items()],
        "lines": numbers(graph.lines),
        "traces": numbers(graph.traces),
        "code_lines": graph.code_lines,
        "meta": [[numbers(pair) for pair in one] for one in graph.meta],
        "seconds": graph.seconds if any(one is not None for one in graph.seconds) else None,
        "memory": None
        if memory is None
        else {
            "live": memory.live,
            "sizes": memory.sizes,
            "first": memory.first,
            "last": memory.last,
            "counted": memory.counted,
            "behind": memory.behind,
        },
    }
