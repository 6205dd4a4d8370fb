"""The file of a safe archive: bytes that describe a graph, and the tensors it uses.

A safetensors file, so any tool for those can list and read the weights; what is in it is described
in ``docs/design/archive.md``.

**Reading** executes nothing. The file is mapped copy-on-write: tensors are
windows into it that cost no memory until they are used, and writing to one never reaches the file.
Replacing the file (as :func:`write_container` does) leaves loaded tensors as they are; overwriting
it in place or cutting it off does not, as with any mapped file. The safetensors library is not
used: it would open the file by its name once more, after the digests were checked, and knows only
the dtypes of its own release. Here one mapping serves for checking and for the tensors.

SHA-256 runs at about 1.7 GB/s on one core, slower than a good disk: hence the pieces. While one is
hashed the next is read or written.

**Writing** replaces a file as a whole or not at all. The new content goes to a temporary file in
the same folder, which is flushed to the disk and then renamed. Whatever happens in between (an
exception, a full disk, Ctrl-C, power loss), the path holds the old content or the new, and unless
the process was killed, no temporary file stays.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import hashlib
import mmap
import os
import secrets
import stat
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO

import torch

from ._container_header import (
    Head,
    compare_digests,
    encode_header,
    entries_of,
    fill_digests,
    lay_out,
    read_head,
)
from ._tensor_table import TABLE_LIMIT, StorageEntry, TensorTable, encode_table
from ._tensors import Described, describe_tensors, rebuild_tensor
from ._torch_tensors import plain_operations
from .errors import GraphFormatError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_STRUCTURE_BYTES = 1 << 30
"""Most bytes that a structure may expand to unless the caller allows more."""

_ZLIB_LEVEL = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor of a file, for people who look at it; made without touching its values.

    ``shape``, ``stride`` in elements; ``device`` is where it was when it was stored. ``nbytes``
    counts its elements, ``storage_nbytes`` the storage it uses, which may be longer (a view) or
    shorter (expanded). ``shares_storage_with`` is the index of the first tensor that uses the same
    storage, None if this is the first: the storages of those with None are all that the file holds.
    ``kind`` is ``tensor``, ``parameter``, ``buffer`` or ``temporary_buffer``.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: torch.device
    nbytes: int
    storage_nbytes: int
    shares_storage_with: int | None
    kind: str
    requires_grad: bool


def write_container(
    path: str | os.PathLike[str],
    structure: bytes,
    tensors: Sequence[torch.Tensor],
    *,
    names: Sequence[str] | None = None,
) -> None:
    """Write ``structure`` and ``tensors`` to one file, which appears complete or not at all.

    Nothing is changed. Each storage is written once, all of it, whichever part the tensors use;
    tensors on other devices are copied piece by piece. If another thread changes values meanwhile,
    the file holds some of each and is consistent in itself.

    Args:
        path: Where to write. A file that is there is replaced and keeps its permissions.
        structure: Any bytes.
        tensors: Plain strided tensors, parameters and buffers on any device. One that stands here
            twice is one object again when it is read.
        names: What people see of each tensor; need not be unique. By default ``tensor0`` …

    Raises:
        SerializationError: A tensor is not plain memory, such as a sparse, quantized or fake one;
            names it and what to store instead. Or there are too many for a safetensors file.
        OSError: The file cannot be written. The old one is untouched.
    """
    with plain_operations():
        described = describe_tensors(tensors, names)
        keys = lay_out(described)
        entries = entries_of(described, keys)
        table = encode_table(
            TensorTable(
                structure_bytes=len(structure),
                storages=_storages(described, keys),
                tensors=tuple(described.tensors),
            )
        )
        packed = zlib.compress(structure, _ZLIB_LEVEL)
        header = encode_header(entries, len(packed), len(table))
        if max(len(header), len(table)) > TABLE_LIMIT:
            raise SerializationError(
                f"{len(tensors)} tensors make a header of {len(header)} bytes and a table of "
                f"{len(table)}; a file holds {TABLE_LIMIT} of each: store fewer, larger ones"
            )
        with replacing(os.fsdecode(path)) as file:
            file.seek(len(header))

            def written() -> Iterator[bytearray]:
                for piece in pieces_of_storages(described.sources[i] for i in keys.values()):
                    yield piece  # another thread hashes it while it is written
                    file.write(piece)

            tensors_sha256 = digest_of_pieces(written())
            file.write(packed)
            file.write(table)
            file.seek(0)
            file.write(fill_digests(header, tensors_sha256, packed, table))


def read_container(
    path: str | os.PathLike[str],
    *,
    check_tensors: bool = True,
    map_location: torch.device | str | None = None,
    max_structure_bytes: int = MAX_STRUCTURE_BYTES,
) -> tuple[bytes, list[torch.Tensor]]:
    """Read what :func:`write_container` wrote, from anybody: executes and imports nothing.

    Tensors on the CPU are windows into the file, mapped copy-on-write; their storages cannot be
    resized. Views of one storage are so again.

    Args:
        path: The file.
        check_tensors: Compare all values with their digest. Without, the file is not read until a
            value is used, and damage in the values goes unnoticed; all else is always checked.
        map_location: Device for all tensors, ``None`` for where each was. Tensors that were on the
            meta device have no values and stay there.
        max_structure_bytes: Most bytes that the structure may expand to.

    Returns:
        The structure, and the tensors in the order in which they were written.

    Raises:
        GraphFormatError: The file is damaged, altered, of another kind or newer than this reader,
            or a tensor was on a device that is not here; names the file and the field.
        ValueError: ``map_location`` cannot be used here.
        OSError: The file cannot be opened or mapped.
    """
    with _opened(path) as file, plain_operations():
        moved_to = None if map_location is None else _usable(map_location)
        head = read_head(file, max_structure_bytes)
        mapping = _map(file, head.tensors_end)
        if check_tensors:
            view = memoryview(mapping)[head.tensors_begin :]
            compare_digests(
                "tensors_sha256", head.tensors_sha256, digest_of_pieces(pieces_of(view))
            )
        return head.structure, _tensors(head, mapping, moved_to)


def read_structure(
    path: str | os.PathLike[str], *, max_structure_bytes: int = MAX_STRUCTURE_BYTES
) -> tuple[bytes, list[TensorInfo]]:
    """The structure, and what the tensors are like; no byte of their values is read.

    Raises:
        GraphFormatError: As :func:`read_container`, except for values and devices.
        OSError: The file cannot be opened.
    """
    with _opened(path) as file:
        head = read_head(file, max_structure_bytes)
    first: dict[int, int] = {}
    infos = []
    for index, entry in enumerate(head.table.tensors):
        earlier = first.setdefault(entry.storage, index)
        storage = head.table.storages[entry.storage]
        infos.append(
            TensorInfo(
                name=entry.name,
                dtype=entry.dtype,
                shape=entry.size,
                stride=entry.stride,
                device=storage.device,
                nbytes=entry.nbytes,
                storage_nbytes=storage.nbytes,
                shares_storage_with=None if earlier == index else earlier,
                kind=entry.kind,
                requires_grad=entry.requires_grad,
            )
        )
    return head.structure, infos


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The open file; errors about its content say which file it is."""
    name = os.fsdecode(path)
    mode = os.stat(name).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        # Opening a pipe would wait for somebody to write to it.
        raise GraphFormatError(f"{name!r} is not a regular file")
    with open(name, "rb") as file:
        try:
            yield file
        except GraphFormatError as error:
            raise GraphFormatError(f"{name!r}: {error}") from error.__cause__


