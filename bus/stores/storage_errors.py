"""What SQLite and the system say, as errors that tell the caller what to do."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from tensorbus.errors import StorageError, StorageFull

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def as_storage_error(problem: sqlite3.Error | OSError, path: Path) -> StorageError:
    """What SQLite or the system says, as an error that tells the caller what to do."""
    text = f"{path}: {problem}"
    if isinstance(problem, sqlite3.Error):
        if problem.sqlite_errorcode & 0xFF in _CORRUPT:
            return StorageError(
                f"{text}; the file is damaged. Restore the data directory from a backup, or let "
                "`sqlite3 meta.db .recover` save what there is; docs/durability.md says how"
            )
        full = problem.sqlite_errorcode == sqlite3.SQLITE_FULL
    else:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
    if full:
        return StorageFull(text + "; free space on the disk that holds the data directory")
    return StorageError(text)
