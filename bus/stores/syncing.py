"""When bytes are forced onto the disk, and what becomes of the store when that fails.

A failed fsync is final (what became known as "fsyncgate"): the kernel reports it once, marks the pages clean
and goes on, so a second fsync that succeeds says nothing about the bytes of the first. So nothing is tried
again here. A file that failed stays failed. Where it cannot be told whose bytes were lost, as with rows and
the names of files, the store takes no more writes until it is started again and has looked at what is there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tensorbus.errors import StoreReadOnly

Sync = float | Literal["always", "never"]
"""``always``: what is acknowledged is on stable storage. Seconds: it is there after so long at the latest.
``never``: whenever the system sees fit. They differ in what a power cut costs, not a crash of the broker."""

LONGEST_INTERVAL = 3600.0
"""Seconds between two syncs that may be asked for."""

Kind = Literal["file", "folder", "rows"]
SyncObserver = Callable[[Kind, float], None]
"""Hears of every sync: of what, and how many seconds it took. Called in the thread that synced."""

_log = logging.getLogger("tensorbus.store")
_datasync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Syncing:
    """One store's syncs. Its methods block and may be called from any thread.

    Attributes:
        mode: see ``Sync``.
        observer: hears of every sync; counting them is up to it.
        failure: why the store takes no more writes; None while it does.
    """

    def __init__(self, mode: Sync = "always", observer: SyncObserver | None = None) -> None:
        self.mode: Sync = mode
        self.observer = observer
        self.failure: str | None = None
        self._lock = threading.Lock()
        self._later: dict[Path, bool] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def at_once(self) -> bool:
        """Whether an acknowledgement waits for the disk."""
        return self.mode == "always"

    def check_writable(self) -> None:
        """Raise StoreReadOnly if a sync has failed."""
        if self.failure is not None:
            raise StoreReadOnly(
                f"{self.failure}; nothing is written any more, since what would follow could not be relied "
                "on. What was acknowledged is still delivered. Look at the disk, then restart the broker"
            )

    def fail(self, what: str) -> None:
        """No more writes, because of ``what``; the first reason stays."""
        if self.failure is None:
            self.failure = what
            _log.critical("%s; the store is read-only until the broker is started again", what)

    # --- syncs ---------------------------------------------------------------------------------------

    def file(self, fd: int, path: Path) -> None:
        """The bytes and the size of an open file. Raises OSError."""
        if self.at_once:
            self._timed("file", _datasync, fd)
        elif self.mode != "never":
            with self._lock:
                self._later[path] = False

    def folder(self, path: Path) -> None:
        """The names in a folder. Raises OSError, after which the store takes no more writes."""
        if self.at_once:
            self._sync_folder(path)
        elif self.mode != "never":
            with self._lock:
                self._later[path] = True

    def forget(self, path: Path) -> None:
        """A file is gone: there is nothing to sync."""
        with self._lock:
            self._later.pop(path, None)

    def committed(self, seconds: float) -> None:
        """A transaction was committed, in so many seconds."""
        if self.at_once and self.observer is not None:
            self.observer("rows", seconds)

    def _sync_folder(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._timed("folder", os.fsync, fd)
        except OSError as problem:
            self.fail(f"{path}: the names of files could not be synced: {problem.strerror}")
            raise
        finally:
            os.close(fd)

    def _timed(self, kind: Kind, sync: Callable[[int], None], fd: int) -> None:
        started = time.perf_counter()
        sync(fd)
        if self.observer is not None:
            self.observer(kind, time.perf_counter() - started)

    # --- later ---------------------------------------------------------------------------------------

    def start(self, rows: Path) -> None:
        """Begin to sync at intervals, if that is the mode; commits are appended to the file ``rows``."""
        if isinstance(self.mode, float | int):
            self._stop.clear()
            self._thread = threading.Thread(
                target=self._run, args=(self.mode, rows), name="tensorbus-flush", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Sync what is left and end. Idempotent."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self, interval: float, rows: Path) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(interval)
            if self.failure is None:
                try:
                    self.flush(rows)
                except OSError as problem:
                    self.fail(f"what was written lately could not be synced: {problem}")

    def flush(self, rows: Path) -> None:
        """Sync what was written since the last time: files, then rows that tell of them. Raises OSError."""
        with self._lock:
            later, self._later = self._later, {}
        for path, is_folder in sorted(later.items(), key=lambda entry: entry[1]):
            if is_folder:
                self._sync_folder(path)
            else:
                self._sync_path("file", path)
        self._sync_path("rows", rows)

    def _sync_path(self, kind: Kind, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            self._timed(kind, _datasync, fd)
        finally:
            os.close(fd)
