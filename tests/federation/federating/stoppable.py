"""An aggregator in a thread of its own that stands still at points of its work, as a stopped process does."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Self

from tensorbus.aggregator.events import Event
from tensorbus.aggregator.models import GlobalModel
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client, Receipt

Point = tuple[str, int]
"""The name of an event, or of a moment around a message such as ``before-close``, and its number, from 1."""
Make = Callable[[Client, Callable[[Event], None]], AbstractAsyncContextManager[Aggregator]]

PATIENCE = 20.0


@dataclass
class Stops:
    """Where it stands still, unless its job is paused. Used by its thread, and by the test's.

    Attributes:
        wanted: at the first of these that it comes to.
        events: all that it told. reached: the points that it came to, in their order.
        paused: whether it told so.
    """

    wanted: Sequence[Point] = ()
    paused: bool = False
    events: list[Event] = field(default_factory=list[Event])
    reached: list[Point] = field(default_factory=list[Point])
    _counts: Counter[str] = field(default_factory=Counter[str])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _go_on: threading.Event = field(default_factory=threading.Event)

    def told(self, event: Event) -> None:
        """The aggregator's listener."""
        self.events.append(event)
        if event.name in ("paused", "continued"):
            self.paused = event.name == "paused"
        self.come_to(event.name)

    def come_to(self, name: str) -> None:
        """The aggregator is there; returns when it may go on."""
        with self._lock:
            self._counts[name] += 1
            point = name, self._counts[name]
            self.reached.append(point)
            if self.paused or point not in self.wanted:
                return
            self.wanted = ()
            self._go_on.clear()
            self._stopped.set()
        assert self._go_on.wait(PATIENCE), f"it was never let go on at {point}"

    @property
    def standing(self) -> bool:
        """Whether it stands still."""
        return self._stopped.is_set()

    def go_on(self) -> None:
        """Let it."""
        self._stopped.clear()
        self._go_on.set()

    def count(self, name: str) -> int:
        """How many events of this name there were."""
        return self._counts[name]


class WatchedClient(Client):
    """Tells of what is small and decisive before and after it is published."""

    stops: Stops

    async def publish(self, topic: str, container: object, *args: Any, **settings: Any) -> Receipt:
        """As the real one."""
        headers: dict[str, object] = settings.get("headers") or {}
        kind = headers.get("kind")
        decisive = kind in ("open", "close", "cancelled")
        if decisive:
            self.stops.come_to(f"before-{kind}")
        receipt = await super().publish(topic, container, *args, **settings)
        if decisive:
            self.stops.come_to(f"after-{kind}")
        return receipt


class Stoppable:
    """The aggregator. Use it as an async context manager; when the block is left, it has ended."""

    def __init__(self, url: str, make: Make, points: Sequence[Point] = ()) -> None:
        self.stops = Stops(points)
        self._url = url
        self._make = make
        self._ended: asyncio.Task[GlobalModel] | None = None

    async def __aenter__(self) -> Self:
        self._ended = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(self._main())))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stops.wanted = ()
        self.stops.go_on()
        assert self._ended is not None
        await asyncio.wait([self._ended])

    async def _main(self) -> GlobalModel:
        async with asyncio.timeout(PATIENCE), WatchedClient(self._url) as bus:
            bus.stops = self.stops
            async with self._make(bus, self.stops.told) as aggregator:
                return await aggregator.run()

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        assert self._ended is not None
        return self._ended.done()

    async def result(self) -> GlobalModel:
        """The final model; raises what it raises."""
        assert self._ended is not None
        return await self._ended

    async def outcome(self) -> GlobalModel | BaseException:
        """The same; what it raises is returned."""
        try:
            return await self.result()
        except Exception as error:
            return error

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until it is true, or the aggregator has ended; whether it is true."""
        while not condition() and not self.ended:
            await asyncio.sleep(0.005)
        return condition()
