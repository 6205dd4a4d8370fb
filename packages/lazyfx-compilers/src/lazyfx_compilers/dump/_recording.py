"""What the first run of a compiled graph got and gave, written beside the graph.

While compiling there are only fake tensors, so values can be had no earlier than at the first run.
Inputs are copied before it, since it may change them, and their bytes compared with what they are
after it; so a write counts whoever made it, a generated kernel included.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_aot
from lazyfx_compilers._types import as_boxed, boxed

from ._environment import random_states, settings
from ._schema import DATA, INPUTS, OUTPUTS, RESULTS, to_json
from ._specs import (
    InputSpec,
    TensorSpec,
    describe_inputs,
    encode_spec,
    encode_specs,
    with_expressions,
)
from ._storages import storage_contents, write_contents
from ._writer import replace_by, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def recording_first_run(
    compiled: Callable[..., Any],
    folder: Path,
    traced: tuple[InputSpec, ...],
    output_names: Sequence[str],
    *,
    results: int | None,
    values: bool,
    exact: bool,
    failed: Callable[[Exception], None],
) -> Callable[..., Any]:
    """``compiled``, whose first run is written to ``folder``.

    Args:
        compiled: Takes one list if it is boxed, else positional arguments.
        folder: A dumped graph's.
        traced: How the inputs were described while compiling.
        output_names: Names for the outputs.
        results: How many outputs of a forward are its results, if that is known; the rest is saved
            for the backward, and a compiler chooses how it lies in memory.
        values: Write inputs and outputs; otherwise only the ranges of integer inputs.
        exact: Whether ``compiled`` runs the graph as it is, so that a replay has to give the same
            bits.
        failed: Told about whatever goes wrong while writing, which never stops the run.
    """
    call = as_boxed(compiled, "graph_dumper_aot")
    lock = threading.Lock()
    pending = [True]

    def run(inputs: list[Any]) -> Any:
        with lock:
            first = bool(pending) and pending.pop()
        if not first:
            return call(inputs)
        record = None
        try:
            record = _FirstRun(folder, traced, inputs, values=values)
        except Exception as error:  # a dump must never be why a training stops
            failed(error)
        result = call(inputs)
        if record is not None and values:
            try:
                record.finish(result, output_names, results=results, exact=exact)
            except Exception as error:  # as above
                failed(error)
        return result

    return boxed(run, "graph_dumper_aot")


class _FirstRun:
    """Holds the inputs of one run until it is over."""

    def __init__(
        self, folder: Path, traced: tuple[InputSpec, ...], inputs: Sequence[Any], *, values: bool
    ) -> None:
        leaves, _ = _torch_aot.tree_flatten(list(inputs))
        if any(_torch_aot.is_fake(leaf) for leaf in leaves):
            raise ValueError("the graph was run with fake tensors, which have no values")
        self._folder = folder
        self._names = [spec.name for spec in traced]
        real = describe_inputs(self._names, leaves)
        specs = with_expressions(real, traced)
        if values:
            self._leaves = leaves
            self._contents = storage_contents(specs, leaves)
            self._settings = settings()
            devices = {each.device for each in leaves if isinstance(each, torch.Tensor)}
            replace_by(
                folder / DATA,
                lambda file: write_contents(file, {**self._contents, **random_states(devices)}),
            )
        replace_file(folder / INPUTS, encode_specs("inputs", specs).encode())

    def finish(
        self, result: Any, names: Sequence[str], *, results: int | None, exact: bool
    ) -> None:
        """Write the outputs, and the storages of inputs whose bytes are others now."""
        outputs, _ = _torch_aot.tree_flatten(result)
        # numbered together, so that an output that is an input's storage says so
        specs = describe_inputs([*self._names, *names], [*self._leaves, *outputs])
        contents = storage_contents(specs, [*self._leaves, *outputs])
        changed = {
            name: content
            for name, content in contents.items()
            if not _same(content, self._contents.get(name))
        }
        replace_by(self._folder / RESULTS, lambda file: write_contents(file, changed))
        after, made = specs[: len(self._leaves)], specs[len(self._leaves) :]
        document = {
            "exact": exact,
            "results": results,
            "settings": self._settings,
            "after": [encode_spec(spec) for spec in after],
            "outputs": [encode_spec(spec) for spec in made],
        }
        replace_file(self._folder / OUTPUTS, to_json("outputs", document).encode())


def _same(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and torch.equal(one, other)


def has_integer_tensor(specs: Sequence[InputSpec]) -> bool:
    """Whether random values need a range, which only real inputs can tell."""
    return any(
        isinstance(spec, TensorSpec)
        and not (spec.dtype.is_floating_point or spec.dtype.is_complex)
        and spec.dtype is not torch.bool
        for spec in specs
    )
