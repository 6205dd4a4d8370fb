"""The head of an archive: safetensors header, compressed structure and tensor table.

The format is specified in :mod:`lazyfx_core._container`. Writing lays storages out without gaps,
each where its dtype may begin. Reading takes nothing on trust: not that the file is as long as it
says, not that entries lie side by side, not that compressed data expands to what it says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import zlib
from typing import Any, BinaryIO

import torch

from ._checked_json import parse_json, require_fields, require_integers, shown
from ._tensor_table import MAX_NAME, TABLE_LIMIT, TensorTable, decode_table
from ._tensors import Described, covering_size
from .errors import GraphFormatError

SCHEMA = 1
"""Version of the file format; a reader refuses what is newer than itself."""

STRUCTURE, TABLE = "lazyfx.structure", "lazyfx.tensors"
_NO_DIGEST = "0" * 64

_FORMAT = "lazyfx-graph"
_METADATA = ("format", "schema", "tensors_sha256", "structure_sha256")
_ALIGNMENT = 64
# What every safetensors reader since 2023 knows: an unknown dtype makes the whole file unreadable.
_CODES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_WIDTHS = {code: dtype.itemsize for dtype, code in _CODES.items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a safetensors header; ``begin`` and ``end`` count from the end of the header."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """All of a file but the values. Positions count from the beginning of the file."""

    structure: bytes
    table: TensorTable
    begins: dict[str, int]
    tensors_begin: int
    tensors_end: int
    tensors_sha256: str


def lay_out(described: Described) -> dict[str, int]:
    """Unique keys for all storages that have bytes, in file order, with the storage's index."""
    indices = [i for i, s in enumerate(described.sources) if s.device.type != "meta"]
    keys = _unique_keys([described.owners[i].name for i in indices])
    divisors = [_power_of_two(described.sources[i].nbytes()) for i in indices]
    order = sorted(range(len(indices)), key=divisors.__getitem__, reverse=True)
    return {keys[place]: indices[place] for place in order}


