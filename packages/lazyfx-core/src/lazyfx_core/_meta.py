"""Metadata of nodes and modules: stored by kind, and dropped by name where that cannot be.

``node.meta`` is where passes leave whatever they like, so a graph must not fail to be stored
because of one entry. What cannot be stored is left out and listed in one
:class:`~lazyfx_core.errors.DroppedMetadataWarning` per module, or raises if the caller is strict.
So is what another torch stored and this one does not have, when it is loaded.

Kinds: plain values and containers, strings (stack traces are written once each), tensor metadata,
fake tensors and symbolic numbers (all in one mode), operators, references to nodes. Containers that
several nodes share are shared again. Module classes and functions of the user's own that tracing
left in ``nn_module_stack`` and ``source_fn_stack`` are written by name: storing the classes would
drag the user's code into every package and make it a condition of loading. They come back as the
class if its module is loaded by then, else as the qualified name, which is what ``torch.export``
keeps.
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._torch_symbolic import Unstorable
from .errors import (
    DroppedMetadataWarning,
    GraphFormatError,
    NotInThisTorchError,
    SerializationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._decode import Decoder
    from ._encode import Encoder

_WRITTEN_BY_NAME = frozenset(
    {"nn_module_stack", "source_fn_stack", "fwd_nn_module_stack", "fwd_source_fn_stack"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How modules are stored inside a :func:`serialization_options` block."""

    strict: bool = False
    meta: bool = True


_options: contextvars.ContextVar[Options] = contextvars.ContextVar("lazyfx_serialization_options")
_USUAL = Options()


@contextlib.contextmanager
def serialization_options(*, strict: bool = False, meta: bool = True) -> Iterator[None]:
    """Say how ``pickle``, ``torch.save`` and ``torch.package`` store lazy modules in this block.

    Seen by the current thread or task only.

    Args:
        strict: Raise :class:`SerializationError` for metadata that cannot be stored, instead of
            leaving it out with a warning.
        meta: Store ``node.meta`` and ``gm.meta`` at all.

    Example:
        >>> import pickle, torch
        >>> from torch import fx
        >>> from lazyfx_core import LazyGraphModule, serialization_options
        >>> gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x)))
        >>> gm.meta["lock"] = open
        >>> with serialization_options(meta=False):
        ...     pickle.loads(pickle.dumps(gm)).meta
        {}
    """
    token = _options.set(Options(strict=strict, meta=meta))
    try:
        yield
    finally:
        _options.reset(token)


def current_options() -> Options:
    """The options of the innermost block of this thread or task."""
    return _options.get(_USUAL)


@dataclass(slots=True, kw_only=True)
class DroppedMeta:
    """What could not be stored of one module: the first place and reason for each key."""

    class_name: str
    strict: bool
    found: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, key: str, where: str, reason: str) -> None:
        """Take note of one entry.

        Raises:
            SerializationError: The caller is strict.
        """
        if self.strict:
            raise SerializationError(
                f"{self.class_name}, {where}: metadata {key!r} cannot be stored: {reason}; remove "
                "it, or store without strict=True to leave it out"
            )
        self.found.setdefault(key, (where, reason))

    def warn(self, stacklevel: int = 3) -> None:
        """Say once what was left out."""
        if not self.found:
            return
        listed = "; ".join(
            f"{key!r} ({where}: {reason})" for key, (where, reason) in sorted(self.found.items())
        )
        warnings.warn(
            f"{self.class_name} was stored without metadata that cannot be stored: {listed}",
            DroppedMetadataWarning,
            stacklevel=stacklevel,
        )


class MetaWriter:
    """Writes the metadata of one module after another node; see the module docstring.

    Args:
        encode: The writer of values.
        other: Stores what ``encode`` cannot say, for metadata.
        dropped: Takes note of what could not be stored.
    """

    def __init__(self, encode: Encoder, other: Callable[[Any], Any], dropped: DroppedMeta) -> None:
        self._encode = encode
        self._other = other
        self._dropped = dropped

    def __call__(self, meta: dict[Any, Any], where: str) -> dict[str, Any] | None:
        """JSON of one ``meta`` dictionary; None if nothing of it is left."""
        encode = self._encode
        row: dict[str, Any] = {}
        outside = encode.enter_meta(self._other)
        try:
            for key, value in meta.items():
                if type(key) is not str:
                    self._dropped.add(str(key), where, "the key is not text")
                    continue
                encode.by_name_only = key in _WRITTEN_BY_NAME
                try:
                    row[key] = encode.entry(value)
                except Exception as error:  # whatever objects of the user's make of it
                    self._dropped.add(key, where, _reason(error))
        finally:
            encode.leave_meta(outside)
        return row or None


def _reason(error: Exception) -> str:
    if isinstance(error, Unstorable):
        return str(error)
    if isinstance(error, RecursionError):
        return "it contains itself"
    return f"storing it raised {type(error).__name__}"


def read_meta(row: Any, decode: Decoder) -> dict[str, Any]:
    """The metadata that :class:`MetaWriter` wrote; ``decode.left_out`` says what is missing.

    Raises:
        GraphFormatError: ``row`` is not what it writes.
    """
    if type(row) is not dict:
        raise GraphFormatError(f"metadata is an object, found {row!r:.80}")
    outside, decode.in_metadata = decode.in_metadata, True
    try:
        return {k: v if type(v) is int else decode.entry(v) for k, v in row.items()}
    except NotInThisTorchError:
        return _read_what_there_is(row, decode)
    finally:
        decode.in_metadata = outside


def _read_what_there_is(row: dict[str, Any], decode: Decoder) -> dict[str, Any]:
    meta = {}
    for key, value in row.items():
        try:
            meta[key] = decode.entry(value)
        except NotInThisTorchError as error:
            decode.left_out.setdefault(key, str(error))
    return meta


def warn_of_left_out(left_out: dict[str, str], class_name: str, stacklevel: int = 3) -> None:
    """Say once which metadata was not loaded."""
    if left_out:
        listed = "; ".join(f"{key!r} ({reason})" for key, reason in sorted(left_out.items()))
        warnings.warn(
            f"{class_name} was loaded without metadata that this torch does not have: {listed}",
            DroppedMetadataWarning,
            stacklevel=stacklevel,
        )
