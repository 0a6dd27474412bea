"""Promises of the container encoder and decoder: exact sizes, bounded memory, no copies, clear refusals."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.memory import MemoryItem
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import (
    CodecError,
    InvalidName,
    InvalidRequest,
    InvalidSpecification,
    LimitExceeded,
    ManifestMismatch,
    NonFiniteValues,
    PayloadMismatch,
    TensorbusError,
    TruncatedFrames,
    UnknownCodec,
    UnsupportedContainer,
    UnsupportedDtype,
)
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.container import ContainerDecoder, ContainerEncoder, EncodedFrame, SliceEvent
from tensorbus.streaming.frames import FRAME_BYTES, FrameParser, Kind, encode_frame
from tensorbus.streaming.headers import Envelope
from tensorbus.streaming.packing import pack, pack_array
from tensorbus.streaming.raw import RawEncoder
from tensorbus.streaming.sequence import MessageChecker, Tally
from tensorbus.streaming.sinks import open_sink
from tensorbus.streaming.sources import ItemSource, open_source

CODECS = ["none", "fp16", "bf16", "int8", "fp4", "nf4", "nf4-dq", "nf4:blocksize=128"]
RNG = np.random.default_rng(7)
ARRAYS: dict[str, npt.NDArray[Any]] = {
    "embed.weight": RNG.standard_normal((1500, 701), np.float32),
    "norm.weight": np.ones(33, np.float32),
    "strided": RNG.standard_normal((400, 300), np.float32).T,
    "half": RNG.standard_normal((17, 5)).astype(np.float16),
    "double": RNG.standard_normal(9000),
    "ids": np.arange(12, dtype=np.int64).reshape(3, 4),
    "mask": np.array([True, False, True]),
    "scalar array": np.array(3.5, np.float32),
    "empty": np.empty((0, 8), np.float32),
}
VALUES: dict[str, object] = {"epoch": 7, "note": "done", "nothing": None, "blob": b"\0\1\2"}
VALUE_BYTES = 1 + 5 + 1 + 3
STATE: dict[str, object] = {**ARRAYS, **VALUES, "head.weight": ARRAYS["embed.weight"]}


def encode(container: object, codec: str = "none", **headers: object) -> tuple[ContainerEncoder, list[bytes]]:
    """The encoder after its work, and its frames; one buffer serves them all."""
    encoder = ContainerEncoder(
        open_source(container), Pipeline.parse(codec), cast("Mapping[str, int]", headers)
    )
    pool = BufferPool(1)
    frames: list[bytes] = []
    for frame in encoder.frames(pool.acquire):
        frames.append(frame.head + frame.payload)
        if frame.buffer is not None:
            pool.release(frame.buffer)
    return encoder, frames


def decode(
    data: bytes,
    make_sink: Callable[[Envelope], object] | None = open_sink,
    size: int | None = None,
    into: object | None = None,
) -> object:
    """What a subscriber makes of the bytes, fed in awkward pieces."""
    parser, checker = FrameParser(), MessageChecker()
    decoder = ContainerDecoder(
        checker, (lambda envelope: open_sink(envelope, into)) if make_sink else None, size=size
    )
    for at in range(0, len(data), 99_991):
        for frame in parser.feed(data[at : at + 99_991]):
            checker.accept(frame)
            decoder.accept(frame)
    parser.finish()
    return decoder.finish()


def message(drafts: Sequence[tuple[Kind, Mapping[str, object], bytes]], items: int) -> bytes:
    """Frames by hand, with the close frame that belongs to them."""
    tally, data = Tally(), b""
    for kind, header, payload in drafts:
        head = encode_frame(kind, header, payload)
        tally.add_head(kind, head, len(payload))
        data += head + payload
    return data + tally.close(items, 0, 0)


def one_item(entry: Mapping[str, object], payload: bytes, count: int, **opening: object) -> bytes:
    """A message of one item, encoded by hand in one slice."""
    head: dict[str, object] = {"headers": {}, "container": "numpy", "items": 1, **opening}
    piece = {"i": 0, "n": entry["n"], "d": entry["d"], "q": entry["q"], "o": 0, "c": count}
    return message(
        [
            (Kind.OPEN, head, b""),
            (Kind.MANIFEST, {"first": 0}, pack_array([pack(entry)])),
            (Kind.SLICE, piece, payload),
        ],
        1,
    )


@pytest.mark.parametrize("codec", CODECS)
def test_the_size_is_known_before_a_value_is_read(codec: str) -> None:
    """wire_bytes, from arithmetic alone, is what is really sent; no frame is over 1 MiB."""
    encoder, frames = encode(STATE, codec, round=3)
    assert encoder.wire_bytes == sum(map(len, frames))
    assert max(map(len, frames)) <= FRAME_BYTES
    if codec == "none":
        assert max(map(len, frames)) > FRAME_BYTES - 100


@pytest.mark.parametrize("codec", CODECS)
def test_a_container_comes_back(codec: str) -> None:
    """Names, order, dtypes, shapes and sharing come back; what no codec touches comes back bit for bit."""
    encoder, frames = encode(STATE, codec)
    got = cast("dict[str, object]", decode(b"".join(frames)))
    assert list(got) == list(STATE)
    assert got["head.weight"] is not STATE["embed.weight"]
    embed, head = (cast("npt.NDArray[np.float32]", got[name]) for name in ("embed.weight", "head.weight"))
    assert np.shares_memory(embed, head)
    assert {name: got[name] for name in VALUES} == VALUES
    for spec in encoder.entries:
        if spec.name not in ARRAYS:
            continue
        array, original = cast("npt.NDArray[Any]", got[spec.name]), ARRAYS[spec.name]
        assert (array.dtype, array.shape) == (original.dtype, original.shape)
        if spec.codec == {"name": "none"}:
            assert np.array_equal(array, original)
        else:
            assert np.abs(array - original).mean() < 0.2


def test_original_bytes_count_what_is_sent_once() -> None:
    """Tensors that share storage count once; the open frame tells the same figure."""
    encoder, _ = encode(STATE, "nf4")
    assert encoder.original_bytes == sum(array.nbytes for array in ARRAYS.values()) + VALUE_BYTES
    assert encoder.envelope.original_bytes == encoder.original_bytes


@pytest.mark.parametrize("codec", ["fp16", "int8", "fp4", "nf4", "nf4-dq"])
def test_slices_do_not_change_the_codes(codec: str) -> None:
    """A tensor cut into many frames decodes to the same values as the tensor in one frame."""
    tensor = {"t": RNG.standard_normal(200_001, np.float32)}
    decoded: list[npt.NDArray[np.float32]] = []
    for frame_bytes in (FRAME_BYTES, 20_000 if codec != "nf4-dq" else 40_000):
        encoder = ContainerEncoder(open_source(tensor), Pipeline.parse(codec), {}, frame_bytes=frame_bytes)
        frames = list(encoder.frames(lambda: memoryview(bytearray(FRAME_BYTES))))
        assert max(len(frame) for frame in frames) <= frame_bytes
        data = b"".join(frame.head + frame.payload for frame in frames)
        decoded.append(cast("dict[str, npt.NDArray[np.float32]]", decode(data))["t"])
    assert np.array_equal(decoded[0], decoded[1])


def test_a_codec_of_none_copies_nothing() -> None:
    """Frames of contiguous tensors in memory are windows on the tensors themselves, and take no buffers."""
    tensor = np.arange(1_000_000, dtype=np.float32)

    def acquire() -> memoryview:
        raise AssertionError("a buffer was asked for")

    encoder = ContainerEncoder(open_source({"t": tensor, "b": b"xyz"}), Pipeline.parse(None), {})
    slices = [frame for frame in encoder.frames(acquire) if frame.item == "t"]
    assert all(np.shares_memory(np.frombuffer(frame.payload, np.uint8), tensor) for frame in slices)
    assert sum(frame.original_bytes for frame in slices) == tensor.nbytes


@pytest.mark.parametrize("codec", ["none", "nf4"])
def test_encoding_needs_one_buffer(codec: str) -> None:
    """However large the message: while one frame is being made, no other has to be kept."""
    big = {f"t{n}": RNG.standard_normal((512, 1024), np.float32).T for n in range(12)}
    encoder = ContainerEncoder(open_source(big), Pipeline.parse(codec), {})
    pool = BufferPool(1)

    def consume() -> Iterator[EncodedFrame]:
        for frame in encoder.frames(pool.acquire):
            yield frame
            if frame.buffer is not None:
                pool.release(frame.buffer)

    next(frames := consume())
    tracemalloc.start()
    for _ in frames:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_message_can_be_made_again() -> None:
    """A second pass, after a lost connection, gives the same bytes and the same count of clipped values."""
    encoder = ContainerEncoder(open_source({"t": np.full(10, 1e6, np.float32)}), Pipeline.parse("fp16"), {})
    passes = [
        [
            frame.head + bytes(frame.payload)
            for frame in encoder.frames(lambda: memoryview(bytearray(FRAME_BYTES)))
        ]
        for _ in range(2)
    ]
    assert passes[0] == passes[1]
    assert encoder.clipped == {"t": 10}


def test_clipped_values_are_told() -> None:
    """The close frame says how many values were clipped to the codec's range."""
    _, frames = encode({"t": np.array([1e6, -1e6, 1.0], np.float32)}, "fp16")
    checker = MessageChecker()
    for frame in FrameParser().feed(b"".join(frames)):
        checker.accept(frame)
    assert checker.totals.clipped == 2