def entries_of(described: Described, keys: dict[str, int]) -> dict[str, Entry]:
    """What other tools see of each storage, one after another as ``keys`` has them."""
    entries: dict[str, Entry] = {}
    begin = 0
    for key, index in keys.items():
        nbytes, owner = described.sources[index].nbytes(), described.owners[index]
        code, width = _CODES.get(owner.dtype), owner.dtype.itemsize
        covering = covering_size(owner, nbytes)
        shape: tuple[int, ...] = (nbytes,)
        if code is None:
            code = "U8"
        elif covering is not None:
            shape = covering
        elif index in described.mixed or nbytes % width:
            code = "U8"
        else:
            shape = (nbytes // width,)
        entries[key] = Entry(code=code, shape=shape, begin=begin, end=begin + nbytes)
        begin += nbytes
    return entries


def encode_header(entries: dict[str, Entry], structure_length: int, table_length: int) -> bytes:
    """The first bytes of the file, their length included, with zeros for both digests."""
    end = max((entry.end for entry in entries.values()), default=0)
    rows = [(key, e.code, e.shape, e.begin, e.end) for key, e in entries.items()]
    for key, length in ((STRUCTURE, structure_length), (TABLE, table_length)):
        rows.append((key, "U8", (length,), end, end + length))
        end += length
    values = (_FORMAT, str(SCHEMA), _NO_DIGEST, _NO_DIGEST)
    data: dict[str, Any] = {"__metadata__": dict(zip(_METADATA, values, strict=True))}
    for key, code, shape, begin, end in rows:
        data[key] = {"dtype": code, "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(data, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def fill_digests(header: bytes, tensors_sha256: str, structure: bytes, table: bytes) -> bytes:
    """``header``, as :func:`encode_header` made it, with its digests in their places."""
    # Metadata stands first, so the first digests are not part of a user's name.
    header = header.replace(_NO_DIGEST.encode(), tensors_sha256.encode(), 1)
    digest = _digest(header, structure, table)
    return header.replace(_NO_DIGEST.encode(), digest.encode(), 1)


def read_head(file: BinaryIO, max_structure_bytes: int) -> Head:
    """Read and check everything but the values.

    Raises:
        GraphFormatError: Anything is not as the format says; names the field.
    """
    size = os.fstat(file.fileno()).st_size
    header = _read_header(file, size)
    data = parse_json(header[8:], "the safetensors header")
    digests = _check_metadata(data)
    entries = _check_entries(data, size - len(header))
    ends = [entries.pop(key).end for key in (STRUCTURE, TABLE)]
    begin = len(header) + max((entry.end for entry in entries.values()), default=0)
    file.seek(begin)
    # zlib makes what cannot be compressed longer by less than a thousandth.
    most = max_structure_bytes + max_structure_bytes // 1000 + 64
    structure = _read(file, len(header) + ends[0] - begin, STRUCTURE, most)
    table_text = _read(file, ends[1] - ends[0], TABLE, TABLE_LIMIT)
    stated = digests["structure_sha256"].encode()
    if header.count(stated) != 1:
        raise GraphFormatError("structure_sha256 stands more than once in the header")
    blank = header.replace(stated, _NO_DIGEST.encode())
    compare_digests("structure_sha256", stated.decode(), _digest(blank, structure, table_text))
    table = decode_table(table_text, {key: e.end - e.begin for key, e in entries.items()})
    return Head(
        structure=_expand(structure, table.structure_bytes, max_structure_bytes),
        table=table,
        begins={key: len(header) + entry.begin for key, entry in entries.items()},
        tensors_begin=len(header),
        tensors_end=begin,
        tensors_sha256=digests["tensors_sha256"],
    )


def compare_digests(field: str, stated: str, found: str) -> None:
    """Raise :class:`GraphFormatError` if the bytes are not those that were written."""
    if stated != found:
        raise GraphFormatError(
            f"{field} is {stated}, the bytes of the file give {found}: it was damaged or altered "
            "after it was written; get it again from where it came"
        )


def _read_header(file: BinaryIO, size: int) -> bytes:
    """The header with the eight bytes before it."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, TABLE_LIMIT):
        hint = "; it begins as a zip file does, such as torch.save writes"
        raise GraphFormatError(
            f"not a safetensors file, or cut off: it has {size} bytes and its first eight give the "
            f"header {length}" + (hint if start.startswith(b"PK") else "")
        )
    header = _read(file, length, "the safetensors header", TABLE_LIMIT)
    if not header.startswith(b"{"):
        raise GraphFormatError("not a safetensors file: its header does not begin with '{'")
    return start + header


def _check_metadata(data: Any) -> dict[str, str]:
    """The two digests, of a header that says it is ours and of a schema that we know."""
    metadata = data.get("__metadata__") if type(data) is dict else None
    if type(metadata) is not dict or metadata.get("format") != _FORMAT:
        raise GraphFormatError(
            "a safetensors file that holds no lazyfx graph: __metadata__.format is not "
            f"{_FORMAT!r}; files with one are written by lazyfx_core.save_graph"
        )
    schema = metadata.get("schema")
    if type(schema) is not str or not (schema.isascii() and schema.isdecimal()) or len(schema) > 9:
        raise GraphFormatError(f"__metadata__.schema is {shown(schema)}, expected a number")
    if int(schema) > SCHEMA:
        raise GraphFormatError(
            f"__metadata__.schema is {schema}, this lazyfx-core reads up to {SCHEMA}: the file "
            "needs a newer lazyfx-core"
        )
    if schema != str(SCHEMA):
        raise GraphFormatError(f"__metadata__.schema is {schema!r}, expected {str(SCHEMA)!r}")
    require_fields(metadata, set(_METADATA), "__metadata__")
    for field in _METADATA[2:]:
        digest = metadata[field]
        if type(digest) is not str or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise GraphFormatError(
                f"__metadata__.{field} is {shown(digest)}, expected 64 lowercase hex digits"
            )
    return metadata


def _check_entries(data: dict[str, Any], available: int) -> dict[str, Entry]:
    """All entries, which fill ``available`` bytes in the order in which they stand."""
    entries: dict[str, Entry] = {}
    end = 0
    for key, row in data.items():
        if key == "__metadata__":
            continue
        entry = _check_entry(key, row)
        if entry.begin != end:
            raise GraphFormatError(
                f"the entry {key!r:.200} begins at {entry.begin}, the one before it ends at {end}"
            )
        end = entry.end
        entries[key] = entry
    if end != available:
        raise GraphFormatError(
            f"the entries have {end} bytes, the file has {available} for them: it was cut off or "
            "something was appended"
        )
    if list(entries)[-2:] != [STRUCTURE, TABLE]:
        raise GraphFormatError(f"the last entries are not {STRUCTURE!r} and {TABLE!r}")
    return entries


def _check_entry(key: str, row: Any) -> Entry:
    where = f"the entry {key!r:.200}"
    require_fields(row, {"dtype", "shape", "data_offsets"}, where)
    code = row["dtype"]
    width = _WIDTHS.get(code) if type(code) is str else None
    if width is None:
        raise GraphFormatError(f"{where} has the dtype {shown(code)}, expected {sorted(_WIDTHS)}")
    shape = require_integers(row["shape"], f"shape of {where}")
    offsets = require_integers(row["data_offsets"], f"data_offsets of {where}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * width:
        raise GraphFormatError(
            f"{where} has the data_offsets {offsets}, which do not fit its shape {shape} and dtype "
            f"{code}"
        )
    return Entry(code=code, shape=shape, begin=offsets[0], end=offsets[1])


def _read(file: BinaryIO, length: int, what: str, most: int) -> bytes:
    """The next ``length`` bytes; a file with holes may say that they are more than memory has."""
    if length > most:
        raise GraphFormatError(f"{what} has {length} bytes, the most that is read is {most}")
    data = file.read(length)
    if len(data) != length:
        raise GraphFormatError(f"{what} has {len(data)} bytes of {length}: the file was cut off")
    return data


def _expand(blob: bytes, stated: int, most: int) -> bytes:
    if stated > most:
        raise GraphFormatError(
            f"structure_bytes is {stated}, more than the {most} that a file of this size "
            "may expand to; it is damaged or hostile"
        )
    expander = zlib.decompressobj()
    try:
        structure = expander.decompress(blob, stated + 1)  # never makes more than it was told
    except zlib.error as error:
        raise GraphFormatError(f"{STRUCTURE} cannot be expanded: {error}") from None
    if len(structure) != stated or not expander.eof or expander.unused_data:
        raise GraphFormatError(
            f"{STRUCTURE} does not expand to exactly the {stated} bytes that structure_bytes says"
        )
    return structure


def _digest(header: bytes, structure: bytes, table: bytes) -> str:
    digest = hashlib.sha256(header)
    digest.update(structure)
    digest.update(table)
    return digest.hexdigest()


def _unique_keys(names: list[str]) -> list[str]:
    taken = {"__metadata__", STRUCTURE, TABLE}
    numbers: dict[str, int] = {}
    keys = []
    for name in names:
        key = name
        while key in taken:
            numbers[name] = number = numbers.get(name, 1) + 1
            suffix = f"~{number}"
            key = name[: MAX_NAME - len(suffix)] + suffix
        taken.add(key)
        keys.append(key)
    return keys


def _power_of_two(nbytes: int) -> int:
    """The largest power of two that divides ``nbytes``; at most the alignment."""
    return min(nbytes & -nbytes or _ALIGNMENT, _ALIGNMENT)
