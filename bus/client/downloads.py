"""Download: the bytes of one message, or of one item of it, across cuts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import BrokerUnavailable, Conflict, MessageAborted, NotFound, TensorbusError
from tensorbus.streaming.frames import FrameParser

from .connection import READ_BUFFER, Connection, segment
from .raw_download import Answer
from .retry import TRANSIENT

T = TypeVar("T")
Take = Callable[[bytes | memoryview], bool]
"""Takes bytes; says whether it has to be called again, with none, before it takes more."""

LARGE = 4 << 20
"""Bytes of a body from which a connection of its own is worth while."""


class Download:
    """Fetches frames, and after a cut the frames after the last whole one.

    The caller alternates: take a piece from `pieces`, feed it to `parser` and exhaust what that yields.

    Args:
        item: name of the only item that is wanted; None for the whole message.
        size: bytes of its values.
        ahead: bytes that may wait in memory before they are asked for (twice that at most), where they come
            by way of the event loop.

    Attributes:
        parser: verifies the frames; its boundary is where the next request begins.
        complete: to be set by the caller once the last frame has been verified.
    """

    def __init__(
        self,
        connection: Connection,
        info: MessageInfo,
        item: str | None = None,
        size: int | None = None,
        *,
        ahead: int = READ_BUFFER,
    ) -> None:
        self.parser = FrameParser()
        self.complete = False
        self._connection = connection
        self._info = info
        self._size = info.bytes if size is None else size
        self._ahead = ahead
        part = "frames" if item is None else f"items/{segment(item)}"
        self._path = f"/v1/messages/{info.id}/{part}"

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The bytes as they arrive, at most about 2 MiB at a time; close it with ``aclosing``.

        Raises:
            BrokerUnavailable, TransferStalled: there was no progress for `ClientSettings.retry_for`.
            MessageAborted: the message was open, and its publisher gave up.
            NotFound: the message was deleted.
        """
        async with aclosing(self._attempts(self._attempt)) as pieces:
            async for piece in pieces:
                yield piece

    async def moves(self, take: Take, enough: int) -> AsyncGenerator[None]:
        """Give what arrives to ``take``, which feeds it to `parser`, in a worker thread.

        Stops in between at least when ``enough`` bytes have come, and when ``take`` has to be called again.
        Close it with ``aclosing``. Raises as `pieces`, and what ``take`` raises.
        """
        async with aclosing(self._attempts(partial(self._move, take, enough))) as moves:
            async for _ in moves:
                yield

    async def _attempts(self, attempt: Callable[[int], AsyncGenerator[T]]) -> AsyncGenerator[T]:
        """Attempt after attempt, each from where the one before left off, until the message is complete."""
        attempts = self._connection.attempts(f"download of message {self._info.id}")
        furthest = 0
        while not self.complete:
            start = self.parser.rewind()
            try:
                async with aclosing(attempt(start)) as steps:
                    async for step in steps:
                        yield step
                if not self.complete:
                    raise BrokerUnavailable(
                        f"message {self._info.id} ended after {self.parser.boundary} bytes, in its midst"
                    )
            except TRANSIENT as error:
                if self.complete:
                    return
                if self.parser.boundary > furthest:
                    furthest = self.parser.boundary
                    attempts.advanced()
                await attempts.after(error)
            except (NotFound, Conflict, MessageAborted) as error:
                raise self._given_up(error) from error

    async def _move(self, take: Take, enough: int, start: int) -> AsyncGenerator[None]:
        """As ``_attempt``, past the HTTP library where that can be and is worth it."""
        if self._info.state == "open" or self._size - start >= LARGE:
            async with self._connection.stream(self._path, self._conditions(start)) as answer:
                if answer is not None:
                    answer.to_skip = 0 if answer.status == 206 else start
                    while answer.held or not (answer.ended or self.complete):
                        waits = await self._stay(answer, partial(answer.move, self.parser, take, enough))
                        yield
                        if waits:
                            await answer.readable()
                    return
        async with aclosing(self._attempt(start)) as pieces:
            async for piece in pieces:
                while await self._connection.in_thread(partial(take, piece)):
                    yield
                    piece = b""
                yield

    async def _stay(self, answer: Answer, move: Callable[[], bool]) -> bool:
        work = asyncio.ensure_future(self._connection.in_thread(move))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            answer.stop()
            await asyncio.wait([work])
            raise

    def _conditions(self, start: int) -> dict[str, str]:
        """What the broker is to send, and of which message."""
        conditions: dict[str, str] = {}
        if start:
            conditions["Range"] = f"bytes={start}-"
        if self._info.digest is not None:
            conditions["If-Match"] = f'"{self._info.digest}"'
        return conditions

    async def _attempt(self, start: int) -> AsyncGenerator[bytes]:
        """The bytes from ``start`` on, for as long as one connection lasts."""
        idle = self._connection.settings.idle_timeout
        async with self._connection.request(
            "GET",
            self._path,
            headers=self._conditions(start),
            read_timeout=idle,
            read_buffer=self._ahead,
        ) as response:
            # A message that is still open comes from its front: what we have of it is passed over.
            to_skip = 0 if response.status == 206 else start
            async for piece in response.content.iter_any():
                skipped = min(to_skip, len(piece))
                to_skip -= skipped
                if skipped < len(piece):
                    yield piece[skipped:] if skipped else piece

    def _given_up(self, error: TensorbusError) -> TensorbusError:
        if self._info.state != "open":
            return error
        return MessageAborted(
            f"message {self._info.id} was never completed: its publisher gave up after "
            f"{self.parser.boundary} bytes had arrived here"
        )
