"""A file that is replaced as a whole or not at all.

The new content goes to a temporary file in the same folder, which is flushed to the disk and then
renamed. Whatever happens in between (an exception, a full disk, Ctrl-C, power loss), the path holds
the old content or the new, and unless the process was killed, no temporary file stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator


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
