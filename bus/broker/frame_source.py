"""The frames of one message where the store has them: in a file, on another machine, or, of a small message,
in a row."""

from __future__ import annotations

import os

from tensorbus.bus.stores.base import RemoteFrames
from tensorbus.errors import StoreDamaged


class FrameSource:
    """Reads at any offset; its methods block, and may be called from any thread until it is closed.

    Attributes:
        fd: read-only descriptor of the file; None for all others.
        body: what came with its row; None for all others.
        remote: the frames on another machine; None for all others.
    """

    def __init__(self, frames: int | bytes | RemoteFrames) -> None:
        self.fd = frames if isinstance(frames, int) else None
        self.body = frames if isinstance(frames, bytes) else None
        self.remote = None if isinstance(frames, int | bytes) else frames

    @property
    def size(self) -> int:
        """Bytes there are now. Raises StoreDamaged when the system cannot tell."""
        if self.remote is not None:
            return self.remote.size
        if self.fd is None:
            return len(self.body or b"")
        try:
            return os.fstat(self.fd).st_size
        except OSError as problem:
            raise _unreadable(0, problem) from problem

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on, as far as there are bytes; how many. Raises StoreDamaged."""
        if self.remote is not None:
            return self.remote.read_into(buffer, offset)
        if self.fd is None:
            part = memoryview(self.body or b"")[offset : offset + len(buffer)]
            buffer[: len(part)] = part
            return len(part)
        count = 0
        try:
            while count < len(buffer) and (more := os.preadv(self.fd, [buffer[count:]], offset + count)):
                count += more
        except OSError as problem:
            raise _unreadable(offset + count, problem) from problem
        return count

    def read(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on. Raises StoreDamaged."""
        if self.remote is not None:
            buffer = bytearray(size)
            return bytes(buffer[: self.remote.read_into(memoryview(buffer), offset)])
        if self.fd is None:
            return (self.body or b"")[offset : offset + size]
        try:
            return os.pread(self.fd, size, offset)
        except OSError as problem:
            raise _unreadable(offset, problem) from problem

    def doubt(self) -> bool:
        """What was read is not what it should be: whether there is a better place to read it from, which is
        taken from now on. See `RemoteFrames`."""
        return self.remote is not None and self.remote.doubt()

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        if self.remote is not None:
            self.remote.close()
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)


def _unreadable(offset: int, problem: OSError) -> StoreDamaged:
    return StoreDamaged(f"its frames cannot be read at byte {offset}: {problem.strerror or problem}")
