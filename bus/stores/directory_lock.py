"""One broker at a time uses a data directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tensorbus.errors import StoreInUse


class DirectoryLock:
    """``flock`` on a file of the directory, which tells who has it; it dies with its process. Blocks not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def take(self) -> None:
        """Have it from now on. Raises StoreInUse, OSError."""
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise StoreInUse(
                f"{self._folder} is in use by another broker (process {holder}); "
                "stop it, or use another directory"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        self._file = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def give_back(self) -> None:
        """Another broker may have it. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
