"""Download: the bytes of one message, or of one item of it, across cuts."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import BrokerUnavailable, Conflict, MessageAborted, NotFound, TensorbusError
from tensorbus.streaming.frames import FrameParser

from .connection import TRANSIENT, Connection, segment
from .retry import Retry


class Download:
    """Fetches frames, and after a cut the frames after the last whole one.

    The caller alternates: take a piece from `pieces`, feed it to `parser` and exhaust what that yields.

    Args:
        item: name of the only item that is wanted; None for the whole message.

    Attributes:
        parser: verifies the frames; its boundary is where the next request begins.
        complete: to be set by the caller once the last frame has been verified.
    """

    def __init__(self, connection: Connection, info: MessageInfo, item: str | None = None) -> None:
        self.parser = FrameParser()
        self.complete = False
        self._connection = connection
        self._info = info
        part = "frames" if item is None else f"items/{segment(item)}"
        self._path = f"/v1/messages/{info.id}/{part}"

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The bytes as they arrive, at most about 2 MiB at a time; close it with ``aclosing``.

        Raises:
            BrokerUnavailable, TransferStalled: there was no progress for `ClientSettings.retry_for`.
            MessageAborted: the message was open, and its publisher gave up.
            NotFound: the message was deleted.
        """
        attempts = Retry(self._connection.settings.retry_for, f"download of message {self._info.id}")
        furthest = 0
        while not self.complete:
            start = self.parser.rewind()
            try:
                async for piece in self._attempt(start):
                    yield piece
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

    async def _attempt(self, start: int) -> AsyncGenerator[bytes]:
        """The bytes from ``start`` on, for as long as one connection lasts."""
        conditions: dict[str, str] = {}
        if start:
            conditions["Range"] = f"bytes={start}-"
        if self._info.digest is not None:
            conditions["If-Match"] = f'"{self._info.digest}"'
        async with self._connection.request(
            "GET", self._path, headers=conditions, read_timeout=self._connection.settings.idle_timeout
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
