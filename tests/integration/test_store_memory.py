"""Law 1 at the broker: what a message costs in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

THROUGH = """
import asyncio, os, sys
from tensorbus.bus.broker import Broker
from tensorbus.bus.stores.file import FileStore
from tensorbus.streaming.raw import RawEncoder

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

async def through(broker, size):
    encoder = RawEncoder({}, "application/octet-stream", size)
    chunk = os.urandom(1 << 18)
    async with await broker.begin("a") as upload:
        await upload.write(encoder.open())
        for _ in range(size // len(chunk)):
            for head, payload in encoder.slices(chunk):
                await upload.write(head)
                await upload.write(payload)
        await upload.write(encoder.close())
        receipt = await upload.seal()
    async with await broker.open_reader(receipt.id) as reader:
        assert sum([len(chunk) async for chunk in reader]) == receipt.bytes
    await broker.item_range(receipt.id, "body")

async def main():
    async with Broker(FileStore(sys.argv[1])) as broker:
        await through(broker, 8 << 20)
        before = peak()
        await through(broker, 256 << 20)
        print(peak() - before)

asyncio.run(main())
"""


def test_a_large_message_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    """256 MiB go in and out, and the peak of the process grows by less than 16 MiB over that for 8 MiB."""
    run = subprocess.run(
        [sys.executable, "-c", THROUGH, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 16 * 1024
