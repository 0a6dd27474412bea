"""What the store alone makes durable: small messages a second, and how long one waits.

    python bench/store.py --data DIR        DIR on the disk that is meant; it must not exist, and is removed

Each message is 1 KiB, with a key; its frames are in its row. Nothing of HTTP or the broker is measured, only
rows, group commit and fsync. Beside it stands the disk's own pace: one fdatasync after each 4 KiB written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.stores.file import FileStore

BODY = os.urandom(1200)


def message(number: int) -> MessageInfo:
    """One to be listed."""
    now = datetime.now(UTC)
    return MessageInfo(
        id=uuid.uuid4().hex,
        seq=None,
        topic=f"bench.{number % 16}",
        key=uuid.uuid4().hex,
        state="sealed",
        bytes=len(BODY),
        frames=4,
        headers={"number": number},
        container="bytes",
        pipeline={"serializer": "bytes"},
        items=1,
        original_bytes=1024,
        wire_bytes=len(BODY),
        digest="0" * 64,
        created=now,
        sealed=now,
    )


async def measure(store: FileStore, publishers: int, messages: int) -> dict[str, float]:
    """So many publishers, each of which waits for one message before the next."""
    waits: list[float] = []
    waiting = iter([message(number) for number in range(messages)])

    async def publish() -> None:
        for each in waiting:
            began = time.perf_counter()
            await store.seal(each, [], BODY)
            waits.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(publish() for _ in range(publishers)))
    took, worked = time.perf_counter() - began, time.process_time() - cpu
    waits.sort()
    return {
        "publishers": publishers,
        "messages_per_second": round(messages / took),
        "cpu_us_per_message": round(1e6 * worked / messages, 1),
        "p50_ms": round(1e3 * waits[messages // 2], 3),
        "p99_ms": round(1e3 * waits[messages * 99 // 100], 3),
        "max_ms": round(1e3 * waits[-1], 3),
    }


def disk(folder: Path, writes: int = 500) -> dict[str, float]:
    """Milliseconds of an fdatasync after 4 KiB, over a file that has its size already."""
    path = folder / "disk"
    path.write_bytes(bytes(4096 * writes))
    waits: list[float] = []
    fd = os.open(path, os.O_WRONLY)
    try:
        os.fsync(fd)
        for number in range(writes):
            os.pwrite(fd, BODY * 3, 4096 * number)
            began = time.perf_counter()
            os.fdatasync(fd)
            waits.append(time.perf_counter() - began)
    finally:
        os.close(fd)
        path.unlink()
    waits.sort()
    return {
        "fdatasync_p50_ms": round(1e3 * waits[writes // 2], 3),
        "fdatasync_p99_ms": round(1e3 * waits[writes * 99 // 100], 3),
    }


async def run(data: Path, messages: int) -> None:
    """Print one JSON object a line."""
    store = FileStore(data / "store")
    await store.start()
    for publishers in (1, 8, 64, 512):
        number = messages if publishers > 1 else messages // 8
        print(json.dumps(await measure(store, publishers, number)), flush=True)
    await store.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("store-bench"))
    parser.add_argument("--messages", type=int, default=20_000)
    options = parser.parse_args()
    options.data.mkdir()
    try:
        print(json.dumps(disk(options.data)), flush=True)
        asyncio.run(run(options.data, options.messages))
    finally:
        shutil.rmtree(options.data)


if __name__ == "__main__":
    main()
