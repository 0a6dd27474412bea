"""The folder of frame files: one append-only file a message, named by its id and nothing else.

A file that is being written differs from a sealed one only in that no row tells of it. So there is nothing to
rename at the end, and after a crash everything without a row is known to be rubbish.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tensorbus.errors import StorageError, StorageFull, StoreDamaged

from .base import FrameFile, Part
from .room import AHEAD, Room, lay_out
from .syncing import Syncing

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DAMAGE = (errno.EIO, errno.EUCLEAN, errno.ENODATA) if hasattr(errno, "EUCLEAN") else (errno.EIO,)
_MOST_PARTS = 1024  # IOV_MAX of Linux and macOS
_BATCH = 500
"""Ids that are looked up at a time."""
_MISSING = "its frame file is missing"
_FRAME_FILE = re.compile(r"([0-9a-f]{32})\.frames", re.ASCII)


def as_storage_error(problem: OSError, path: Path) -> StorageError:
    """What the system says, as StorageFull or StorageError."""
    if problem.errno in _FULL:
        return StorageFull(f"{path}: the disk or quota is full; free space on the disk of the data directory")
    return StorageError(f"{path}: {problem.strerror or problem}")


class FrameFolder:
    """Creates, opens, puts aside and removes frame files. All methods block.

    Args:
        path: the folder; it must exist.
        quarantine: the folder for damaged ones; it is made when it is first needed.
        reserve: bytes of the disk that frames leave free, so that messages can still be acknowledged and
            deleted (which takes rows) when the disk is full.
        syncing: when what is written gets onto the disk.
    """

    def __init__(self, path: Path, quarantine: Path, reserve: int, syncing: Syncing) -> None:
        self.path = path
        self.quarantined = quarantine
        self.syncing = syncing
        self._room = Room(path, reserve)
        self._being_written: set[str] = set()

    def _file(self, message_id: str) -> Path:
        return self.path / f"{message_id}.frames"

    def _aside(self, message_id: str) -> Path:
        return self.quarantined / f"{message_id}.frames"

    def create(self, message_id: str) -> AppendOnlyFile:
        """An empty file. Raises StorageFull, StorageError."""
        self.check_room(0)
        return self._writable(message_id, os.O_CREAT | os.O_EXCL)

    def reopen(self, message_id: str, size: int) -> AppendOnlyFile:
        """The file of an upload, cut to ``size`` bytes, to go on. Raises StorageFull, StorageError."""
        file = self._writable(message_id, os.O_APPEND)
        try:
            file.cut(size)
        except BaseException:
            file.close()
            raise
        return file

    def _writable(self, message_id: str, flags: int) -> AppendOnlyFile:
        self.syncing.check_writable()
        path = self._file(message_id)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o640)
        except OSError as problem:
            raise as_storage_error(problem, path) from problem
        self._being_written.add(path.stem)
        return AppendOnlyFile(self, path, fd)

    def is_being_written(self, message_id: str) -> bool:
        """Whether a file is open for writing: it may not have a row yet."""
        return message_id in self._being_written

    def released(self, path: Path) -> None:
        """A file that was being written has been closed."""
        self._being_written.discard(path.stem)

    def link(self, source: str, copy: str) -> bool:
        """Give a file a second name; False if there is no such file. Raises StorageFull, StorageError.

        Until ``linked`` is called, the second name counts as one that is being written.
        """
        self.syncing.check_writable()
        self._being_written.add(self._file(copy).stem)
        try:
            os.link(self._file(source), self._file(copy))
        except FileNotFoundError:
            return False
        except OSError as problem:
            raise as_storage_error(problem, self._file(copy)) from problem
        return True

    def linked(self, copy: str) -> None:
        """A second name has got its row, or is given up."""
        self.released(self._file(copy))

    def open(self, message_id: str, size: int | None) -> int:
        """A read-only descriptor. Raises StoreDamaged if there is no file of ``size`` bytes."""
        return _open(self._file(message_id), message_id, size)

    def open_quarantined(self, message_id: str, size: int) -> int:
        """As ``open``, of a file that was put aside."""
        return _open(self._aside(message_id), message_id, size)

    def put_aside(self, message_id: str) -> None:
        """Move a file to the quarantine, if it is there. Raises StorageError."""
        self._move(self._file(message_id), self._aside(message_id))

    def put_back(self, message_id: str) -> None:
        """Move a file back from the quarantine, if it is there. Raises StorageError."""
        self._move(self._aside(message_id), self._file(message_id))

    def _move(self, source: Path, target: Path) -> None:
        try:
            if not source.exists():
                return
            if not target.parent.is_dir():
                target.parent.mkdir(mode=0o750)
                self.syncing.folder(target.parent.parent)
            source.replace(target)
            # The new name first: a crash in between leaves two, and not none.
            self.syncing.folder(target.parent)
            self.syncing.folder(source.parent)
        except OSError as problem:
            raise as_storage_error(problem, source) from problem

    def remove(self, message_id: str) -> None:
        """Remove a file, wherever it is; it may be gone already. Raises StorageError."""
        for path in (self._file(message_id), self._aside(message_id)):
            self.unlink(path)

    def drop_quarantined(self, message_id: str) -> None:
        """Remove a file that was put aside. Raises StorageError."""
        self.unlink(self._aside(message_id))

    def unlink(self, path: Path) -> None:
        """Remove one file. Raises StorageError.

        Once a commit has failed it stays: whether its row is on the disk is only known after the next start.
        """
        if self.syncing.failure is not None:
            return
        self.syncing.forget(path)
        try:
            path.unlink(missing_ok=True)
        except OSError as problem:
            raise as_storage_error(problem, path) from problem

    def remove_all(self, message_ids: Sequence[str]) -> None:
        """As ``remove``; those after one that fails are removed as well."""
        failure: StorageError | None = None
        for message_id in message_ids:
            try:
                self.remove(message_id)
            except StorageError as problem:
                failure = problem
        if failure is not None:
            raise failure

    def check_room(self, size: int) -> None:
        """Raise StorageFull if ``size`` more bytes would eat into the reserve."""
        try:
            self._room.check(size)
        except OSError as problem:
            raise self._room_error(problem) from problem

    def take_room(self, size: int) -> None:
        """As ``check_room``, for bytes that are written now."""
        try:
            self._room.take(size)
        except OSError as problem:
            raise self._room_error(problem) from problem

    def _room_error(self, problem: OSError) -> StorageError:
        return problem if isinstance(problem, StorageError) else as_storage_error(problem, self.path)

    def sync(self) -> None:
        """The names of all files are on stable storage. Raises OSError."""
        self.syncing.folder(self.path)

    # --- what is there -------------------------------------------------------------------------------

    def ids(self) -> Iterator[list[str]]:
        """Ids of the frame files in the folder, some at a time. Files with other names are left out."""
        return _ids(self.path)

    def quarantined_ids(self) -> Iterator[list[str]]:
        """Ids of the frame files that were put aside."""
        return _ids(self.quarantined) if self.quarantined.is_dir() else iter(())

    def problem(self, message_id: str, size: int) -> str | None:
        """What is wrong with a file as far as can be told without reading it; None if nothing is."""
        try:
            found = self._file(message_id).stat().st_size
        except FileNotFoundError:
            return _MISSING
        except OSError as problem:
            return f"its frame file cannot be read: {problem.strerror}"
        return None if found == size else _wrong_size(size, found)


def _open(path: Path, message_id: str, size: int | None) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StoreDamaged(f"message {message_id}: {_MISSING}") from None
    except OSError as problem:
        if problem.errno in _DAMAGE:
            raise StoreDamaged(f"message {message_id}: {problem.strerror}") from problem
        raise as_storage_error(problem, path) from problem
    found = os.fstat(fd).st_size
    if size is not None and found != size:
        os.close(fd)
        raise StoreDamaged(f"message {message_id}: {_wrong_size(size, found)}")
    return fd


def _ids(folder: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if (match := _FRAME_FILE.fullmatch(entry.name)) is not None:
                batch.append(match[1])
            if len(batch) == _BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


class AppendOnlyFile(FrameFile):
    """A frame file that is being written."""

    def __init__(self, folder: FrameFolder, path: Path, fd: int) -> None:
        self._folder = folder
        self._path = path
        self._fd: int | None = fd
        self._failure: str | None = None
        # Counted from when it was opened: bytes appended, and those that blocks have been found for.
        self._grown = 0
        self._laid_out = 0
        self._surplus = False

    def append(self, parts: Sequence[Part]) -> None:
        """Write ``parts`` at the end with as few calls as the system allows."""
        fd = self._open()
        size = sum(len(part) for part in parts)
        self._folder.take_room(size)
        if self._grown >= AHEAD // 2 and self._grown + size > self._laid_out:
            start = os.fstat(fd).st_size
            self._laid_out = self._grown + AHEAD if lay_out(fd, start, AHEAD) else sys.maxsize
            self._surplus = True
        self._grown += size
        waiting = [memoryview(part).cast("B") for part in parts if len(part)]
        try:
            while waiting:
                written = os.writev(fd, waiting[:_MOST_PARTS])
                waiting = _after(waiting, written)
        except OSError as problem:
            raise as_storage_error(problem, self._path) from problem

    def cut(self, size: int) -> None:
        """Shorten the file to its first ``size`` bytes. Raises StorageError."""
        try:
            os.ftruncate(self._open(), size)
        except OSError as problem:
            raise as_storage_error(problem, self._path) from problem

    def sync(self) -> None:
        """fdatasync: the bytes and the size, not the times."""
        fd = self._open()
        try:
            self._folder.syncing.file(fd, self._path)
        except OSError as problem:
            # For good: bytes that did not get there are not dirty any more, and the next call would succeed.
            self._failure = f"{self._path}: could not be synced: {problem.strerror or problem}"
            raise self._failed() from problem

    def close(self) -> None:
        """Nothing more will be written."""
        if self._fd is not None:
            if self._surplus:
                with suppress(OSError):
                    # Gives back what was laid out behind the end.
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size)
            os.close(self._fd)
            self._fd = None
            self._folder.released(self._path)

    def discard(self) -> None:
        """Close and remove the file."""
        self.close()
        self._folder.unlink(self._path)

    def _open(self) -> int:
        if self._failure is not None:
            raise self._failed()
        if self._fd is None:
            raise StorageError(f"{self._path} is closed")
        self._folder.syncing.check_writable()
        return self._fd

    def _failed(self) -> StorageError:
        return StorageError(f"{self._failure}; this upload cannot be completed, begin it anew")


def _after(parts: list[memoryview], written: int) -> list[memoryview]:
    """What is left of ``parts`` behind the first ``written`` bytes."""
    for place, part in enumerate(parts):
        if written < len(part):
            return [part[written:], *parts[place + 1 :]]
        written -= len(part)
    return []


def _wrong_size(size: int, found: int) -> str:
    return f"its frame file has {found} bytes instead of {size}"