def test_slices_come_undecoded_to_who_asks() -> None:
    """An aggregator gets each slice with its place and codec, and decodes or accumulates it itself."""
    tensor = RNG.standard_normal(3_000_000, np.float32)
    _, frames = encode({"a": np.zeros(3, np.int64), "t": tensor}, "nf4")
    checker = MessageChecker()
    decoder = ContainerDecoder(checker)
    out = np.empty_like(tensor)
    seen: list[tuple[str, int, int]] = []
    for frame in FrameParser().feed(b"".join(frames)):
        checker.accept(frame)
        event = decoder.accept(frame)
        assert isinstance(event, SliceEvent) == (frame.kind == Kind.SLICE)
        if event and event.spec.name == "t":
            part = out[event.offset : event.offset + event.count]
            event.codec.decode(event.payload, event.offset, part.view(np.uint8).data)
            seen.append((event.spec.name, event.offset, event.count))
    assert len(seen) == 2 and seen[1][1] == seen[0][2] and seen[0][2] % 64 == 0
    assert np.abs(out - tensor).mean() == pytest.approx(0.0728, abs=1e-3)
    assert [spec.codec["name"] for spec in decoder.specs] == ["none", "nf4"]


def test_a_container_is_filled_in_place() -> None:
    """With ``into``, the tensors of an existing container are overwritten, and nothing new is made."""
    target = {"t": np.zeros((4, 5), np.float32)}
    source = {"t": RNG.standard_normal((4, 5), np.float32)}
    _, frames = encode(source)
    assert decode(b"".join(frames), into=target) is target
    assert np.array_equal(target["t"], source["t"])


