"""A pull is bounded in bytes also where all of it is handed over once more."""

from __future__ import annotations

from pathlib import Path

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.stores.message_rows import PAGE_BYTES
from tensorbus.streaming.raw import RawEncoder

HEADER = "x" * 16_000
COUNT = 100


class Hands:
    """A clock that is set by hand."""

    time = 1_800_000_000.0

    def wall(self) -> float:
        """Seconds since the epoch."""
        return self.time

    def monotonic(self) -> float:
        """The same seconds."""
        return self.time


async def test_redeliveries_fit_an_answer(tmp_path: Path) -> None:
    """Each is handed over once, in order, some with each pull.

    What did not fit has not lost an attempt, and who holds it may still settle it.
    """
    clock = Hands()
    async with Broker(FileStore(tmp_path), BrokerSettings(sweep_interval=0), clock) as broker:
        for number in range(COUNT):
            encoder = RawEncoder({"h": HEADER}, "application/octet-stream", 1)
            frames = (
                encoder.open() + b"".join(a + bytes(b) for a, b in encoder.slices(b"x")) + encoder.close()
            )
            upload = await broker.begin("a", str(number), len(frames))
            assert isinstance(upload, Upload)
            async with upload:
                await upload.write(frames)
                await upload.seal()
        await broker.ensure_consumer("c", ConsumerConfig("a", max_ack_pending=COUNT, ack_wait=5.0))
        first: list[DeliveryInfo] = []
        while len(first) < COUNT:
            first += await broker.pull("c", 256)
        clock.time += 6.0
        again = await broker.pull("c", 256)
        assert len(again) < COUNT
        assert sum(len(str(one.message.headers)) for one in again) < PAGE_BYTES + 2 * len(HEADER)
        await broker.ack("c", first[-1].token)
        while some := await broker.pull("c", 256):
            again += some
        assert [one.message.id for one in again] == [one.message.id for one in first[:-1]]
        assert {one.attempt for one in again} == {2}
        await broker.ack_all("c", [one.token for one in again])
        assert (await broker.consumer("c")).ack_pending == 0
