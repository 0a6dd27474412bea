"""Stream: receives deliveries as the broker has them, in a task of its own; opened again when it breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from tensorbus.bus.consumers import DeliveryInfo
from tensorbus.bus.fields import Fields
from tensorbus.bus.streams import MEDIA_TYPE, RecordParser
from tensorbus.errors import BrokerUnavailable, TensorbusError

from .connection import Connection, segment
from .held_frames import MAX_HELD
from .refusals import error_of
from .retry import TRANSIENT, Retry

log = logging.getLogger("tensorbus.client")

BEATS = 3
"""Signs of life within the idle time-out: one may be lost without harm."""
MAX_HEARTBEAT = 60
"""Seconds between two, at the most."""


class Stream:
    """One stream of deliveries.

    Args:
        path: of the consumer.
        limit: of deliveries that it carried and that are not settled.
        follow: also of messages that are still being published.
        came: told of each delivery.

    Attributes:
        failure: why it is over, when it is; `start` raises it once.
    """

    def __init__(
        self,
        connection: Connection,
        path: str,
        limit: int,
        follow: bool,
        came: Callable[[DeliveryInfo], None],
    ) -> None:
        self._connection = connection
        self._path = f"{path}/deliveries/stream"
        self._limit = limit
        self._follow = follow
        self._came = came
        self._task: asyncio.Task[None] | None = None
        self._id: str | None = None
        self._news = asyncio.Event()
        self._up = False
        self._leaving = False
        self.failure: Exception | None = None

    def start(self) -> None:
        """Open it, if it is not open.

        Raises:
            NotFound: the consumer was deleted. BrokerUnavailable, …: as `receive`; the next call opens it
                again.
        """
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="tensorbus-stream")

    async def news(self, at_most: float) -> bool:
        """Wait until something happened, whatever it is; False if nothing did for ``at_most`` seconds.

        While the stream is being opened nothing can be said, and that is waited for.
        """
        if not self._news.is_set():
            try:
                async with asyncio.timeout(at_most if self._up else None):
                    await self._news.wait()
            except TimeoutError:
                return False
        self._news.clear()
        return True

    async def aclose(self) -> None:
        """End it; what the broker has handed over by then still comes. Cancelled, it ends at once."""
        task, self._task = self._task, None
        if task is None or task.done():
            return
        self._leaving = True
        try:
            if self._id is not None:
                await self._connection.call("DELETE", f"{self._path}/{segment(self._id)}", retry=False)
                await asyncio.wait([task])
        except TensorbusError as error:
            log.debug("leaving a stream of deliveries: %s", error)
        finally:
            task.cancel()

    def tell(self) -> None:
        """Something else happened that `news` is waited with for."""
        self._news.set()

    async def _run(self) -> None:
        attempts = self._connection.attempts(f"GET {self._path}")
        try:
            while not self._leaving:
                try:
                    await self._read(attempts)
                except TRANSIENT as error:
                    if self._leaving:
                        return
                    await attempts.after(error)
                finally:
                    self._id = None
        except Exception as error:  # whoever receives shall hear of it, whatever it is
            self.failure = error
        finally:
            self._up = False
            self._news.set()

    async def _read(self, attempts: Retry) -> None:
        """Until the broker ends it. Raises as `Connection.request`."""
        idle = self._connection.settings.idle_timeout
        beat = max(1, min(MAX_HEARTBEAT, int(idle / BEATS)))
        parser = RecordParser()
        async with self._connection.request(
            "GET",
            self._path,
            params={
                "max": self._limit,
                "follow": "true" if self._follow else "false",
                "inline": MAX_HELD,
                "heartbeat": beat,
            },
            headers={"Accept": MEDIA_TYPE},
            read_timeout=max(idle, BEATS * beat),
        ) as response:
            self._id = response.headers.get("Tensorbus-Stream")
            async for piece in response.content.iter_any():
                for head, frames in parser.feed(piece):
                    self._take(head, frames)
                attempts.advanced()
                self._up = True
                self._news.set()
        if not parser.whole:
            raise BrokerUnavailable("the stream of deliveries ended within a record")

    def _take(self, head: Mapping[str, object], frames: bytes) -> None:
        if "problem" in head:
            problem = Fields(head["problem"], "problem")
            raise error_of(problem.text("type"), problem.text("detail"))
        if "delivery" in head:
            self._came(replace(DeliveryInfo.from_json(head["delivery"]), frames=frames or None))