def _storages(described: Described, keys: dict[str, int]) -> tuple[StorageEntry, ...]:
    by_index = {index: key for key, index in keys.items()}
    return tuple(
        StorageEntry(key=by_index.get(index), nbytes=source.nbytes(), device=source.device)
        for index, source in enumerate(described.sources)
    )


def _map(file: BinaryIO, length: int) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY)
    except ValueError as error:  # shorter than it was a moment ago
        raise GraphFormatError(f"the file changes while it is read: {error}") from None


def _tensors(head: Head, mapping: mmap.mmap, moved_to: torch.device | None) -> list[torch.Tensor]:
    table = head.table
    alignment = [1] * len(table.storages)
    for entry in table.tensors:
        alignment[entry.storage] = max(alignment[entry.storage], entry.dtype.itemsize)
    storages = [
        _load_storage(storage, head.begins, mapping, alignment[index], moved_to)
        for index, storage in enumerate(table.storages)
    ]
    tensors: list[torch.Tensor] = []
    for entry in table.tensors:
        if entry.same_as is None:
            tensors.append(rebuild_tensor(entry, storages[entry.storage]))
        else:
            tensors.append(tensors[entry.same_as])
    return tensors


def _load_storage(
    entry: StorageEntry,
    begins: dict[str, int],
    mapping: mmap.mmap,
    alignment: int,
    moved_to: torch.device | None,
) -> torch.UntypedStorage:
    device = entry.device if entry.key is None or moved_to is None else moved_to
    if device.type == "meta":
        return torch.UntypedStorage(entry.nbytes, device="meta")  # type: ignore[no-untyped-call]
    if moved_to is None:
        _require_device(device, entry)
    if entry.key is None or entry.nbytes == 0:
        return torch.empty(0, dtype=torch.uint8, device=device).untyped_storage()
    begin = begins[entry.key]
    window = torch.frombuffer(mapping, dtype=torch.uint8, count=entry.nbytes, offset=begin)
    if device.type != "cpu":
        window = window.to(device)
    elif begin % alignment:
        window = window.clone()  # only what a stranger laid out, or bytes of mixed dtypes
    return window.untyped_storage()


