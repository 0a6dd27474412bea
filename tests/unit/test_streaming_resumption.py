"""A message that goes on behind what its receiver has: the same bytes, and no slice encoded twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import MemoryResiduals
from tensorbus.errors import FrameError
from tensorbus.streaming.base_files import open_base
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.frames import FRAME_BYTES, FrameParser
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.sources import open_source

Arrays = dict[str, npt.NDArray[Any]]
FRAME = 24 << 10
CODECS = ["none", "fp16", "int8", "nf4", "lossless", "delta | nf4", "same | none", "delta | lossless"]
FEEDBACK = ["feedback | nf4", "delta | feedback | nf4"]


def container(seed: int = 0) -> Arrays:
    """Tensors of several slices, one of no elements, and one that is clipped by fp16."""
    random = np.random.default_rng(seed)
    return {
        "a": random.normal(size=(40, 600)).astype(np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "large": np.where(random.random(30_000) < 0.01, 1e9, 1.0).astype(np.float32),
        "bias": random.normal(size=7).astype(np.float32),
    }


BASE = container(1) | {"a": container()["a"]}


def encoder(values: Arrays, codec: str, residuals: MemoryResiduals | None = None) -> ContainerEncoder:
    """What publishes ``values``; each call is another process."""
    context = CodecContext(
        base=open_base(BASE), residuals=None if residuals is None else residuals.begin("m")
    )
    return ContainerEncoder(
        open_source(values), Pipeline.parse(codec), {"site": "a"}, frame_bytes=FRAME, context=context
    )


def buffers() -> memoryview:
    """A new buffer for each slice."""
    return memoryview(bytearray(FRAME_BYTES))


def made(one: ContainerEncoder, *, threads: int = 1, heads: bytes = b"", end: int = 0) -> list[bytes]:
    """The frames behind those whose heads are given."""
    there = one.resumption()
    for start in range(0, len(heads), 7):
        there.feed(heads[start : start + 7])
    there.finish(end)
    return [frame.head + bytes(frame.payload) for frame in one.frames(buffers, threads, there)]


def head(frame: bytes) -> bytes:
    """Prelude and header."""
    return frame[: 20 + int.from_bytes(frame[8:12], "little")]


def check(frames: list[bytes]) -> str:
    """The message is whole; its digest."""
    parser, checker = FrameParser(), MessageChecker()
    for frame in parser.feed(b"".join(frames)):
        checker.accept(frame)
    checker.finish()
    return checker.digest.hex()


@pytest.mark.parametrize("codec", CODECS + FEEDBACK)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_rest_of_a_message_is_what_it_would_have_been(codec: str, threads: int) -> None:
    """From each frame on, in the same process: the same bytes and counts, nothing encoded twice."""
    residuals = MemoryResiduals() if "feedback" in codec else None
    one = encoder(container(), codec, residuals)
    whole = made(one, threads=threads)
    clipped, digest = one.clipped, one.digest
    assert check(whole) == digest
    slices = len(whole) - 3
    for count in range(len(whole)):
        before = one.encoded
        have = whole[:count]
        heads = b"".join(map(head, have))
        rest = made(one, threads=threads, heads=heads, end=sum(map(len, have)))
        assert have + rest == whole
        assert one.encoded - before == slices - max(0, count - 2)
        assert (one.clipped, one.digest) == (clipped, digest)


@pytest.mark.parametrize("codec", CODECS)
def test_another_process_goes_on(codec: str) -> None:
    """With the same container it makes the same rest. It encodes that only to count what fp16 clips."""
    whole = made(encoder(container(), codec))
    slices = len(whole) - 3
    for count in range(len(whole)):
        one = encoder(container(), codec)
        have = whole[:count]
        rest = made(one, heads=b"".join(map(head, have)), end=sum(map(len, have)))
        assert have + rest == whole
        again = 0 if codec == "fp16" else max(0, count - 2)
        assert one.encoded == slices - again


OTHERS: list[tuple[str, Arrays]] = [
    ("nf4", container() | {"a": np.ones((41, 600), np.float32)}),
    ("nf4", container() | {"a": np.ones((40, 600), np.float64)}),
    ("nf4", {("b" if name == "a" else name): value for name, value in container().items()}),
    ("nf4", dict(reversed(container().items()))),
    ("int8", container()),
    ("nf4:blocksize=128", container()),
    ("delta | nf4", container()),
]


@pytest.mark.parametrize(("codec", "values"), OTHERS)
def test_what_is_there_of_another_message_is_refused(codec: str, values: Arrays) -> None:
    """Other names, shapes, dtypes, order or codecs: seen at once, from the heads alone."""
    heads = b"".join(map(head, made(encoder(container(), "nf4"))[:4]))
    with pytest.raises(FrameError):
        encoder(values, codec).resumption().feed(heads)


def test_heads_that_are_no_heads_are_refused() -> None:
    """Garbage, a slice left out, the close frame, and a boundary that is another."""
    whole = made(encoder(container(), "nf4"))
    heads = list(map(head, whole))
    for wrong in (b"x" * 30, b"".join(heads[:3] + heads[4:]), b"".join(heads)):
        with pytest.raises(FrameError):
            encoder(container(), "nf4").resumption().feed(wrong)
    there = encoder(container(), "nf4").resumption()
    there.feed(b"".join(heads[:4]))
    with pytest.raises(FrameError):
        there.finish(5)


def test_a_fingerprint_tells_messages_apart(tmp_path: Path) -> None:
    """The same for the same message made again; another for another value, name, header or codec."""
    values = container()
    same = encoder(values, "nf4").fingerprint()
    assert encoder(container(), "nf4").fingerprint() == same
    assert encoder(values, "int8").fingerprint() != same
    values["a"][3, 5] += 1
    assert encoder(values, "nf4").fingerprint() != same
    values["a"][3, 5] = container()["a"][3, 5]
    assert encoder(values, "nf4").fingerprint() == same
    renamed = {f"{name}.x": value for name, value in values.items()}
    assert encoder(renamed, "nf4").fingerprint() != same


def test_a_file_is_told_apart_without_being_read(tmp_path: Path) -> None:
    """Written to or replaced, it is another; read again by another process, it is the same."""
    path = tmp_path / "model.safetensors"

    def fingerprint() -> str:
        source = open_source(str(path))
        try:
            return ContainerEncoder(source, Pipeline.parse("nf4"), {}).fingerprint()
        finally:
            source.close()

    save_file(container(), path)
    first = fingerprint()
    assert fingerprint() == first
    path.unlink()
    save_file(container(2), path)
    assert fingerprint() != first
