"""Deleting what no round needs any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tensorbus.bus.client import Client
from tensorbus.errors import NotFound

AT_ONCE = 8
"""Requests under way at a time."""


async def delete_all(bus: Client, messages: Iterable[str]) -> None:
    """Delete messages; those that are gone already are no matter."""
    todo = iter(list(messages))

    async def work() -> None:
        for message_id in todo:
            try:
                await bus.delete(message_id)
            except NotFound:
                pass  # somebody else was quicker

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def delete_rounds(bus: Client, topic: str, below: int | None) -> None:
    """Delete the messages of a topic that belong to rounds before ``below``, all for None."""
    old: list[str] = []
    async for info in bus.messages(topic):
        number = info.headers.get("round")
        if below is None or (isinstance(number, int) and number < below):
            old.append(info.id)
    await delete_all(bus, old)


async def delete_open(bus: Client, topic: str) -> None:
    """Give up the messages of a topic that are being published, whoever does."""
    await delete_all(bus, [info.id for info in await bus.open_messages(topic)])
