"""Download: the body of one message, piece by piece, across cuts."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tensorbus.errors import BrokerUnavailable, Conflict, MessageAborted, NotFound
from tensorbus.streaming.frames import Frame, FrameParser
from tensorbus.streaming.sequence import MessageChecker

from .connection import TRANSIENT, Connection
from .messages import MessageInfo
from .retry import Retry


class Download:
    """Fetches a message's body and checks its frames.

    The caller alternates: take a piece from `pieces`, feed it to `frames` and exhaust that. When the connection
    is cut in between, the next piece is the one after the last whole frame.
    """

    def __init__(self, connection: Connection, info: MessageInfo) -> None:
        self._connection = connection
        self._info = info
        self._parser = FrameParser()
        self._checker = MessageChecker()

    @property
    def received(self) -> int:
        """Bytes of the body that have been verified."""
        return self._parser.boundary

    @property
    def complete(self) -> bool:
        """Whether the close frame has been verified."""
        return self._checker.complete

    def frames(self, piece: bytes) -> FrameSteps:
        """The frames that ``piece`` completes, each checked against those before it.

        Raises (from the iterator):
            FrameError, ChecksumMismatch, UnsupportedVersion, FrameSequenceError, LimitExceeded, InvalidName.
        """
        return FrameSteps(self._parser, self._checker, piece)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes of the body as they arrive, each at most about 2 MiB; to be closed with ``aclosing``.

        Raises:
            BrokerUnavailable, TransferStalled: there was no progress for `ClientSettings.retry_for`.
            MessageAborted: the message was open, and its publisher gave up.
            NotFound: the message was deleted.
        """
        settings = self._connection.settings
        path = f"/v1/messages/{self._info.id}/frames"
        attempts = Retry(settings.retry_for, f"download of message {self._info.id}")
        furthest = 0
        while not self.complete:
            start = self._parser.rewind()
            try:
                async with self._connection.request(
                    "GET", path, headers=self._conditions(start), read_timeout=settings.idle_timeout
                ) as response:
                    to_skip = 0 if response.status == 206 else start
                    async for piece in response.content.iter_any():
                        if to_skip:
                            kept = piece[to_skip:]
                            to_skip -= len(piece) - len(kept)
                            if not kept:
                                continue
                            yield kept
                        else:
                            yield piece
                if not self.complete:
                    raise BrokerUnavailable(f"message {self._info.id} ended after {self.received} bytes")
            except TRANSIENT as error:
                if self.complete:
                    return
                if self.received > furthest:
                    furthest = self.received
                    attempts.advanced()
                await attempts.after(error)
            except (NotFound, Conflict) as error:
                if self._info.state == "open":
                    raise MessageAborted(
                        f"message {self._info.id} was never completed: its publisher gave up after {self.received} bytes"
                    ) from error
                raise

    def _conditions(self, start: int) -> dict[str, str]:
        conditions: dict[str, str] = {}
        if start:
            conditions["Range"] = f"bytes={start}-"
        if self._info.digest is not None:
            conditions["If-Match"] = f'"{self._info.digest}"'
        return conditions


class FrameSteps:
    """Iterator of checked frames; a plain class, so that it may be advanced from any thread."""

    def __init__(self, parser: FrameParser, checker: MessageChecker, piece: bytes) -> None:
        self._frames = parser.feed(piece)
        self._checker = checker

    def __iter__(self) -> FrameSteps:
        return self

    def __next__(self) -> Frame:
        frame = next(self._frames)
        self._checker.accept(frame)
        return frame
