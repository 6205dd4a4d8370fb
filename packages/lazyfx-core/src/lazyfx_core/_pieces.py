"""Bytes of many tensors as one run, cut into pieces that are hashed side by side.

SHA-256 runs at about 1.7 GB/s on one core, slower than a good disk. So the digest of a long run is
the SHA-256 of the SHA-256s of its pieces: several threads can work on it, and while one piece is
hashed the next is read or written.
"""

from __future__ import annotations

import collections
import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
