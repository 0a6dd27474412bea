"""Promises of the frame parser: it says the same of the same bytes, and takes nothing on trust."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.errors import (
    ChecksumMismatch,
    FrameError,
    LimitExceeded,
    TensorbusError,
    TruncatedFrames,
    UnsupportedVersion,
)
from tensorbus.streaming.frames import (
    PRELUDE,
    Frame,
    FrameLimits,
    FrameParser,
    Kind,
    encode_frame,
    encode_head,
)
from tensorbus.streaming.packing import pack

Seen = tuple[Kind, dict[str, object], bytes, int, int]


def frame(kind: Kind, header: dict[str, object], payload: bytes = b"") -> bytes:
    """A whole frame."""
    return encode_frame(kind, header, payload) + payload


def prelude(
    magic: bytes = b"TNSB",
    version: int = 1,
    kind: int = 3,
    flags: int = 0,
    header_len: int = 1,
    payload_len: int = 0,
) -> bytes:
    """A prelude by hand, with a checksum that is never reached."""
    return PRELUDE.pack(magic, version, kind, flags, header_len, payload_len, 0)


OPEN = frame(Kind.OPEN, {"container": "torch"})
MANIFEST = frame(Kind.MANIFEST, {"first": 0}, b"\x90")
SLICE = frame(Kind.SLICE, {"i": 0, "o": 0}, bytes(range(256)) * 5)
EMPTY = frame(Kind.SLICE, {"i": 1})
CLOSE = frame(Kind.CLOSE, {"frames": 4})
GOOD = OPEN + MANIFEST + SLICE + EMPTY + CLOSE

CUTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "at once": lambda data: [data],
    "byte by byte": lambda data: [data[at : at + 1] for at in range(len(data))],
    "in pieces of 7": lambda data: [data[at : at + 7] for at in range(0, len(data), 7)],
    "in halves": lambda data: [data[: len(data) // 2], data[len(data) // 2 :]],
    "with empty pieces": lambda data: [b"", data[:30], b"", data[30:], b""],
}

CASES: dict[str, tuple[bytes, int, type[TensorbusError] | None, str]] = {
    # name: bytes, frames before the end or the error, error, part of its text
    "nothing": (b"", 0, None, ""),
    "one frame": (OPEN, 1, None, ""),
    "a message": (GOOD, 5, None, ""),
    "two messages": (GOOD + GOOD, 10, None, ""),
    "cut in the prelude": (OPEN + SLICE[:11], 1, TruncatedFrames, f"frame 2 at byte {len(OPEN)}: "),
    "cut in the header": (OPEN + SLICE[:22], 1, TruncatedFrames, "bytes of its head"),
    "cut in the payload": (OPEN + SLICE[:-1], 1, TruncatedFrames, "1279 of the 1280 bytes of its payload"),
    "trailing garbage": (
        GOOD + b"garbage, more than a prelude",
        5,
        FrameError,
        f"frame 6 at byte {len(GOOD)}",
    ),
    "trailing zeros, fewer than a prelude": (GOOD + bytes(19), 5, TruncatedFrames, "frame 6"),
    "not frames at all": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 0, FrameError, "b'GET '"),
    "a newer version": (
        OPEN + prelude(version=2),
        1,
        UnsupportedVersion,
        f"at byte {len(OPEN)}: format version 2",
    ),
    "an unknown kind": (prelude(kind=9), 0, UnsupportedVersion, "kind 9"),
    "kind zero": (prelude(kind=0), 0, UnsupportedVersion, "kind 0"),
    "unknown flags": (prelude(flags=0x8000), 0, UnsupportedVersion, "0x8000"),
    "an empty header": (prelude(header_len=0), 0, FrameError, "header is empty"),
    "a header of 4 GiB": (prelude(header_len=2**32 - 1), 0, LimitExceeded, "header of 4294967295 bytes"),
    "a payload of 4 GiB": (prelude(payload_len=2**32 - 1), 0, LimitExceeded, "payload of 4294967295 bytes"),
    "a manifest frame of 2 MiB": (
        prelude(kind=2, payload_len=2 << 20),
        0,
        LimitExceeded,
        "the limit is 1048576",
    ),
    "a damaged payload": (OPEN + SLICE[:-1] + b"\0", 1, ChecksumMismatch, f"frame 2 at byte {len(OPEN)}"),
    "a damaged header": (SLICE[:25] + b"x" + SLICE[26:], 0, ChecksumMismatch, "CRC-32C"),
    "a damaged length": (OPEN[:12] + b"\1" + OPEN[13:] + b"?", 0, ChecksumMismatch, "frame 1"),
    "a header that is no map": (encode_head(Kind.SLICE, b"\x01"), 0, FrameError, "expected a msgpack map"),
    "a header that is no msgpack": (encode_head(Kind.SLICE, b"\xc1"), 0, FrameError, "not valid msgpack"),
    "a header that is cut short": (encode_head(Kind.SLICE, b"\x81\xa1a"), 0, FrameError, "cut short"),
    "a header with a tail": (encode_head(Kind.SLICE, pack({}) + b"\0"), 0, FrameError, "1 bytes follow"),
    "a header with a repeated key": (
        encode_head(Kind.SLICE, b"\x82\xa1a\1\xa1a\2"),
        0,
        FrameError,
        "repeats",
    ),
    "a header with a number as key": (encode_head(Kind.SLICE, b"\x81\1\2"), 0, FrameError, "msgpack"),
    "a header with bytes as key": (encode_head(Kind.SLICE, b"\x81\xc4\1a\2"), 0, FrameError, "not text"),
    "a header with a timestamp": (
        encode_head(Kind.SLICE, b"\x81\xa1a\xd6\xff\0\0\0\0"),
        0,
        FrameError,
        "not valid msgpack",
    ),
    "a header with an empty extension": (
        encode_head(Kind.SLICE, b"\x81\xa1a\xc7\0\5"),
        0,
        FrameError,
        "extension",
    ),
    "a header with broken UTF-8": (
        encode_head(Kind.SLICE, b"\x81\xa1\xff\2"),
        0,
        FrameError,
        "not valid msgpack",
    ),
}


def parse(pieces: list[bytes], *, keep_payload: bool = True) -> tuple[list[Seen], TensorbusError | None, int]:
    """The frames that come out, the error that ends them, and the boundary."""
    parser = FrameParser(keep_payload=keep_payload)
    seen: list[Seen] = []
    try:
        for piece in pieces:
            for event in parser.feed(piece):
                payload = bytes(event.payload)  # it is valid only until the next step
                seen.append((event.kind, event.header, payload, event.payload_len, event.offset))
        parser.finish()
    except TensorbusError as problem:
        return seen, problem, parser.boundary
    return seen, None, parser.boundary


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", CASES)
def test_a_case_reads_the_same_however_it_is_cut(case: str, cut: str) -> None:
    """Fed at once, byte by byte or in pieces: the same frames, the same error, at the same place."""
    data, frames, error, text = CASES[case]
    seen, problem, boundary = parse(CUTS[cut](data))
    assert len(seen) == frames
    assert type(problem) is (error or type(None))
    assert text in str(problem or "")
    assert (seen, str(problem), boundary) == (*parse([data])[:1], str(parse([data])[1]), parse([data])[2])


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", CASES)
def test_a_scan_sees_what_a_reader_sees(case: str, cut: str) -> None:
    """The broker's scan verifies the same frames and finds the same errors; it keeps no slice payloads."""
    data, *_ = CASES[case]
    seen, problem, boundary = parse(CUTS[cut](data))
    scanned, scan_problem, scan_boundary = parse(CUTS[cut](data), keep_payload=False)
    assert (str(problem), boundary) == (str(scan_problem), scan_boundary)
    for (kind, header, payload, *where), (scan_kind, scan_header, scan_payload, *scan_where) in zip(
        seen, scanned, strict=True
    ):
        assert (kind, header, where) == (scan_kind, scan_header, scan_where)
        assert scan_payload == (b"" if kind == Kind.SLICE else payload)


