"""A message that is passed on unopened: the same slices to the bit, in a message of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import FrameError, FrameSequenceError, StorageError, StoreDamaged, UnsupportedContainer
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.decoder import ContainerDecoder
from tensorbus.streaming.frames import FRAME_BYTES, Frame, FrameParser, Kind
from tensorbus.streaming.headers import HeaderValue
from tensorbus.streaming.relay import RelayEncoder, RelaySource
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.sinks import open_sink
from tensorbus.streaming.sources import open_source

Arrays = dict[str, npt.NDArray[Any]]
FRAME = 24 << 10
CODECS = ["none", "fp16", "nf4", "lossless", "nf4-dq"]
HEADERS: dict[str, HeaderValue] = {"kind": "model", "job": "eu", "a longer one": "x" * 300}


def container() -> Arrays:
    """Tensors of several slices and of one, one of no elements, and values that fp16 clips."""
    random = np.random.default_rng(0)
    return {
        "a": random.normal(size=(40, 600)).astype(np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "large": np.where(random.random(30_000) < 0.01, 1e9, 1.0).astype(np.float32),
        "steps": np.arange(9),
    }


def received(path: Path, codec: str = "nf4") -> list[bytes]:
    """The frames of a message, of which ``path`` has all."""
    one = ContainerEncoder(open_source(container()), Pipeline.parse(codec), {"site": "a"}, frame_bytes=FRAME)
    frames = [frame.head + bytes(frame.payload) for frame in one.frames(buffers)]
    path.write_bytes(b"".join(frames))
    return frames


def buffers() -> memoryview:
    """A new buffer for each frame."""
    return memoryview(bytearray(FRAME_BYTES))


def passed_on(path: Path, heads: bytes = b"", end: int = 0) -> tuple[RelayEncoder, list[bytes]]:
    """The frames that are made of the file, behind those whose heads are given."""
    encoder = RelayEncoder(RelaySource(path), HEADERS)
    there = encoder.resumption()
    for start in range(0, len(heads), 7):
        there.feed(heads[start : start + 7])
    there.finish(end)
    return encoder, [frame.head + bytes(frame.payload) for frame in encoder.frames(buffers, 2, there)]


def head(frame: bytes) -> bytes:
    """Prelude and header."""
    return frame[: 20 + int.from_bytes(frame[8:12], "little")]


def decoded(body: bytes) -> Arrays:
    """What a receiver has, who checks everything."""
    checker = MessageChecker()
    decoder = ContainerDecoder(checker, lambda envelope: open_sink(envelope, None), size=len(body))
    frames: list[Frame] = []
    for frame in FrameParser().feed(body):
        checker.accept(frame)
        decoder.accept(frame)
        frames.append(frame)
    assert frames[-1].kind is Kind.CLOSE
    return decoder.finish()  # type: ignore[return-value]


@pytest.mark.parametrize("codec", CODECS)
def test_the_slices_are_the_same_bytes_and_the_message_is_another(tmp_path: Path, codec: str) -> None:
    """All but the first and the last frame are copied; what they decode to is the same to the bit."""
    frames = received(tmp_path / "m", codec)
    encoder, made = passed_on(tmp_path / "m")
    assert made[1:-1] == frames[1:-1]
    assert (made[0], made[-1]) != (frames[0], frames[-1])
    body = b"".join(made)
    assert len(body) == encoder.wire_bytes
    first, again = decoded(b"".join(frames)), decoded(body)
    assert list(first) == list(again)
    for name, values in first.items():
        assert values.tobytes() == again[name].tobytes() and values.dtype == again[name].dtype


def test_it_has_headers_of_its_own_and_says_all_else_as_before(tmp_path: Path) -> None:
    """Container, pipeline, metadata, counts, and how many values were clipped."""
    received(tmp_path / "m", "fp16")
    _, made = passed_on(tmp_path / "m")
    (tmp_path / "again").write_bytes(b"".join(made))
    before, after = RelaySource(tmp_path / "m"), RelaySource(tmp_path / "again")
    assert dict(before.envelope.headers) == {"site": "a"}
    assert dict(after.envelope.headers) == HEADERS
    assert (before.kind, before.metadata, before.envelope.pipeline) == (
        after.kind,
        after.metadata,
        after.envelope.pipeline,
    )
    assert before.totals.clipped == after.totals.clipped > 0
    assert before.totals.original_bytes == after.totals.original_bytes
    assert before.digest != after.digest


@pytest.mark.parametrize("codec", ["none", "lossless"])
def test_it_goes_on_behind_any_frame_with_the_same_bytes(tmp_path: Path, codec: str) -> None:
    """Whatever part the receiver has, what is made behind it completes the very message."""
    received(tmp_path / "m", codec)
    encoder, whole = passed_on(tmp_path / "m")
    for count in range(len(whole)):
        there = whole[:count]
        end = sum(map(len, there))
        again, rest = passed_on(tmp_path / "m", b"".join(map(head, there)), end)
        assert there + rest == whole
        assert (again.digest, again.fingerprint()) == (encoder.digest, encoder.fingerprint())


def test_a_part_of_another_message_is_not_completed(tmp_path: Path) -> None:
    """Neither with other headers, nor with other values of the same shape."""
    frames = received(tmp_path / "m")
    with pytest.raises(FrameSequenceError, match="frame 1 "):
        passed_on(tmp_path / "m", head(frames[0]), len(frames[0]))
    _, made = passed_on(tmp_path / "m")
    changed = bytearray(head(made[3]))
    changed[16] ^= 1  # the checksum: the slice had another payload
    there = b"".join(map(head, made[:3])) + bytes(changed)
    with pytest.raises(FrameError, match="frame 4 is not the one that would be sent"):
        passed_on(tmp_path / "m", there, sum(map(len, made[:4])))


def test_a_damaged_file_is_found_out(tmp_path: Path) -> None:
    """Heads and manifest when it is opened, a payload before it is sent; and what is cut is no message."""
    frames = received(tmp_path / "m", "none")
    body = b"".join(frames)
    start = len(frames[0]) + len(frames[1])
    for position in (3, len(frames[0]) + 30, start + 5, len(body) - 1):
        damaged = bytearray(body)
        damaged[position] ^= 1
        (tmp_path / "m").write_bytes(damaged)
        with pytest.raises(StoreDamaged, match=str(tmp_path / "m")):
            RelaySource(tmp_path / "m")
    damaged = bytearray(body)
    damaged[start + len(frames[2]) - 1] ^= 1
    (tmp_path / "m").write_bytes(damaged)
    with pytest.raises(StoreDamaged, match=f"the frame at byte {start} is damaged"):
        passed_on(tmp_path / "m")
    for size in (0, 10, start, start + 100, len(body) - len(frames[-1])):
        (tmp_path / "m").write_bytes(body[:size])
        with pytest.raises(StoreDamaged):
            RelaySource(tmp_path / "m")
    with pytest.raises(StorageError):
        RelaySource(tmp_path / "nothing")


def test_it_cannot_be_encoded_a_second_time(tmp_path: Path) -> None:
    """There are no values to be had of it."""
    received(tmp_path / "m")
    with pytest.raises(UnsupportedContainer, match="encoded already"):
        ContainerEncoder(RelaySource(tmp_path / "m"), Pipeline.parse("nf4"), {})
