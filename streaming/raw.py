"""A plain byte string as a message of one item, ``body``. No codecs: the broker wraps what curl sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tensorbus.errors import InvalidRequest

from .entries import Entry
from .frames import FRAME_BYTES, PRELUDE, Kind, encode_frame
from .headers import Envelope, HeaderValue, SliceHeader
from .packing import pack, pack_array
from .tally import Tally

CONTAINER = "bytes"
BODY = "body"
CONTENT_TYPE = "content-type"
"""Key of the metadata that holds the body's media type."""


class RawEncoder:
    """Wraps a byte string of known size, which comes in chunks of any size, into frames; without any I/O.

    Args:
        headers: the message's headers.
        content_type: the media type of the bytes; kept in the metadata.
        size: of all chunks together, in bytes.
    """

    def __init__(self, headers: Mapping[str, HeaderValue], content_type: str, size: int) -> None:
        self._entry = Entry(name=BODY, dtype="uint8", shape=(size,), kind="bytes")
        self._envelope = Envelope(
            headers=headers,
            container=CONTAINER,
            metadata={CONTENT_TYPE: content_type},
            items=1,
            original_bytes=size,
        )
        self._size = size
        self._sent = 0
        self._tally = Tally()

    def open(self) -> bytes:
        """The open and manifest frames.

        Raises:
            InvalidRequest, LimitExceeded: a header has no legal name or value, or there are too many.
        """
        opening = encode_frame(Kind.OPEN, self._envelope.to_map())
        self._tally.add_head(Kind.OPEN, opening)
        manifest = pack_array([pack(self._entry.to_map())])
        head = encode_frame(Kind.MANIFEST, {"first": 0}, manifest)
        self._tally.add_head(Kind.MANIFEST, head, len(manifest))
        return opening + head + manifest

    def slices(self, chunk: bytes | bytearray | memoryview) -> Iterator[tuple[bytes, memoryview]]:
        """The frames for the next bytes: heads, each to be sent before its payload, a part of ``chunk``.

        Raises:
            InvalidRequest: there are more bytes than announced.
        """
        view = memoryview(chunk)
        if self._sent + len(view) > self._size:
            raise InvalidRequest(f"the body is longer than the {self._size} bytes announced")
        while view:
            room = FRAME_BYTES - PRELUDE.size - len(pack(self._header(len(view))))
            payload, view = view[:room], view[room:]
            head = encode_frame(Kind.SLICE, self._header(len(payload)), payload)
            self._tally.add_head(Kind.SLICE, head, len(payload))
            self._sent += len(payload)
            yield head, payload

    def close(self) -> bytes:
        """The close frame.

        Raises:
            InvalidRequest: there were fewer bytes than announced.
        """
        if self._sent < self._size:
            raise InvalidRequest(f"the body ended after {self._sent} of {self._size} bytes announced")
        return self._tally.close(items=1, original_bytes=self._size, clipped=0)

    def _header(self, count: int) -> dict[str, object]:
        entry = self._entry
        return SliceHeader(0, entry.name, entry.dtype, entry.codec, self._sent, count).to_map()
