"""Promises about plain byte strings: whatever curl sends becomes a message that any reader understands."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.errors import InvalidRequest
from tensorbus.streaming.frames import FRAME_BYTES, FrameParser, Kind
from tensorbus.streaming.raw import RawEncoder
from tensorbus.streaming.sequence import MessageChecker


def wrap(chunks: list[bytes], size: int | None = None) -> bytes:
    """The message around the chunks."""
    encoder = RawEncoder({"from": "curl"}, "text/plain", sum(map(len, chunks)) if size is None else size)
    data = encoder.open()
    for chunk in chunks:
        for head, payload in encoder.slices(chunk):
            assert len(head) + len(payload) <= FRAME_BYTES
            data += head + payload
    return data + encoder.close()


def unwrap(data: bytes) -> tuple[MessageChecker, bytes]:
    """What a reader learns of the message, and the body in it."""
    parser, checker, body = FrameParser(), MessageChecker(), b""
    for frame in parser.feed(data):
        checker.accept(frame)
        if frame.kind == Kind.SLICE:
            body += frame.payload
    parser.finish()
    checker.finish()
    return checker, body


@settings(deadline=None, max_examples=50)
@given(chunks=st.lists(st.binary(max_size=300), max_size=8))
def test_any_chunks_are_one_body(chunks: list[bytes]) -> None:
    """The body comes back whole, with its media type and headers, however it arrived."""
    checker, body = unwrap(wrap(chunks))
    assert body == b"".join(chunks)
    assert checker.envelope.container == "bytes"
    assert checker.envelope.headers == {"from": "curl"}
    assert checker.envelope.metadata == {"content-type": "text/plain"}
    assert [(e.name, e.kind, e.shape) for e in checker.entries] == [("body", "bytes", (len(body),))]
    assert checker.totals.original_bytes == len(body)


def test_a_large_chunk_is_cut() -> None:
    """No frame is over 1 MiB, however large the chunk."""
    body = bytes(5 << 20)
    checker, unwrapped = unwrap(wrap([body]))
    assert unwrapped == body
    assert checker.frames == 3 + 6


@pytest.mark.parametrize(("chunks", "size"), [([b"abc"], 4), ([b"abc"], 2), ([], 1)])
def test_the_announced_size_is_kept(chunks: list[bytes], size: int) -> None:
    """A body that is shorter or longer than announced is refused."""
    with pytest.raises(InvalidRequest, match=f"{size} bytes announced"):
        wrap(chunks, size)
