"""``lazyfx inputs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._dumps import allow_option, json_option, one_graph, path_argument
from ._output import emit_json, say
from ._show import emit_inputs, spec_data


@click.command()
@path_argument()
@click.option("--seed", default=0, show_default=True, help="For values that are not recorded.")
@click.option("--random", "random_values", is_flag=True, help="Random values, recorded or not.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.safetensors",
    help="Write the values there, tensors by name.",
)
@allow_option
@json_option
def inputs(
    path: Path,
    seed: int,
    random_values: bool,
    output: Path | None,
    allow: tuple[Any, ...],
    as_json: bool,
) -> None:
    """Show what the inputs of the graph PATH/ID are, or write values for them."""
    graph = one_graph(path, allow)
    if output is not None:
        values = graph.inputs(seed=seed, data=False if random_values else None)
        _write(output, [spec.name for spec in graph.specs], values)
        say(f"wrote {len(values)} inputs to {output}")
    if as_json:
        emit_json([spec_data(each) for each in graph.specs])
    elif output is None:
        emit_inputs(graph)


def _write(file: Path, names: list[str], values: list[Any]) -> None:
    import json

    from lazyfx_compilers.dump._storages import require_safetensors

    require_safetensors()
    import torch
    from safetensors.torch import save

    from lazyfx_compilers.dump._writer import replace_file

    tensors, others = {}, {}
    for name, value in zip(names, values, strict=True):
        if isinstance(value, torch.Tensor):
            # each on its own: the file knows no strides, and no sharing
            tensors[name] = (
                value.detach()
                .resolve_conj()
                .resolve_neg()
                .cpu()
                .clone(memory_format=torch.contiguous_format)
            )
        else:
            others[name] = repr(value)
    replace_file(file, save(tensors, {"values": json.dumps(others)}))
