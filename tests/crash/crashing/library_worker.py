"""A worker that uses the client library's subscription and may be killed at any moment.

    python -m crashing.library_worker PORT FOLDER NAME SEED

It works for the consumer ``library``: decodes what it is handed, and settles it, mostly by an ack. What it
sees is in FOLDER/NAME.jsonl. It stops by itself when there is a file FOLDER/drained.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

from tensorbus.bus.client import Client, ClientSettings, Delivery
from tensorbus.errors import (
    BrokerUnavailable,
    Conflict,
    FrameError,
    NotFound,
    TensorbusError,
)

from .history import Event, History
from .payloads import sha256

CONSUMER = {"filter": "library.>", "ack_wait": 1.0}
"""The consumer, as the broker takes it."""
AT_ONCE = 4
RETRY = 0.05
POLL = 0.5
PATIENCE = ClientSettings(retry_for=60.0, idle_timeout=20.0, poll_wait=POLL)


class Worker:
    """All deliveries of a process."""

    def __init__(self, history: History, who: str, seed: str) -> None:
        self._history = history
        self._who = who
        self._chance = random.Random(seed)

    async def run(self, bus: Client, drained: Path) -> None:
        """Deal with deliveries until there is nothing left."""
        while not drained.exists():
            try:
                await self._subscribe(bus, drained)
            except* BrokerUnavailable:
                await asyncio.sleep(RETRY)

    async def _subscribe(self, bus: Client, drained: Path) -> None:
        subscription = bus.subscribe("library.>", consumer="library", ack_wait=1.0, prefetch=8)
        async with subscription, asyncio.TaskGroup() as tasks:
            room = asyncio.Semaphore(AT_ONCE)
            while not drained.exists():
                delivery = await subscription.receive(timeout=POLL)
                if delivery is None:
                    continue
                self._note("handed", delivery, seq=delivery.info.seq)
                await room.acquire()
                task = tasks.create_task(self._deal_with(delivery))
                task.add_done_callback(lambda _: room.release())

    async def _deal_with(self, delivery: Delivery) -> None:
        try:
            await self._read_and_settle(delivery)
        except (BrokerUnavailable, NotFound, Conflict):
            pass  # killed; deleted by its publisher; it took too long, and is with another worker
        except FrameError as problem:
            self._note("unreadable", delivery, text=str(problem))
        except TensorbusError as problem:
            text = f"{problem!r} while dealing with {delivery.id}"
            self._history.add(Event("unexpected", who=self._who, text=text))

    async def _read_and_settle(self, delivery: Delivery) -> None:
        content = await delivery.load()
        assert isinstance(content, bytes), f"{delivery} came as {type(content)}"
        self._note("read", delivery, sha256=sha256(content), size=len(content))
        chosen = self._chance.choices(("ack", "nak", "term", "nothing"), (88, 6, 2, 4))[0]
        if chosen == "nothing":
            return
        self._note(chosen, delivery)
        if chosen == "nak":
            await delivery.nak(0.1)
        else:
            await (delivery.ack() if chosen == "ack" else delivery.term())
        self._note({"ack": "acked", "nak": "naked", "term": "termed"}[chosen], delivery)

    def _note(self, what: str, one: Delivery, **more: Any) -> None:
        document = {"who": self._who, "consumer": "library", "id": one.id, "attempt": one.attempt}
        document |= {"key": one.info.key, "topic": one.topic}
        self._history.add(Event(what, **document, **more))  # pyright: ignore[reportArgumentType] # a What


async def main() -> None:
    """Work until there is nothing left."""
    port, folder, name, seed = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    history = History(folder / f"{name}.jsonl")
    async with Client(f"http://127.0.0.1:{port}", settings=PATIENCE) as bus:
        await Worker(history, name, seed).run(bus, folder / "drained")


if __name__ == "__main__":
    asyncio.run(main())
