"""The audit log: who did what to which object, and with what outcome; one JSON object a line.

It goes to a file of its own, or with the rest of the log. A line never holds a secret: tokens are named by
their ids.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tensorbus.errors import StorageError

log = logging.getLogger("tensorbus.audit")


def record(action: str, outcome: str, *, routine: bool = False, **fields: object) -> None:
    """Write one entry; ``routine`` ones only go to a file of their own, or to a log that wants details."""
    level = logging.DEBUG if routine else logging.INFO
    if not log.isEnabledFor(level):
        return
    known = {name: value for name, value in fields.items() if value is not None}
    entry = {"action": action, "outcome": outcome} | known
    log.log(level, "audit: %s %s %s", action, outcome, json.dumps(known), extra={"fields": entry})


class AuditFile(logging.Handler):
    """Appends the entries to a file that only its owner can read.

    Raises:
        StorageError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = self._open()

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"the audit log {self._path} cannot be opened: {error.strerror}") from error

    def reopen(self) -> None:
        """Go on in a new file, after the old one was renamed. Raises StorageError, and stays with the old."""
        new = self._open()
        self.acquire()
        try:
            old, self._file = self._file, new
        finally:
            self.release()
        os.close(old)

    def emit(self, record: logging.LogRecord) -> None:
        """One write a line, so that lines never mix."""
        try:
            time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            line = {"time": time} | getattr(record, "fields", {"text": record.getMessage()})
            os.write(self._file, json.dumps(line).encode() + b"\n")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@contextmanager
def audit_to(path: Path | None) -> Generator[AuditFile | None]:
    """Send the audit log to the file ``path``, and nowhere else; None leaves it with the rest of the log."""
    if path is None:
        yield None
        return
    file = AuditFile(path)
    level = log.level
    log.addHandler(file)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield file
    finally:
        log.propagate = True
        log.setLevel(level)
        log.removeHandler(file)
        file.close()
