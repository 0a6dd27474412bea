"""A disk that fills up: a small tmpfs of its own."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import StorageFull
from tensorbus.streaming.raw import RawEncoder

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tensorbus-test", str(path)],
        capture_output=True,
        text=True,
    )
    if mount.returncode:
        assert not os.environ.get("CI"), f"in CI a tmpfs can be mounted: {mount.stderr}"
        pytest.skip(f"this user may not mount a tmpfs: {mount.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


async def publish(broker: Broker, size: int) -> Receipt:
    """Publish ``size`` random bytes."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    upload = await broker.begin("a")
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(encoder.open())
        for _ in range(0, size, MIB // 4):
            for head, payload in encoder.slices(os.urandom(min(size, MIB // 4))):
                await upload.write(head + payload)
        await upload.write(encoder.close())
        return await upload.seal()


async def fill(broker: Broker, size: int) -> None:
    """Publish until it fails."""
    while True:
        await publish(broker, size)


async def many_consumers(broker: Broker) -> None:
    """Write rows, many more than fit into what the metadata has of the disk already."""
    for number in range(10_000):
        await broker.ensure_consumer(f"c{number}", ConsumerConfig(">"))


def use_up(disk: Path) -> Path:
    """A file that takes all that is left."""
    hog = disk / "hog"
    with hog.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        write_endlessly(file)
    return hog


def write_endlessly(file: io.FileIO) -> None:
    """Page by page, so that nothing is left over."""
    while True:
        file.write(bytes(4096))


@pytest.mark.parametrize("reserve", [4 * MIB, 0], ids=["at the reserve", "to the last byte"])
async def test_a_full_disk_refuses_the_new_and_keeps_the_old(disk: Path, reserve: int) -> None:
    """The upload is refused and leaves nothing; what was there is whole; when there is room, all goes on."""
    async with Broker(FileStore(disk / "data", reserve_bytes=reserve)) as broker:
        kept = await publish(broker, 8 * MIB)
        with pytest.raises(StorageFull, match="free space"):
            await publish(broker, 24 * MIB)
        assert [m.id for m in (await broker.messages()).messages] == [kept.id]
        assert [path.stem for path in (disk / "data" / "frames").iterdir()] == [kept.id]
        async with await broker.open_reader(kept.id) as reader:
            assert sum([len(chunk) async for chunk in reader]) == kept.bytes
        assert (await publish(broker, MIB)).seq == 2
        await broker.delete(kept.id)
        assert (await publish(broker, 8 * MIB)).seq == 3


async def test_an_announced_size_is_refused_before_the_body(disk: Path) -> None:
    """A publisher that says how much it will send is told at once, and sends nothing in vain."""
    async with Broker(FileStore(disk / "data", reserve_bytes=4 * MIB)) as broker:
        with pytest.raises(StorageFull):
            await broker.begin("a", size=30 * MIB)
        assert isinstance(await broker.begin("a", size=10 * MIB), Upload)


async def test_a_full_disk_still_takes_acks_and_deletions(disk: Path) -> None:
    """The reserve is there so that a full broker can be emptied."""
    async with Broker(FileStore(disk / "data", reserve_bytes=4 * MIB)) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        for size in (MIB, 64 * 1024, 1024):
            with pytest.raises(StorageFull):
                await fill(broker, size)
        deliveries = await broker.pull("c", 3)
        for delivery in deliveries:
            await broker.ack("c", delivery.token)
            await broker.delete(delivery.message.id)
        assert (await publish(broker, MIB)).bytes > MIB


async def test_rows_that_do_not_fit_fail_and_are_not_half_there(disk: Path) -> None:
    """When others have filled the disk to the last byte, an operation fails whole and works again later."""
    async with Broker(FileStore(disk / "data", reserve_bytes=0)) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        kept = await publish(broker, MIB)
        hog = use_up(disk)
        with pytest.raises(StorageFull):
            await many_consumers(broker)
        known = [consumer.name for consumer in await broker.consumers()]
        hog.unlink()
        delivery = (await broker.pull("c"))[0]
        await broker.ack("c", delivery.token)
    async with Broker(FileStore(disk / "data", reserve_bytes=0)) as broker:
        assert [consumer.name for consumer in await broker.consumers()] == known
        assert [m.id for m in (await broker.messages()).messages] == [kept.id]
