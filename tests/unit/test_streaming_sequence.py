"""Promises of the message checker: a message is complete, in order and of one piece, or it is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.errors import (
    ChecksumMismatch,
    FrameError,
    FrameSequenceError,
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    TensorbusError,
    TruncatedFrames,
)
from tensorbus.streaming.frames import FrameParser, Kind, encode_frame
from tensorbus.streaming.limits import DEFAULT_LIMITS, FrameLimits
from tensorbus.streaming.packing import pack, pack_array
from tensorbus.streaming.sequence import MessageChecker, Tally, Totals

Header = dict[str, object]
Draft = tuple[Kind, Header, bytes]
NF4: Header = {"name": "nf4", "blocksize": 64}
NONE: Header = {"name": "none"}


def entry(name: str, shape: list[object], dtype: str = "float32", **more: object) -> Header:
    """A manifest entry."""
    return {"n": name, "d": dtype, "s": shape, "q": NONE, **more}


def opening(**more: object) -> Draft:
    """An open frame."""
    return (
        Kind.OPEN,
        {"headers": {"round": 1}, "container": "torch", "pipeline": {}, "metadata": {}, **more},
        b"",
    )


def manifest(*entries: Header, first: object = 0) -> Draft:
    """A manifest frame."""
    return (Kind.MANIFEST, {"first": first}, pack_array([pack(each) for each in entries]))


def piece(index: int, name: str, offset: int, count: int, **more: object) -> Draft:
    """A slice frame of float32 zeros."""
    header: Header = {"i": index, "n": name, "d": "float32", "q": NONE, "o": offset, "c": count, **more}
    return (Kind.SLICE, header, bytes(4 * count))


def framed(drafts: list[Draft]) -> list[bytes]:
    """The bytes of each frame."""
    return [encode_frame(kind, header, payload) + payload for kind, header, payload in drafts]


def closing(drafts: list[Draft], items: int, **changes: object) -> bytes:
    """The close frame that belongs to the frames, or one with changes."""
    tally = Tally()
    for kind, header, payload in drafts:
        tally.add_head(kind, encode_frame(kind, header, payload), len(payload))
    totals = Totals(tally.frames + 1, items, tally.payload_bytes, 0, 0, tally.digest())
    return encode_frame(Kind.CLOSE, {**{key: getattr(totals, key) for key in Totals.__slots__}, **changes})


ENTRIES = [
    entry("a.weight", [2, 5]),
    entry("empty", [0, 7]),
    entry("tied", [5], v={"of": "a.weight", "o": 5, "s": [1]}),
    entry("b.bias", [4]),
]
BODY: list[Draft] = [
    opening(items=4),
    manifest(*ENTRIES[:1]),
    manifest(*ENTRIES[1:], first=1),
    piece(0, "a.weight", 0, 6),
    piece(0, "a.weight", 6, 4),
    piece(3, "b.bias", 0, 4),
]
FRAMES = [*framed(BODY), closing(BODY, 4)]


def check(data: bytes, *, keep_payload: bool = True, limits: FrameLimits = DEFAULT_LIMITS) -> MessageChecker:
    """All frames of ``data`` accepted, or the first error."""
    parser, checker = FrameParser(keep_payload=keep_payload), MessageChecker(limits)
    for frame in parser.feed(data):
        checker.accept(frame)
    parser.finish()
    checker.finish()
    return checker


def check_drafts(drafts: list[Draft], items: int = 0) -> MessageChecker:
    """The same for frames by hand, with the close frame that belongs to them."""
    return check(b"".join(framed(drafts)) + closing(drafts, items))


@pytest.mark.parametrize("keep_payload", [True, False])
def test_a_good_message_is_complete(keep_payload: bool) -> None:
    """Broker and receiver both learn envelope, manifest and totals of a message that is in order."""
    checker = check(b"".join(FRAMES), keep_payload=keep_payload)
    assert checker.complete and checker.declared
    assert checker.envelope.headers == {"round": 1} and checker.envelope.container == "torch"
    assert [each.name for each in checker.entries] == ["a.weight", "empty", "tied", "b.bias"]
    assert [each.to_map() for each in checker.entries] == ENTRIES
    assert checker.frames == len(FRAMES) == checker.totals.frames
    assert checker.payload_bytes == checker.totals.payload_bytes == 4 * 14
    assert checker.digest == checker.totals.digest


def test_items_may_be_declared_as_they_come() -> None:
    """Without a number of items in the open frame, manifests and slices may alternate."""
    drafts = [
        opening(),
        manifest(entry("x", [3])),
        piece(0, "x", 0, 3),
        manifest(entry("y", []), entry("half", [2], v={"of": "x", "o": 1, "s": [1]}), first=1),
        piece(1, "y", 0, 1),
    ]
    checker = check_drafts(drafts, 3)
    assert checker.declared and checker.totals.items == 3


def test_an_empty_container_is_a_message() -> None:
    """No items at all: open and close."""
    assert check_drafts([opening(items=0)]).totals.payload_bytes == 0


def test_every_truncation_is_noticed() -> None:
    """Wherever the message ends too early, the reader says that it is truncated."""
    data = b"".join(FRAMES)
    for end in range(len(data)):
        with pytest.raises(TruncatedFrames):
            check(data[:end])


@settings(deadline=None, max_examples=300)
@given(bit=st.integers(0, 8 * len(b"".join(FRAMES)) - 1))
def test_no_flipped_bit_survives(bit: int) -> None:
    """Any single bit flip, anywhere in a message, is refused."""
    damaged = bytearray(b"".join(FRAMES))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TensorbusError):
        check(bytes(damaged))


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_other_order_survives(data: st.DataObject) -> None:
    """Frames reordered, dropped or repeated, each intact: the message is refused."""
    order = data.draw(st.lists(st.integers(0, len(FRAMES) - 1), max_size=len(FRAMES) + 3))
    if order == list(range(len(FRAMES))):
        return
    with pytest.raises(FrameError):
        check(b"".join(FRAMES[index] for index in order))


@pytest.mark.parametrize("index", range(len(FRAMES)))
def test_no_frame_is_dropped_or_doubled(index: int) -> None:
    """The same, spelled out for each frame."""
    dropped = FRAMES[:index] + FRAMES[index + 1 :]
    doubled = FRAMES[: index + 1] + FRAMES[index:]
    for frames in dropped, doubled:
        with pytest.raises(FrameError):
            check(b"".join(frames))


def test_an_intact_frame_of_another_message_is_noticed() -> None:
    """A frame with the same header and length but another payload passes every check but the digest."""
    other = (Kind.SLICE, BODY[5][1], b"\1" * 16)
    with pytest.raises(ChecksumMismatch, match="digest"):
        check(b"".join([*framed([*BODY[:5], other]), FRAMES[-1]]))


A = entry("a", [4])
BAD: dict[str, tuple[Callable[[], object], type[TensorbusError], str]] = {
    "no open frame": (lambda: check_drafts([manifest(A)], 1), FrameSequenceError, "expected an open frame"),
    "two open frames": (
        lambda: check_drafts([opening(), opening()]),
        FrameSequenceError,
        "open frame 2 .*open already",
    ),
    "an open frame with a payload": (
        lambda: check_drafts([(Kind.OPEN, opening()[1], b"x")]),
        FrameError,
        "payload of 1 bytes",
    ),
    "no container kind": (
        lambda: check_drafts([(Kind.OPEN, {"headers": {}}, b"")]),
        FrameError,
        "'container'",
    ),
    "a list as message header": (lambda: check_drafts([opening(headers={"x": [1]})]), InvalidRequest, "'x'"),
    "NaN as message header": (
        lambda: check_drafts([opening(headers={"x": float("nan")})]),
        FrameError,
        "'headers'",
    ),
    "65 message headers": (
        lambda: check_drafts([opening(headers={str(n): n for n in range(65)})]),
        LimitExceeded,
        "65 message headers",
    ),
    "17 KiB of message headers": (
        lambda: check_drafts([opening(headers={"x": "y" * 17_000})]),
        LimitExceeded,
        "17001 bytes",
    ),
    "a pipeline that is no JSON": (
        lambda: check_drafts([opening(pipeline={"x": b"bytes"})]),
        FrameError,
        "'pipeline'",
    ),
    "a number as metadata": (
        lambda: check_drafts([opening(metadata={"format": 1})]),
        FrameError,
        "'metadata'",
    ),
    "a negative number of items": (lambda: check_drafts([opening(items=-1)]), FrameError, "'items'"),
    "2^63 items": (lambda: check_drafts([opening(items=2**63)]), LimitExceeded, "9223372036854775808"),
    "a million items": (lambda: check_drafts([opening(items=1_000_000)]), LimitExceeded, "1000000 items"),
    "a message longer than it promised": (
        lambda: check_drafts([opening(wire_bytes=150), manifest(A)], 1),
        FrameSequenceError,
        "promised 150",
    ),
    "a message shorter than it promised": (
        lambda: check_drafts([opening(wire_bytes=10_000)]),
        FrameSequenceError,
        "expected 10000",
    ),
    "a manifest that skips": (
        lambda: check_drafts([opening(), manifest(A, first=1)], 1),
        FrameSequenceError,
        "expected 0",
    ),
    "a manifest without a place": (
        lambda: check_drafts([opening(), manifest(A, first=None)], 1),
        FrameSequenceError,
        "None",
    ),
    "more items than announced": (
        lambda: check_drafts([opening(items=1), manifest(A, entry("b", [1]))], 2),
        LimitExceeded,
        "announces 2 entries, the limit is 1",
    ),
    "a slice before the whole manifest": (
        lambda: check_drafts([opening(items=2), manifest(A), piece(0, "a", 0, 4)], 1),
        FrameSequenceError,
        "1 of 2 items are declared",
    ),
    "fewer items than announced": (
        lambda: check_drafts([opening(items=2), manifest(entry("e", [0]))], 1),
        FrameSequenceError,
        "1 items, expected 2",
    ),
    "a name declared twice": (
        lambda: check_drafts([opening(), manifest(A, A)], 2),
        InvalidName,
        "'a' is declared twice",
    ),
    "a slice of nothing": (
        lambda: check_drafts([opening(), piece(0, "a", 0, 4)]),
        FrameSequenceError,
        "'a', but all",
    ),
    "a slice of another item": (
        lambda: check_drafts([opening(), manifest(A, entry("b", [1])), piece(1, "b", 0, 1)], 2),
        FrameSequenceError,
        "item 1 'b', expected item 0 'a' from element 0",
    ),
    "a slice under another name": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "b", 0, 4)], 1),
        FrameSequenceError,
        "expected item 0 'a'",
    ),
    "a gap": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 1), piece(0, "a", 2, 2)], 1),
        FrameSequenceError,
        "starts at element 2, expected 1",
    ),
    "an overlap": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 2), piece(0, "a", 1, 3)], 1),
        FrameSequenceError,
        "starts at element 1, expected 2",
    ),
    "a slice that is too long": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 5)], 1),
        FrameSequenceError,
        "5 elements where 4 are missing",
    ),
    "an empty slice": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 0)], 1),
        FrameSequenceError,
        "0 elements",
    ),
    "a slice of 2^63 elements": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 0, c=2**63)], 1),
        LimitExceeded,
        "'c' is 9223372036854775808",
    ),
    "a negative offset": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 0, o=-4)], 1),
        FrameError,
        "'o' must be a non-negative integer",
    ),
    "a fractional count": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 4, c=4.0)], 1),
        FrameError,
        "float 4.0",
    ),
    "a boolean index": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 4, i=False)], 1),
        FrameError,
        "bool",
    ),
    "a slice of another dtype": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 4, d="int32")], 1),
        FrameSequenceError,
        "dtype or codec",
    ),
    "a slice of another codec": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 4, q=NF4)], 1),
        FrameSequenceError,
        "dtype or codec",
    ),
    "a slice of a view": (
        lambda: check_drafts([opening(items=4), manifest(*ENTRIES), *BODY[3:5], piece(2, "tied", 0, 5)], 4),
        FrameSequenceError,
        "expected item 3 'b.bias'",
    ),
    "an item that is not complete": (
        lambda: check_drafts([opening(), manifest(A), piece(0, "a", 0, 3)], 1),
        FrameSequenceError,
        "'a' has 3 of 4 elements",
    ),
    "a view of nothing": (
        lambda: check_drafts([opening(), manifest(entry("v", [1], v={"of": "a", "o": 0, "s": [1]}))], 1),
        FrameSequenceError,
        "not declared",
    ),
    "a view that reaches too far": (
        lambda: check_drafts(
            [
                opening(items=2),
                manifest(A, entry("v", [2, 2], v={"of": "a", "o": 1, "s": [2, 1]})),
                piece(0, "a", 0, 4),
            ],
            2,
        ),
        FrameSequenceError,
        "'v' reaches beyond 'a'",
    ),
    "a view with strides of 2^62": (
        lambda: check_drafts(
            [
                opening(items=2),
                manifest(A, entry("v", [3], v={"of": "a", "o": 0, "s": [2**62]})),
                piece(0, "a", 0, 4),
            ],
            2,
        ),
        FrameSequenceError,
        "reaches beyond",
    ),
    "a view of a view": (
        lambda: check_drafts(
            [
                opening(),
                manifest(*ENTRIES[:3], entry("w", [1], v={"of": "tied", "o": 0, "s": [1]})),
                *BODY[3:5],
            ],
            4,
        ),
        FrameSequenceError,
        "cannot be a view of 'tied'",
    ),
    "a view of another dtype": (
        lambda: check_drafts(
            [
                opening(),
                manifest(A, entry("v", [1], "int32", v={"of": "a", "o": 0, "s": [1]})),
                piece(0, "a", 0, 4),
            ],
            2,
        ),
        FrameSequenceError,
        "cannot be a view",
    ),
    "a wrong count of frames": (
        lambda: check(b"".join(FRAMES[:-1]) + closing(BODY, 4, frames=99)),
        FrameSequenceError,
        "99 frames, expected 7",
    ),
    "a wrong count of items": (
        lambda: check(b"".join(FRAMES[:-1]) + closing(BODY, 5)),
        FrameSequenceError,
        "5 items",
    ),
    "a wrong count of bytes": (
        lambda: check(b"".join(FRAMES[:-1]) + closing(BODY, 4, payload_bytes=1)),
        FrameSequenceError,
        "1 payload bytes, expected 56",
    ),
    "a wrong digest": (
        lambda: check(b"".join(FRAMES[:-1]) + closing(BODY, 4, digest=bytes(32))),
        ChecksumMismatch,
        "close frame 7 at byte",
    ),
    "a short digest": (
        lambda: check(b"".join(FRAMES[:-1]) + closing(BODY, 4, digest=b"x")),
        FrameError,
        "'digest'",
    ),
    "a frame after the close frame": (
        lambda: check(b"".join([*FRAMES, FRAMES[0]])),
        FrameSequenceError,
        "nothing may follow",
    ),
    "a second message": (lambda: check(b"".join(FRAMES * 2)), FrameSequenceError, "frame 8 at byte"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_belong_is_refused(case: str) -> None:
    """Each frame is intact, but the message is not one: the error says what was expected and where."""
    make, error, text = BAD[case]
    with pytest.raises(error, match=text) as caught:
        make()
    assert " at byte " in str(caught.value)


def test_a_manifest_of_any_size_stays_bounded() -> None:
    """The manifest's frames are limited each and in all, and so is the number of items."""
    frames = framed([opening(), *(manifest(entry(f"item{n}", [1]), first=n) for n in range(100))])
    with pytest.raises(LimitExceeded, match="manifest takes more than 2000 bytes"):
        check(b"".join(frames), limits=replace(DEFAULT_LIMITS, manifest=2000))
    with pytest.raises(LimitExceeded, match="announces 1 entries, the limit is 0"):
        check(b"".join(frames), limits=replace(DEFAULT_LIMITS, items=30))


def test_claimed_sizes_take_no_memory() -> None:
    """A manifest of enormous tensors costs the checker what the text of its entries costs."""
    huge = [entry(f"t{n}", [2**50, 2**8]) for n in range(1000)]
    data = b"".join(framed([opening(items=1000), manifest(*huge)]))
    tracemalloc.start()
    checker = MessageChecker()
    for frame in FrameParser().feed(data):
        checker.accept(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(checker.entries) == 1000
    assert peak < 4 << 20


def test_the_digest_chains_all_frames() -> None:
    """The digest is SHA-256 over the preludes, so any prefix of a message has one of its own."""
    digests: list[bytes] = []
    checker = MessageChecker()
    for frame in FrameParser().feed(b"".join(FRAMES)):
        checker.accept(frame)
        digests.append(checker.digest)
    assert digests[-1] == digests[-2]
    assert all(one != next_one for one, next_one in pairwise(digests[:-1]))
