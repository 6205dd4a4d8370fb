"""Inputs for a dumped graph, made from its description or read from its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers.errors import DumpFormatError, MissingDependencyError

from ._schema import InputSpec, read_inputs

if TYPE_CHECKING:
    import os

INPUTS = "inputs.json"
DATA = "inputs.safetensors"


def get_inputs(
    input_data_path: str | os.PathLike[str], *, seed: int | None = None, data: bool = False
) -> list[Any]:
    """Inputs that a dumped graph can be run with.

    Args:
        input_data_path: A dumped graph's folder, or the ``inputs.json`` in it.
        seed: Makes the values repeatable; the global random state is not touched either way.
        data: Return the recorded values of tensors instead of random ones; needs a dump made with
            ``dump_example_input=True``.

    Returns:
        One value per input, in order. Tensors have exactly the recorded size, strides, offset,
        dtype, device and ``requires_grad``; floating-point values are normal, integers are drawn
        from 0 to 9 (they may be indices), bools are fair coins. Scalars and symbolic sizes have
        the recorded value.

    Raises:
        DumpFormatError: The description or the data cannot be read, is newer, or names an input
            that cannot be made; names file and field.
        MissingDependencyError: ``data=True`` without safetensors.
    """
    path = Path(input_data_path)
    file = path / INPUTS if path.is_dir() else path
    specs = read_inputs(file)
    recorded = _read_data(file.with_name(DATA)) if data else {}
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return [
        _make(file, i, spec, generator, recorded.get(str(i)) if data else None, data)
        for i, spec in enumerate(specs)
    ]


def _make(
    file: Path,
    index: int,
    spec: InputSpec,
    generator: torch.Generator,
    recorded: torch.Tensor | None,
    data: bool,
) -> Any:
    if spec.kind == "opaque":
        raise DumpFormatError(
            f"{file}: field inputs[{index}] ({spec.name!r}) is a {spec.type}, which was not stored "
            "and cannot be made; pass one of your own"
        )
    if spec.kind != "tensor":
        return spec.value
    if data and recorded is None:
        raise DumpFormatError(
            f"{file.with_name(DATA)}: holds no tensor for inputs[{index}] ({spec.name!r})"
        )
    dtype = spec.torch_dtype()
    try:
        storage = _random(spec.storage_size(), dtype, generator).to(spec.device)
        tensor = torch.as_strided(storage, spec.size, spec.stride, spec.storage_offset)
        if recorded is not None:
            if tuple(recorded.shape) != spec.size or recorded.dtype != dtype:
                raise DumpFormatError(
                    f"{file.with_name(DATA)}: tensor {index} is {recorded.dtype} of size "
                    f"{tuple(recorded.shape)}; {file.name} says {dtype} of size {spec.size}"
                )
            tensor.copy_(recorded)
    except (RuntimeError, MemoryError) as error:
        raise DumpFormatError(
            f"{file}: field inputs[{index}] ({spec.name!r}) cannot be made here: {error}"
        ) from error
    return tensor.requires_grad_(spec.requires_grad)


def _random(count: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).to(torch.bool)
    if dtype.is_complex:
        return torch.view_as_complex(torch.randn(count, 2, generator=generator)).to(dtype)
    if dtype.is_floating_point:
        return torch.randn(count, generator=generator).to(dtype)
    return torch.randint(0, 10, (count,), generator=generator).to(dtype)


def _read_data(file: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise safetensors_missing() from None
    try:
        return dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise DumpFormatError(
            f"{file}: cannot be read: {error}; was it dumped with dump_example_input=True?"
        ) from error


def safetensors_missing() -> MissingDependencyError:
    """The error for input data without the package that stores it."""
    return MissingDependencyError(
        "safetensors",
        needed_for="storing or reading the values of a graph's inputs",
        command="python -m pip install 'lazyfx-compilers[data]'",
    )
