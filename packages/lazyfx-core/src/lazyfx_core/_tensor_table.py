"""The tensor table of an archive: what a tensor is, besides the bytes of its storage.

Its fields are described in ``docs/design/archive.md``.

Every storage is used by a tensor. Reading trusts nothing: each field is checked for its type and
range, each tensor for lying inside its storage, before anything is made from it. Sizes are checked
in Python's integers, which do not overflow.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import TYPE_CHECKING, Any

import torch

from ._checked_json import (
    MAX_INT,
    parse_json,
    require_fields,
    require_integer,
    require_integers,
    require_list,
    shown,
)
from .errors import GraphFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NAME = 200
TABLE_LIMIT = 100_000_000
"""Most bytes that a table or a header may have; safetensors draws the same line."""

KINDS = frozenset({"tensor", "parameter", "buffer", "temporary_buffer"})
_REQUIRED = frozenset({"name", "storage", "dtype", "size", "stride", "offset"})
_FLAGS = ("requires_grad", "conj", "neg")
_ALLOWED = _REQUIRED | {*_FLAGS, "kind"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StorageEntry:
    """One storage; ``key`` names the file's entry with its bytes, None on the meta device."""

    key: str | None
    nbytes: int
    device: torch.device


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor: which elements of which storage. Sizes, strides and offset in elements."""

    name: str
    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    kind: str
    requires_grad: bool
    conj: bool
    neg: bool
    same_as: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of all values, each counted once per place in the tensor."""
        return math.prod(self.size) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorTable:
    """All tensors of a file, in the order in which they were given."""

    structure_bytes: int
    storages: tuple[StorageEntry, ...]
    tensors: tuple[TensorEntry, ...]


@functools.cache
def storable_dtypes() -> dict[str, torch.dtype]:
    """Name to dtype, for each dtype of this torch whose values are nothing but their bytes."""
    found = {str(v)[6:]: v for v in vars(torch).values() if isinstance(v, torch.dtype)}
    # Quantized values need a scale that lies outside of the storage.
    return {name: dtype for name, dtype in found.items() if not name.startswith(("qint", "quint"))}


def bytes_needed(size: tuple[int, ...], stride: tuple[int, ...], offset: int, itemsize: int) -> int:
    """How long a storage must be for such a tensor; 0 for one without elements."""
    if 0 in size:
        return 0
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return (offset + last + 1) * itemsize


def encode_table(table: TensorTable) -> bytes:
    """The JSON that :func:`decode_table` reads."""
    storages = [
        {"nbytes": s.nbytes, "device": str(s.device)}
        if s.key is None
        else {"key": s.key, "device": str(s.device)}
        for s in table.storages
    ]
    tensors: list[dict[str, Any]] = []
    for entry in table.tensors:
        if entry.same_as is not None:
            tensors.append({"name": entry.name, "same_as": entry.same_as})
            continue
        row: dict[str, Any] = {
            "name": entry.name,
            "storage": entry.storage,
            "dtype": str(entry.dtype)[6:],
            "size": entry.size,
            "stride": entry.stride,
            "offset": entry.offset,
        }
        if entry.kind != "tensor":
            row["kind"] = entry.kind
        row.update({flag: True for flag in _FLAGS if getattr(entry, flag)})
        tensors.append(row)
    data = {
        "structure_bytes": table.structure_bytes,
        "storages": storages,
        "tensors": tensors,
    }
    return json.dumps(data, separators=(",", ":")).encode()


def decode_table(text: bytes, stored: Mapping[str, int]) -> TensorTable:
    """Check a table from a stranger and return it. Makes no tensor.

    Args:
        text: The JSON.
        stored: The entries that the file holds for storages, with their length in bytes.

    Raises:
        GraphFormatError: A field is missing, unknown, of the wrong type or out of range; a tensor
            reaches outside of its storage; an entry of the file is used twice or not at all. Names
            the field.
    """
    data = parse_json(text, "the tensor table")
    require_fields(data, {"structure_bytes", "storages", "tensors"}, "the tensor table")
    structure_bytes = require_integer(data["structure_bytes"], "structure_bytes")
    storages = _decode_storages(require_list(data["storages"], "storages"), stored)
    tensors: list[TensorEntry] = []
    for index, row in enumerate(require_list(data["tensors"], "tensors")):
        tensors.append(_decode_tensor(row, f"tensors[{index}]", storages, tensors))
    used = {entry.storage for entry in tensors}
    for index, storage in enumerate(storages):
        if index not in used:
            raise GraphFormatError(f"storages[{index}] ({storage.key!r}) belongs to no tensor")
    return TensorTable(structure_bytes=structure_bytes, storages=storages, tensors=tuple(tensors))


