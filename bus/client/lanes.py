"""Lanes: small messages that are published to a topic at the same time go together, in one request.

Strategy. As with acknowledgements, a lane has one request under way at a time. The first message leaves at
once, by itself; those that come meanwhile gather, and are the next request. So a lone message waits for
nothing, many share a request and a flush of the disk, and their order is the order in which they were given.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import cast

import aiohttp

from tensorbus.bus import messages
from tensorbus.bus.fields import Fields
from tensorbus.errors import LimitExceeded, NotFound, TensorbusError

from .connection import FRAMES, Connection, segment
from .documents import json_object
from .refusals import error_of

BATCH = "application/vnd.tensorbus.batch"
"""Content type of many messages in one body."""
MAX_MESSAGES = 256
"""That the broker takes in one request."""
MAX_BYTES = 1 << 20
"""That the broker takes in one request."""
SMALL = 32 << 10
"""Bytes of a message that goes this way."""

_LENGTHS = Struct("<II")

Outcome = messages.Receipt | BaseException


@dataclass(frozen=True, slots=True)
class _Parcel:
    """One attempt to publish one message."""

    key: bytes
    body: bytes
    outcome: asyncio.Future[messages.Receipt]

    @property
    def size(self) -> int:
        """Bytes in a batch."""
        return _LENGTHS.size + len(self.key) + len(self.body)


class Lanes:
    """One for each topic that something is on its way to."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lanes: dict[str, deque[_Parcel]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._takes_batches = True

    async def send(self, topic: str, key: str, body: bytes) -> messages.Receipt:
        """One attempt; the message is durable when this returns.

        Raises:
            TensorbusError: of this message, or of the request that it went with.
        """
        outcome: asyncio.Future[messages.Receipt] = asyncio.get_running_loop().create_future()
        parcel = _Parcel(key.encode(), body, outcome)
        lane = self._lanes.get(topic)
        if lane is None:
            lane = self._lanes[topic] = deque((parcel,))
            task = asyncio.create_task(self._serve(topic, lane), name="tensorbus-publish")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            lane.append(parcel)
        return await outcome

    async def _serve(self, topic: str, lane: deque[_Parcel]) -> None:
        """Send what waits, until nothing does."""
        parcels: list[_Parcel] = []
        try:
            while parcels := self._next(lane):
                try:
                    outcomes = await self._send(topic, parcels)
                except TensorbusError as error:
                    # One exception is not raised in several tasks, whose tracebacks would mix.
                    outcomes = [_again(error) for _ in parcels]
                for parcel, outcome in zip(parcels, outcomes, strict=True):
                    _tell(parcel, outcome)
        except BaseException as error:
            for parcel in (*parcels, *lane):
                _tell(parcel, error)
            raise
        finally:
            del self._lanes[topic]

    def _next(self, lane: deque[_Parcel]) -> list[_Parcel]:
        """The next messages in order, as many as go together; those that nobody waits for are left out."""
        found: list[_Parcel] = []
        room = MAX_BYTES
        limit = MAX_MESSAGES if self._takes_batches else 1
        while lane and len(found) < limit and lane[0].size <= room:
            parcel = lane.popleft()
            if not parcel.outcome.done():
                found.append(parcel)
                room -= parcel.size
        return found

    async def _send(self, topic: str, parcels: Sequence[_Parcel]) -> Sequence[Outcome]:
        if len(parcels) > 1:
            try:
                return await self._send_together(topic, parcels)
            except NotFound:
                self._takes_batches = False  # the broker is of an earlier release
        return [await self._send_alone(topic, parcel) for parcel in parcels]

    async def _send_alone(self, topic: str, parcel: _Parcel) -> Outcome:
        try:
            async with self._connection.request(
                "POST",
                f"/v1/topics/{segment(topic)}/messages",
                headers={"Idempotency-Key": parcel.key.decode()},
                data=aiohttp.BytesPayload(parcel.body, content_type=FRAMES),
                read_timeout=self._connection.settings.idle_timeout,
            ) as response:
                return messages.Receipt.from_json(await json_object(response))
        except TensorbusError as error:
            return error

    async def _send_together(self, topic: str, parcels: Sequence[_Parcel]) -> Sequence[Outcome]:
        parts: list[bytes] = []
        for parcel in parcels:
            parts += (_LENGTHS.pack(len(parcel.key), len(parcel.body)), parcel.key, parcel.body)
        async with self._connection.request(
            "POST",
            f"/v1/topics/{segment(topic)}/batch",
            data=aiohttp.BytesPayload(b"".join(parts), content_type=BATCH),
            read_timeout=self._connection.settings.idle_timeout,
        ) as response:
            answer = await json_object(response)
        results = Fields(answer, "batch").array("results")
        if len(results) != len(parcels):
            raise TensorbusError(f"the broker answered {len(results)} of {len(parcels)} messages")
        outcomes = [_outcome(result) for result in results]
        # A broker that is set up to keep only smaller ones with their rows takes them by themselves.
        alone = [number for number, found in enumerate(outcomes) if isinstance(found, LimitExceeded)]
        for number in alone:
            outcomes[number] = await self._send_alone(topic, parcels[number])
        return outcomes


def _outcome(result: object) -> Outcome:
    if isinstance(result, dict) and "detail" in result:
        problem = Fields(cast("dict[str, object]", result), "problem")
        return error_of(problem.text("type"), problem.text("detail"))
    return messages.Receipt.from_json(cast("object", result))


def _again(error: TensorbusError) -> TensorbusError:
    """Another exception that says the same."""
    found = type(error)(*error.args)
    found.__cause__ = error.__cause__
    return found


def _tell(parcel: _Parcel, outcome: Outcome) -> None:
    if parcel.outcome.done():
        return
    if isinstance(outcome, messages.Receipt):
        parcel.outcome.set_result(outcome)
    elif isinstance(outcome, Exception):
        parcel.outcome.set_exception(outcome)
    else:
        parcel.outcome.cancel()
