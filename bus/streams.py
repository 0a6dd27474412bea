"""How a stream of deliveries is written for programs: records, one behind the other.

A record is the length of its JSON and the length of its frames, each a little-endian u32, then the JSON, an
object, then the frames. Its one member says what it is: ``delivery``, whose frames are those of the message
if they come along, or ``problem``, which is the last. A record of two zeros is a sign of life.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from struct import Struct
from typing import Final, cast

from tensorbus.errors import FrameError, LimitExceeded

from .consumers import MAX_INLINE, DeliveryInfo

MEDIA_TYPE: Final = "application/vnd.tensorbus.deliveries"
MAX_HEAD = 4 << 20
"""Bytes of a record's JSON: a message's headers, pipeline and history, generously."""

_LENGTHS = Struct("<II")
HEARTBEAT = _LENGTHS.pack(0, 0)
_compact = json.JSONEncoder(separators=(",", ":")).encode


def delivery_record(delivery: DeliveryInfo) -> bytes:
    """The record of a delivery."""
    head = _compact({"delivery": replace(delivery, frames=None).to_json()}).encode()
    frames = delivery.frames or b""
    return b"".join((_LENGTHS.pack(len(head), len(frames)), head, frames))


def problem_record(document: Mapping[str, object]) -> bytes:
    """The record of a problem document."""
    head = _compact({"problem": document}).encode()
    return _LENGTHS.pack(len(head), 0) + head


class RecordParser:
    """Finds the records in bytes as they come; does no I/O."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Mapping[str, object], bytes]]:
        """The JSON and the frames of each record that is whole now; of a sign of life, an empty object.

        Raises:
            LimitExceeded: a length is over the limit. FrameError: what should be JSON is none.
        """
        rest = self._rest
        rest += data
        at = 0
        try:
            while len(rest) - at >= _LENGTHS.size:
                head_len, frames_len = _LENGTHS.unpack_from(rest, at)
                if head_len > MAX_HEAD or frames_len > MAX_INLINE:
                    raise LimitExceeded(
                        f"a record of the stream has {head_len} bytes of JSON and {frames_len} of frames; "
                        f"allowed are {MAX_HEAD} and {MAX_INLINE}"
                    )
                start = at + _LENGTHS.size
                middle = start + head_len
                end = middle + frames_len
                if len(rest) < end:
                    return
                head, frames = bytes(rest[start:middle]), bytes(rest[middle:end])
                at = end
                yield _object(head) if head_len else {}, frames
        finally:
            del rest[:at]

    @property
    def whole(self) -> bool:
        """Whether the bytes so far end with a record."""
        return not self._rest


def _object(head: bytes) -> Mapping[str, object]:
    try:
        document: object = json.loads(head)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise FrameError(f"a record of the stream begins with no JSON object: {head[:100]!r}")
    return cast("Mapping[str, object]", document)
