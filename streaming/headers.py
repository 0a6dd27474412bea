"""The headers of open, slice and close frames as values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from tensorbus.errors import FrameError, InvalidRequest, LimitExceeded

from . import fields
from .entries import check_item_name, parse_codec, parse_dtype
from .limits import DEFAULT_LIMITS, LARGEST_INTEGER, FrameLimits
from .packing import pack

HeaderValue = str | int | float | bool | None

_CONTAINER_LENGTH = 64
DIGEST_BYTES = 32
_COUNTS = tuple(
    pack({key: None})[1:-1] + b"\xcf"
    for key in ("frames", "items", "payload_bytes", "original_bytes", "clipped")
)
"""What stands before each count of a close frame: its name, and msgpack's mark of eight bytes."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the open frame says of the message.

    Attributes:
        headers: the publisher's own, names to plain values.
        container: kind of the container, such as ``torch``, ``numpy``, ``safetensors`` or ``bytes``.
        pipeline: the JSON specification that the values went through.
        metadata: texts that belong to the container (``__metadata__`` of safetensors).
        items: number of items, when it is known beforehand; all are then declared before the first slice.
        original_bytes: size of all values as they were, when known beforehand.
        wire_bytes: size of the whole message body, when known beforehand.
    """

    headers: Mapping[str, HeaderValue]
    container: str
    pipeline: Mapping[str, object] = field(default_factory=dict[str, object])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    items: int | None = None
    original_bytes: int | None = None
    wire_bytes: int | None = None

    def to_map(self) -> dict[str, object]:
        """As it stands in the open frame.

        Raises:
            InvalidRequest, LimitExceeded: a message header has no legal name or value, or there are too many.
        """
        return {
            "headers": check_headers(self.headers),
            "container": self.container,
            "pipeline": dict(self.pipeline),
            "metadata": dict(self.metadata),
            "items": self.items,
            "original_bytes": self.original_bytes,
            "wire_bytes": self.wire_bytes,
        }

    @classmethod
    def parse(cls, source: Mapping[str, object], limits: FrameLimits = DEFAULT_LIMITS) -> Envelope:
        """The envelope in an open frame's header.

        Raises:
            FrameError, InvalidRequest, LimitExceeded: naming the entry.
        """
        container = fields.text(source, "container")
        if not 1 <= len(container) <= _CONTAINER_LENGTH or not container.isprintable():
            raise FrameError(f"the container kind must be 1 to {_CONTAINER_LENGTH} printable characters")
        metadata = fields.mapping(source, "metadata")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise FrameError("'metadata' must map text to text")
        items = fields.optional_integer(source, "items")
        if items is not None and items > limits.items:
            raise LimitExceeded(f"the message announces {items} items, the limit is {limits.items}")
        return cls(
            headers=check_headers(fields.mapping(source, "headers"), limits),
            container=container,
            pipeline=fields.mapping(source, "pipeline"),
            metadata=cast(dict[str, str], metadata),
            items=items,
            original_bytes=fields.optional_integer(source, "original_bytes"),
            wire_bytes=fields.optional_integer(source, "wire_bytes"),
        )


def check_headers(
    headers: Mapping[str, object], limits: FrameLimits = DEFAULT_LIMITS
) -> dict[str, HeaderValue]:
    """``headers``, which must map printable names to text, numbers, booleans or None.

    Raises:
        InvalidRequest: a name or a value is of another kind.
        LimitExceeded: there are too many, or they are too long in all.
    """
    if len(headers) > limits.headers:
        raise LimitExceeded(f"{len(headers)} message headers, the limit is {limits.headers}")
    taken = 0
    checked: dict[str, HeaderValue] = {}
    for name, value in headers.items():
        if not name or not name.isprintable():
            raise InvalidRequest(f"message header {name[:40]!r}: the name must be printable text")
        checked[name] = _header_value(name, value)
        taken += _text_bytes(name, name) + (_text_bytes(name, value) if isinstance(value, str) else 8)
    if taken > limits.headers_bytes:
        raise LimitExceeded(f"message headers take {taken} bytes, the limit is {limits.headers_bytes}")
    return checked


def _header_value(name: str, value: object) -> HeaderValue:
    if value is not None and not isinstance(value, (str, int, float)):
        kind = type(value).__name__
        raise InvalidRequest(f"message header {name!r}: {kind} is none of str, int, float, bool, None")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"message header {name!r}: {value} is not a finite number")
    if fields.is_integer(value) and not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
        raise InvalidRequest(f"message header {name!r}: the integer takes more than 64 bits")
    return value


def _text_bytes(name: str, value: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"message header {name[:40]!r} is not valid Unicode") from None


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """What a slice frame says of its payload; enough to decode it without the manifest.

    Attributes:
        index: position of the item in the manifest.
        name, dtype, codec: of the item, as in the manifest.
        offset, count: the slice, in elements of the flat item.
    """

    index: int
    name: str
    dtype: str
    codec: Mapping[str, object]
    offset: int
    count: int

    def to_map(self) -> dict[str, object]:
        """As it stands in the slice frame."""
        return {
            "i": self.index,
            "n": self.name,
            "d": self.dtype,
            "q": dict(self.codec),
            "o": self.offset,
            "c": self.count,
        }

    @classmethod
    def parse(cls, source: Mapping[str, object], limits: FrameLimits = DEFAULT_LIMITS) -> SliceHeader:
        """The header of a slice frame.

        Raises:
            InvalidName, FrameError, LimitExceeded: naming the entry.
        """
        return cls(
            index=fields.integer(source, "i", limits.items),
            name=check_item_name(fields.text(source, "n"), limits),
            dtype=parse_dtype(source),
            codec=parse_codec(source),
            offset=fields.integer(source, "o", limits.elements),
            count=fields.integer(source, "c", limits.elements),
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """What the close frame says of the whole message.

    Attributes:
        frames: number of frames, the close frame included.
        items: number of items declared.
        payload_bytes: of all slices.
        original_bytes: of all values as they were.
        clipped: values that were clipped to the range of their codec.
        digest: SHA-256 over the preludes of all earlier frames.
    """

    frames: int
    items: int
    payload_bytes: int
    original_bytes: int
    clipped: int
    digest: bytes

    def pack(self) -> bytes:
        """The header, always of one size: the length of a message is known before its values are read.

        Msgpack would spend one to nine bytes on a count; here each takes nine.
        """
        values = (self.frames, self.items, self.payload_bytes, self.original_bytes, self.clipped)
        packed = bytearray((0x80 | (len(_COUNTS) + 1),))
        for before, value in zip(_COUNTS, values, strict=True):
            packed += before + value.to_bytes(8, "big")
        return bytes(packed + pack({"digest": self.digest})[1:])

    @classmethod
    def parse(cls, source: Mapping[str, object]) -> Totals:
        """The header of a close frame.

        Raises:
            FrameError, LimitExceeded: naming the entry.
        """
        digest = source.get("digest")
        if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
            raise FrameError(f"'digest' must be {DIGEST_BYTES} bytes")
        return cls(
            frames=fields.integer(source, "frames"),
            items=fields.integer(source, "items"),
            payload_bytes=fields.integer(source, "payload_bytes"),
            original_bytes=fields.integer(source, "original_bytes"),
            clipped=fields.integer(source, "clipped"),
            digest=digest,
        )
