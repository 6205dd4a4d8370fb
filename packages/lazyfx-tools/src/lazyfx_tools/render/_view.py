"""A graph as columns of plain data: what a page shows of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazyfx_compilers import _torch_debug
from lazyfx_compilers._messages import user_line
from lazyfx_compilers.errors import InvalidGraphError
from lazyfx_core import require_graph_module

from ._families import family
from ._lifetimes import Memory, memory_of
from ._values import Described, Describer, call_text, cut, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import fx

_ASSIGNMENT = re.compile(r"\s+(\w+)(?:\s*:.*?)? = ")
_PART = re.compile(r"\[['\"]?([^\]]*?)['\"]?\]|[^.\[]+")
_SHOWN_META = 200
_MOST_FRAMES = 500
_LEFT_OUT = frozenset({"stack_trace", "nn_module_stack", "fwd_nn_module_stack", "from_node"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphView:
    """What a page shows of one graph. Columns have an entry for each node, in the graph's order.

    Attributes:
        name: Unique on a page.
        phase: ``"joint"``, ``"forward"``, ``"backward"``, ``"inference"`` or any text.
        compilation: A number that graphs of one compilation share, or None.
        code: The graph as readable code; ``""`` if that is not known.
        names: Of the nodes.
        kinds: Their ``op``.
        targets: What they run, as text.
        families: What they are colored by.
        inputs: The places of the nodes that each reads.
        arguments: As in code.
        values: Shape, stride, dtype, device and bytes of each result.
        modules: The path of the module each is from, ``()`` if that is not known; a backward node
            has the module of the forward node it belongs to.
        module_classes: The class of the module behind a path, where it is known.
        lines: The user's line, ``file:line in function: code``, or ``""``.
        traces: The stack that led to it, or ``""``.
        code_lines: The line of ``code`` that assigns it, from 0, or -1.
        meta: What else is noted on it, short values only.
        seconds: The time it takes, or None if that is not known.
        memory: Memory over the nodes, or None where no tensor is described.
    """

    name: str
    phase: str
    compilation: int | None
    code: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    targets: tuple[str, ...]
    families: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    arguments: tuple[str, ...]
    values: tuple[Described, ...]
    modules: tuple[tuple[str, ...], ...]
    module_classes: dict[tuple[str, ...], str]
    lines: tuple[str, ...]
    traces: tuple[str, ...]
    code_lines: tuple[int, ...]
    meta: tuple[tuple[tuple[str, str], ...], ...]
    seconds: tuple[float | None, ...]
    memory: Memory | None


def graph_view(
    gm: fx.GraphModule,
    *,
    name: str,
    phase: str = "",
    compilation: int | None = None,
    code: str = "",
    times: Mapping[str, float] | None = None,
) -> GraphView:
    """Describe a graph for a page. Reads only; neither runs nor generates code.

    Args:
        gm: Its nodes say what they know: ``val`` or ``example_value``, ``stack_trace``,
            ``nn_module_stack``. Nothing of it has to be there.
        name: Unique on a page.
        phase: ``"joint"``, ``"forward"``, ``"backward"``, ``"inference"`` or any text. In a
            backward the memory of inputs counts, see :func:`memory_of`.
        compilation: A number that graphs of one compilation share.
        code: The graph as readable code, if it is to be shown.
        times: Seconds by the names of nodes; some may be missing.

    Raises:
        NotAGraphModuleError: ``gm`` is something else.
        InvalidGraphError: ``times`` has a name that no node has, or a time that is none.
    """
    require_graph_module(gm, "graph_view(gm)")
    nodes = list(gm.graph.nodes)
    names = tuple([node.name for node in nodes])
    places = {node: place for place, node in enumerate(nodes)}
    describer = Describer()
    modules = _Modules()
    # nodes share targets and stack traces, so each is looked at once
    targets: dict[tuple[str, int], tuple[str, str]] = {}
    lines: dict[Any, str] = {}
    for node in nodes:
        key = node.op, id(node.target)
        if key not in targets:
            targets[key] = _torch_debug.target_text(node.target), family(node.op, node.target)
        trace = node.meta.get("stack_trace")
        if isinstance(trace, str) and trace not in lines:
            # of a text that is no stack but full of "File" the search would take for ever
            is_stack = trace.count('File "') <= _MOST_FRAMES
            lines[trace] = (user_line(node) or "") if is_stack else ""
    traces = tuple([_text(node.meta.get("stack_trace")) for node in nodes])
    return GraphView(
        name=name,
        phase=phase,
        compilation=compilation,
        code=code,
        names=names,
        kinds=tuple([node.op for node in nodes]),
        targets=tuple([targets[node.op, id(node.target)][0] for node in nodes]),
        families=tuple([targets[node.op, id(node.target)][1] for node in nodes]),
        inputs=tuple([tuple([places[one] for one in node.all_input_nodes]) for node in nodes]),
        arguments=tuple([call_text(node) for node in nodes]),
        values=tuple([describer.describe(node) for node in nodes]),
        modules=tuple([modules.path(node) for node in nodes]),
        module_classes=modules.classes,
        lines=tuple([lines.get(trace, "") for trace in traces]),
        traces=traces,
        code_lines=_code_lines(code, names),
        meta=tuple([_short_meta(node) for node in nodes]),
        seconds=_seconds(names, times or {}, name),
        memory=memory_of(gm.graph, phase),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _seconds(
    names: tuple[str, ...], times: Mapping[str, float], graph: str
) -> tuple[float | None, ...]:
    unknown = set(times) - set(names)
    if unknown:
        raise InvalidGraphError(
            f"graph_view(times=...): graph {cut(graph, 80)!r} has no node "
            f"{cut(min(unknown), 80)!r}; expected the names of its nodes"
        )
    for name, seconds in times.items():
        if not (isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds >= 0):
            raise InvalidGraphError(
                f"graph_view(times=...): the time of node {cut(name, 80)!r} is {seconds!r}; "
                "expected seconds, at least 0; leave out what was not measured"
            )
    return tuple([times.get(name) for name in names])


def _code_lines(code: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """Where each node is assigned; inputs stand in the line of ``def``."""
    header: dict[str, int] = {}
    assigned: dict[str, int] = {}
    for number, line in enumerate(code.split("\n")):
        stripped = line.lstrip()
        if not header:
            if stripped.startswith("def forward("):
                header = dict.fromkeys(re.findall(r"\w+(?=\s*[:,)=])", line), number)
        elif stripped.startswith("class "):
            break  # a subgraph, whose names are its own
        elif stripped.startswith("return "):
            assigned.setdefault("output", number)
        elif match := _ASSIGNMENT.match(line):
            assigned.setdefault(match[1], number)
    return tuple([assigned.get(name, header.get(name, -1)) for name in names])


def _short_meta(node: fx.Node) -> tuple[tuple[str, str], ...]:
    found = [("type", shown(node.type))] if node.type is not None else []
    for key, value in node.meta.items():
        if key in _LEFT_OUT:
            continue
        if key == "original_aten":
            text = _torch_debug.target_text(value)
        elif key == "recompute" or isinstance(value, (int, float, bool)):
            text = shown(value)
        elif isinstance(value, str):
            text = value
        else:
            continue
        found.append((cut(str(key), _SHOWN_META), cut(text, _SHOWN_META)))
    return tuple(found)


class _Modules:
    """Paths of modules out of what tracing wrote, ``L['self'].layers.0`` and its relatives."""

    def __init__(self) -> None:
        self.classes: dict[tuple[str, ...], str] = {}
        self._paths: dict[Any, tuple[str, ...]] = {}

    def path(self, node: fx.Node) -> tuple[str, ...]:
        stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
        if not isinstance(stack, dict):
            return ()
        path: tuple[str, ...] = ()
        for entry in stack.values():
            if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
                path = self._path_of(entry[0])
                if path and path not in self.classes:
                    self.classes[path] = _class_name(entry[1])
        return path

    def _path_of(self, text: str) -> tuple[str, ...]:
        known = self._paths.get(text)
        if known is None:
            known = self._paths[text] = _split(text)
        return known


def _split(text: str) -> tuple[str, ...]:
    own = re.sub(r"^(?:L|G)\[['\"]\w+['\"]\]\.?", "", text)
    parts = [match[1] if match[1] is not None else match[0] for match in _PART.finditer(own)]
    return tuple([part for part in parts if part not in ("_modules", "")])


def _class_name(kind: Any) -> str:
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return str(name).rpartition(".")[2]
