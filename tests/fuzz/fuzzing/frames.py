"""The frame parser, the checker and the decoder: any bytes give frames or an error of ours.

The first byte of an input says how it is fed: bit 0, whether checksums are made right before; the other bits,
how the bytes are cut.
"""

from __future__ import annotations

from collections.abc import Iterator

from fuzzing.engine import fuzz, instrumented

with instrumented(include=["tensorbus"]):
    from fuzzing.repair import repair
    from tensorbus.errors import TensorbusError
    from tensorbus.streaming.container import ContainerDecoder
    from tensorbus.streaming.frames import Frame, FrameParser, Kind
    from tensorbus.streaming.sequence import MessageChecker
    from tensorbus.streaming.sinks import open_sink

Seen = tuple[list[tuple[int, bytes, int]], str, int]
"""Frames (kind, prelude, end), the error if there was one, and where the parser stands."""

_SLACK = 1 << 20


def pieces(data: bytes, cut: int) -> Iterator[bytes]:
    """``data`` as a whole, byte by byte, or cut at a stride."""
    step = (len(data) or 1, 1, 19, 20, 21, 64, 1000, 4096)[cut % 8]
    for start in range(0, len(data), step):
        yield data[start : start + step]


def scan(data: bytes, cut: int) -> Seen:
    """As the broker does: verify, check the order, forget."""
    parser, checker = FrameParser(keep_payload=False), MessageChecker()
    seen: list[tuple[int, bytes, int]] = []
    try:
        for piece in pieces(data, cut):
            for frame in parser.feed(piece):
                checker.accept(frame)
                seen.append((frame.kind, frame.prelude, frame.end))
        parser.finish()
        checker.finish()
    except TensorbusError as error:
        return seen, f"{type(error).__name__}: {error}", parser.boundary
    assert parser.boundary == len(data)
    return seen, "", parser.boundary


def decode(data: bytes, cut: int) -> None:
    """As a subscriber does: into a container, where one can be made of it."""
    parser, checker = FrameParser(), MessageChecker()
    decoder = ContainerDecoder(checker, open_sink, size=len(data))
    try:
        for piece in pieces(data, cut):
            for frame in parser.feed(piece):
                _decode(frame, checker, decoder)
        parser.finish()
        decoder.finish()
    except TensorbusError:
        decoder.abort()


def _decode(frame: Frame, checker: MessageChecker, decoder: ContainerDecoder) -> None:
    assert len(frame.payload) == frame.payload_len or frame.kind not in (Kind.SLICE, Kind.MANIFEST)
    checker.accept(frame)
    decoder.accept(frame)


def one(data: bytes) -> None:
    """The target."""
    if not data:
        return
    how, data = data[0], data[1:]
    if how & 1:
        data = repair(data)
    whole = scan(data, 0)
    assert scan(data, how >> 1) == whole, "the cuts make a difference"
    decode(data, how >> 1)


if __name__ == "__main__":
    fuzz(one)
