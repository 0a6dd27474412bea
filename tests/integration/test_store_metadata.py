"""The file of rows: group commit, and failure of a group."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from tensorbus.bus.stores.metadata import Metadata
from tensorbus.errors import StorageError


class Disk:
    """Stands before each commit: counts, waits for the gate, and fails when it is told to."""

    def __init__(self) -> None:
        self.commits = 0
        self.gate = Event()
        self.broken = False

    def before_commit(self) -> None:
        """What Metadata calls."""
        assert self.gate.wait(30)
        self.commits += 1
        if self.broken:
            raise OSError(5, "Input/output error")


@pytest.fixture
def disk() -> Disk:
    """One that waits."""
    return Disk()


@pytest.fixture
def metadata(tmp_path: Path, disk: Disk) -> Iterator[Metadata]:
    """An open file of rows."""
    metadata = Metadata(tmp_path / "meta.db", disk.before_commit)
    metadata.open()
    yield metadata
    disk.gate.set()
    metadata.close()


class Insert:
    """Adds a row; its number is the result."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, connection: sqlite3.Connection) -> int:
        """Run in the writing thread."""
        name = f"c{self._number}"
        connection.execute("INSERT INTO policies (name, config, created) VALUES (?, '{}', 0)", (name,))
        return self._number


def count(connection: sqlite3.Connection) -> int:
    """Number of rows."""
    return connection.execute("SELECT count(*) FROM policies").fetchone()[0]


async def test_changes_that_wait_together_share_one_commit(metadata: Metadata, disk: Disk) -> None:
    """While the disk is busy with the first, a hundred gather; one more commit serves them all."""
    first = asyncio.create_task(metadata.write(Insert(0)))
    await asyncio.sleep(0)
    rest = [asyncio.create_task(metadata.write(Insert(number))) for number in range(1, 101)]
    await asyncio.sleep(0)
    assert await metadata.read(count) == 0
    disk.gate.set()
    assert [await first, *await asyncio.gather(*rest)] == list(range(101))
    assert disk.commits <= 2
    assert await metadata.read(count) == 101


async def test_a_group_that_cannot_be_committed_fails_whole(metadata: Metadata, disk: Disk) -> None:
    """Each caller is told, nothing of it is stored, and the next group works."""
    disk.broken = True
    disk.gate.set()
    outcomes = await asyncio.gather(
        *(metadata.write(Insert(number)) for number in range(10)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {StorageError}
    assert await metadata.read(count) == 0
    disk.broken = False
    assert await metadata.write(Insert(1)) == 1
    assert await metadata.read(count) == 1


async def test_a_change_that_is_at_fault_itself_fails_alone(metadata: Metadata, disk: Disk) -> None:
    """What one caller may have got wrong is not answered to those who happen to share its commit."""

    def faulty(connection: sqlite3.Connection) -> int:
        return connection.execute("SELECT ?", (1 << 70,)).fetchone()[0]

    first = asyncio.create_task(metadata.write(Insert(0)))
    await asyncio.sleep(0)
    changes = [Insert(1), faulty, Insert(2), Insert(1)]
    waiting = [asyncio.create_task(metadata.write(change)) for change in changes]
    await asyncio.sleep(0)
    disk.gate.set()
    outcomes = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert outcomes[:2] == [0, 1] and outcomes[3] == 2
    assert isinstance(outcomes[2], OverflowError) and isinstance(outcomes[4], StorageError)
    assert await metadata.read(count) == 3


async def test_a_closed_file_takes_nothing(metadata: Metadata, disk: Disk) -> None:
    """What waited is committed first; what comes later is refused instead of forgotten."""
    waiting = asyncio.create_task(metadata.write(Insert(1)))
    await asyncio.sleep(0)
    disk.gate.set()
    await asyncio.to_thread(metadata.close)
    assert await waiting == 1
    with pytest.raises(StorageError, match="closed"):
        await metadata.write(Insert(2))
    with pytest.raises(StorageError, match="closed"):
        await metadata.read(count)
