"""The beginning of a message, for whoever wants to know what kind of container it is."""

from __future__ import annotations

from contextlib import aclosing

from tensorbus.errors import TruncatedFrames
from tensorbus.streaming.headers import Envelope
from tensorbus.streaming.sequence import MessageChecker

from .reading import Pieces


async def read_envelope(download: Pieces) -> Envelope:
    """What the open frame says; reading ends behind it.

    Raises:
        FrameError (and its kinds), InvalidRequest, LimitExceeded: the message does not begin with one.
        As `Download.pieces`.
    """
    checker = MessageChecker()
    async with aclosing(download.pieces()) as pieces:
        async for piece in pieces:
            for frame in download.parser.feed(piece):
                checker.accept(frame)
                download.complete = True
                return checker.envelope
    raise TruncatedFrames("the message ends before its first frame does")
