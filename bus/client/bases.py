"""Bases: what a client's messages may be encoded against. Each is opened once, when one is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tensorbus.codecs.bases import Base
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.streaming.base_files import open_base

from .connection import Connection


class Bases:
    """The bases of one client, in the order in which they were given.

    Args:
        given: paths of safetensors files, containers, or Base objects.
    """

    def __init__(self, connection: Connection, given: Iterable[object] = ()) -> None:
        self._connection = connection
        self._given = list(given)
        self._opened: list[Base] = []
        self._opening = asyncio.Lock()

    def add(self, base: object) -> None:
        """One more; it is opened when it is needed."""
        self._given.append(base)

    @property
    def given(self) -> tuple[object, ...]:
        """All of them, as they were given."""
        return tuple(self._given)

    async def reading(self) -> CodecContext:
        """What is needed to read messages."""
        opened = await self._all()
        return CodecContext(bases={base.id: base for base in opened}) if opened else NO_CONTEXT

    async def writing(self, base: object | None) -> CodecContext:
        """What is needed to encode a message against ``base``; None is the only base that there is."""
        opened = await self._all()
        if base is not None:
            chosen = await self._connection.in_thread(lambda: open_base(base))
        else:
            chosen = opened[0] if len({each.id for each in opened}) == 1 else None
        known = {each.id: each for each in opened}
        if chosen is not None:
            known[chosen.id] = chosen
        return CodecContext(bases=known, base=chosen)

    async def _all(self) -> list[Base]:
        """All that were given, opened, their ids known."""
        async with self._opening:
            while len(self._opened) < len(self._given):
                given = self._given[len(self._opened)]
                self._opened.append(await self._connection.in_thread(lambda: open_base(given)))  # noqa: B023
        return self._opened
