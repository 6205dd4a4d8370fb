"""Values of a graph's inputs in a safetensors file: one flat run of bytes per storage.

Bytes of whole storages, and not the tensors, because that keeps what the graph may depend on:
strides, gaps, tensors that overlap or share. ``inputs.json`` says how to read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_aot
from lazyfx_compilers.errors import DumpFormatError, MissingDependencyError

from ._specs import InputSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def require_safetensors() -> None:
    """Check that values can be stored and read.

    Raises:
        MissingDependencyError: safetensors is not installed.
    """
    try:
        import safetensors.torch  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "safetensors",
            needed_for="storing or reading the values of a graph's inputs",
            command="python -m pip install 'lazyfx-compilers[data]'",
        ) from None


def encode_data(specs: Sequence[InputSpec], values: Sequence[Any]) -> bytes:
    """The content of the file, for real ``values`` that ``specs`` describe; copies the data."""
    require_safetensors()
    from safetensors.torch import save

    leaves, _ = _torch_aot.tree_flatten(list(values))
    spans: dict[int, tuple[torch.Tensor, int, int]] = {}
    for spec, value in zip(specs, leaves, strict=True):
        if isinstance(spec, TensorSpec):
            start, stop = spec.span()
            _, least, most = spans.get(spec.storage, (value, start, stop))
            spans[spec.storage] = (value, min(least, start), max(most, stop))
    with _torch_aot.outside_fake_mode(), torch.no_grad():
        content = {
            f"storage_{number}": _bytes_of(tensor)[start:stop].to("cpu", copy=True)
            for number, (tensor, start, stop) in spans.items()
        }
        return save(content)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return flat.set_(storage, 0, (storage.nbytes(),), (1,))


def load_data(file: Path) -> dict[str, torch.Tensor]:
    """Read what :func:`encode_data` wrote.

    Raises:
        DumpFormatError: It is not there or damaged.
        MissingDependencyError: safetensors is not installed.
    """
    require_safetensors()
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(file.read_bytes()))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DumpFormatError(
            f"{file}: cannot be read ({error}); it is there only for graphs that were dumped with "
            "dump_example_input=True and have run"
        ) from error
