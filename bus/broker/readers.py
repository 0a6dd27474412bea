"""A message on its way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Self

from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import MessageAborted, StoreDamaged

from .frame_source import FrameSource
from .open_message import OpenMessage, Phase
from .verification import Verification
from .workers import Workers


@dataclass(frozen=True, slots=True)
class ReaderHost:
    """What a reader needs of the broker.

    Attributes:
        chunk_bytes: the largest chunk that iterating yields, and so its buffer.
        damaged: told the id of a message whose frames are not what was stored, and why; from any thread.
    """

    workers: Workers
    chunk_bytes: int
    damaged: Callable[[str, str], None]


class Reader:
    """Yields a range of a message's body; follows a message that is still open.

    What was stored is verified again before it is let go; what is followed while it is being published was
    verified by this process a moment ago. Either iterate (chunks up to ``BrokerSettings.chunk_bytes``, each
    valid until the next step), or hand the bytes to sendfile::

        while (span := await reader.span()) is not None:
            offset, count = span
            ...  # in a worker thread: verified = reader.ahead(offset), then
            ...  # send up to ``verified`` of ``reader.source``, and tell how many bytes that were
            reader.advance(sent)

    Made by ``Broker.open_reader``, used by one task, closed by ``aclose`` or as a context manager.

    Attributes:
        info: the message, as it was when the reader was opened.
        source: the frames, at the same offsets as the body; open until ``aclose``.
        start: first byte of the range.
        position: offset of the next byte to come.
    """

    def __init__(
        self,
        host: ReaderHost,
        message: MessageInfo | OpenMessage,
        source: FrameSource,
        start: int,
        end: int | None,
    ) -> None:
        self._host = host
        self._live = message if isinstance(message, OpenMessage) else None
        self._end = end
        self._reading: asyncio.Task[memoryview] | None = None
        self._closed = False
        self.info = message.info if isinstance(message, OpenMessage) else message
        self.source = source
        self.start = start
        self.position = start
        self._check = None
        if self._live is None:
            self._check = Verification(source, self.info.bytes, self.info.digest, start)

    @property
    def fd(self) -> int | None:
        """Descriptor of the frames; None for a body that lies in memory (``source.body``)."""
        return self.source.fd

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

        ``ahead`` says how many of them may be sent.

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

    def ahead(self, position: int) -> int:
        """Make sure of what comes behind ``position``: the end of the bytes that may be sent, beyond it.

        Blocks, so it belongs into a worker thread; one at a time. It may reach beyond the end of the range.
        Of a message that is being followed it is what is visible now, which may be ``position`` itself.

        Raises:
            StoreDamaged: the next frame is not what was stored. The message is put aside; all that is left
                to do is to break the transfer, so that nobody takes the part for the whole.
        """
        if self._check is None:
            assert self._live is not None
            return self._live.visible
        try:
            return self._check.ahead(position)
        except StoreDamaged as damage:
            self._host.damaged(self.info.id, str(damage))
            raise StoreDamaged(f"message {self.info.id}: {damage}") from damage

    def grown(self, position: int, patience: float) -> bool:
        """Whether there is more than up to ``position`` of a message that is being followed.

        Waits for it in the calling thread, up to ``patience`` seconds.
        """
        return self._live is not None and self._live.grown(position, patience)

    def advance(self, count: int) -> None:
        """``count`` bytes of the span have been sent."""
        self.position += count

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        buffer: memoryview | None = None
        while (span := await self.span(self._host.chunk_bytes)) is not None:
            offset, count = span
            if buffer is None or len(buffer) < count:
                buffer = memoryview(bytearray(count))
            # As a task: if this generator is cancelled, ``aclose`` waits for it before the descriptor goes.
            self._reading = self._host.workers.start(
                self._host.workers.run(self.read_into, buffer[:count], offset)
            )
            chunk = await asyncio.shield(self._reading)
            self.advance(len(chunk))
            yield chunk

    def read_into(self, buffer: memoryview, offset: int) -> memoryview:
        """Verified bytes from ``offset`` on, as many as are there and fit; at least one. Blocks.

        Raises StoreDamaged.
        """
        count = self.source.read_into(buffer[: self.ahead(offset) - offset], offset)
        if not count:
            raise StoreDamaged(f"message {self.info.id}: its frame file ends at byte {offset}")
        return buffer[:count]

    async def aclose(self) -> None:
        """Release the descriptor. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._host.workers.finish(self._close())

    async def _close(self) -> None:
        if self._reading is not None:
            await asyncio.wait([self._reading])
        # The last descriptor of a deleted file gives its blocks back, which takes a while.
        await self._host.workers.sync(self.source.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