def _decode_storages(rows: list[Any], stored: Mapping[str, int]) -> tuple[StorageEntry, ...]:
    storages = []
    left = dict(stored)
    for index, row in enumerate(rows):
        where = f"storages[{index}]"
        on_meta = type(row) is dict and row.get("device") == "meta"
        require_fields(row, {"device", "nbytes" if on_meta else "key"}, where)
        device = _device(row["device"], f"{where}.device")
        key = None
        if on_meta:
            nbytes = require_integer(row["nbytes"], f"{where}.nbytes")
        else:
            key = row["key"]
            if type(key) is not str or key not in stored:
                raise GraphFormatError(f"{where}.key is {shown(key)}, no entry of the file")
            if key not in left:
                raise GraphFormatError(f"{where}.key is {key!r:.200}, as of an earlier storage")
            nbytes = left.pop(key)
        storages.append(StorageEntry(key=key, nbytes=nbytes, device=device))
    if left:
        raise GraphFormatError(f"the entry {next(iter(left))!r:.200} of the file has no storage")
    return tuple(storages)


def _decode_tensor(
    row: Any, where: str, storages: tuple[StorageEntry, ...], earlier: list[TensorEntry]
) -> TensorEntry:
    if type(row) is not dict:
        raise GraphFormatError(f"{where} is {shown(row)}, expected an object")
    name = row.get("name")
    if type(name) is not str or not name.isprintable() or len(name) > MAX_NAME:
        raise GraphFormatError(
            f"{where}.name is {shown(name)}, expected at most {MAX_NAME} printable characters"
        )
    where = f"{where} ({name!r})"
    if "same_as" in row:
        return _decode_repeated(row, where, earlier)
    if not (_REQUIRED <= row.keys() <= _ALLOWED):
        require_fields(row, _REQUIRED | (row.keys() & _ALLOWED), where)
    storage = require_integer(row["storage"], f"{where}.storage")
    if storage >= len(storages):
        raise GraphFormatError(f"{where}.storage is {storage}, there are {len(storages)}")
    dtype = _dtype(row["dtype"], f"{where}.dtype")
    size = require_integers(row["size"], f"{where}.size")
    stride = require_integers(row["stride"], f"{where}.stride")
    if len(size) != len(stride):
        raise GraphFormatError(f"{where}.size has {len(size)} numbers, .stride {len(stride)}")
    offset = require_integer(row["offset"], f"{where}.offset")
    _check_inside(size, stride, offset, dtype, storages[storage].nbytes, where)
    for flag in _FLAGS:
        if flag in row and row[flag] is not True:
            raise GraphFormatError(
                f"{where}.{flag} is {shown(row[flag])}, expected true or nothing"
            )
    kind = row.get("kind", "tensor")
    if type(kind) is not str or kind not in KINDS:
        raise GraphFormatError(f"{where}.kind is {shown(kind)}, expected one of {sorted(KINDS)}")
    conj, neg, requires_grad = "conj" in row, "neg" in row, "requires_grad" in row
    continuous = dtype.is_complex or dtype.is_floating_point
    if (conj and not dtype.is_complex) or ((neg or requires_grad) and not continuous):
        flag = "conj" if conj else "neg" if neg else "requires_grad"
        raise GraphFormatError(f"{where}.{flag} is true, which {dtype} does not allow")
    return TensorEntry(
        name=name,
        storage=storage,
        dtype=dtype,
        size=size,
        stride=stride,
        offset=offset,
        kind=kind,
        requires_grad=requires_grad,
        conj=conj,
        neg=neg,
        same_as=None,
    )


def _decode_repeated(row: dict[str, Any], where: str, earlier: list[TensorEntry]) -> TensorEntry:
    require_fields(row, {"name", "same_as"}, where)
    same_as = require_integer(row["same_as"], f"{where}.same_as")
    if same_as >= len(earlier) or earlier[same_as].same_as is not None:
        raise GraphFormatError(f"{where}.same_as is {same_as}, which is no earlier tensor")
    first = earlier[same_as]
    return dataclasses.replace(first, name=row["name"], same_as=same_as)


def _check_inside(
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    dtype: torch.dtype,
    nbytes: int,
    where: str,
) -> None:
    # torch multiplies sizes in 64 bits, those of a tensor without elements too.
    if math.prod(n or 1 for n in size) * dtype.itemsize > MAX_INT:
        raise GraphFormatError(f"{where}.size is {size}, more bytes than a number can count")
    if offset * dtype.itemsize > MAX_INT:
        raise GraphFormatError(f"{where}.offset is {offset}, more bytes than a number can count")
    needed = bytes_needed(size, stride, offset, dtype.itemsize)
    if needed > nbytes:
        raise GraphFormatError(
            f"{where} reaches outside of its storage: size {size}, stride {stride} and offset "
            f"{offset} need {needed} bytes, the storage has {nbytes}"
        )


def _dtype(value: Any, where: str) -> torch.dtype:
    dtype = storable_dtypes().get(value) if type(value) is str else None
    if dtype is None:
        raise GraphFormatError(
            f"{where} is {shown(value)}, which torch {torch.__version__} does not have or cannot "
            "hold as plain bytes; read the file with the torch that wrote it"
        )
    return dtype


def _device(value: Any, where: str) -> torch.device:
    try:
        device = torch.device(value) if type(value) is str and len(value) < 100 else None
    except RuntimeError:
        device = None
    if device is None or str(device) != value:
        raise GraphFormatError(f"{where} is {shown(value)}, which this torch knows no device by")
    return device