@settings(deadline=None, max_examples=150)
@given(at=st.lists(st.integers(0, len(GOOD)), max_size=12))
def test_any_cut_gives_the_same_frames(at: list[int]) -> None:
    """Hypothesis chooses where the bytes are cut."""
    bounds = [0, *sorted(at), len(GOOD)]
    pieces = [GOOD[start:end] for start, end in pairwise(bounds)]
    assert parse(pieces)[:1] == parse([GOOD])[:1]


@settings(deadline=None, max_examples=400)
@given(bit=st.integers(0, 8 * len(GOOD) - 1))
def test_any_flipped_bit_is_found(bit: int) -> None:
    """Whichever bit flips, in whichever part of whichever frame: an error, and no frame after it."""
    damaged = bytearray(GOOD)
    damaged[bit // 8] ^= 1 << bit % 8
    seen, problem, boundary = parse([bytes(damaged)])
    assert isinstance(problem, TensorbusError)
    assert boundary <= bit // 8
    assert seen == parse([GOOD])[0][: len(seen)]


def test_every_kind_of_buffer_is_taken() -> None:
    """bytes, bytearrays and memoryviews, read-only or not, whole or parts, give the same frames."""
    buffer = bytearray(b"--" + GOOD)
    for data in (
        GOOD,
        bytearray(GOOD),
        memoryview(GOOD),
        memoryview(buffer)[2:],
        memoryview(buffer)[2:].toreadonly(),
    ):
        parser = FrameParser()
        assert [(e.kind, bytes(e.payload)) for e in parser.feed(data)] == [
            (seen[0], seen[2]) for seen in parse([GOOD])[0]
        ]


def test_a_frame_knows_its_place() -> None:
    """Offsets, sizes and the boundary are absolute, for resuming and for byte ranges."""
    parser = FrameParser()
    events = list(parser.feed(GOOD + OPEN[:5]))
    assert [event.offset for event in events] == [0, *(event.end for event in events[:-1])]
    assert events[-1].end == parser.boundary == len(GOOD)
    assert parser.frames == len(events)
    assert GOOD[events[2].offset : events[2].end] == SLICE
    assert events[2].prelude == SLICE[:20]


def test_an_error_is_final() -> None:
    """After an error the parser takes no more bytes: it cannot get back into step by luck."""
    parser = FrameParser()
    with pytest.raises(FrameError):
        list(parser.feed(b"x" * 20))
    with pytest.raises(FrameError, match="frame 1 at byte 0"):
        list(parser.feed(GOOD))


def test_a_reader_resumes_at_the_last_boundary() -> None:
    """After a cut connection the half frame is forgotten and the bytes go on at the boundary."""
    parser = FrameParser()
    first = [event.kind for event in parser.feed(GOOD[: len(OPEN) + len(MANIFEST) + 100])]
    start = parser.rewind()
    assert start == len(OPEN) + len(MANIFEST)
    rest = list(parser.feed(GOOD[start:]))
    assert [*first, *(event.kind for event in rest)] == [event[0] for event in parse([GOOD])[0]]
    assert rest[0].offset == start


def test_a_payload_in_one_piece_is_not_copied() -> None:
    """When a chunk holds a payload whole, the frame's payload is that part of the chunk."""
    events: list[Frame] = list(FrameParser().feed(SLICE))
    assert events[0].payload.obj is SLICE


def test_claims_take_no_memory() -> None:
    """A prelude that claims 16 MiB makes the parser take only what has really come."""
    parser = FrameParser()
    claim = prelude(header_len=1, payload_len=16 << 20) + pack({})
    tracemalloc.start()
    assert list(parser.feed(claim)) == []
    assert list(parser.feed(b"x" * 1000)) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000


def test_limits_are_the_callers() -> None:
    """A stricter receiver refuses what a laxer one takes, and says which limit it was."""
    parser = FrameParser(FrameLimits(payload=1000))
    with pytest.raises(LimitExceeded, match=re.escape("payload of 1280 bytes, the limit is 1000")):
        list(parser.feed(SLICE))
    with pytest.raises(LimitExceeded, match="slice header takes"):
        encode_frame(Kind.SLICE, {"n": "x" * 70_000})


def test_the_checksum_covers_prelude_header_and_payload() -> None:
    """The layout of docs/wire-format.md, spelled out byte by byte."""
    header_len, payload_len = len(SLICE) - 20 - 1280, 1280
    lengths = header_len.to_bytes(4, "little") + payload_len.to_bytes(4, "little")
    assert SLICE[:16] == b"TNSB\x01\x03\x00\x00" + lengths
    crc = google_crc32c.Checksum(SLICE[:16] + SLICE[20:])
    assert SLICE[16:20] == crc.digest()[::-1]


def test_frames_need_no_numpy_and_no_codecs() -> None:
    """The broker reads frames in a process that never imports numpy, torch or codecs."""
    code = (
        "import sys, tensorbus.streaming.sequence, tensorbus.streaming.raw;"
        "heavy = {'numpy', 'torch', 'tensorbus.codecs'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
