"""A store that is a log of commands and pieces of frames, wherever these two are.

Strategy. A change of rows is a command that is put at the end of the log. Whoever uses the log runs all
commands, in the log's order, on rows of its own, and so has what everybody has; the result of a command is
what it gave here. Nothing has to be locked, nothing can be half done, and a broker that was killed in the
midst leaves nothing that the others do not know. Commands that wait while one record is on its way share the
next one, as transactions of the embedded store share a flush of the disk. Reads ask this process's own rows.

Frames go beside the log, in pieces (`runs.py`), before the command that lists their message.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Literal, TypeVar

from tensorbus.bus.messages import MessageInfo, Receipt, TopicInfo
from tensorbus.errors import (
    BrokerUnavailable,
    LimitExceeded,
    QuotaExceeded,
    StorageError,
    StoreDamaged,
    StoreUnavailable,
)

from . import consumer_rows, damage_rows, message_rows
from .base import (
    NO_TERMS,
    Copy,
    Disk,
    FrameFile,
    HandedOver,
    HandOver,
    Listing,
    RemoteFrames,
    Space,
    StoredConsumer,
    StoredDelivery,
    StoredPolicy,
    StoredUpload,
    Terms,
)
from .logs import Log
from .records import Command, packed, parse, record
from .replica import Failed, Replica, state
from .runs import Pieces, Runs
from .shared import BorrowedFrames, SharedStore
from .strays import Strays
from .syncing import Sync, SyncObserver

T = TypeVar("T")

_log = logging.getLogger("tensorbus.store")

_MOST_COMMANDS = 256
"""In one record."""
_LISTED_AT_ONCE = 256 << 10
"""Bytes of small messages in one command."""
_CHANGE_DAMAGE = frozenset({"quarantine", "restore", "seal", "seal_all", "remove", "make_room", "replay"})
"""Commands after which there may be other damaged messages."""
_CLOSED = "it is closed"
_CLEARED = 200
"""Runs whose frames are removed at a time."""


class ReplicatedStore(SharedStore):
    """A store over a log and pieces.

    Args:
        log: where the commands go.
        pieces: where the frames go.
        name: what it is called, for errors.
        stand_by: only read at first, since another broker may be in the lead; else take it at the start.

    Attributes:
        over: set when this cannot go on, since another broker has taken the lead, or records were missed; a
            new one can.
    """

    def __init__(self, log: Log, pieces: Pieces, name: str, *, stand_by: bool = False) -> None:
        self.log = log
        self.over = asyncio.Event()
        self._stand_by = stand_by
        self._leading = False
        self.name = name
        self.writer = secrets.token_hex(8)
        self._runs = Runs(pieces)
        self._borrowed = Runs(pieces)
        self._pieces = pieces
        self._folder: Path | None = None
        self._replica: Replica | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._sent: dict[int, list[asyncio.Future[Any]]] = {}
        self._number = 0
        self._sending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._strays = Strays(self._runs, pieces, self._read_all, log.needs)
        self._failure: str | None = None
        self._damaged: dict[str, str] = {}

    @property
    def damaged(self) -> Mapping[str, str]:
        """A damaged message is not delivered, but can be deleted, and restored."""
        return self._damaged

    @property
    def leading(self) -> bool:
        """Whether this broker's commands count."""
        return self._leading

    @property
    def leftovers(self) -> Sequence[str]:
        """What others left is removed with the first sweep."""
        return ()

    def check_writable(self) -> None:
        """Raise StoreUnavailable if this process cannot go on, or the log cannot be reached."""
        if self._failure is not None:
            raise StoreUnavailable(f"{self.name}: {self._failure}; the broker begins anew")
        self.log.check()

    # --- life ----------------------------------------------------------------------------------------

    async def start(self, sync: Sync = "always") -> list[StoredConsumer]:
        """Bring the rows up to where the log is, and take the lead, unless this one stands by.

        ``sync`` is the log's own business.
        """
        self._loop = asyncio.get_running_loop()
        self._folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="tensorbus-"))
        rows = self._folder / "rows.db"
        try:
            await self.log.start(rows)
            self._replica = Replica(rows)
            there = await self._replica.open()
            await self.log.follow(there.seq, self._deliver, self._fail, self._in_use)
            self._damaged = await self._rows.read(damage_rows.damaged)
            while not self._stand_by:
                consumers = await self.lead()
                if consumers is not None:
                    return consumers
            return []
        except BaseException:
            await self.close()
            raise

    async def lead(self) -> list[StoredConsumer] | None:
        """Take the lead from whoever has it; see ``Store.lead``."""
        there = await self._rows.read(state)
        self._pieces.term = there.term + 1
        if not await self._write("lead", there.term):
            return None
        self._leading = True
        return [
            replace(
                each,
                deliveries=tuple(d for d in each.deliveries if d.settled or d.message not in self._damaged),
            )
            for each in await self._rows.read(consumer_rows.consumers)
        ]

    def give_up_soon(self) -> None:
        """What the log or the pieces do not take within a few seconds fails."""
        self.log.give_up_soon()

    async def close(self) -> None:
        """Put what waits into the log, and forget the rows."""
        if self._failure is None and self._sending is not None:
            await asyncio.wait([self._sending], timeout=5)
        self._fail(_CLOSED)
        await self.log.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        replica, self._replica = self._replica, None
        if replica is not None:
            await asyncio.to_thread(replica.close)
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None

    @property
    def _rows(self) -> Replica:
        if self._replica is None:
            raise StorageError(f"{self.name} is closed")
        return self._replica

    def _fail(self, why: str) -> None:
        """Nothing more can be known of the log by this process."""
        if self._failure is None:
            self._failure = why
            problem = StoreUnavailable(f"{self.name}: {why}")
            for futures in [[future for _, future in self._waiting], *self._sent.values()]:
                for future in futures:
                    if not future.done():
                        future.set_exception(problem)
            self._waiting.clear()
            self._sent.clear()
            self.over.set()
            if why != _CLOSED:
                _log.error("%s: %s", self.name, why)

    # --- commands ------------------------------------------------------------------------------------

    async def _write(self, name: str, *arguments: object) -> Any:
        """Have a command done; its result. It is done even if the caller is cancelled.

        Raises:
            StorageError: it was not done. BrokerUnavailable: it was not, and another broker can do it.
        """
        self.check_writable()
        if not self._leading and name != "lead":
            raise BrokerUnavailable("this broker stands by; another one answers this")
        command = packed(Command(name, arguments))
        if len(command) > self.log.largest:
            raise LimitExceeded(
                f"{self.name}: this takes {len(command)} bytes of the log, of which a record has "
                f"{self.log.largest}"
            )
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._sending is None or self._sending.done():
            self._sending = self._start(self._send())
        return await future

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send(self) -> None:
        """Put what waits into the log, one record after the other."""
        await asyncio.sleep(0)  # others who are about to write share the record
        while self._waiting:
            commands: list[bytes] = []
            futures: list[asyncio.Future[Any]] = []
            size = 0
            while self._waiting and len(commands) < _MOST_COMMANDS:
                size += len(self._waiting[0][0])
                if commands and size > self.log.largest:
                    break
                command, future = self._waiting.popleft()
                commands.append(command)
                futures.append(future)
            self._number += 1
            self._sent[self._number] = futures
            try:
                await self.log.append(record(self.writer, self._number, commands))
            except StorageError as problem:
                self._fail(str(problem).removeprefix(f"{self.name} "))

    async def _deliver(self, seq: int, data: bytes) -> None:
        """A record has come: do it, and let those go who wait for it."""
        try:
            found = parse(data)
            results = await self._rows.apply(seq, found)
            if results is not None and any(each.name in _CHANGE_DAMAGE for each in found.commands):
                await self._look_for_damage(found.commands)
        except StorageError as problem:
            self._fail(str(problem))
            return
        except Exception as problem:
            # Whatever it is, these rows are not those of the log any more.
            _log.exception("record %d of %s cannot be applied", seq, self.name)
            self._fail(f"record {seq} cannot be applied: {problem}")
            return
        if self._leading and found.writer != self.writer and results is not None:
            taken = zip(found.commands, results, strict=True)
            if any(command.name == "lead" and result is True for command, result in taken):
                self._leading = False
                self._fail("another broker has taken the lead")
                return
        if found.writer != self.writer or results is None:
            return
        for future, result in zip(self._sent.pop(found.number, ()), results, strict=False):
            if future.done():
                continue
            if isinstance(result, Failed):
                future.set_exception(result.problem)
            else:
                future.set_result(result)

    async def _look_for_damage(self, commands: Sequence[Command]) -> None:
        if self._damaged or any(each.name == "quarantine" for each in commands):
            self._damaged = await self._rows.read(damage_rows.damaged)

    async def _read(self, query: Callable[[Connection], T]) -> T:
        return await self._rows.read(query)

    async def _read_all(self, query: Callable[[Connection], T]) -> T:
        """As ``_read``, when all that is in the log now has been done."""
        await self.log.catch_up()
        return await self._read(query)

    def _tell(self, name: str, *arguments: object) -> None:
        """Have a command done without waiting for it; from any thread."""

        def start() -> None:
            self._start(self._quietly(name, *arguments))

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(start)

    async def _quietly(self, name: str, *arguments: object) -> None:
        try:
            await self._write(name, *arguments)
        except Exception as problem:  # a sweep, or the next broker, does it over
            _log.info("%s: %s was not done: %s", self.name, name, problem)

    # --- damage --------------------------------------------------------------------------------------

    async def quarantine(self, message_id: str, reason: str, found: float) -> bool:
        """Note it; its frames stay where they are."""
        await self._forget_pieces(message_id)
        if not self._leading:
            return False  # who leads finds it when it is asked for there
        known = message_id in self._damaged
        self._damaged.setdefault(message_id, reason)
        fresh = await self._write("quarantine", message_id, reason, found)
        return bool(fresh) and not known

    async def _forget_pieces(self, message_id: str) -> None:
        """Who looks again shall not see what this process remembers."""

        def run_of(connection: Connection) -> str | None:
            row = connection.execute("SELECT run FROM places WHERE id = ?", (message_id,)).fetchone()
            return None if row is None else row[0]

        if (run := await self._read(run_of)) is not None:
            self._runs.cache.forget(run)

    def put_aside(self, message_id: str) -> None:
        """Nothing to do: who looks again finds the frames where they were."""

    async def restore(self, message_id: str, *, in_place: bool) -> list[StoredDelivery]:
        """It is whole again."""
        return await self._write("restore", message_id)

    def open_quarantined(self, message_id: str, size: int) -> int:
        """Nothing is ever put aside. Raises StoreDamaged."""
        raise StoreDamaged(f"message {message_id}: its frames were not put aside")

    def strays(self) -> list[str]:
        """Frames that nobody needs are in the rows, and go with a sweep."""
        return []

    def check_rows(self) -> list[str]:
        """What is wrong with the rows."""
        return self._rows.read_apart(damage_rows.check)

    # --- frames --------------------------------------------------------------------------------------

    def create(self, message_id: str) -> FrameFile:
        """An empty run; the log knows of it, for the case that this process dies."""
        self.check_writable()
        self._pieces.check_room(0)
        self._tell("begin_run", message_id)
        return self._runs.create(message_id, self._dropped)

    def reopen(self, message_id: str, size: int) -> FrameFile:
        """The run of an upload."""
        self.check_writable()
        return self._runs.reopen(message_id, size, self._dropped)

    def _dropped(self, run: str) -> None:
        self._tell("drop_runs", [run])

    def _in_use(self, run: str) -> bool:
        return self._runs.in_use(run) or self._borrowed.in_use(run)

    def lend(self, message_id: str) -> int:
        """Have another broker write a run; the log knows of it, as of one that is written here."""
        self.check_writable()
        self._runs.lent.add(message_id)
        self._tell("begin_run", message_id)
        return self._pieces.epoch()

    def take_back(self, message_id: str, *, drop: bool = False) -> None:
        """Its writer is done."""
        self._runs.lent.discard(message_id)
        if drop:
            self._dropped(message_id)

    def borrow(self, epoch: int) -> BorrowedFrames:
        """Write a run for the broker that leads."""
        self.check_writable()
        return BorrowedFrames(self._borrowed, epoch)

    def open_frames(self, message_id: str, size: int | None) -> int | bytes | RemoteFrames:
        """The frames of a small message, or where to get those of a large one."""
        if size is None:
            return self._runs.open(message_id, None)

        def place(connection: Connection) -> tuple[str | None, bytes | None]:
            row = connection.execute("SELECT run FROM places WHERE id = ?", (message_id,)).fetchone()
            return (row[0], None) if row is not None else (None, message_rows.body(message_id)(connection))

        run, body = self._rows.read_blocking(place)
        if run is not None:
            return self._runs.open(run, size)
        if body is None or len(body) != size:
            raise StoreDamaged(f"message {message_id}: its frames are missing")
        return body

    def check_room(self, size: int) -> None:
        """Whether there is room for so much."""
        self._pieces.check_room(size)

    # --- messages ------------------------------------------------------------------------------------

    async def seal(
        self,
        info: MessageInfo,
        followers: Sequence[StoredDelivery],
        body: bytes | None = None,
        terms: Terms = NO_TERMS,
    ) -> Receipt:
        """List a message whose frames are stored, or which brings them along."""
        outcome = await self._write("seal", info, tuple(followers), body, terms)
        if not isinstance(outcome, Receipt):
            raise outcome
        return outcome

    async def seal_all(
        self, listings: Sequence[Listing]
    ) -> Sequence[Receipt | QuotaExceeded | LimitExceeded]:
        """List small messages, in as few commands as hold them."""
        parts: list[list[Listing]] = []
        size = _LISTED_AT_ONCE
        for each in listings:
            if size + len(each.body) > _LISTED_AT_ONCE:
                parts.append([])
                size = 0
            parts[-1].append(each)
            size += len(each.body)
        found = await asyncio.gather(*(self._write("seal_all", tuple(part)) for part in parts))
        return [outcome for outcomes in found for outcome in outcomes]

    async def delete(self, message_id: str) -> bool:
        """Remove one message."""
        return bool(await self.remove([message_id]))

    async def remove(self, message_ids: Sequence[str]) -> list[str]:
        """Remove messages; their frames go with the next sweep."""
        return await self._write("remove", tuple(message_ids))

    async def receipt(self, topic: str, key: str) -> Receipt | None:
        """The first receipt of a key."""
        found = await self._read(message_rows.receipt(topic, key))
        if found is None:
            await self.log.catch_up()
            found = await self._read(message_rows.receipt(topic, key))
        return found

    async def message(self, message_id: str) -> MessageInfo | None:
        """One sealed message."""
        found = await self._read(message_rows.message(message_id))
        if found is None:
            await self.log.catch_up()
            found = await self._read(message_rows.message(message_id))
        return found

    async def page(
        self, pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"], dead: bool = False
    ) -> tuple[list[MessageInfo], bool]:
        """Sealed messages by seq, as many as fit a page."""
        await self.log.catch_up()
        return await self._read(message_rows.page(pattern, after, limit, order, dead))

    async def topics(self) -> list[TopicInfo]:
        """Topics by name."""
        await self.log.catch_up()
        return await self._read(message_rows.topics)

    # --- uploads -------------------------------------------------------------------------------------

    async def add_upload(self, upload: StoredUpload) -> None:
        """Keep an upload."""
        await self._write("add_upload", upload)

    async def touch_upload(self, message_id: str, expires: float, length: int | None) -> None:
        """Note when an upload may be removed."""
        await self._write("touch_upload", message_id, expires, length)

    async def delete_upload(self, message_id: str) -> bool:
        """Forget an upload; its frames go with the next sweep."""
        self._runs.forget(message_id)
        return await self._write("delete_upload", message_id)

    # --- retention -----------------------------------------------------------------------------------

    async def put_policy(self, policy: StoredPolicy) -> None:
        """Keep a policy."""
        await self._write("put_policy", policy)

    async def delete_policy(self, name: str) -> None:
        """Forget a policy."""
        await self._write("delete_policy", name)

    async def make_room(
        self, topic: str, max_messages: int | None, max_bytes: int | None, limit: int
    ) -> list[str]:
        """Remove the oldest messages."""
        return await self._write("make_room", topic, max_messages, max_bytes, limit)

    async def prune_keys(self, topic: str, before: float, limit: int) -> int:
        """Forget old keys."""
        return await self._write("prune_keys", topic, before, limit)

    def observe_syncs(self, observer: SyncObserver) -> None:
        """This process syncs nothing."""

    async def disk(self) -> Disk:
        """What there is for frames."""
        return await asyncio.wrap_future(self._pieces.disk())

    async def space(self) -> Space:
        """The rows are made anew at each start; nothing of them has to be given back."""
        return Space(0, 0, 0)

    async def give_back(self, size: int) -> None:
        """Nothing to do; see ``space``."""

    async def shorten(self) -> None:
        """Have a snapshot take the place of the log so far."""
        await self.log.shorten(self._copy)

    async def tidy(self) -> None:
        """Remove frames that nobody needs, and keep the log short."""
        await self._clear_garbage()
        await self._strays.clear_sometimes()
        await self.log.keep_short(self._copy)

    async def _clear_garbage(self) -> None:
        def garbage(connection: Connection) -> list[str]:
            rows = connection.execute("SELECT run FROM garbage LIMIT ?", (_CLEARED,)).fetchall()
            return [run for (run,) in rows]

        while runs := [run for run in await self._read(garbage) if not self._in_use(run)]:
            used = await self.log.used_elsewhere(runs)
            runs = [run for run in runs if run not in used]
            if not runs:
                return
            await asyncio.gather(*(asyncio.wrap_future(self._pieces.clear(run)) for run in runs))
            await self._write("cleared", tuple(runs))

    def _copy(self, path: Path) -> int:
        return self._rows.copy_to(path).seq

    # --- consumers -----------------------------------------------------------------------------------

    async def add_consumer(self, consumer: StoredConsumer) -> StoredConsumer:
        """Keep a new consumer."""
        return await self._write("add_consumer", consumer)

    async def delete_consumer(self, uid: str) -> None:
        """Forget a consumer."""
        await self._write("delete_consumer", uid)

    async def take(self, wanted: HandOver) -> HandedOver:
        """Hand messages over."""
        return await self._write("take", wanted)

    async def note(self, deliveries: Sequence[StoredDelivery]) -> None:
        """Note deliveries."""
        await self._write("note", tuple(deliveries))

    async def settle(self, uid: str, position: int, deliveries: Sequence[StoredDelivery]) -> None:
        """Settle deliveries."""
        await self._write("settle", uid, position, tuple(deliveries))

    async def bury(
        self, uid: str, position: int, delivery: StoredDelivery, letter: Copy
    ) -> MessageInfo | None:
        """Settle a delivery and list its letter."""
        return await self._write("bury", uid, position, delivery, letter)

    async def replay(self, again: Copy) -> MessageInfo | None:
        """Replay a letter."""
        return await self._write("replay", again)
