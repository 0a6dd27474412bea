"""A message on its way in."""

from __future__ import annotations

from typing import Self

from .messages import MessageInfo, Receipt


class Upload:
    """Checks every frame of one message and appends it to the store, with constant memory.

    Made by ``Broker.begin``. Attributes: ``id``, ``topic``, ``key``.
    """

    id: str
    topic: str
    key: str | None

    @property
    def info(self) -> MessageInfo:
        """The message as far as it has been verified."""
        raise NotImplementedError

    @property
    def received(self) -> int:
        """Bytes taken by ``write`` so far."""
        raise NotImplementedError

    @property
    def aborted(self) -> bool:
        """Whether the upload was given up: by ``abort``, an error, its deletion, or a second upload of its key."""
        raise NotImplementedError

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the body, cut anywhere; waits while the store is behind (backpressure).

        ``bytes`` are kept until they are written. A bytearray or memoryview may be reused as soon as this
        returns. An error belongs to these or to earlier bytes, and the upload has then been aborted.

        Raises:
            FrameError (and its kinds), InvalidName, LimitExceeded: the body is not a valid message.
            StorageFull, StorageError: the store cannot take it.
            MessageAborted: the upload was replaced or deleted meanwhile.
        """
        raise NotImplementedError

    async def seal(self) -> Receipt:
        """The body is complete: acknowledged when this returns. Raises as ``write``, and TruncatedFrames."""
        raise NotImplementedError

    async def abort(self, reason: str) -> None:
        """Give the message up; followers get MessageAborted. Does nothing if it is sealed or aborted."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.abort("the publisher stopped before the end of the message")
