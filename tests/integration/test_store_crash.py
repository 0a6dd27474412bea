"""kill -9 at random moments, again and again, on one data directory."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tensorbus.bus.broker import Broker
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.sequence import MessageChecker

PUBLISHER = """
import asyncio, os, random, sys
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.streaming.raw import RawEncoder

async def publish(broker, number):
    key = f"{os.getpid()}-{number}"
    size = random.choice([0, 100, 10_000, 3_000_000])
    encoder = RawEncoder({"n": number}, "application/octet-stream", size)
    async with await broker.begin(f"t.{number % 3}", key) as upload:
        await upload.write(encoder.open())
        for head, payload in encoder.slices(os.urandom(size)):
            await upload.write(head + payload)
        await upload.write(encoder.close())
        receipt = await upload.seal()
    print("stored", receipt.id, key, flush=True)

async def work(broker):
    while True:
        for delivery in await broker.pull("worker", 5, 1.0):
            await broker.ack("worker", delivery.token)
            print("acked", delivery.message.id, "-", flush=True)

async def main():
    async with Broker(FileStore(sys.argv[1]), BrokerSettings(sync_bytes=1 << 20)) as broker:
        await broker.ensure_consumer("worker", ConsumerConfig("t.>", ack_wait=0.1))
        worker = asyncio.create_task(work(broker))
        print("running - -", flush=True)
        for start in range(0, 1_000_000, 4):
            await asyncio.gather(*(publish(broker, number) for number in range(start, start + 4)))

asyncio.run(main())
"""


def run_and_kill(data: Path, seconds: float, awaited: str) -> list[list[str]]:
    """Start the publisher, kill it so long after its first line that says so, and return its lines."""
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as publisher:
        assert publisher.stdout is not None
        assert publisher.stderr is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith(awaited):
            lines.append(publisher.stdout.readline())
            assert lines[-1], publisher.stderr.read()
        time.sleep(seconds)
        publisher.send_signal(signal.SIGKILL)
        lines += publisher.stdout.read().splitlines()
    # The last line may have been cut by the kill.
    return [parts for line in lines if len(parts := line.split()) == 3 and len(parts[1]) == 32]


async def check_whole(broker: Broker, message_id: str) -> None:
    """Every frame of a message, from its file: checksums, order, totals and digest."""
    parser, checker = FrameParser(), MessageChecker()
    async with await broker.open_reader(message_id) as reader:
        async for chunk in reader:
            for frame in parser.feed(chunk):
                checker.accept(frame)
    parser.finish()
    checker.finish()


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Law 2, in 8 kills: every id that was printed is there and whole, nothing half is listed, no rubbish
    stays, and nothing that a worker had acknowledged is delivered again.
    """
    chance = random.Random(2)
    stored: dict[str, str] = {}
    acked: set[str] = set()
    for awaited in ("running", "acked") * 4:
        for what, message_id, key in run_and_kill(tmp_path, chance.uniform(0, 0.5), awaited):
            if what == "stored":
                stored[message_id] = key
            else:
                acked.add(message_id)
        async with Broker(FileStore(tmp_path)) as broker:
            listed: list[str] = []
            after: int | None = 0
            while after is not None:
                page = await broker.messages(after=after, limit=1000)
                listed += [message.id for message in page.messages]
                after = page.next
            assert set(stored) <= set(listed)
            for message_id in listed:
                await check_whole(broker, message_id)
            files = {path.name for path in (tmp_path / "frames").iterdir()}
            assert files == {f"{message_id}.frames" for message_id in listed}
            assert (await broker.stats()).damaged == 0
    assert stored, "no round got anything stored; the test proves nothing"
    assert acked, "no round got anything acknowledged by the worker"
    async with Broker(FileStore(tmp_path)) as broker:
        _, created = await broker.ensure_consumer("worker", ConsumerConfig("t.>", ack_wait=0.1))
        assert not created
        again: set[str] = set()
        while deliveries := await broker.pull("worker", 100, 0.3):
            for delivery in deliveries:
                again.add(delivery.message.id)
                await broker.ack("worker", delivery.token)
        assert not again & acked
