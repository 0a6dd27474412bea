"""Room: zeroed bytes for the tensors of a model, in memory or in a memory-mapped file."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tensorbus.errors import StorageError, StorageFull

Bytes = npt.NDArray[np.uint8]

ALIGNED = 64
"""Each tensor begins at a multiple of it."""


class Room:
    """Bytes by name. They are taken by the first ``reset``; all methods block.

    A file is mapped and shared, so that its pages are the page cache's and never anonymous memory: the kernel
    writes them out and drops them as it needs. It has no name, so it is gone with the process, even one that
    was killed.

    Args:
        sizes: bytes of each.
        folder: where the file is to lie, which is asked for when the room is taken; None for memory.
    """

    def __init__(self, sizes: Mapping[str, int], folder: Callable[[], Path] | None = None) -> None:
        self._sizes = dict(sizes)
        self._folder = folder
        self._parts: dict[str, Bytes] = {}
        self._file: int | None = None

    @property
    def nbytes(self) -> int:
        """Of all that is named."""
        return sum(self._sizes.values())

    def part(self, name: str) -> Bytes:
        """The bytes of this name."""
        return self._parts[name]

    def reset(self) -> None:
        """All bytes are zero; those of a file without being written.

        Raises:
            StorageFull: there is no room for the file; do not touch the bytes until a ``reset`` succeeds.
            StorageError: nor can the file.
        """
        if self._folder is not None:
            self._reset_file(self._folder)
        elif self._parts:
            for part in self._parts.values():
                part.fill(0)
        else:
            # Filled and not only promised: a machine without the memory says so now.
            self._parts = {name: np.full(size, 0, np.uint8) for name, size in self._sizes.items()}

    def close(self) -> None:
        """Give the memory back, or the file; what still reads from a part keeps that alive."""
        self._parts.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _reset_file(self, folder: Callable[[], Path]) -> None:
        starts: dict[str, int] = {}
        end = 0
        for name, size in self._sizes.items():
            starts[name] = end
            end += -(-size // ALIGNED) * ALIGNED
        if not end:
            self._parts = {name: np.empty(0, np.uint8) for name in self._sizes}
            return
        try:
            if self._file is None:
                self._file = _unnamed(folder())
            os.ftruncate(self._file, 0)  # which drops the pages of the mapping, too
            _reserve(self._file, end)
            if not self._parts:
                mapped = np.frombuffer(mmap.mmap(self._file, end), np.uint8)
                self._parts = {name: mapped[at : at + self._sizes[name]] for name, at in starts.items()}
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageFull(
                    f"the accumulator's file of {end} bytes has no room in {folder()}"
                ) from error
            raise StorageError(f"the accumulator's file in {folder()} cannot be used: {error}") from error


def _unnamed(folder: Path) -> int:
    with tempfile.TemporaryFile(prefix="accumulator-", dir=folder) as file:
        return os.dup(file.fileno())


def _reserve(file: int, size: int) -> None:
    """Make the file ``size`` bytes long, all on the disk: a mapping has no way to say that it is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS
        os.ftruncate(file, size)
