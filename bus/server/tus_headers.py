"""The fields of tus 1.0 (https://tus.io/protocols/resumable-upload), read and written."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from email.utils import formatdate

from aiohttp import web

from tensorbus.bus.broker.inflow import Digest
from tensorbus.errors import InvalidRequest, LimitExceeded
from tensorbus.streaming import checksum

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,creation-defer-length,checksum,expiration,termination"
CONTENT_TYPE = "application/offset+octet-stream"
METHOD_OVERRIDE = "X-HTTP-Method-Override"

MAX_METADATA = 4096
"""Characters of Upload-Metadata."""

_NAME = re.compile(r"[!-+\--~]+", re.ASCII)  # visible, but no comma
_LARGEST = 2**63 - 1


class _Crc32c:
    """CRC-32C as the checksums of hashlib are; its digest is big-endian."""

    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self._crc = checksum.extend(self._crc, data)

    def digest(self) -> bytes:
        return self._crc.to_bytes(4, "big")


_ALGORITHMS: dict[str, Callable[[], Digest]] = {
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32c": _Crc32c,
}

ALGORITHMS = ",".join(_ALGORITHMS)
"""For Tus-Checksum-Algorithm."""


def number(request: web.Request, name: str) -> int | None:
    """A field that is a count of bytes; None if it is not there. Raises InvalidRequest."""
    text = _one(request, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _LARGEST):
        raise InvalidRequest(f"{name}: {text[:40]!r} is no number of bytes")
    return int(text)


def length_of_new(request: web.Request) -> int | None:
    """Upload-Length of a creation; None where it is deferred. Raises InvalidRequest."""
    length, deferred = number(request, "Upload-Length"), _one(request, "Upload-Defer-Length")
    if deferred not in (None, "1"):
        raise InvalidRequest(f"Upload-Defer-Length can only be 1, not {deferred[:40]!r}")
    if (length is None) == (deferred is None):
        raise InvalidRequest("give Upload-Length, or Upload-Defer-Length: 1 if it is not known yet")
    return length


def metadata(request: web.Request) -> dict[str, str]:
    """Upload-Metadata: names to values, which stay base64. Raises InvalidRequest, LimitExceeded."""
    text = _one(request, "Upload-Metadata") or ""
    if len(text) > MAX_METADATA:
        raise LimitExceeded(f"Upload-Metadata takes {len(text)} characters, the limit is {MAX_METADATA}")
    found: dict[str, str] = {}
    for pair in text.split(",") if text else ():
        name, _, value = pair.strip().partition(" ")
        if not _NAME.fullmatch(name) or name in found:
            raise InvalidRequest(f"Upload-Metadata: {name[:40]!r} is no name, or is given twice")
        _base64("Upload-Metadata", value)
        found[name] = value
    return found


def metadata_text(values: Mapping[str, str]) -> str:
    """The field that ``metadata`` read."""
    return ",".join(f"{name} {value}".strip() for name, value in values.items())


def checksum_of(request: web.Request) -> tuple[Digest, bytes] | None:
    """A new digest and the value that it should have in the end; None without Upload-Checksum.

    Raises:
        InvalidRequest: it is malformed, or the algorithm is none of those that OPTIONS names.
    """
    text = _one(request, "Upload-Checksum")
    if text is None:
        return None
    algorithm, _, value = text.partition(" ")
    if algorithm not in _ALGORITHMS:
        raise InvalidRequest(f"Upload-Checksum: {algorithm[:40]!r} is not known; known are {ALGORITHMS}")
    return _ALGORITHMS[algorithm](), _base64("Upload-Checksum", value)


def expires(seconds: float) -> dict[str, str]:
    """Upload-Expires, of a moment in seconds since the epoch."""
    return {"Upload-Expires": formatdate(seconds, usegmt=True)}


def _one(request: web.Request, name: str) -> str | None:
    values = request.headers.getall(name, [])
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given more than once")
    return values[0].strip() if values else None


def _base64(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{name}: {value[:40]!r} is not base64") from None