def test_bytes_are_a_container() -> None:
    """A byte string is published and received as one; curl's are read the same way."""
    body = bytes(range(256)) * 9000
    encoder, frames = encode(body)
    assert decode(b"".join(frames)) == body
    assert encoder.entries[0].name == "body" and encoder.entries[0].kind == "bytes"
    raw = RawEncoder({"a": 1}, "application/json", len(body))
    data = raw.open() + b"".join(head + payload for head, payload in raw.slices(body)) + raw.close()
    assert decode(data) == body


def test_the_items_of_a_source_may_be_ones_own() -> None:
    """Who has Items already publishes them as they are, under the kind of container that they make."""
    items = open_source({"t": np.ones(3, np.float32)}).items()
    _, frames = encode(ItemSource("numpy", items, {"format": "np"}))
    assert list(cast("dict[str, object]", decode(b"".join(frames)))) == ["t"]


class Broken(Item):
    """An item that fails when it is read, or lies about its size."""

    def __init__(self, name: str, failure: TensorbusError | None = None) -> None:
        self.spec = ItemSpec(name, dtype("float32"), (100,))
        self._failure = failure

    def read(self, offset: int, count: int) -> memoryview:
        if self._failure:
            raise self._failure
        return memoryview(bytes(4 * count - 4))  # one element short


