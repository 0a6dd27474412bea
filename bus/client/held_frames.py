"""Frames of a small message that came along with its delivery: read like a download, without a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TypeVar

from tensorbus.streaming.entries import Entry
from tensorbus.streaming.frames import Frame, FrameParser, Kind
from tensorbus.streaming.sequence import MessageChecker

from .downloads import Take

T = TypeVar("T")

MAX_HELD = 64 << 10
"""Bytes of frames that are asked for along with a delivery."""


class HeldFrames:
    """As `Download`, of frames that are in memory.

    Args:
        frames: the whole body.
        item: name of the only item that is wanted; None for the whole message.

    Attributes:
        parser, complete: as of `Download`.
    """

    def __init__(self, frames: bytes, item: str | None = None) -> None:
        self.parser = FrameParser()
        self.complete = False
        self._frames = frames
        self._item = item

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The bytes."""
        if self._item is None:
            yield self._frames
            return
        for frame in _parsed(self._frames):
            if self.complete:
                return
            if frame.kind == Kind.SLICE and frame.header.get("n") == self._item:
                yield self._frames[frame.offset : frame.end]

    async def moves(self, take: Take, enough: int) -> AsyncGenerator[None]:
        """Give the bytes to ``take``, here and now."""
        async for piece in self.pieces():
            while take(piece):
                yield
                piece = b""
            yield


class Here:
    """Decodes what is small where it is called: a worker thread and back would take longer."""

    async def in_thread(self, function: Callable[[], T]) -> T:
        """The result of ``function``."""
        return function()


def entries_of(frames: bytes) -> tuple[Entry, ...]:
    """The manifest of a whole message body.

    Raises:
        FrameError (and its kinds), InvalidName, InvalidRequest, LimitExceeded: it is none.
    """
    checker = MessageChecker()
    for frame in _parsed(frames):
        checker.accept(frame)
        if checker.declared:
            break
    return tuple(checker.entries)


def _parsed(frames: bytes) -> Iterator[Frame]:
    return FrameParser(keep_payload=False).feed(frames)
