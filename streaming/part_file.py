"""Files on disk, read and written at positions: a file that exists, and one that appears when it is complete.

Values go through ``pread`` and ``pwrite`` and are never mapped: mapped pages count as the process's own
memory.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from tensorbus.errors import StorageError, StorageFull

PART = ".part"
"""Suffix of a file that is still being written."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileReader:
    """A file open for reading.

    Attributes:
        path: of the file.
        size: in bytes, when it was opened.
        identity: another one when the file is replaced or written to.

    Raises:
        StorageError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _failed("open", self.path, error) from error
        found = os.fstat(self._file)
        self.size = found.st_size
        self.identity = f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
        self._open = True

    def read_into(self, out: memoryview, position: int) -> None:
        """Fill ``out`` with the bytes from ``position`` on.

        Raises:
            StorageError: the file has become shorter, or cannot be read.
        """
        try:
            _read_into(self._file, out, position)
        except OSError as error:
            raise _failed("read", self.path, error) from error

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._open:
            self._open = False
            os.close(self._file)


class PartFile:
    """A file of known size that is written in any order under another name, and takes its place at the end.

    The room is taken on disk at once, so that a full disk is known before the first byte is received. What
    was at ``path`` before stays untouched until ``finish``.

    Raises:
        StorageFull, StorageError: there is no room for it, or it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], size: int = 0) -> None:
        self.path = Path(path)
        self._size = 0
        self._part = self.path.with_name(f"{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
        self._file = -1
        self._there = False
        try:
            self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._there = True
            self._take(size)
        except OSError as error:
            self.abort()
            raise _failed("write", self.path, error) from error

    def grow(self, size: int) -> None:
        """Take the room for ``size`` bytes in all, where it was less. Raises as ``write``."""
        try:
            self._take(size)
        except OSError as error:
            raise _failed("write", self.path, error) from error

    def write(self, data: memoryview, position: int) -> None:
        """Write ``data`` from ``position`` on.

        Raises:
            StorageFull, StorageError: it cannot be written.
        """
        try:
            while data:
                written = os.pwrite(self._file, data, position)
                data, position = data[written:], position + written
        except OSError as error:
            raise _failed("write", self.path, error) from error

    def reader(self) -> FileReader:
        """The file as it is now, to be read beside this; it outlasts ``finish``. Raises StorageError."""
        return FileReader(self._part)

    def copy(self, source: int, target: int, count: int, buffer: memoryview) -> None:
        """Copy ``count`` bytes within the file, a buffer at a time. Raises as ``write``."""
        try:
            for start in range(0, count, len(buffer)):
                piece = buffer[: count - start]
                _read_into(self._file, piece, source + start)
                self.write(piece, target + start)
        except OSError as error:
            raise _failed("copy within", self.path, error) from error

    def sync(self) -> None:
        """Put on stable storage what has been written so far, while it still has its other name.

        Raises as ``write``.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _failed("write", self.path, error) from error

    def finish(self) -> Path:
        """Put it on stable storage, under its name. Raises as ``write``."""
        try:
            os.fsync(self._file)
            self._close()
            self._part.replace(self.path)
            self._there = False
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _failed("write", self.path, error) from error
        return self.path

    def abort(self) -> None:
        """Give up; nothing of it is left. Does nothing after ``finish``."""
        self._close()
        if self._there:
            self._there = False
            self._part.unlink(missing_ok=True)

    def _take(self, size: int) -> None:
        if size <= self._size:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file, self._size, size - self._size)
        else:
            os.ftruncate(self._file, size)
        self._size = size

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _read_into(file: int, out: memoryview, position: int) -> None:
    done = 0
    while done < len(out):
        count = os.preadv(file, [out[done:]], position + done)
        if not count:
            raise OSError(errno.EIO, f"it ends at byte {position + done}")
        done += count


def _failed(verb: str, path: Path, error: OSError) -> StorageError:
    kind = StorageFull if error.errno in _FULL else StorageError
    return kind(f"cannot {verb} {str(path)!r}: {error.strerror or error}")
