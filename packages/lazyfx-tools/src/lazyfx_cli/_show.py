"""``lazyfx ls`` and ``lazyfx show``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from ._dumps import allow_option, folders_below, json_option, one_graph, path_argument
from ._main import UNREADABLE
from ._output import emit, emit_json, emit_lines, emit_table, say

if TYPE_CHECKING:
    from pathlib import Path

    from lazyfx_compilers.dump import DumpedGraph, InputSpec

_MOST = 4


@click.command()
@path_argument(default=".")
@json_option
def ls(path: Path, as_json: bool) -> int:
    """List the graphs of all dumps at or below PATH (the current folder)."""
    from lazyfx_compilers.dump import load_dump
    from lazyfx_compilers.errors import DumpFormatError

    dumps, status = [], 0
    for folder in folders_below(path):
        try:
            dumps.append(load_dump(folder))
        except DumpFormatError as error:
            say(f"lazyfx: {error}")
            status = UNREADABLE
    if as_json:
        emit_json(
            [
                {
                    "name": dump.name,
                    "folder": str(dump.folder),
                    "rank": dump.rank,
                    "environment": dump.environment,
                    "graphs": [_summary(graph) for graph in dump.graphs],
                }
                for dump in dumps
            ]
        )
        return status
    rows = [
        (
            str(graph.folder),
            graph.phase,
            graph.nodes,
            _input_count(graph),
            _data_text(graph),
            _calls(graph),
        )
        for dump in dumps
        for graph in dump.graphs
    ]
    if rows or not status:
        emit_table(("GRAPH", "PHASE", "NODES", "INPUTS", "DATA", "CALLS"), rows)
    return status


@click.command()
@path_argument()
@click.option("--code", "part", flag_value="code", help="The readable code.")
@click.option("--ops", "part", flag_value="ops", help="How often each operator is called.")
@click.option("--inputs", "part", flag_value="inputs", help="What the inputs are.")
@click.option("--nodes", "part", flag_value="nodes", help="Each node with its result.")
@allow_option
@json_option
def show(path: Path, part: str | None, allow: tuple[Any, ...], as_json: bool) -> None:
    """Show the graph PATH/ID: what it is, or a part of it."""
    graph = one_graph(path, allow)
    data = {
        None: _summary,
        "code": lambda one: one.code,
        "ops": lambda one: one.ops,
        "inputs": lambda one: [spec_data(each) for each in one.specs],
        "nodes": _nodes,
    }[part](graph)
    if as_json:
        emit_json(data)
    elif part == "code":
        emit_lines(graph.code)
    elif part == "ops":
        emit_table(("CALLS", "TARGET"), [(count, name) for name, count in graph.ops.items()])
    elif part == "inputs":
        emit_inputs(graph)
    elif part == "nodes":
        emit_table(
            ("NODE", "RESULT", "CODE", "LINE"),
            [(each["name"], each["result"], each["text"], each["user_line"]) for each in data],
        )
    else:
        for key, value in data.items():
            if key != "ops":
                emit(f"{key}: {'-' if value is None else value}")
        emit(f"calls: {_calls(graph, most=20)}")


def emit_inputs(graph: DumpedGraph) -> None:
    """A table of what the inputs are."""
    emit_table(
        ("INPUT", "KIND", "SHAPE", "STRIDE", "DEVICE", "VALUE"),
        [_spec_row(spec) for spec in graph.specs],
    )


def spec_data(spec: InputSpec) -> dict[str, Any]:
    """The description of an input as JSON has it."""
    import dataclasses

    found = dataclasses.asdict(spec)
    return {
        "kind": type(spec).__name__.removesuffix("Spec").lower(),
        **{key: _json_value(value) for key, value in found.items()},
    }


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and value - value == 0:
        return value
    return str(value).removeprefix("torch.")


def _spec_row(spec: InputSpec) -> tuple[object, ...]:
    from lazyfx_compilers.dump import ScalarSpec, TensorSpec

    if isinstance(spec, TensorSpec):
        shape = spec.shape_expr or tuple(map(str, spec.shape))
        kind = str(spec.dtype).removeprefix("torch.")
        gradient = "requires grad" if spec.requires_grad else ""
        return spec.name, kind, _listed(shape), _listed(spec.stride), spec.device, gradient
    if isinstance(spec, ScalarSpec):
        value = repr(spec.value) if spec.expr is None else f"{spec.expr} = {spec.value!r}"
        return spec.name, type(spec.value).__name__, "", "", "", value
    return spec.name, "opaque", "", "", "", spec.description


def _listed(values: Any) -> str:
    return f"[{', '.join(map(str, values))}]"


def _summary(graph: DumpedGraph) -> dict[str, Any]:
    return {
        "id": graph.id,
        "path": str(graph.folder),
        "phase": graph.phase,
        "compilation": graph.compilation,
        "compile_id": graph.compile_id,
        "nodes": graph.nodes,
        "inputs": _input_count(graph),
        "has_data": graph.has_data,
        "has_outputs": graph.has_outputs,
        "not_stored": graph.not_stored,
        "ops": graph.ops,
    }


def _nodes(graph: DumpedGraph) -> list[dict[str, Any]]:
    from lazyfx_tools.diff import describe_nodes

    return [
        {
            "name": each.name,
            "op": each.op,
            "target": each.target,
            "text": each.text,
            "result": each.result,
            "user_line": each.user_line,
        }
        for each in describe_nodes(graph.module())
    ]


def _input_count(graph: DumpedGraph) -> int | None:
    """How many inputs, where a file says so: looking into the graph would take long."""
    from lazyfx_compilers.errors import DumpFormatError

    if not (graph.folder / "inputs.json").exists():
        return None
    try:
        return len(graph.specs)
    except DumpFormatError:
        return None  # whoever wants the inputs is told


def _data_text(graph: DumpedGraph) -> str:
    if graph.not_stored is not None:
        return "not stored"
    parts = [word for word, there in _data_parts(graph) if there]
    return "+".join(parts) or "-"


def _data_parts(graph: DumpedGraph) -> list[tuple[str, bool]]:
    return [("inputs", graph.has_data), ("outputs", graph.has_outputs)]


def _calls(graph: DumpedGraph, most: int = _MOST) -> str:
    counts = Counter(graph.ops).most_common()
    shown = ", ".join(f"{name} {count}" for name, count in counts[:most])
    return shown + (f", {len(counts) - most} others" if len(counts) > most else "")
