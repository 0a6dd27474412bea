"""A message on its way out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Self

from .messages import MessageInfo


class Reader:
    """Yields a range of a message's body; follows a message that is still open.

    Either iterate (chunks of at most ``BrokerSettings.chunk_bytes``, each valid until the next step), or hand the bytes to
    sendfile:

        while (span := await reader.span()) is not None:
            offset, count = span
            ... send ``count`` bytes of ``reader.fd`` from ``offset`` ...
            reader.advance(count)
    """

    info: MessageInfo
    """As it was when the reader was opened."""
    fd: int
    """Read-only descriptor of the frames, at the same offsets as the body; open until ``aclose``."""
    start: int
    end: int | None
    """Exclusive; None if the message is open and its end is not known yet."""
    position: int
    """Offset of the next byte to come."""

    async def span(self, limit: int = 1 << 30) -> tuple[int, int] | None:
        """Wait until bytes are there: (offset, count ≤ limit), count ≥ 1; None at the end.

        Raises:
            MessageAborted: the message was given up by its publisher.
        """
        raise NotImplementedError

    def advance(self, count: int) -> None:
        """``count`` bytes of the span have been sent."""
        raise NotImplementedError

    def __aiter__(self) -> AsyncIterator[memoryview]:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Release the descriptor. Idempotent."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
