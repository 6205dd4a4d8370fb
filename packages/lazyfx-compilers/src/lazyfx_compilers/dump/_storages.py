"""Values in a safetensors file: one flat run of bytes per storage.

Bytes of whole storages, and not the tensors, because that keeps what a graph may depend on:
strides, gaps, tensors that overlap or share. The descriptions beside the file say how to read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_aot
from lazyfx_compilers.errors import DumpFormatError, MissingDependencyError

from ._schema import require_regular
from ._specs import InputSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def require_safetensors() -> None:
    """Check that values can be stored and read.

    Raises:
        MissingDependencyError: safetensors is not installed, or numpy, which it writes through.
    """
    try:
        import numpy  # noqa: F401
        import safetensors.torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            (error.name or "safetensors").partition(".")[0],
            needed_for="storing or reading the values of a graph's inputs",
            command="python -m pip install 'lazyfx-compilers[data]'",
        ) from None


def storage_contents(specs: Sequence[InputSpec], leaves: Sequence[Any]) -> dict[str, torch.Tensor]:
    """The bytes of each storage, as far as the tensors reach, by name; copies, on the CPU.

    Args:
        specs: What describes ``leaves``.
        leaves: Real values.
    """
    spans: dict[int, tuple[torch.Tensor, int, int]] = {}
    for spec, value in zip(specs, leaves, strict=True):
        if isinstance(spec, TensorSpec):
            start, stop = spec.span()
            _, least, most = spans.get(spec.storage, (value, start, stop))
            spans[spec.storage] = (value, min(least, start), max(most, stop))
    with _torch_aot.outside_fake_mode(), torch.no_grad():
        return {
            storage_name(number): _bytes_of(tensor)[start:stop].to("cpu", copy=True)
            for number, (tensor, start, stop) in spans.items()
        }


def storage_name(number: int) -> str:
    """What the storage with this number is called in the file."""
    return f"storage_{number}"


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return flat.set_(storage, 0, (storage.nbytes(),), (1,))


def write_contents(file: Path, contents: Mapping[str, torch.Tensor]) -> None:
    """Write bytes by name.

    Raises:
        OSError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with _torch_aot.outside_fake_mode():
            save_file(dict(contents), file)
    except SafetensorError as error:  # what a full disk is to safetensors
        raise OSError(f"{file}: {error}") from error


def read_contents(file: Path) -> dict[str, torch.Tensor]:
    """Read what :func:`write_contents` wrote.

    Raises:
        DumpFormatError: It is not there or damaged.
        MissingDependencyError: safetensors is not installed.
    """
    require_safetensors()
    require_regular(file)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = load(file.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DumpFormatError(
            f"{file}: cannot be read ({error}); it is there only for graphs that were dumped with "
            "example_inputs='data' and have run"
        ) from error
    for name, content in found.items():
        if content.dtype != torch.uint8 or content.dim() != 1:
            raise DumpFormatError(
                f"{file}: field {name} is {content.dtype} of size {tuple(content.shape)}; expected "
                "a row of bytes; dump the graph again"
            )
    return dict(found)
