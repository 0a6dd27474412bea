"""The real broker, on virtual time, for a test that calls it step by step; it can crash at any of them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.batches import Record
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import TensorbusError
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.raw import RawEncoder

T = TypeVar("T")

BEGIN = 1_000_000_000.0
"""Seconds since the epoch when virtual time begins."""
INLINE = 1000
"""Larger bodies are kept in files."""
EXPIRY = 60.0
"""Seconds for which an upload is kept though nobody goes on with it."""
ENDS_WITHIN = 10.0
"""Seconds, real ones, in which a follower must hear of the end of what it reads."""
SLICE = 1000
"""Bytes of content in a frame, so that there are several."""


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


@dataclass
class Follower:
    """Somebody who reads a message while it comes, and what they have so far."""

    id: str
    read: bytearray
    task: asyncio.Task[None]


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
            inline_bytes=INLINE,
            duplicate_window=window,
            upload_expiry=EXPIRY,
            sweep_interval=0,
            sync="never",
            io_threads=1,
        )
        self.followers: list[Follower] = []
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
        self.leave()
        self.run(self.broker.close())
        self._start(self._path)

    def crash(self) -> None:
        """Go on with what is on the disk at this moment; the broker that wrote it never hears of it."""
        self.run(self._copy())
        self._start_copy()

    async def _copy(self) -> None:
        """Keep what is on the disk at this moment."""
        before = self._path
        self._lives += 1
        path = self._folder / str(self._lives)

        def copy(_connection: Connection) -> None:
            # In the thread that writes rows: nothing is committed meanwhile.
            shutil.copytree(before, path)

        await self._store._metadata.write(copy)  # pyright: ignore[reportPrivateUsage]

    def _start_copy(self) -> None:
        self.leave()
        old, before = self.broker, self._path
        self._start(self._folder / str(self._lives))
        self.run(old.close())
        shutil.rmtree(before)

    def close(self) -> None:
        """The end."""
        self.leave()
        self.run(self.broker.close())
        self._loop.close()
        shutil.rmtree(self._folder)

    # --- uploads --------------------------------------------------------------------------------------

    def create(self, topic: str, key: str | None, length: int, source: str | None) -> Upload | Receipt:
        """Make a resumable upload, or find it; raises as the broker does."""
        metadata = {} if source is None else {"source": source}
        return self.run(self.broker.create_upload(topic, key, length, metadata))

    def append(self, message_id: str, part: bytes, *, amid: bool = False) -> Receipt | None:
        """Add to an upload in a turn of its own; the receipt if that was the rest. Raises as the broker does.

        With ``amid``, the broker crashes while the writer has its turn.
        """
        receipt = self.run(self._append(message_id, part, amid))
        if amid:
            self._start_copy()
        return receipt

    async def _append(self, message_id: str, part: bytes, amid: bool) -> Receipt | None:
        upload = self.broker.upload(message_id)
        assert upload is not None
        async with upload.turn(lambda: None):
            if part:
                await upload.write(part)
                await upload.flush()
            if amid:
                await self._copy()
            elif upload.complete:
                return await upload.seal()
        return None

    def offset(self, message_id: str) -> int | None:
        """How far an upload is, without having a turn; None if there is none."""
        upload = self.broker.upload(message_id)
        if upload is None:
            return None
        self.run(upload.touch())
        return upload.offset

    def give_up(self, message_id: str) -> None:
        """The publisher's last word on an upload."""
        upload = self.broker.upload(message_id)
        assert upload is not None
        self.run(upload.abort("its publisher gave it up"))

    # --- followers ------------------------------------------------------------------------------------

    def follow(self, message_id: str) -> None:
        """Begin to read a message that is being published, to its end."""
        read = bytearray()

        async def to_the_end() -> None:
            async with await self.broker.open_reader(message_id) as reader:
                async for chunk in reader:
                    read.extend(chunk)

        self.followers.append(Follower(message_id, read, self._loop.create_task(to_the_end())))

    def end_of(self, follower: Follower) -> Exception | None:
        """Wait until a follower is at its end: what it got instead of all, if it did."""
        try:
            self._loop.run_until_complete(asyncio.wait([follower.task], timeout=ENDS_WITHIN))
            assert follower.task.done(), f"who follows {follower.id} is not told that it has ended"
            self.followers.remove(follower)
            self._loop.run_until_complete(follower.task)
        except TensorbusError as problem:
            return problem
        return None

    def leave(self) -> None:
        """All followers go."""
        for follower in self.followers:
            follower.task.cancel()
        if self.followers:
            self._loop.run_until_complete(asyncio.wait([follower.task for follower in self.followers]))
        self.followers.clear()

    # --- messages ------------------------------------------------------------------------------------

    def publish(self, topic: str, key: str | None, content: bytes) -> Receipt:
        """Publish; raises as the broker does."""
        return self.run(self._publish(topic, key, content))

    async def _publish(self, topic: str, key: str | None, content: bytes) -> Receipt:
        body = body_of(content)
        started = await self.broker.begin(topic, key, len(body))
        if isinstance(started, Receipt):
            return started
        async with started:
            await started.write(body)
            return await started.seal()

    def publish_batched(self, topic: str, key: str | None, content: bytes) -> Receipt:
        """As ``publish``, in a batch of one."""
        (outcome,) = self.run(self.broker.publish_batch(topic, [Record(key, body_of(content))]))
        if isinstance(outcome, Receipt):
            return outcome
        raise outcome

    def begin(self, topic: str, key: str | None, content: bytes) -> Upload | Receipt:
        """Publish half of a message, and leave it at that."""

        async def half() -> Upload | Receipt:
            body = body_of(content)
            started = await self.broker.begin(topic, key, len(body))
            if isinstance(started, Upload):
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


def body_of(content: bytes) -> bytes:
    """The frames of a message of this content."""
    encoder = RawEncoder({}, "application/octet-stream", len(content))
    parts = [encoder.open()]
    for start in range(0, len(content), SLICE):
        for head, payload in encoder.slices(content[start : start + SLICE]):
            parts += [head, bytes(payload)]
    return b"".join([*parts, encoder.close()])


def ends_of(body: bytes) -> list[int]:
    """Where the frames of a body end."""
    return [frame.end for frame in FrameParser(keep_payload=False).feed(body)]
