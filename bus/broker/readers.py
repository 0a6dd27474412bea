"""A message on its way out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Self

from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import MessageAborted, StoreDamaged

from .open_message import OpenMessage, Phase
from .workers import Workers


class Reader:
    """Yields a range of a message's body; follows a message that is still open.

    Either iterate (chunks up to ``BrokerSettings.chunk_bytes``, each valid until the next step), or hand the
    bytes to sendfile::

        while (span := await reader.span()) is not None:
            offset, count = span
            ...  # send ``count`` bytes of ``reader.fd`` from ``offset``
            reader.advance(count)

    Made by ``Broker.open_reader``, used by one task, closed by ``aclose`` or as a context manager.

    Attributes:
        info: the message, as it was when the reader was opened.
        fd: read-only descriptor of the frames, at the same offsets as the body; open until ``aclose``.
        start: first byte of the range.
        position: offset of the next byte to come.
    """

    def __init__(
        self,
        workers: Workers,
        message: MessageInfo | OpenMessage,
        fd: int,
        start: int,
        end: int | None,
        chunk_bytes: int,
    ) -> None:
        self._workers = workers
        self._live = message if isinstance(message, OpenMessage) else None
        self._end = end
        self._chunk_bytes = chunk_bytes
        self._reading: asyncio.Task[int] | None = None
        self._closed = False
        self.info = message.info if isinstance(message, OpenMessage) else message
        self.fd = fd
        self.start = start
        self.position = start

    @property
    def end(self) -> int | None:
        """End of the range, exclusive; None while the message is open and no end was asked for."""
        size = self._size
        if self._end is None or size is None:
            return self._end if size is None else size
        return min(self._end, size)

    @property
    def _size(self) -> int | None:
        if self._live is None:
            return self.info.bytes
        return self._live.visible if self._live.phase is Phase.SEALED else None

    async def span(self, limit: int = 1 << 30) -> tuple[int, int] | None:
        """Wait until bytes are there: (offset, count ≤ limit), count ≥ 1; None at the end.

        Raises:
            MessageAborted: the message was given up by its publisher.
        """
        while True:
            live, end = self._live, self.end
            if end is not None and self.position >= end:
                return None
            if live is not None and live.phase is Phase.ABORTED:
                raise MessageAborted(live.reason)
            there = self.info.bytes if live is None else live.visible
            count = (there if end is None else min(there, end)) - self.position
            if count > 0:
                return self.position, min(count, limit)
            assert live is not None
            await live.moved.wait(live.moved.version)

    def advance(self, count: int) -> None:
        """``count`` bytes of the span have been sent."""
        self.position += count

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        buffer: memoryview | None = None
        while (span := await self.span(self._chunk_bytes)) is not None:
            offset, count = span
            if buffer is None or len(buffer) < count:
                buffer = memoryview(bytearray(count))
            # As a task: if this generator is cancelled, ``aclose`` waits for it before the descriptor goes.
            self._reading = self._workers.start(
                self._workers.run(os.preadv, self.fd, [buffer[:count]], offset)
            )
            count = await asyncio.shield(self._reading)
            if not count:
                raise StoreDamaged(f"message {self.info.id}: its frame file ends at byte {offset}")
            self.advance(count)
            yield buffer[:count]

    async def aclose(self) -> None:
        """Release the descriptor. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._workers.finish(self._close())

    async def _close(self) -> None:
        if self._reading is not None:
            await asyncio.wait([self._reading])
        # The last descriptor of a deleted file gives its blocks back, which takes a while.
        await self._workers.sync(os.close, self.fd)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
