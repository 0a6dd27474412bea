"""Files as byte strings: published and received without being loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorbus.codecs.base import Sink
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.errors import StorageError, UnsupportedContainer

from .raw import BODY, CONTAINER

PART = ".part"
"""Suffix of a file that is still being written."""


class BytesFileItem(Item):
    """A file's content as one byte string, read into one buffer that is used again."""

    def __init__(self, name: str, file: int, size: int) -> None:
        self.spec = ItemSpec(name, dtype("uint8"), (size,), "bytes")
        self._file = file
        self._buffer = bytearray()

    def read(self, offset: int, count: int) -> memoryview:
        """As the contract says.

        Raises:
            StorageError: the file has become shorter, or cannot be read.
        """
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        out = memoryview(self._buffer)[:count]
        done = 0
        while done < count:
            got = os.preadv(self._file, [out[done:]], offset + done)
            if got == 0:
                raise StorageError(
                    f"the file ended at byte {offset + done} of {self.spec.count} while it was read"
                )
            done += got
        return out


class BytesFileSource:
    """Any file, published as one byte string called ``body``.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}") from error
        self._item = BytesFileItem(BODY, self._file, os.fstat(self._file).st_size)
        self._open = True

    @property
    def kind(self) -> str:
        """The container kind of byte strings."""
        return CONTAINER

    @property
    def metadata(self) -> Mapping[str, str]:
        """None: the file's name is its owner's affair."""
        return {}

    def items(self) -> Sequence[Item]:
        """The one item."""
        return [self._item]

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._open:
            self._open = False
            os.close(self._file)


class BytesFileSink(Sink):
    """Writes the one byte string of a message to ``path``, which appears when it is complete.

    Raises:
        UnsupportedContainer: the message holds anything but one byte string.
        StorageError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._part = self._path.with_name(f"{self._path.name}.{os.getpid()}-{id(self):x}{PART}")
        self._file: int | None = None
        self._buffer = bytearray()

    def begin(self, spec: ItemSpec) -> None:
        if spec.kind != "bytes" or self._file is not None:
            raise UnsupportedContainer(f"the message holds more than one byte string: {spec.name!r}")
        try:
            self._file = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if spec.nbytes:
                os.posix_fallocate(self._file, 0, spec.nbytes)
        except OSError as error:
            self.abort()
            raise self._failed(error) from error

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        return memoryview(self._buffer)[:count]

    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        assert self._file is not None
        left = memoryview(self._buffer)[:count]
        try:
            while left:
                done = os.pwrite(self._file, left, offset)
                left, offset = left[done:], offset + done
        except OSError as error:
            raise self._failed(error) from error

    def finish(self) -> object:
        assert self._file is not None
        try:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None
            self._part.replace(self._path)
        except OSError as error:
            raise self._failed(error) from error
        return self._path

    def abort(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._part.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write {str(self._path)!r}: {error.strerror or error}")