def _usable(device: torch.device | str) -> torch.device:
    """The user's ``map_location``; :class:`ValueError` if nothing can be put there."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:  # as torch likes
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"map_location={str(device)!r} cannot be used on this machine ({reason}); name a "
            "device that is here, for example map_location='cpu'"
        ) from error


def _require_device(device: torch.device, entry: StorageEntry) -> None:
    """Raise :class:`GraphFormatError` if this machine has no such device."""
    if device.type == "cpu":
        return
    try:
        module = torch.get_device_module(device)
        found = module.device_count() if module.is_available() else 0
    except (RuntimeError, AttributeError):
        found = 0
    if found <= (device.index or 0):
        raise GraphFormatError(
            f"the tensors of {entry.key!r:.200} were on {device}, this machine has {found} such "
            "devices; pass map_location, for example map_location='cpu'"
        )


PIECE = 8 << 20
"""Bytes in a piece; part of the file format."""

_MOST_THREADS = 8


def digest_of_pieces(pieces: Iterable[bytearray | memoryview]) -> str:
    """SHA-256, in hex, of the SHA-256s of ``pieces``.

    Each piece is hashed by another thread while the next is taken from ``pieces``; at most nine are
    held at a time. A piece must not change before the function returns.
    """
    whole = hashlib.sha256()
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    pending: collections.deque[Future[bytes]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        for piece in pieces:
            pending.append(_hash(pool, piece))
            if len(pending) > threads:
                whole.update(pending.popleft().result())
        for future in pending:
            whole.update(future.result())
    return whole.hexdigest()


def pieces_of(run: memoryview) -> Iterator[memoryview]:
    """``run`` cut into pieces; nothing is copied."""
    for start in range(0, len(run), PIECE):
        yield run[start : start + PIECE]


def pieces_of_storages(storages: Iterable[torch.UntypedStorage]) -> Iterator[bytearray]:
    """The bytes of ``storages`` one after another, copied from their devices into pieces.

    Each piece is a copy that nobody else holds: what is hashed is what is written, even if another
    thread changes a tensor meanwhile.
    """
    piece = bytearray(PIECE)
    window = torch.frombuffer(piece, dtype=torch.uint8)
    filled = 0
    for storage in storages:
        source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        taken, length = 0, storage.nbytes()
        while taken < length:
            step = min(length - taken, PIECE - filled)
            window[filled : filled + step].copy_(source[taken : taken + step])
            filled += step
            taken += step
            if filled == PIECE:
                yield piece
                piece, filled = bytearray(PIECE), 0
                window = torch.frombuffer(piece, dtype=torch.uint8)
    if filled:
        yield piece[:filled]


def _hash(pool: ThreadPoolExecutor, piece: bytearray | memoryview) -> Future[bytes]:
    try:
        return pool.submit(_sha256, piece)
    except RuntimeError:  # the interpreter is shutting down: no new threads
        done: Future[bytes] = Future()
        done.set_result(_sha256(piece))
        return done


def _sha256(piece: bytearray | memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Open a temporary file for writing that becomes ``path`` when the block ends without error.

    A symbolic link is followed, as when a file is opened for writing. A new file gets the
    permissions that any new file gets; one that is there keeps its own. Threads and processes that
    write the same path at once each write a file of their own; the last to finish wins.

    Raises:
        OSError: The folder is missing or not writable, ``path`` is a folder, a device or write
            protected, the disk is full …
    """
    target = os.path.realpath(path)
    mode = _mode_of(target, path)
    temporary = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.lazyfx-tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, 0o666)
    except OSError as error:
        error.filename = path  # nobody knows the temporary name
        raise
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _flush_folder(os.path.dirname(target))


def _mode_of(target: str, path: str) -> int | None:
    """Permissions of the regular file ``target``; None if there is none yet."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        # A rename would put a file where /dev/null was.
        raise OSError(errno.EINVAL, "not a regular file", path)
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return stat.S_IMODE(mode)


def _flush_folder(folder: str) -> None:
    """Make the rename itself survive a power loss, on systems that can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
