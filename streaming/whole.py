"""A message that lies in memory as a whole, checked at once."""

from __future__ import annotations

from .frames import FrameParser
from .headers import Envelope, Totals
from .sequence import MessageChecker


def check_whole(body: bytes) -> tuple[Envelope, Totals]:
    """What the first and the last frame of a message say; everything in between has been checked.

    Raises:
        FrameError (and its kinds), InvalidName, InvalidRequest, LimitExceeded: it is no valid message.
    """
    parser, checker = FrameParser(keep_payload=False), MessageChecker()
    for frame in parser.feed(body):
        checker.accept(frame)
    parser.finish()
    totals = checker.totals
    return checker.envelope, totals
