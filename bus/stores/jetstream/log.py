"""The log as a stream: one record a message, read with a consumer that is made anew whenever it breaks.

A snapshot is a file of rows, cut into pieces as frames are. The piece ``snapshot.0`` says which one counts.
Records that it holds are removed from the stream; a broker that was so far behind that it misses them cannot
go on, and starts again with the snapshot.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tensorbus.bus.stores.logs import Deliver, Log
from tensorbus.bus.stores.records import VERSION
from tensorbus.bus.stores.runs import Runs
from tensorbus.errors import BrokerUnavailable, StorageError, StoreVersion

from .frames import StreamPieces
from .link import ApiProblem, Link

_logger = logging.getLogger("tensorbus.store")

_BATCH = 256
_BATCH_BYTES = 8 << 20
_HEARTBEAT = 1.0
_SILENCE = 3.5
"""Seconds without a heartbeat after which a consumer is taken for broken."""
_AGAIN = 0.2
_ANSWER = 1.0
_LISTEN = 0.5
_FRESH = 2.0
"""Seconds for which somebody who reads waits for what others have just written."""
_SHORT = 16 << 20
"""Bytes of the log that are not worth a snapshot."""
_POINTER = "snapshot"
_ROWS = "rows-"
_COPY = 1 << 20
_FOREVER = 1e9


class StreamLog(Log):
    """The log in the stream ``NAME_log``."""

    def __init__(self, link: Link, pieces: StreamPieces) -> None:
        self._link = link
        self._pieces = pieces
        self._runs = Runs(pieces)
        self._stream = f"{link.settings.name}_log"
        self._subject = f"{link.settings.name}.log"
        self._question = f"{link.settings.name}.leader"
        self._reading = f"{link.settings.name}.reading"
        self._brokers = f"{link.settings.name}.brokers"
        self._applied = 0
        self._moved = asyncio.Event()
        self._next = 1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._following: Future[None] | None = None
        self._snapshot: dict[str, Any] | None = None
        self._pointer = 0
        self._folder: Path | None = None
        self._sent = 0
        self._sender = secrets.token_hex(6)

    # --- life ----------------------------------------------------------------------------------------

    async def start(self, rows: Path) -> None:
        """Connect, make the streams if they are not there, and fetch the snapshot."""
        self._loop = asyncio.get_running_loop()
        self._folder = rows.parent
        await self._link.open(max(self.largest, self._pieces.size))
        await self._called(self._pieces.open())
        await self._called(self._make())
        for _ in range(3):
            if await asyncio.to_thread(self._fetch, rows):
                return
        raise StorageError(f"{self._link.settings}: the snapshot cannot be read; it is replaced all the time")

    async def _make(self) -> None:
        settings = self._link.settings
        await self._link.make_stream(
            {
                "name": self._stream,
                "subjects": [self._subject],
                "storage": "file",
                "num_replicas": settings.replicas,
                "retention": "limits",
                "discard": "new",
                "duplicate_window": int(settings.duplicate_window * 1e9),
            }
        )

    async def close(self) -> None:
        """Nothing more is delivered or appended."""
        if self._following is not None:
            self._following.cancel()
        await self._link.close()

    def check(self) -> None:
        """Raise BrokerUnavailable without a connection."""
        self._link.check()

    def give_up_soon(self) -> None:
        """What no server answers within a few seconds fails."""
        self._link.give_up_soon()

    async def leader(self) -> str | None:
        """Ask who leads."""
        try:
            message = await self._called(self._link.client.request(self._question, timeout=_ANSWER))
        except nats.errors.Error:
            return None
        return str(message.data.decode())

    async def announce(self, url: str) -> None:
        """Answer with ``url``, until the link is closed."""

        async def answer(question: Msg) -> None:
            await question.respond(url.encode())

        await self._called(self._answer_to(self._question, answer))

    async def _answer_to(self, subject: str, answer: Callable[[Msg], Awaitable[None]]) -> None:
        await self._link.client.subscribe(subject, cb=answer)  # pyright: ignore[reportUnknownMemberType]

    async def tell(self, word: bytes) -> None:
        """Publish it; it is not stored. Raises StorageError."""
        try:
            await self._called(self._link.client.publish(self._brokers, word))
        except nats.errors.Error as problem:
            raise StorageError(f"{self._link.settings}: {problem}") from problem

    async def listen(self, heard: Callable[[bytes], None]) -> None:
        """Subscribe; ``heard`` is called on the loop of the broker."""
        assert self._loop is not None
        loop = self._loop

        async def take(word: Msg) -> None:
            loop.call_soon_threadsafe(heard, word.data)

        await self._called(self._answer_to(self._brokers, take))

    async def behind(self) -> int | None:
        """Ask how far the stream is."""
        if not self._link.connected:
            return None
        return max(0, await self._called(self._end()) - self._applied)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to any server."""
        return self._link.connected

    async def needs(self, runs: Collection[str]) -> set[str]:
        """The snapshot that counts, and what says which one that is."""
        if not any(run == _POINTER or run.startswith(_ROWS) for run in runs):
            return set()
        found = await asyncio.wrap_future(self._pieces.get(_POINTER, 0, None))
        return {_POINTER} if found is None else {_POINTER, str(json.loads(found[0])["run"])}

    async def used_elsewhere(self, runs: Sequence[str]) -> set[str]:
        """Ask all brokers; those that read something else keep silent."""
        return await self._called(self._ask_readers(runs))

    async def _ask_readers(self, runs: Sequence[str]) -> set[str]:
        client = self._link.client
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)  # pyright: ignore[reportUnknownMemberType]
        found: set[str] = set()
        try:
            await client.publish(self._reading, json.dumps(list(runs)).encode(), reply=inbox)
            async with asyncio.timeout(_LISTEN):
                while True:
                    found |= set(json.loads((await answers.next_msg(timeout=_LISTEN)).data))
        except (TimeoutError, nats.errors.TimeoutError):
            return found
        finally:
            await _leave(answers)

    # --- what comes ----------------------------------------------------------------------------------

    async def follow(
        self, after: int, deliver: Deliver, lost: Callable[[str], None], reads: Callable[[str], bool]
    ) -> None:
        """Deliver what is there, and what comes."""
        self._applied, self._next = after, after + 1
        loop = asyncio.get_running_loop()

        async def apply(seq: int, data: bytes) -> None:
            await deliver(seq, data)
            self._applied = max(self._applied, seq)
            self._moved.set()
            self._moved = asyncio.Event()

        def fail(why: str) -> None:
            loop.call_soon_threadsafe(lost, why)

        async def answer(question: Msg) -> None:
            if used := [run for run in json.loads(question.data) if reads(run)]:
                await question.respond(json.dumps(used).encode())

        await self._called(self._answer_to(self._reading, answer))
        self._following = self._link.call(self._follow(apply, fail))
        await self._reach(await self._called(self._end()))

    async def _reach(self, seq: int) -> None:
        while self._applied < seq:
            await self._moved.wait()

    async def catch_up(self) -> None:
        """What others have written is here, as far as that can be had soon."""
        with suppress(TimeoutError, StorageError, BrokerUnavailable):
            async with asyncio.timeout(_FRESH):
                self._link.check()
                await self._reach(await self._called(self._end()))

    async def _follow(self, apply: Deliver, lost: Callable[[str], None]) -> None:
        """On the link's loop, until the link is closed."""
        while not self._link.closed:
            if self._link.refused:
                lost("the servers refuse this broker's connection")
                return
            consumer = f"follow-{secrets.token_hex(6)}"
            try:
                await self._make_consumer(consumer, lost)
                await self._pull(consumer, apply)
            except (ApiProblem, StorageError, nats.errors.Error, OSError, TimeoutError) as problem:
                if not self._link.closed:
                    _logger.info("%s: the log is read anew: %s", self._link.settings, problem)
            await asyncio.sleep(_AGAIN)

    async def _make_consumer(self, name: str, lost: Callable[[str], None]) -> None:
        info = await self._info()
        first = int(info["state"]["first_seq"])
        if first > self._next and int(info["state"]["messages"]):
            lost(f"records {self._next} to {first - 1} of the log are gone: this broker was too far behind")
        if int(info["state"]["last_seq"]) < self._next - 1:
            lost("the log is shorter than it was; the servers have lost some of it")
        config: dict[str, object] = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._next,
            "ack_policy": "none",
            "replay_policy": "instant",
            "num_replicas": 1,
            "mem_storage": True,
            "inactive_threshold": int(60e9),
        }
        await self._link.api(
            f"CONSUMER.CREATE.{self._stream}.{name}", {"stream_name": self._stream, "config": config}, 5.0
        )

    async def _pull(self, consumer: str, apply: Deliver) -> None:
        """Until something breaks."""
        client = self._link.client
        inbox = client.new_inbox()
        arrivals = await client.subscribe(  # pyright: ignore[reportUnknownMemberType]
            inbox, pending_bytes_limit=4 * _BATCH_BYTES
        )
        request = json.dumps(
            {
                "batch": _BATCH,
                "max_bytes": _BATCH_BYTES,
                "expires": int(30e9),
                "idle_heartbeat": int(_HEARTBEAT * 1e9),
            }
        ).encode()
        asked = 0
        done: Future[None] | None = None
        try:
            while not self._link.closed:
                if not asked:
                    if done is not None:
                        await asyncio.wrap_future(done)  # no more than two batches wait to be applied
                    await client.publish(
                        f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{consumer}", request, reply=inbox
                    )
                    asked = _BATCH
                message = await arrivals.next_msg(timeout=_SILENCE)
                self._link.heard()
                status = (message.headers or {}).get("Status")
                if status == "100":
                    continue
                if status is not None:
                    said = str((message.headers or {}).get("Description", ""))
                    if status == "409" and "Batch" not in said and "MaxBytes" not in said:
                        raise StorageError(said)
                    asked = 0
                    continue
                asked -= 1
                done = self._take(message, apply) or done
        finally:
            await _leave(arrivals)

    def _take(self, message: Msg, apply: Deliver) -> Future[None] | None:
        seq = message.metadata.sequence.stream
        if seq < self._next:
            return None
        if seq > self._next:
            raise StorageError(f"record {self._next} was left out")
        self._next = seq + 1
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(_awaited(apply, seq, message.data), self._loop)

    # --- what goes -----------------------------------------------------------------------------------

    async def append(self, record: bytes) -> None:
        """Put a record at the end."""
        self._sent += 1
        await self._called(self._append(record, f"{self._sender}.{self._sent}"))

    async def _append(self, record: bytes, name: str) -> None:
        while True:
            try:
                await self._link.publish(self._subject, record, {"Nats-Msg-Id": name}, _FOREVER)
                return
            except ApiProblem as problem:
                _logger.error("%s: a record is not taken: %s", self._link.settings, problem.text)
                await asyncio.sleep(1)
            except StorageError as problem:
                if self._link.closed or self._link.silent:
                    raise
                _logger.error("a record is not taken: %s", problem)
                await asyncio.sleep(1)

    async def _end(self) -> int:
        return int((await self._info())["state"]["last_seq"])

    async def _info(self) -> dict[str, Any]:
        try:
            return await self._link.api(f"STREAM.INFO.{self._stream}", None, 5.0)
        except ApiProblem as problem:
            raise StorageError(f"{self._link.settings}: {problem.text}") from problem

    async def _called(self, work: Any) -> Any:
        return await asyncio.wrap_future(self._link.call(work))

    # --- snapshots -----------------------------------------------------------------------------------

    def _fetch(self, rows: Path) -> bool:
        """Write the snapshot that counts to ``rows``; False if it was replaced meanwhile. Blocks."""
        found = self._pieces.get(_POINTER, 0, None).result()
        if found is None:
            return True
        snapshot: dict[str, Any] = json.loads(found[0])
        if snapshot["version"] != VERSION:
            raise StoreVersion(
                f"{self._link.settings} was written by another release (format {snapshot['version']}, this "
                f"one knows {VERSION})"
            )
        left = int(snapshot["size"])
        buffer = memoryview(bytearray(_COPY))
        with rows.open("wb") as file, closing(self._runs.open(snapshot["run"], left)) as reader:
            at = 0
            while at < left:
                count = reader.read_into(buffer, at)
                if not count:
                    return False
                file.write(buffer[:count])
                at += count
        self._snapshot, self._pointer = snapshot, found[1]
        return True

    async def keep_short(self, copy: Callable[[Path], int]) -> None:
        """Make a snapshot when the log has outgrown the last one."""
        state = (await self._called(self._info()))["state"]
        last = 0 if self._snapshot is None else int(self._snapshot["size"])
        if int(state["bytes"]) < max(_SHORT, last):
            return
        await self.shorten(copy)

    async def shorten(self, copy: Callable[[Path], int]) -> None:
        """Make a snapshot, and remove what it holds from the log."""
        seq = await asyncio.to_thread(self._keep, copy)
        await self._called(self._purge(seq))

    async def _purge(self, seq: int) -> None:
        try:
            await self._link.api(f"STREAM.PURGE.{self._stream}", {"seq": seq + 1}, 5.0)
        except ApiProblem as problem:
            raise StorageError(f"{self._link.settings}: {problem.text}") from problem

    def _keep(self, copy: Callable[[Path], int]) -> int:
        """Store a snapshot, and say that it counts; how far it is in the log. Blocks."""
        found = self._pieces.get(_POINTER, 0, None).result()
        before: dict[str, Any] | None = None if found is None else json.loads(found[0])
        self._pointer = 0 if found is None else found[1]
        assert self._folder is not None
        path = self._folder / f"snapshot-{secrets.token_hex(4)}.db"
        run = f"{_ROWS}{secrets.token_hex(8)}"
        try:
            seq = copy(path)
            file = self._runs.create(run, lambda _: None)
            with path.open("rb") as source:
                while part := source.read(_COPY):
                    file.append([part])
            file.sync()
            file.close()
            snapshot: dict[str, Any] = {
                "version": VERSION,
                "run": run,
                "seq": seq,
                "size": path.stat().st_size,
            }
        finally:
            path.unlink(missing_ok=True)
        self._pointer = self._pieces.put(_POINTER, 0, json.dumps(snapshot).encode(), self._pointer).result()
        self._snapshot = snapshot
        if before is not None:
            self._pieces.clear(str(before["run"])).result()
        return seq


async def _leave(arrivals: Subscription) -> None:
    with suppress(nats.errors.Error, OSError):
        await arrivals.unsubscribe()


async def _awaited(apply: Deliver, seq: int, data: bytes) -> None:
    await apply(seq, data)
