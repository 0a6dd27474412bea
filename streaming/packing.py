"""Msgpack, read strictly: no extension types, no repeated keys, no sizes that the bytes do not back.

Msgpack's own reader reserves room for an array as soon as its length is announced, and arrays nest 1,024
deep. So the length of inner arrays is bounded tightly, and a manifest, the one long array of the format, is
read entry by entry.
"""

# pyright: reportUnknownMemberType=false
# (msgpack has neither annotations nor stubs; what is used of it is typed below.)

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn, Protocol, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from tensorbus.errors import FrameError, LimitExceeded

_LARGEST_ARRAY = 256
_LARGEST_MAP = 4096
_SMALL = 16 << 10
"""Bytes that may be read at once: whatever they announce, they are soon used up."""

_unpackb = cast("Callable[..., object]", msgpack.unpackb)


class _Reader(Protocol):
    """The part of ``msgpack.Unpacker`` that is used."""

    def feed(self, data: bytes | bytearray | memoryview) -> None: ...
    def unpack(self) -> object: ...
    def read_array_header(self) -> int: ...
    def tell(self) -> int: ...


class _Packer(Protocol):
    """The part of ``msgpack.Packer`` that is used."""

    def pack_array_header(self, size: int) -> object: ...
    def bytes(self) -> bytes: ...


def pack(value: Mapping[str, object]) -> bytes:
    """``value`` as msgpack; keys keep their order."""
    return cast(bytes, msgpack.packb(value, use_bin_type=True))


def pack_array(entries: list[bytes]) -> bytes:
    """An array of values that are packed already."""
    packer = cast(_Packer, msgpack.Packer(autoreset=False))
    packer.pack_array_header(len(entries))
    return packer.bytes() + b"".join(entries)


def unpack(data: bytes | bytearray | memoryview) -> dict[str, object]:
    """The one map in ``data``.

    Raises:
        FrameError: it is not exactly one map with distinct text keys, or holds what the format has not.
    """
    found = _at_once(data)
    if found is None:
        (found,) = _values(data, 1)
    return _as_map(found)


def unpack_array(data: bytes | bytearray | memoryview, largest: int) -> Iterator[dict[str, object]]:
    """The maps of the one array in ``data``, read one by one.

    Raises:
        FrameError: as ``unpack``.
        LimitExceeded: the array announces more than ``largest`` entries.
    """
    at_once = _at_once(data)
    if isinstance(at_once, list):
        entries = cast("list[object]", at_once)
        if len(entries) <= largest:
            yield from map(_as_map, entries)
            return
    reader = _reader(len(data))
    reader.feed(data)
    try:
        length = reader.read_array_header()
    except (ValueError, msgpack.UnpackException) as problem:
        raise FrameError(f"not a msgpack array: {problem}") from None
    if length > largest:
        raise LimitExceeded(f"an array announces {length} entries, the limit is {largest}")
    start = reader.tell()
    for value in _values(memoryview(data)[start:], length):
        yield _as_map(value)


def _at_once(data: bytes | bytearray | memoryview) -> object | None:
    """The one value in ``data`` if that is small and without fault, as nearly always; sooner had so than read
    piece by piece. None leaves it to the reader, which also finds out what the fault is."""
    if len(data) > _SMALL:
        return None
    try:
        return _unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_distinct,
            ext_hook=_refuse_extension,
            max_array_len=_LARGEST_ARRAY,
            max_map_len=_LARGEST_MAP,
            max_ext_len=0,
        )
    except (ValueError, RecursionError, msgpack.UnpackException):
        return None


def _values(data: bytes | bytearray | memoryview, count: int) -> Iterator[object]:
    """Exactly ``count`` values that fill ``data``."""
    reader = _reader(len(data))
    reader.feed(data)
    try:
        for _ in range(count):
            yield reader.unpack()
    except msgpack.OutOfData:
        raise FrameError("msgpack value is cut short") from None
    except (ValueError, RecursionError, msgpack.UnpackException) as problem:
        raise FrameError(f"not valid msgpack: {problem}") from None
    if reader.tell() != len(data):
        raise FrameError(f"{len(data) - reader.tell()} bytes follow the msgpack value")


def _reader(size: int) -> _Reader:
    create = cast(Callable[..., _Reader], msgpack.Unpacker)
    return create(
        raw=False,
        strict_map_key=True,
        object_pairs_hook=_distinct,
        ext_hook=_refuse_extension,
        max_buffer_size=max(size, 1),
        max_str_len=size,
        max_bin_len=size,
        max_array_len=_LARGEST_ARRAY,
        max_map_len=_LARGEST_MAP,
        max_ext_len=0,
    )


def _distinct(pairs: list[tuple[object, object]]) -> dict[object, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a map repeats a key")
    return found


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} is not allowed")


def _as_map(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise FrameError(f"expected a msgpack map, found {type(value).__name__}")
    entries = cast(dict[object, object], value)
    for key in entries:
        if not isinstance(key, str):
            raise FrameError("a msgpack map has a key that is not text")
    return cast(dict[str, object], entries)
