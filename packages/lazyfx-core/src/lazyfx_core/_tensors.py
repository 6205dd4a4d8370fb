"""Live tensors and the entries of the tensor table that describe them.

Two tensors share a storage if their storages are one object or cover the same memory, as two
``from_numpy`` of one array do. Storages that overlap in part cannot be stored: one of them would
come back with memory of its own, and a write through one would no longer show in the other.

Stored of a tensor: dtype, size, stride, offset, device, conjugate and negative bits, whether it is
an ``nn.Parameter`` or ``nn.Buffer``, ``requires_grad``. Not stored, as ``torch.save`` does not:
gradients, hooks, the history of a tensor that is not a leaf (it comes back as one), pinned and
shared memory. Not stored either: attributes that somebody put on a tensor.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._checked_json import MAX_DIMENSIONS
from ._tensor_table import MAX_NAME, TensorEntry, bytes_needed, storable_dtypes
from ._torch_tensors import set_bits, storage_number
from .errors import GraphFormatError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_STORABLE = frozenset(storable_dtypes().values())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What :func:`describe_tensors` found.

    ``sources`` are the storages themselves, each once, as the entries number them. The owner of a
    storage is the first tensor that is all of it, else the first that uses it. ``mixed`` are the
    numbers of storages whose tensors differ in dtype.
    """

    tensors: list[TensorEntry]
    sources: list[torch.UntypedStorage]
    owners: list[TensorEntry]
    mixed: set[int]


def describe_tensors(tensors: Sequence[torch.Tensor], names: Sequence[str] | None) -> Described:
    """Entries for ``tensors``, and the storages they use, each once. Reads no value.

    Raises:
        SerializationError: A tensor is not plain memory (sparse, quantized, nested, a subclass, a
            fake tensor …) or shares part of its memory in a way that cannot be stored; names it.
        TypeError: An element of ``tensors`` is not a tensor, or of ``names`` not a string.
        ValueError: ``names`` has another length than ``tensors``.
    """
    labels = _labels(tensors, names)
    numbers: dict[Any, int] = {}
    seen: dict[int, int] = {}
    sources: list[torch.UntypedStorage] = []
    owners: list[TensorEntry] = []
    mixed: set[int] = set()
    entries: list[TensorEntry] = []
    for index, (tensor, label) in enumerate(zip(tensors, labels, strict=True)):
        if id(tensor) in seen:
            first = seen[id(tensor)]
            entries.append(dataclasses.replace(entries[first], name=label, same_as=first))
            continue
        seen[id(tensor)] = index
        storage = _storage(tensor, index, label)
        pointer = storage.data_ptr() if storage.device.type != "meta" else 0
        where = (storage.device, pointer, storage.nbytes()) if pointer else storage_number(storage)
        number = numbers.setdefault(where, len(sources))
        entry = _describe(tensor, storage, number, index, label)
        entries.append(entry)
        if number == len(sources):
            sources.append(storage)
            owners.append(entry)
            continue
        if entry.dtype != owners[number].dtype:
            mixed.add(number)
        if not _covers(owners[number], storage) and _covers(entry, storage):
            owners[number] = entry  # other tools will find the whole weight under this name
    _check_apart(numbers, owners)
    return Described(tensors=entries, sources=sources, owners=owners, mixed=mixed)


def covering_size(entry: TensorEntry, nbytes: int) -> tuple[int, ...] | None:
    """The size of ``entry`` if it is all of a storage of ``nbytes``, in order; else None."""
    if entry.offset or entry.conj or entry.neg or entry.nbytes != nbytes:
        return None
    expected = 1
    for n, step in zip(reversed(entry.size), reversed(entry.stride), strict=True):
        if n != 1 and step != expected and nbytes:
            return None
        expected *= n
    return entry.size


def rebuild_tensor(entry: TensorEntry, storage: torch.UntypedStorage) -> torch.Tensor:
    """The tensor that a checked ``entry`` describes; it uses ``storage`` itself.

    Raises:
        GraphFormatError: torch refuses what the entry says.
    """
    tensor: torch.Tensor
    try:
        if entry.dtype.is_complex and entry.dtype.itemsize == 4:
            # torch.empty would warn that these are experimental.
            empty = torch.empty(0, dtype=torch.uint8, device=storage.device).view(entry.dtype)
        else:
            empty = torch.empty(0, dtype=entry.dtype, device=storage.device)
        tensor = empty.set_(storage, entry.offset, entry.size, entry.stride)
        if entry.conj or entry.neg:
            set_bits(tensor, conj=entry.conj, neg=entry.neg)
        if entry.kind == "parameter":
            return nn.Parameter(tensor, requires_grad=entry.requires_grad)
        if entry.requires_grad:
            tensor.requires_grad_()
        if entry.kind != "tensor":
            return nn.Buffer(tensor, persistent=entry.kind == "buffer")
    except (RuntimeError, TypeError) as error:
        raise GraphFormatError(
            f"torch {torch.__version__} cannot make the tensor {entry.name!r}: {error!s:.300}"
        ) from error
    return tensor


