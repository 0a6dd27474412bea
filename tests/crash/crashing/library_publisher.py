"""A publisher that uses the client library, may be killed at any moment, and goes on where it was.

    python -m crashing.library_publisher PORT FOLDER NAME SEED

One task publishes large messages, which the library sends as resumable uploads, and deletes them again after
a while; the others publish small ones, which share requests. What they see is in FOLDER/NAME.jsonl. It stops
by itself, with everything acknowledged that it had begun, when there is a file FOLDER/enough.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path

from tensorbus.bus.client import Client, ClientSettings
from tensorbus.errors import BrokerUnavailable, MessageAborted, NotFound, TensorbusError

from .history import Event, History, read_events
from .payloads import LARGEST, payload, sha256

SMALL_ONES = 4
"""Tasks that publish small messages."""
PAUSE = 0.15
"""Mean of the seconds between two messages of a task; a large one is worth ten."""
KEPT = 3
RETRY = 0.05
PATIENCE = ClientSettings(retry_for=60.0, idle_timeout=20.0, threads=1)


class Publisher:
    """One task: a sequence of messages ``NAME-TASK-NUMBER``."""

    def __init__(self, bus: Client, history: History, who: str, past: list[Event], seed: str) -> None:
        self._bus = bus
        self._history = history
        self._who = who
        self._chance = random.Random(seed)
        mine = [event for event in past if event.who == who]
        begun = [event for event in mine if event.what == "publish"]
        stored = {event.key: event for event in mine if event.what == "stored"}
        deleted = {event.id for event in mine if event.what == "deleted"}
        self._number = len(begun)
        self._pending = [event for event in begun if event.key not in stored]
        self._stored = deque(event.id for event in stored.values() if event.id and event.id not in deleted)

    async def run(self, enough: Path, *, large: bool) -> None:
        """Publish until it is enough."""
        for event in self._pending:
            await self._insist(event.topic or "", event.key or "", payload(event.key or ""))
        while not enough.exists():
            key = f"{self._who}{LARGEST if large else '-'}{self._number}"
            self._number += 1
            data = payload(key)
            data = data if large else data[:2000]
            topic = "library.large" if large else "library.small"
            self._note(Event("publish", key=key, topic=topic, sha256=sha256(data), size=len(data)))
            await self._insist(topic, key, data)
            while large and len(self._stored) > KEPT:
                await self._delete(self._stored.popleft())
            await asyncio.sleep(self._chance.expovariate(1 / PAUSE) * (10 if large else 1))

    def _note(self, event: Event) -> None:
        self._history.add(replace(event, who=self._who))

    async def _insist(self, topic: str, key: str, data: bytes) -> None:
        """Publish under ``key`` until the broker says that it is stored."""
        data = data if LARGEST in key else data[:2000]
        while True:
            try:
                receipt = await self._bus.publish(topic, data, key=key)
                break
            except (BrokerUnavailable, MessageAborted):
                # Its request before, which it does not remember, may have been under way still.
                await asyncio.sleep(RETRY)
            except TensorbusError as problem:
                self._note(Event("unexpected", text=f"{problem!r} while publishing {key}"))
                await asyncio.sleep(RETRY)
        if receipt.resumed:
            self._note(Event("resumed", key=key, topic=topic, position=receipt.resumed, size=len(data)))
        self._note(Event("stored", key=key, topic=topic, id=receipt.id, seq=receipt.seq, size=len(data)))
        self._stored.append(receipt.id)

    async def _delete(self, name: str) -> None:
        self._note(Event("delete", id=name))
        while True:
            try:
                await self._bus.delete(name)
            except NotFound:
                pass  # the answer to an earlier request was lost
            except BrokerUnavailable:
                await asyncio.sleep(RETRY)
                continue
            self._note(Event("deleted", id=name))
            return


async def main() -> None:
    """Run all tasks until it is enough."""
    port, folder, name, seed = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    path = folder / f"{name}.jsonl"
    past = read_events([path]) if path.exists() else []
    history = History(path)
    async with Client(f"http://127.0.0.1:{port}", settings=PATIENCE) as bus, asyncio.TaskGroup() as tasks:
        for number in range(SMALL_ONES + 1):
            who = f"{name}-{number}"
            one = Publisher(bus, history, who, past, f"{seed}{who}{len(past)}")
            tasks.create_task(one.run(folder / "enough", large=not number))


if __name__ == "__main__":
    asyncio.run(main())
