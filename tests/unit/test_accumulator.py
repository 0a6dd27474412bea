"""The accumulator's room: in memory or in a file, flat in the number of updates, clear about a full disk."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from modelling.federated import base_id, encoded
from tensorbus.aggregator.encoded_update import EncodedUpdate
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.exact import Exact
from tensorbus.aggregator.reducers.mean import Mean
from tensorbus.aggregator.room import Room
from tensorbus.aggregator.updates import Contribution
from tensorbus.errors import FrameError, NotFound, StorageError, StorageFull

NOW = base_id("now")
BOTH = pytest.mark.parametrize("kind", [Mean, Exact])
MODEL = {
    "w": np.random.default_rng(1).normal(size=(700, 301)).astype(np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "n": np.arange(33),
}


async def mean_of(count: int, kind: type[Mean | Exact], workspace: Workspace) -> list[bytes]:
    """The bytes of the mean of so many updates, twice: a second round is like the first."""
    update = EncodedUpdate(encoded("u", MODEL).body)
    reducer = kind(Layout.of(update.manifest), workspace)
    results: list[list[bytes]] = []
    for _ in range(2):
        await reducer.reset()
        for number in range(count):
            await reducer.add(update, Contribution("u", f"s{number}", 1, 1.5, NOW), lambda _: None)
        items = await reducer.close(update, lambda _: asyncio.sleep(0, update))
        results.append([bytes(item.read(0, item.spec.count)) for item in items])
    await reducer.aclose()
    assert results[0] == results[1]
    return results[0]


@BOTH
async def test_a_file_gives_the_same_bits_as_memory_and_leaves_nothing_behind(
    kind: type[Mean | Exact], tmp_path: Path
) -> None:
    """Round after round; there is not even a name for a killed process to leave."""
    memory = await mean_of(3, kind, Workspace(lambda: tmp_path))
    file = await mean_of(3, kind, Workspace(lambda: tmp_path, "file"))
    assert memory == file
    assert list(tmp_path.iterdir()) == []


@BOTH
@pytest.mark.parametrize("accumulator", ["memory", "file"])
async def test_memory_does_not_grow_with_the_number_of_updates(
    kind: type[Mean | Exact], accumulator: str, tmp_path: Path
) -> None:
    """Two updates or 128: the peak is the same."""
    peaks: list[int] = []
    for count in (2, 2, 128):
        tracemalloc.start()
        await mean_of(count, kind, Workspace(lambda: tmp_path, accumulator))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 300_000
    floor = (16 if kind is Exact else 4) * 700 * 301 if accumulator == "memory" else 0
    assert floor < peaks[1] < floor + 12_000_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_file_is_no_anonymous_memory(tmp_path: Path) -> None:
    """256 MiB of sums, all written, are pages of the file, which the kernel may drop; zero after a reset."""
    script = """
        import sys
        from pathlib import Path
        from tensorbus.aggregator.room import Room

        def anonymous():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

        room = Room({"w": 256 << 20}, lambda: Path(sys.argv[1]))
        before = anonymous()
        room.reset()
        room.part("w").fill(1)
        print(anonymous() - before)
        room.reset()
        print(int(room.part("w").max()))
        room.part("w")[-1] = 7
        print(int(room.part("w")[-1]))
        room.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(script), str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, after_reset, written = map(int, done.stdout.split())
    assert grown < 8192  # KiB
    assert (after_reset, written) == (0, 7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_room_on_the_disk_is_taken_before_anything_is_written(tmp_path: Path) -> None:
    """A mapping cannot say that the disk is full: it would be the end of the process."""
    room = Room({"a": 1 << 20, "b": 3}, lambda: tmp_path)
    room.reset()
    links = [path for path in Path("/proc/self/fd").iterdir() if "deleted" in _link(path)]
    unnamed = [path.stat() for path in links]
    assert max(stat.st_blocks * 512 for stat in unnamed if stat.st_nlink == 0) >= 1 << 20
    room.close()


def _link(path: Path) -> str:
    return str(path.readlink()) if path.is_symlink() else ""


def test_a_full_disk_is_told_and_room_may_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how much was wanted, and where; the next reset may succeed."""
    room = Room({"a": 1 << 20}, lambda: tmp_path)

    def full(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(StorageFull, match="1048576 bytes"):
            room.reset()
    room.reset()
    assert not room.part("a").any()
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(StorageFull):
            room.reset()
    room.reset()
    assert not room.part("a").any()
    room.close()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """As everything that is wrong with the state folder."""
    with pytest.raises(StorageError, match="nowhere"):
        Room({"a": 10}, lambda: tmp_path / "nowhere").reset()


# --- updates that are at hand ----------------------------------------------------------------------------


async def test_an_update_is_read_from_a_file_as_from_memory(tmp_path: Path) -> None:
    """Whoever saved the frames of a round's updates computes its model again."""
    body = encoded("u", {**MODEL, "note": "x"}, frame_bytes=5000).body
    path = tmp_path / "u.frames"
    path.write_bytes(body)
    found: list[list[tuple[str, int, bytes]]] = []
    for update in (EncodedUpdate(body), EncodedUpdate(path)):
        events = [(e.spec.name, e.offset, bytes(e.payload)) async for e in update.slices()]
        assert [(e.spec.name, e.offset, bytes(e.payload)) async for e in update.item_slices("n")] == [
            event for event in events if event[0] == "n"
        ]
        with pytest.raises(NotFound, match="'other'"):
            await anext(update.item_slices("other"))
        found.append(events)
    assert found[0] == found[1]
    assert b"".join(payload for name, _, payload in found[0] if name == "w") == MODEL["w"].tobytes()


async def test_a_damaged_or_missing_file_is_told(tmp_path: Path) -> None:
    """Whether it shows at once or when the slices are read."""
    body = bytearray(encoded("u", MODEL).body)
    with pytest.raises(FrameError):
        EncodedUpdate(bytes(body[:100]))
    with pytest.raises(FrameError):
        _ = [event async for event in EncodedUpdate(bytes(body[:-30])).slices()]
    body[len(body) // 2] ^= 1
    with pytest.raises(FrameError):
        _ = [event async for event in EncodedUpdate(bytes(body)).slices()]
    with pytest.raises(StorageError, match=r"none\.frames"):
        EncodedUpdate(tmp_path / "none.frames")