def _labels(tensors: Sequence[torch.Tensor], names: Sequence[str] | None) -> list[str]:
    if names is None:
        return [f"tensor{index}" for index in range(len(tensors))]
    if len(names) != len(tensors):
        raise ValueError(f"there are {len(tensors)} tensors and {len(names)} names for them")
    labels = []
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"names[{index}] is {name!r:.80}, expected a string")
        if not name.isprintable():
            name = "".join(c if c.isprintable() else "_" for c in name)
        labels.append(str(name[:MAX_NAME]) or f"tensor{index}")
    return labels


def _storage(tensor: torch.Tensor, index: int, label: str) -> torch.UntypedStorage:
    """The storage of ``tensor``, which has to be plain memory on a device, or on meta."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensors[{index}] ({label!r}) is {tensor!r:.80}, expected a tensor")
    problem = step = ""
    if type(tensor) is not torch.Tensor and type(tensor) is not nn.Parameter:
        cls = type(tensor)
        problem = f"a {cls.__module__}.{cls.__qualname__}, which is more than its bytes"
        step = "store a plain torch.Tensor made from it"
    elif tensor.is_nested:
        problem, step = "nested", "store its values and offsets, or torch.nested.to_padded_tensor()"
    elif tensor.layout is not torch.strided:
        problem, step = f"of layout {tensor.layout}", "store tensor.to_dense()"
    elif tensor.is_quantized or tensor.dtype not in _STORABLE:
        problem, step = f"quantized ({tensor.dtype})", "store tensor.dequantize()"
    elif tensor.dim() > MAX_DIMENSIONS:
        problem = f"of {tensor.dim()} dimensions, more than {MAX_DIMENSIONS}"
        step = "store it flattened"
    elif hasattr(tensor, "has_names") and tensor.has_names():
        problem, step = "one with named dimensions", "store tensor.rename(None)"
    if not problem:
        try:
            storage = tensor.untyped_storage()
            if storage.device.type == "meta" or storage.data_ptr() or not storage.nbytes():
                return storage
            problem = "without memory of its own"
        except RuntimeError as error:  # wrappers of functionalization and functorch, zero tensors
            problem = f"without memory of its own ({error!s:.120})"
        step = (
            "store a tensor with values, for example tensor.clone() outside of the transformation"
        )
    raise SerializationError(
        f"tensors[{index}] ({label!r}) is {problem}; an archive holds plain strided tensors: {step}"
    )


def _describe(
    tensor: torch.Tensor, storage: torch.UntypedStorage, number: int, index: int, label: str
) -> TensorEntry:
    size, stride, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
    needed = bytes_needed(size, stride, offset, tensor.dtype.itemsize)
    if needed > storage.nbytes():
        raise SerializationError(
            f"tensors[{index}] ({label!r}) needs {needed} bytes and its storage has "
            f"{storage.nbytes()}: its memory was given back; restore it before storing"
        )
    kind = "tensor"
    if type(tensor) is nn.Parameter:
        kind = "parameter"
    elif isinstance(tensor, nn.Buffer):
        kind = "buffer" if getattr(tensor, "persistent", True) else "temporary_buffer"
    return TensorEntry(
        name=label,
        storage=number,
        dtype=tensor.dtype,
        size=size,
        stride=stride,
        offset=offset,
        kind=kind,
        requires_grad=tensor.requires_grad,
        conj=tensor.is_conj(),
        neg=tensor.is_neg(),
        same_as=None,
    )


def _covers(entry: TensorEntry, storage: torch.UntypedStorage) -> bool:
    return covering_size(entry, storage.nbytes()) is not None


def _check_apart(numbers: dict[Any, int], owners: list[TensorEntry]) -> None:
    """Raise if two storages overlap in memory without being the same."""
    spans = sorted(
        (str(key[0]), key[1], key[1] + key[2], number)
        for key, number in numbers.items()
        if isinstance(key, tuple)
    )
    for (device, _, end, first), (other, start, _, second) in itertools.pairwise(spans):
        if device == other and start < end:
            raise SerializationError(
                f"the tensors {owners[first].name!r} and {owners[second].name!r} share part of "
                "their memory through different storages, which cannot be stored as it is; "
                "clone one of them, or make both views of one tensor"
            )