REFUSED: dict[str, tuple[object, str, type[Exception], str]] = {
    "NaN": (
        {"ok": np.ones(3, np.float32), "w": np.array([1, np.nan], np.float32)},
        "nf4",
        NonFiniteValues,
        "'w'",
    ),
    "infinity": ({"w": np.array([1, np.inf], np.float32)}, "int8", NonFiniteValues, "'w'"),
    "a name with NUL": ({"a\0": np.ones(3)}, "none", InvalidName, "a"),
    "a name of 10,000 characters": ({"x" * 10_000: np.ones(3)}, "none", InvalidName, "1024"),
    "an object": ({"x": np.ones(3), "y": object()}, "none", UnsupportedContainer, "'y'"),
    "an array of objects": ({"y": np.array([object()])}, "none", UnsupportedDtype, "'y'"),
    "no container": (3.5, "none", UnsupportedContainer, "float"),
    "a path to nowhere": ("model.bin", "none", UnsupportedContainer, "'model.bin'"),
    "two items of one name": (ItemSource("x", [Broken("a"), Broken("a")]), "none", InvalidName, "'a'"),
    "an item that fails": (
        ItemSource("x", [Broken("a", CodecError("lost"))]),
        "none",
        CodecError,
        "item 'a': lost",
    ),
    "an item that is too short": (ItemSource("x", [Broken("a")]), "nf4", CodecError, "item 'a': 396 bytes"),
    "65,537 items": (
        ItemSource("x", [Broken(str(n)) for n in range(65_537)]),
        "none",
        LimitExceeded,
        "65537",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_sent_is_refused_by_name(case: str) -> None:
    """The publisher learns which item is wrong and why."""
    container, codec, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        encode(container, codec)


def test_a_frame_holds_at_least_one_block() -> None:
    """A blocksize that is too large for the frames is refused, naming the item."""
    source = open_source({"w": np.ones(5000, np.float32)})
    with pytest.raises(CodecError, match=r"'w'.*does not fit in a frame of 1000 bytes"):
        ContainerEncoder(source, Pipeline.parse("int8"), {}, frame_bytes=1000)


def test_a_message_header_is_a_plain_value() -> None:
    """numpy integers and lists are not, and are refused by name before anything is sent."""
    for value in (np.int64(3), [1], float("inf"), 2**64):
        with pytest.raises(InvalidRequest, match="'examples'"):
            encode({}, examples=value)


ENTRY: dict[str, object] = {"n": "w", "d": "float32", "s": [64], "q": {"name": "nf4", "blocksize": 64}}
WRONG: dict[str, tuple[Callable[[], bytes], type[TensorbusError], str]] = {
    "an unknown dtype": (
        lambda: one_item({**ENTRY, "d": "float7"}, bytes(36), 64),
        UnsupportedDtype,
        "'w'.*float7",
    ),
    "an unknown codec": (
        lambda: one_item({**ENTRY, "q": {"name": "zip"}}, bytes(36), 64),
        UnknownCodec,
        "'w'.*zip",
    ),
    "a codec with strange parameters": (
        lambda: one_item({**ENTRY, "q": {"name": "nf4", "blocksize": -1}}, bytes(36), 64),
        InvalidSpecification,
        "'w'",
    ),
    "a codec for another dtype": (
        lambda: one_item({**ENTRY, "d": "int64"}, bytes(36), 64),
        ManifestMismatch,
        "'w'.*nf4 is not for int64",
    ),
    "a payload that is too short": (lambda: one_item(ENTRY, bytes(35), 64), PayloadMismatch, "'w'.*35 bytes"),
    "a payload that is too long": (
        lambda: one_item(ENTRY, bytes(100), 64),
        PayloadMismatch,
        "'w'.*100 bytes",
    ),
    "a tensor larger than its message": (
        lambda: one_item({**ENTRY, "s": [2**40]}, bytes(36), 64, wire_bytes=1000),
        ManifestMismatch,
        "the message has only 1000",
    ),
    "a tensor larger than announced": (
        lambda: one_item({**ENTRY, "s": [2**40]}, bytes(36), 64, original_bytes=256),
        ManifestMismatch,
        "announced 256",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_decoded_is_refused_by_name(case: str) -> None:
    """The frames are intact and in order, but their content makes no sense: the error names the item."""
    make, error, text = WRONG[case]
    with pytest.raises(error, match=text):
        decode(make())


def test_a_manifest_claims_no_more_than_was_sent() -> None:
    """The transport knows the size of the body: an enormous shape is refused before room is made for it."""
    data = one_item({**ENTRY, "s": [2**40]}, bytes(36), 64)
    with pytest.raises(ManifestMismatch, match=f"the message has only {len(data)}"):
        decode(data, size=len(data))


def test_an_impossible_tensor_is_an_error_of_ours() -> None:
    """Without any size to hold it against, a claim of 2^59 elements is LimitExceeded, naming the item."""
    with pytest.raises(LimitExceeded, match="'w'"):
        decode(one_item({**ENTRY, "s": [2**58], "d": "float64"}, bytes(36), 64))


def test_half_a_message_is_no_container() -> None:
    """finish() before the close frame says so, however complete the tensors look."""
    _, frames = encode({"t": np.ones(3, np.float32)})
    with pytest.raises(TruncatedFrames, match="before its close frame"):
        decode(b"".join(frames[:-1]))


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6),
    codec=st.sampled_from(CODECS),
    frame_bytes=st.integers(60_000, 200_000),
)
def test_any_shapes_make_a_whole_message(shapes: list[list[int]], codec: str, frame_bytes: int) -> None:
    """0-d, empty and odd shapes under every codec: exact size, and back again."""
    container = {f"t{n}": RNG.standard_normal(shape).astype(np.float32) for n, shape in enumerate(shapes)}
    encoder = ContainerEncoder(open_source(container), Pipeline.parse(codec), {}, frame_bytes=frame_bytes)
    data = b"".join(f.head + f.payload for f in encoder.frames(lambda: memoryview(bytearray(FRAME_BYTES))))
    assert len(data) == encoder.wire_bytes
    got = cast("dict[str, npt.NDArray[np.float32]]", decode(data, size=len(data)))
    assert {name: array.shape for name, array in got.items()} == {
        n: tuple(a.shape) for n, a in container.items()
    }


def test_a_manifest_of_many_items_takes_several_frames() -> None:
    """Each within 1 MiB, however many items there are."""
    names = ["layer." + "x" * 900 + str(n) for n in range(3000)]
    data = memoryview(bytes(4))
    items = [MemoryItem(ItemSpec(name, dtype("float32"), (1,)), data) for name in names]
    encoder = ContainerEncoder(ItemSource("x", items), Pipeline.parse(None), {})
    frames = list(encoder.frames(lambda: memoryview(bytearray(FRAME_BYTES))))
    manifests = [frame for frame in frames if frame.head[5] == Kind.MANIFEST]
    assert len(manifests) == 3 and max(map(len, manifests)) <= FRAME_BYTES
    checker = MessageChecker()
    parser = FrameParser()
    for frame in frames:
        for parsed in parser.feed(frame.head + frame.payload):
            checker.accept(parsed)
    assert [entry.name for entry in checker.entries] == names
