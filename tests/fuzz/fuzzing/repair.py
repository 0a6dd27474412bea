"""Makes checksums of a mutated message right again, so that a mutation gets past them."""

from __future__ import annotations

from hashlib import sha256

from tensorbus.errors import FrameError
from tensorbus.streaming import checksum
from tensorbus.streaming.frames import PRELUDE, Kind
from tensorbus.streaming.packing import pack, unpack

_CHECKED = 16


def repair(data: bytes) -> bytes:
    """``data`` with the CRC of every frame that is whole, and the digest, computed anew."""
    out = bytearray()
    at = 0
    preludes = sha256()
    while at + PRELUDE.size <= len(data):
        magic, version, kind, flags, header_len, payload_len, _ = PRELUDE.unpack_from(data, at)
        end = at + PRELUDE.size + header_len + payload_len
        if magic != b"TNSB" or end > len(data):
            break
        header = data[at + PRELUDE.size : at + PRELUDE.size + header_len]
        payload = data[at + PRELUDE.size + header_len : end]
        if kind == Kind.CLOSE:
            header = _with_digest(header, preludes.digest())
        checked = PRELUDE.pack(magic, version, kind, flags, len(header), payload_len, 0)[:_CHECKED]
        crc = 0
        for part in (checked, header, payload):
            crc = checksum.extend(crc, part)
        prelude = checked + crc.to_bytes(4, "little")
        preludes.update(prelude)
        out += prelude + header + payload
        at = end
    return bytes(out) + data[at:]


def _with_digest(header: bytes, digest: bytes) -> bytes:
    try:
        document = unpack(header)
    except FrameError:
        return header
    if "digest" not in document:
        return header
    try:
        return pack(document | {"digest": digest})
    except (ValueError, TypeError, OverflowError):
        return header
