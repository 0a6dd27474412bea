"""Backup: a copy of a file store's directory, taken while its broker runs, that a broker can start from.

Strategy. Rows decide (see `file`), and frame files never change once their message has a row. So the rows
are copied first, in one transaction, and every frame file afterwards: what the rows tell of is among the
files, unless it was deleted in between. Then both are copied once more, which takes only what has come since;
a message whose file is missing even so has none in the broker's directory either. Files that the backup has
from the last time are not copied again, and those of deleted messages are removed when the new rows are in
their place. So a backup that is interrupted leaves the one before it, and repeating it is cheap.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tensorbus.errors import InvalidRequest, StorageError, StoreVersion, TensorbusError

from .schema import VERSION

PASSES = 3
"""Copies of the rows after which a frame file that is missing is taken for damage."""
MAX_TOLD = 20
"""Ids of messages without a file that are told."""
_ROWS, _LOG, _NEW, _FRAMES, _TOKENS = "meta.db", "meta.db-wal", "meta.db.new", "frames", "tokens.json"
_WITH_FILES = """
SELECT id FROM messages WHERE seq NOT IN (SELECT seq FROM bodies) AND id NOT IN (SELECT id FROM damaged)
"""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup holds, and what it took.

    Attributes:
        messages: in the backup.
        files: frame files that were copied; the others were there.
        bytes: of these files.
        damaged: messages that the broker knows to be damaged; they are without frames in the backup.
        missing: ids of messages whose frame file is not in the broker's directory, `MAX_TOLD` at most: damage
            that the broker has not seen yet.
    """

    messages: int
    files: int
    bytes: int
    damaged: int
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The fields."""
        return {
            "messages": self.messages,
            "files": self.files,
            "bytes": self.bytes,
            "damaged": self.damaged,
            "missing": list(self.missing),
        }


def back_up(data: Path, target: Path) -> BackupReport:
    """Make ``target`` a copy of the broker's directory ``data``. It is empty, missing, or an older copy.

    Blocks for as long as copying takes; memory does not grow with what is stored. Everything is on stable
    storage when this returns.

    Raises:
        InvalidRequest: ``data`` is no broker's directory, or ``target`` holds anything else.
        StoreVersion: ``data`` is of another release.
        StorageError: something cannot be read or written; an older copy in ``target`` is still whole.
    """
    data, target = data.resolve(), target.resolve()
    if not (data / _ROWS).is_file():
        raise InvalidRequest(f"{data} is not the data directory of a broker: there is no {_ROWS}")
    if target == data or data in target.parents or target in data.parents:
        raise InvalidRequest(f"the backup {target} and the directory {data} lie within each other")
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(target.iterdir()) and not any((target / name).exists() for name in (_ROWS, _NEW)):
            raise InvalidRequest(f"{target} is neither empty nor a backup")
        if (target / _LOG).exists():
            raise InvalidRequest(
                f"a broker runs in {target}, or was killed there: back up to another directory"
            )
        return _copy(data, target)
    except TensorbusError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"no backup of {data} to {target}: {error}") from error


def _copy(data: Path, target: Path) -> BackupReport:
    (target / _FRAMES).mkdir(exist_ok=True)
    files = copied = 0
    missing: tuple[str, ...] = ()
    for _ in range(PASSES):
        _copy_rows(data / _ROWS, target / _NEW)
        for size in _copy_frames(data / _FRAMES, target / _FRAMES):
            files, copied = files + 1, copied + size
        with _rows(target / _NEW) as rows:
            missing = _missing(rows, target / _FRAMES)
        if not missing:
            break
    _copy_tokens(data / _TOKENS, target / _TOKENS)
    _sync_folder(target / _FRAMES)
    (target / _NEW).replace(target / _ROWS)
    _sync_folder(target)
    with _rows(target / _ROWS) as rows:
        _remove_strangers(rows, target / _FRAMES)
        messages, damaged = (
            int(rows.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
            for table in ("messages", "damaged")
        )
    return BackupReport(messages, files, copied, damaged, missing)


def _copy_rows(source: Path, target: Path) -> None:
    """All rows as they are at one moment."""
    target.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as live,
        closing(sqlite3.connect(target)) as copy,
    ):
        version = int(live.execute("PRAGMA user_version").fetchone()[0])
        if version != VERSION:
            raise StoreVersion(f"{source} is of format {version}; this release backs up format {VERSION}")
        live.backup(copy)
        target.chmod(0o600)
    _sync(target)


def _copy_frames(source: Path, target: Path) -> Iterator[int]:
    """The size of each file that was not there yet, once it is."""
    with os.scandir(source) as entries:
        for entry in entries:
            if not entry.name.endswith(".frames"):
                continue
            copy = target / entry.name
            try:
                if _same(entry.stat(), copy):
                    continue
                part = copy.with_suffix(".part")
                shutil.copy2(entry.path, part)
            except FileNotFoundError:
                continue  # deleted meanwhile
            _sync(part)
            part.replace(copy)
            yield copy.stat().st_size


def _same(before: os.stat_result, copy: Path) -> bool:
    """Whether a copy is of the file as it is now. That of an upload under way changes its time."""
    try:
        after = copy.stat()
    except FileNotFoundError:
        return False
    return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def _missing(rows: sqlite3.Connection, frames: Path) -> tuple[str, ...]:
    found: list[str] = []
    for (message_id,) in rows.execute(_WITH_FILES):
        if len(found) < MAX_TOLD and not (frames / f"{message_id}.frames").exists():
            found.append(message_id)
    return tuple(found)


def _remove_strangers(rows: sqlite3.Connection, frames: Path) -> None:
    """Files of messages that were deleted since the last backup, or came after these rows."""
    with os.scandir(frames) as entries:
        for entry in entries:
            message_id = entry.name.partition(".")[0]
            known = rows.execute(
                "SELECT EXISTS (SELECT 1 FROM messages WHERE id = ?1)"
                " OR EXISTS (SELECT 1 FROM uploads WHERE id = ?1)",
                (message_id,),
            ).fetchone()[0]
            if not known or not entry.name.endswith(".frames"):
                Path(entry.path).unlink()


def _copy_tokens(source: Path, target: Path) -> None:
    """They are replaced as a whole, so a copy is one state or the other."""
    part = target.with_suffix(".part")
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        target.unlink(missing_ok=True)
        return
    part.touch(mode=0o600)
    part.write_bytes(content)
    _sync(part)
    part.replace(target)


@contextmanager
def _rows(path: Path) -> Generator[sqlite3.Connection]:
    """The rows of a backup; nobody writes to them, so no write-ahead log is made beside them."""
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as rows:
        yield rows


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
