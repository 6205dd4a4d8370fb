"""Values made from descriptions: random ones, or the recorded ones.

Tensors come back with exactly the recorded size, strides, offset and sharing: each storage is made
once, filled as a flat run of elements, and the tensors are views of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_aot, _torch_debug
from lazyfx_compilers.errors import DumpFormatError

from ._environment import physical_memory
from ._schema import DATA, INPUTS, read_json
from ._specs import InputSpec, OpaqueSpec, ScalarSpec, TensorSpec, decode_specs
from ._storages import read_contents, storage_name

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence


def get_inputs(
    input_data_path: str | os.PathLike[str],
    *,
    seed: int | None = None,
    data: bool = False,
    device: str | None = None,
    max_bytes: int | None = None,
) -> list[Any]:
    """Inputs that a dumped graph can be run with.

    Args:
        input_data_path: A dumped graph's folder, or the ``inputs.json`` in it.
        seed: Makes the values repeatable. The global random state is not touched either way.
        data: Give the recorded values instead of random ones; needs a dump made with
            ``example_inputs="data"``.
        device: Make all tensors there instead of on the recorded devices.
        max_bytes: Refuse a description that asks for more memory than this; by default, than this
            machine has.

    Returns:
        One value per input, in order; the caller owns them. Tensors have the recorded size,
        strides, offset, dtype, ``requires_grad`` and storage sharing. Floating-point values lie in
        [0, 1), bools are both, integers lie in the recorded range, or are 0 or 1 where none was
        recorded (they may be indices). Python values and symbolic numbers have the recorded value.

    Raises:
        DumpFormatError: The description or the data cannot be read, or names an input that cannot
            be made here; names file and field.
        MissingDependencyError: ``data=True`` without safetensors.
    """
    file = inputs_file(input_data_path)
    specs = read_inputs_spec(file)
    for i, spec in enumerate(specs):
        if isinstance(spec, OpaqueSpec):
            raise DumpFormatError(
                f"{file}: field inputs[{i}] ({spec.name!r}) is a {spec.description}, which cannot "
                "be made from a description; make it yourself and use read_inputs_spec for the rest"
            )
    recorded = read_contents(file.with_name(DATA)) if data else None
    return make_values(
        specs, file, seed=seed, recorded=recorded, device=device, max_bytes=max_bytes
    )


def read_inputs_spec(path: str | os.PathLike[str]) -> tuple[InputSpec, ...]:
    """Read the descriptions of a graph's inputs.

    Args:
        path: A graph's folder, or the ``inputs.json`` in it.

    Raises:
        DumpFormatError: Names the file and the field.
    """
    return decode_specs(read_json(inputs_file(path), "inputs").get("inputs"))


def inputs_file(path: str | os.PathLike[str]) -> Path:
    """The ``inputs.json`` that ``path`` means."""
    given = Path(path)
    return given / INPUTS if given.is_dir() else given


def make_values(
    specs: Sequence[InputSpec],
    file: Path,
    *,
    seed: int | None = None,
    recorded: Mapping[str, torch.Tensor] | None = None,
    device: str | None = None,
    max_bytes: int | None = None,
) -> list[Any]:
    """What ``specs`` describe; ``None`` for what a description cannot make.

    Args:
        specs: Read from ``file``.
        file: For messages.
        seed: For random values; ``None`` for other ones each time.
        recorded: Bytes of storages to use instead of random values.
        device: Instead of the recorded devices.
        max_bytes: Most memory that the values may take; ``None``: what this machine has.

    Raises:
        DumpFormatError: Names the file and the field.
    """
    members = _by_storage(specs)
    _check_memory(file, specs, members, physical_memory() if max_bytes is None else max_bytes)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    with _torch_aot.outside_fake_mode():
        made = {
            storage: _make_storage(file, specs, positions, generator, recorded, device)
            for storage, positions in members.items()
        }
        return [_make(file, i, spec, made) for i, spec in enumerate(specs)]


def _by_storage(specs: Sequence[InputSpec]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for i, spec in enumerate(specs):
        if isinstance(spec, TensorSpec):
            members.setdefault(spec.storage, []).append(i)
    return members


def _tensors(specs: Sequence[InputSpec], positions: Sequence[int]) -> list[TensorSpec]:
    return [spec for i in positions if isinstance(spec := specs[i], TensorSpec)]


def _check_memory(
    file: Path, specs: Sequence[InputSpec], members: Mapping[int, list[int]], limit: int
) -> None:
    total = 0
    for positions in members.values():
        total += max(spec.span()[1] for spec in _tensors(specs, positions))
        if total > limit:
            raise DumpFormatError(
                f"{file}: field inputs[{positions[0]}].shape: the inputs up to here need {total} "
                f"bytes, more than max_bytes={limit} (by default what this machine has); pass a "
                "larger max_bytes if that is meant"
            )
        devices = {spec.device for spec in _tensors(specs, positions)}
        if len(devices) > 1:
            raise DumpFormatError(
                f"{file}: field inputs[{positions[-1]}].device is {specs[positions[-1]]!r}; "
                f"expected one device for all tensors of a storage, got {sorted(devices)}"
            )


def _make_storage(
    file: Path,
    specs: Sequence[InputSpec],
    positions: Sequence[int],
    generator: torch.Generator,
    recorded: Mapping[str, torch.Tensor] | None,
    device: str | None,
) -> torch.Tensor:
    """A flat tensor of bytes; every tensor of this storage becomes a view of it."""
    tensors = _tensors(specs, positions)
    where = f"{file}: field inputs[{positions[0]}] ({tensors[0].name!r})"
    size = max(spec.span()[1] for spec in tensors)
    target = device or tensors[0].device
    try:
        if recorded is None:
            content = _random(tensors[0], size, generator)
        else:
            content = _recorded(file, tensors, size, recorded)
        return content.to(target)
    except (RuntimeError, AssertionError, MemoryError) as error:
        raise DumpFormatError(
            f"{where} cannot be made on {target!r} here: {error}; pass device='cpu' if the device "
            "is missing"
        ) from error


def _recorded(
    file: Path, tensors: Sequence[TensorSpec], size: int, recorded: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    name = storage_name(tensors[0].storage)
    start = min(spec.span()[0] for spec in tensors)
    kept = recorded.get(name)
    if kept is None or kept.numel() != size - start:
        found = "missing" if kept is None else f"{kept.numel()} bytes"
        raise DumpFormatError(
            f"{file.with_suffix('.safetensors')}: field {name} is {found}; expected {size - start} "
            f"bytes, as {file.name} says; dump the graph again"
        )
    content = torch.zeros(size, dtype=torch.uint8)
    content[start:] = kept
    return content


def _random(spec: TensorSpec, size: int, generator: torch.Generator) -> torch.Tensor:
    dtype = spec.dtype
    count = -(-size // dtype.itemsize)
    if dtype.is_complex:
        part = {torch.complex32: torch.float16, torch.complex64: torch.float32}.get(dtype)
        values = torch.rand(2 * count, generator=generator).to(part or torch.float64)
    elif dtype is torch.float64:
        values = torch.rand(count, generator=generator, dtype=dtype)
    elif dtype is torch.bool:
        values = torch.randint(0, 2, (count,), generator=generator).to(torch.bool)
    elif spec.range is not None:
        least, greatest = spec.range
        beyond = min(greatest, (1 << 63) - 2) + 1  # one more than int64 holds cannot be said
        least = min(least, beyond - 1)
        values = torch.randint(least, beyond, (count,), generator=generator)
        values = values.clamp_(min=spec.range[0]).to(dtype)
    elif dtype.is_floating_point and dtype in _CASTABLE:
        values = torch.rand(count, generator=generator).to(dtype)
    elif dtype in _CASTABLE:
        values = torch.randint(0, 2, (count,), generator=generator).to(dtype)
    else:  # packed formats that torch cannot convert to: any bytes are values of them
        return torch.randint(0, 256, (size,), generator=generator).to(torch.uint8)
    # a cast may round up to 1 in a narrow format: harmless
    return values.view(torch.uint8)[:size]


_CASTABLE = {
    getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    )
    if hasattr(torch, name)
}


def _make(file: Path, index: int, spec: InputSpec, storages: Mapping[int, torch.Tensor]) -> Any:
    if not isinstance(spec, TensorSpec):
        return spec.value if isinstance(spec, ScalarSpec) else None
    content = storages[spec.storage]
    try:
        if spec.dtype is torch.complex32:  # torch.empty warns about it, a view does not
            flat = content[: content.numel() // 4 * 4].view(spec.dtype)
            tensor = flat.as_strided(spec.shape, spec.stride, spec.storage_offset)
        else:
            tensor = torch.empty(0, dtype=spec.dtype, device=content.device)
            tensor.set_(content.untyped_storage(), spec.storage_offset, spec.shape, spec.stride)
        if spec.neg:
            tensor = _torch_debug.neg_view(tensor)
        if spec.conj:
            tensor = tensor.conj()
        return tensor.requires_grad_() if spec.requires_grad else tensor
    except (RuntimeError, TypeError) as error:
        raise DumpFormatError(
            f"{file}: field inputs[{index}] ({spec.name!r}) describes no tensor that torch can "
            f"make: {error}"
        ) from error
