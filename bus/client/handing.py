"""Handing: a small message, encoded once, in requests that it may share with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from tensorbus.bus import messages
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.encoder import Encoder

from .lanes import SMALL, Lanes
from .outgoing import Outgoing


class Handing:
    """As `Posting`, of a message that is sent as one piece.

    Attributes:
        furthest, resumed: as of `Posting`; such a message has no halves.
    """

    furthest = 0
    resumed = 0

    def __init__(self, lanes: Lanes, outgoing: Outgoing, body: bytes) -> None:
        self._lanes = lanes
        self._outgoing = outgoing
        self._body = body

    async def attempt(self) -> messages.Receipt:
        """One request that has this message."""
        return await self._lanes.send(self._outgoing.topic, self._outgoing.key, self._body)

    async def give_up(self, _error: BaseException) -> None:
        """Nothing is left at the broker."""


def is_small(encoder: Encoder) -> bool:
    """Whether a message is worth being made as a whole."""
    return max(encoder.original_bytes, encoder.wire_bytes or 0) <= SMALL


def encoded(encoder: Encoder) -> bytes:
    """All of a small message.

    Raises:
        NonFiniteValues and other CodecErrors, naming the item; StorageError of the source.
    """
    pool = BufferPool(1, make=encoder.new_buffer)
    body = bytearray()
    for frame in encoder.frames(pool.acquire):
        body += frame.head
        body += frame.payload
        if frame.buffer is not None:
            pool.release(frame.buffer)
    return bytes(body)


def at_hand(container: object) -> bool:
    """Whether a container is small and in this process's memory, so that to read it takes no thread.

    Neither torch's, which may lie on a device that is busy, nor what lies in a file.
    """
    if isinstance(container, bytes | bytearray):
        return len(container) <= SMALL
    if not isinstance(container, Mapping):
        return False
    values = cast("Mapping[object, object]", container).values()
    return len(values) <= 16 and all(_is_small_array(value) for value in values)


def _is_small_array(value: object) -> bool:
    kind = type(value)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        return cast("int", getattr(value, "nbytes", SMALL + 1)) <= SMALL
    return False
