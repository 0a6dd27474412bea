"""Disks that are small, and disks that fail."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CONTROL = struct.Struct("<IIII64s")
WRITES, SYNCS, TRUNCATES = 1, 2, 4


@contextmanager
def small_disk(path: Path, size: str) -> Generator[Path]:
    """A file system of its own at ``path``, of a size as ``mount -o size=`` takes it.

    Skips the test where it cannot be mounted, but not in CI.
    """
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tensorbus-test", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        assert not os.environ.get("CI"), f"in CI a tmpfs can be mounted: {mount.stderr}"
        pytest.skip(f"this user may not mount a tmpfs: {mount.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


class FailingDisk:
    """A library that makes system calls of another process fail, and the switch for it.

    Args:
        folder: for the library and the switch.
        under: the directory whose files fail.

    Raises:
        subprocess.CalledProcessError: there is no C compiler.
    """

    def __init__(self, folder: Path, under: Path) -> None:
        library, switch = folder / "faults.so", folder / "faults"
        source = Path(__file__).with_name("faults.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        switch.write_bytes(bytes(_CONTROL.size))
        self.environment = {
            "LD_PRELOAD": str(library),
            "CRASHING_FAULTS": str(switch),
            "CRASHING_FAULTS_UNDER": str(under),
        }
        with switch.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def fail(
        self, calls: int = WRITES | SYNCS, *, permille: int = 1000, error: int = errno.EIO, only: str = ""
    ) -> None:
        """From now on so many of these calls fail, on files whose path holds the text ``only``."""
        self._map[:] = _CONTROL.pack(permille, error, calls, self.failed, only.encode())

    def work(self) -> None:
        """From now on no call fails."""
        self.fail(0, permille=0)

    @property
    def failed(self) -> int:
        """How many calls have failed so far."""
        return _CONTROL.unpack(self._map[:])[3]
