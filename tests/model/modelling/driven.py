"""The real broker, on virtual time, for a test that calls it step by step; it can crash at any of them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.stores.file import FileStore
from tensorbus.streaming.raw import RawEncoder

T = TypeVar("T")

BEGIN = 1_000_000_000.0
"""Seconds since the epoch when virtual time begins."""
INLINE = 1000
"""Larger bodies are kept in files."""


class VirtualClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def wall(self) -> float:
        """Seconds since the epoch."""
        return BEGIN + self.now

    def monotonic(self) -> float:
        """Seconds since the beginning."""
        return self.now


class Driven:
    """A broker on a directory of its own, and the event loop that it runs on.

    Args:
        window: seconds for which keys are remembered.
    """

    def __init__(self, window: float) -> None:
        self.clock = VirtualClock()
        self._loop = asyncio.new_event_loop()
        self._folder = Path(tempfile.mkdtemp(prefix="tensorbus-model-"))
        self._lives = 0
        self._settings = BrokerSettings(
            inline_bytes=INLINE, duplicate_window=window, sweep_interval=0, sync="never", io_threads=1
        )
        self._start(self._folder / "0")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of an operation of ``broker``."""
        return self._loop.run_until_complete(work)

    def _start(self, path: Path) -> None:
        self._store = FileStore(path, reserve_bytes=0)
        self.broker = Broker(self._store, self._settings, self.clock)
        self.run(self.broker.start())
        self._path = path

    def restart(self) -> None:
        """Close it in peace and start it again."""
        self.run(self.broker.close())
        self._start(self._path)

    def crash(self) -> None:
        """Go on with what is on the disk at this moment; the broker that wrote it never hears of it."""
        before, path = self._path, self._path
        self._lives += 1
        path = self._folder / str(self._lives)

        def copy(_connection: Connection) -> None:
            # In the thread that writes rows: nothing is committed meanwhile.
            shutil.copytree(before, path)

        self.run(self._store._metadata.write(copy))  # pyright: ignore[reportPrivateUsage]
        old = self.broker
        self._start(path)
        self.run(old.close())
        shutil.rmtree(before)

    def close(self) -> None:
        """The end."""
        self.run(self.broker.close())
        self._loop.close()
        shutil.rmtree(self._folder)

    # --- messages ------------------------------------------------------------------------------------

    def publish(self, topic: str, key: str | None, content: bytes) -> Receipt:
        """Publish; raises as the broker does."""
        return self.run(self._publish(topic, key, content))

    async def _publish(self, topic: str, key: str | None, content: bytes) -> Receipt:
        started = await self.broker.begin(topic, key)
        if isinstance(started, Receipt):
            return started
        async with started:
            await started.write(_body(content))
            return await started.seal()

    def begin(self, topic: str, key: str | None, content: bytes) -> Upload | Receipt:
        """Publish half of a message, and leave it at that."""

        async def half() -> Upload | Receipt:
            started = await self.broker.begin(topic, key)
            if isinstance(started, Upload):
                body = _body(content)
                await started.write(body[: len(body) // 2])
            return started

        return self.run(half())

    def all_messages(self) -> list[MessageInfo]:
        """Every sealed message, by seq."""
        return list(self.run(self.broker.messages(limit=1000)).messages)

    def content(self, message_id: str) -> bytes:
        """The body of a message, as it is read."""

        async def read() -> bytes:
            async with await self.broker.open_reader(message_id) as reader:
                return b"".join([bytes(chunk) async for chunk in reader])

        return self.run(read())


def _body(content: bytes) -> bytes:
    encoder = RawEncoder({}, "application/octet-stream", len(content))
    parts = [encoder.open()]
    for head, payload in encoder.slices(content):
        parts += [head, bytes(payload)]
    return b"".join([*parts, encoder.close()])


def body_of(content: bytes) -> bytes:
    """What is stored for a content."""
    return _body(content)
