"""What a receiver accepts before it takes memory."""

from __future__ import annotations

from dataclasses import dataclass

FRAME_BYTES = 1 << 20
"""A frame is written no larger than this in all, so that it is a legal message of NATS as it comes."""

LARGEST_INTEGER = (1 << 63) - 1
"""Every count, size and offset on the wire."""


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """Upper bounds for what frames may claim; anything over them is refused before memory is taken.

    Attributes:
        header: bytes of one frame's header.
        payload: bytes of one slice's payload. Writers stay below ``FRAME_BYTES``; readers have room to spare.
        manifest_payload: bytes of one manifest frame's payload.
        manifest: bytes of all manifest payloads of a message.
        items: items of a message.
        name: characters of an item's name.
        dims: dimensions of a tensor.
        elements: of one tensor; 2^59, so that 16 bytes each still fit a signed 64-bit size.
        scalar: bytes of one scalar item, which a receiver holds whole.
        headers: entries of the message headers.
        headers_bytes: bytes of the message headers' names and texts.
    """

    header: int = 64 << 10
    payload: int = 16 << 20
    manifest_payload: int = 1 << 20
    manifest: int = 16 << 20
    items: int = 65_536
    name: int = 1024
    dims: int = 64
    elements: int = 1 << 59
    scalar: int = 1 << 20
    headers: int = 64
    headers_bytes: int = 16 << 10


DEFAULT_LIMITS = FrameLimits()
"""What this release accepts, and what its encoders stay below."""
