"""The folder of frame files: one append-only file a message, named by its id and nothing else.

A file that is being written differs from a sealed one only in that no row tells of it. So there is nothing to
rename at the end, and after a crash everything without a row is known to be rubbish.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorbus.errors import StorageError, StorageFull, StoreDamaged

from .base import FrameFile, Part

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_PARTS = 1024  # IOV_MAX of Linux and macOS
_FRAME_FILE = re.compile(r"([0-9a-f]{32})\.frames", re.ASCII)


def as_storage_error(problem: OSError, path: Path) -> StorageError:
    """What the system says, as StorageFull or StorageError."""
    if problem.errno in _FULL:
        return StorageFull(f"{path}: the disk or quota is full; free space on the disk of the data directory")
    return StorageError(f"{path}: {problem.strerror or problem}")


class FrameFolder:
    """Creates, opens and removes frame files. All methods block.

    Args:
        path: the folder; it must exist.
        reserve: bytes of the disk that frames leave free, so that messages can still be acknowledged and
            deleted (which takes rows) when the disk is full.
    """

    def __init__(self, path: Path, reserve: int) -> None:
        self.path = path
        self._reserve = reserve

    def _file(self, message_id: str) -> Path:
        return self.path / f"{message_id}.frames"

    def create(self, message_id: str) -> AppendOnlyFile:
        """An empty file. Raises StorageFull, StorageError."""
        self.check_room(0)
        path = self._file(message_id)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except OSError as problem:
            raise as_storage_error(problem, path) from problem
        return AppendOnlyFile(self, path, fd)

    def open(self, message_id: str, size: int | None) -> int:
        """A read-only descriptor. Raises StoreDamaged if there is no file of ``size`` bytes."""
        path = self._file(message_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreDamaged(f"message {message_id}: its frame file is missing") from None
        except OSError as problem:
            raise as_storage_error(problem, path) from problem
        found = os.fstat(fd).st_size
        if size is not None and found != size:
            os.close(fd)
            raise StoreDamaged(_wrong_size(message_id, size, found))
        return fd

    def remove(self, message_id: str) -> None:
        """Remove a file; it may be gone already. Raises StorageError."""
        try:
            self._file(message_id).unlink(missing_ok=True)
        except OSError as problem:
            raise as_storage_error(problem, self._file(message_id)) from problem

    def check_room(self, size: int) -> None:
        """Raise StorageFull if ``size`` more bytes would eat into the reserve."""
        disk = os.statvfs(self.path)
        free = disk.f_bavail * disk.f_frsize
        if free < size + self._reserve:
            raise StorageFull(
                f"{self.path}: {free} bytes are free, {size} are needed and {self._reserve} kept in reserve; "
                "delete messages, or free space on the disk of the data directory"
            )

    def sync(self) -> None:
        """The names of all files are on stable storage. Raises OSError."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def recover(self, sizes: Mapping[str, int]) -> dict[str, str]:
        """Remove frame files of no message; return which messages' files are damaged, and how.

        ``sizes`` gives the bytes of every message. Files with other names than ours are left alone.
        """
        found: dict[str, int] = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                match = _FRAME_FILE.fullmatch(entry.name)
                if match is None:
                    continue
                if match[1] in sizes:
                    found[match[1]] = entry.stat(follow_symlinks=False).st_size
                else:
                    self.remove(match[1])
        damaged: dict[str, str] = {}
        for message_id, size in sizes.items():
            if message_id not in found:
                damaged[message_id] = f"message {message_id}: its frame file is missing"
            elif found[message_id] != size:
                damaged[message_id] = _wrong_size(message_id, size, found[message_id])
        return damaged


class AppendOnlyFile(FrameFile):
    """A frame file that is being written."""

    def __init__(self, folder: FrameFolder, path: Path, fd: int) -> None:
        self._folder = folder
        self._path = path
        self._fd: int | None = fd

    def append(self, parts: Sequence[Part]) -> None:
        """Write ``parts`` at the end with as few calls as the system allows."""
        if self._fd is None:
            raise StorageError(f"{self._path} is closed")
        self._folder.check_room(sum(len(part) for part in parts))
        waiting = [memoryview(part).cast("B") for part in parts if len(part)]
        try:
            while waiting:
                written = os.writev(self._fd, waiting[:_MOST_PARTS])
                waiting = _after(waiting, written)
        except OSError as problem:
            raise as_storage_error(problem, self._path) from problem

    def sync(self) -> None:
        """fdatasync: the bytes and the size, not the times."""
        if self._fd is None:
            raise StorageError(f"{self._path} is closed")
        try:
            _datasync(self._fd)
        except OSError as problem:
            raise as_storage_error(problem, self._path) from problem

    def close(self) -> None:
        """Nothing more will be written."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def discard(self) -> None:
        """Close and remove the file."""
        self.close()
        try:
            self._path.unlink(missing_ok=True)
        except OSError as problem:
            raise as_storage_error(problem, self._path) from problem


_datasync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


def _after(parts: list[memoryview], written: int) -> list[memoryview]:
    """What is left of ``parts`` behind the first ``written`` bytes."""
    for place, part in enumerate(parts):
        if written < len(part):
            return [part[written:], *parts[place + 1 :]]
        written -= len(part)
    return []


def _wrong_size(message_id: str, size: int, found: int) -> str:
    return f"message {message_id}: its frame file has {found} bytes instead of {size}"
