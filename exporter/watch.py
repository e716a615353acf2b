"""Which files changed since they were read: a token, certificates, a web configuration, a bundle of CAs."""

import errno
import math
import os
import stat
import time
from collections.abc import Iterable

RETRY_SECONDS = 10.0  # until what could not be read is due again: descriptors may be out for a moment only

Signature = tuple[int, ...] | None


class Watched:
    """A set of files, each as it was when it was last read or last found changed.

    Not for several threads at once.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._seen = {path: _signature(path) for path in paths}
        self._due = math.inf

    def read(self, path: str, limit: int = -1) -> bytes:
        """The content of a file, cut after `limit` bytes, and watch it from now on.

        Raises OSError, also for what is not a regular file: a pipe would block, and cannot be read again.
        """
        self._seen[path] = _signature(path)  # before reading: a change in between shows next time
        try:
            with open(path, "rb", opener=_open_regular) as file:
                return file.read(limit)
        except OSError:
            self.look_again()
            raise

    def changed(self) -> bool:
        """Whether any file is another one now, came or went; each change is told once."""
        before, self._seen = self._seen, {path: _signature(path) for path in self._seen}
        changed = self._seen != before
        if changed:
            self._due = math.inf
        return changed

    def look_again(self) -> None:
        """Say that a file could not be read, for a reason that may pass without a change of the file."""
        self._due = time.monotonic() + RETRY_SECONDS

    def due(self) -> bool:
        """Whether it is time to read again what could not be read; told once for each time."""
        due = time.monotonic() >= self._due
        if due:
            self._due = math.inf
        return due


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


def _signature(path: str) -> Signature:
    try:
        status = os.stat(path)  # follows symlinks, so a swapped one counts as a change
    except (OSError, ValueError):  # ValueError: no name that a file can have
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
