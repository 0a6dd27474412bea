"""Promises of messages whose items go through stages: whole containers, there and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.bases import Base
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import MemoryResiduals, ResidualPass
from tensorbus.errors import (
    InvalidSpecification,
    LimitExceeded,
    MissingBase,
    NonFiniteValues,
    PayloadMismatch,
    TensorbusError,
)
from tensorbus.streaming.base_files import open_base
from tensorbus.streaming.container import ContainerDecoder, ContainerEncoder, SliceEvent
from tensorbus.streaming.files import SafetensorsSink
from tensorbus.streaming.frames import FRAME_BYTES, FrameParser, Kind, encode_frame
from tensorbus.streaming.headers import Envelope
from tensorbus.streaming.packing import pack, pack_array
from tensorbus.streaming.residual_files import FileResiduals
from tensorbus.streaming.sequence import MessageChecker, Tally
from tensorbus.streaming.sinks import open_sink
from tensorbus.streaming.sources import open_source

STAGES = (
    "",
    "delta",
    "same",
    "feedback",
    "rotate",
    "delta | feedback",
    "delta | rotate",
    "same | rotate",
    "feedback | rotate",
    "delta | feedback | rotate",
)
QUANTIZERS = ("none", "bf16", "int8", "nf4", "nf4-dq", "lloyd:2", "uniform", "lossless")
PIPELINES = [
    f"{stages} | {quantizer}" if stages else quantizer
    for stages in STAGES
    for quantizer in QUANTIZERS
    if not ("feedback" in stages and quantizer in ("none", "lossless"))
]
Container = dict[str, Any]


def numpy_model(seed: int = 0, step: float = 0.0) -> Container:
    """A model as numpy holds it; with ``step``, somewhat trained, but for what is frozen."""
    rng, moved = np.random.default_rng(seed), np.random.default_rng(seed + 1)

    def weights(*shape: int, dtype: str = "float32") -> npt.NDArray[Any]:
        start = rng.standard_normal(shape)
        return np.asarray(start + step * moved.standard_normal(shape)).astype(dtype)

    embed = weights(601, 1001)
    frozen = np.random.default_rng(9).standard_normal((300, 500)).astype(np.float32)
    frozen[0, :3] = (-0.0, 0.0, np.float32("-inf"))
    return {
        "embed": embed,
        "frozen": frozen,
        "strided": weights(210, 130).T,
        "half": weights(37, 51, dtype="float16"),
        "double": weights(1003, dtype="float64"),
        "odd": weights(7),
        "point": weights(),
        "empty": np.empty((0, 8), np.float32),
        "ids": np.arange(40, dtype=np.int64),
        "steps": np.array(round(step * 100), np.int64),
        "mask": np.array([True, False, True]),
        "epoch": 7,
        "note": "done",
        "head": embed,
        "part": embed[3:5],
    }


def torch_model(seed: int = 0, step: float = 0.0) -> Container:
    """The same as torch holds it, with bfloat16 instead of float16 and a channels-last tensor."""
    torch = pytest.importorskip("torch")
    values = numpy_model(seed, step)
    tensors = {
        name: torch.from_numpy(np.array(values[name]))
        for name in ("embed", "frozen", "strided", "half", "double", "odd", "point", "ids", "mask")
    }
    tensors["half"] = tensors["half"].to(torch.bfloat16)
    tensors["conv"] = tensors["embed"].view(601, 7, 143).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    return {**tensors, "epoch": 7, "head": tensors["embed"], "part": tensors["embed"][3:5]}


def encode(
    container: object, pipeline: str, context: CodecContext, keep: tuple[str, ...] = (), threads: int = 1
) -> tuple[ContainerEncoder, bytes]:
    """The encoder after its work, and the message."""
    encoder = ContainerEncoder(open_source(container), Pipeline.parse(pipeline, keep), {}, context=context)
    frames = encoder.frames(lambda: memoryview(bytearray(FRAME_BYTES)), threads)
    data = b"".join(frame.head + bytes(frame.payload) for frame in frames)
    return encoder, data


def decode(
    data: bytes,
    context: CodecContext,
    make_sink: Callable[[Envelope], Any] = open_sink,
) -> Any:
    """What a subscriber makes of it."""
    parser, checker = FrameParser(), MessageChecker()
    decoder = ContainerDecoder(checker, make_sink, context=context)
    try:
        for at in range(0, len(data), 77_777):
            for frame in parser.feed(data[at : at + 77_777]):
                checker.accept(frame)
                decoder.accept(frame)
        parser.finish()
        return decoder.finish()
    except BaseException:
        decoder.abort()
        raise


def events(data: bytes, context: CodecContext = NO_CONTEXT) -> list[tuple[SliceEvent, bytes]]:
    """The slices, undecoded."""
    parser, checker = FrameParser(), MessageChecker()
    decoder = ContainerDecoder(checker, context=context)
    found: list[tuple[SliceEvent, bytes]] = []
    for frame in parser.feed(data):
        checker.accept(frame)
        if (event := decoder.accept(frame)) is not None:
            found.append((event, bytes(event.payload)))
    return found


def holding(base: Base | None, residuals: ResidualPass | None = None) -> CodecContext:
    """A publisher's context."""
    return CodecContext(base=base, residuals=residuals)


def bits(value: Any) -> bytes:
    """The bytes of a tensor or array in C order."""
    if isinstance(value, np.ndarray):
        return cast("npt.NDArray[Any]", value).tobytes()
    import torch

    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def as_floats(value: Any) -> npt.NDArray[np.float64]:
    """The numbers of a tensor or array."""
    if isinstance(value, np.ndarray):
        return cast("npt.NDArray[Any]", value).astype(np.float64)
    return value.double().numpy()


ALLOWED = {"bf16": 0.004, "int8": 0.02, "nf4": 0.13, "nf4-dq": 0.13, "lloyd": 0.45, "uniform": 0.13}
"""Root mean square error relative to what was quantised."""


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("model", [numpy_model, torch_model])
def test_a_container_comes_back_through_every_pipeline(
    pipeline: str, model: Callable[..., Container]
) -> None:
    """Names, order, dtypes, shapes and sharing; exact items bit for bit, others within the codec's error."""
    old, new = model(), model(step=0.01)
    base = open_base(old)
    # An infinity in a tensor that is quantised is refused, so here the base, or a pattern, takes care of it.
    keep = () if "delta" in pipeline else ("frozen",)
    residuals = MemoryResiduals()
    encoder, data = encode(new, pipeline, holding(base, residuals.begin("m")), keep)
    got = decode(data, CodecContext(bases={base.id: base}))
    assert list(got) == list(new)
    for spec in encoder.entries:
        name = spec.name
        if spec.kind != "tensor":
            assert got[name] == new[name]
            continue
        assert (got[name].dtype, got[name].shape) == (new[name].dtype, new[name].shape)
        stages = [cast("str", stage["name"]) for stage in cast("list[Any]", spec.codec.get("stages", []))]
        quantizer = cast("str", spec.codec["name"])
        if spec.view is not None:
            continue
        unchanged = name == "frozen" and ("delta" in stages or "same" in stages)
        if unchanged or (quantizer in ("none", "lossless") and not {"delta", "rotate"} & set(stages)):
            assert bits(got[name]) == bits(new[name])
        else:
            meant = as_floats(new[name])
            quantised = meant - as_floats(old[name]) if "delta" in stages else meant
            error = np.sqrt(np.mean((as_floats(got[name]) - meant) ** 2))
            allowed = ALLOWED.get(quantizer, 0.0) * np.sqrt(np.mean(quantised**2))
            assert error <= allowed + (4e-3 if spec.dtype.itemsize == 2 else 1e-6)
    for shared in ("head", "part"):
        assert bits(got[shared]) == bits(got["embed"] if shared == "head" else got["embed"][3:5])


@pytest.mark.parametrize("pipeline", ["delta | rotate | nf4", "same | none", "same | lossless"])
def test_what_did_not_change_costs_next_to_nothing(pipeline: str) -> None:
    """A message of a model that is the base takes a few hundred bytes a tensor, and brings every bit."""
    old = numpy_model()
    base = open_base(old)
    _, data = encode(numpy_model(), pipeline, holding(base), ("odd",))
    assert len(data) < 400 * len(old) + 3000
    got = decode(data, CodecContext(bases={base.id: base}))
    for name, array in old.items():
        if isinstance(array, np.ndarray):
            assert bits(got[name]) == bits(array)


def test_a_file_is_a_base_and_a_file_arrives(tmp_path: Path) -> None:
    """From file to file against a file, in slices; the result is the file that was published."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    old = {"a": np.random.default_rng(0).standard_normal((900, 1300)).astype(np.float32)}
    new = {"a": old["a"].copy(), "b": np.arange(1000, dtype=np.float32)}
    new["a"][500:] += 1
    save_file(old, tmp_path / "old.safetensors")
    save_file(new, tmp_path / "new.safetensors")
    base = open_base(tmp_path / "old.safetensors")
    _, data = encode(str(tmp_path / "new.safetensors"), "same | none", holding(base))
    assert len(data) < 0.7 * new["a"].nbytes
    target = tmp_path / "got.safetensors"
    decode(data, CodecContext(base=base), lambda envelope: SafetensorsSink(target, envelope.metadata))
    assert target.read_bytes() == (tmp_path / "new.safetensors").read_bytes()


def test_the_message_says_what_was_done() -> None:
    """The open frame has the pipeline with the base's id; the manifest has what is to be undone."""
    base = open_base(numpy_model())
    pipeline = "delta | feedback | rotate | lloyd:2"
    residuals = MemoryResiduals()
    encoder, data = encode(numpy_model(step=0.1), pipeline, holding(base, residuals.begin("m")))
    (opening, *_) = FrameParser().feed(data)
    rotate = {"name": "rotate", "blocksize": 1024, "seed": 1}
    delta = {"name": "delta", "base": base.id}
    assert opening.header["pipeline"] == {
        "stages": [delta, {"name": "feedback"}, rotate],
        "quantizer": {"name": "lloyd", "bits": 2, "blocksize": 1024},
        "keep": [],
    }
    (embed,) = [spec for spec in encoder.entries if spec.name == "embed"]
    assert embed.codec == {"name": "lloyd", "bits": 2, "blocksize": 1024, "stages": [delta, rotate]}
    assert opening.header["wire_bytes"] is None, "slices may turn out empty"


def test_a_rotation_alone_has_a_known_size() -> None:
    """Nothing is left out without a base, so the size of the message is known beforehand, as ever."""
    encoder, data = encode(numpy_model(), "rotate | int8", NO_CONTEXT, ("frozen",))
    assert encoder.wire_bytes == len(data)


@pytest.mark.parametrize("pipeline", ["delta | feedback | rotate | nf4", "same | none", "feedback | int8"])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_message_made_again_has_the_same_bytes(pipeline: str, kind: str, tmp_path: Path) -> None:
    """After a lost connection, by a new encoder, with more threads or fewer; and the next message goes on."""
    residuals = MemoryResiduals() if kind == "memory" else FileResiduals(tmp_path)
    base = open_base(numpy_model())
    keep = () if "delta" in pipeline else ("frozen",)
    earlier: bytes | None = None
    for step in (0.1, 0.2):
        context = holding(base, residuals.begin(f"step {step}"))
        messages = {
            encode(numpy_model(step=step), pipeline, context, keep, threads)[1] for threads in (1, 3, 2)
        }
        assert len(messages) == 1
        assert residuals.unresolved() == f"step {step}", "sealed before the last frame is there"
        residuals.commit()
        assert messages != {earlier}
        earlier = messages.pop()


def test_residuals_are_not_sealed_by_half_a_message() -> None:
    """A message that could not be encoded to its end leaves the last residuals in force."""
    residuals = MemoryResiduals()
    model = numpy_model()
    model["zz"] = np.array([1, np.nan] * 100, np.float32)
    with pytest.raises(NonFiniteValues, match="zz"):
        encode(model, "feedback | nf4", holding(None, residuals.begin("m")), ("frozen",))
    assert residuals.unresolved() is None


def test_feedback_holds_for_whole_messages() -> None:
    """Over 20 messages of a model in bfloat16 and fp32, what is lost in all stays what one message loses."""
    rng = np.random.default_rng(2)
    base = open_base({"w": np.zeros((300, 500), np.float32)})
    errors: dict[str, float] = {}
    for pipeline in ("delta | nf4", "delta | feedback | nf4"):
        residuals = MemoryResiduals()
        meant, got = np.zeros((300, 500)), np.zeros((300, 500))
        for number in range(20):
            update = {"w": rng.standard_normal((300, 500)).astype(np.float32)}
            _, data = encode(update, pipeline, holding(base, residuals.begin(str(number))))
            got += decode(data, CodecContext(base=base))["w"]
            meant += update["w"]
            residuals.commit()
        errors[pipeline] = float(np.mean((got - meant) ** 2) / np.mean(meant**2))
    assert errors["delta | feedback | nf4"] < errors["delta | nf4"] / 10


def test_an_aggregator_folds_without_the_base() -> None:
    """The slices of a delta are read and folded where the base is not held; empty ones add nothing."""
    old, new = numpy_model(), numpy_model(step=0.01)
    base = open_base(old)
    _, data = encode(new, "delta | nf4", holding(base))
    sums = np.zeros(new["embed"].size, np.float32)
    for event, payload in events(data):
        if event.spec.name == "embed":
            assert event.codec.base == base.id
            part = sums[event.offset : event.offset + event.count]
            event.codec.change().accumulate(memoryview(payload), event.offset, part, 0.5)
        elif event.spec.name == "frozen":
            assert payload == b""
        elif event.spec.name == "ids":
            assert event.codec.base is None
    change = 0.5 * (new["embed"] - old["embed"]).reshape(-1)
    assert np.mean((sums - change) ** 2) < 0.02 * np.mean(change**2)


def test_slices_of_stages_are_not_large() -> None:
    """However few bits a value takes, a slice has half a million of them: as much is worked on at once."""
    _, data = encode({"w": np.ones(1_200_000, np.float32)}, "rotate | lloyd:2", NO_CONTEXT)
    assert [event.count for event, _ in events(data)] == [1 << 19, 1 << 19, 1_200_000 - (1 << 20)]
    base = open_base({"w": np.zeros(1_200_000)})
    _, data = encode({"w": np.ones(1_200_000)}, "delta | lloyd:1", holding(base))
    assert max(event.count for event, _ in events(data)) == 1 << 19


# --- what is refused -------------------------------------------------------------------------------------


def test_the_publisher_needs_what_its_stages_need() -> None:
    """Before a byte is sent: a base, a place for residuals."""
    model = numpy_model()
    with pytest.raises(MissingBase):
        encode(model, "delta | nf4", NO_CONTEXT)
    with pytest.raises(InvalidSpecification, match="residuals"):
        encode(model, "feedback | nf4", NO_CONTEXT)


def test_without_the_base_nothing_is_overwritten() -> None:
    """A receiver that lacks the base, or has another, is told before any of its tensors is touched."""
    base, other = open_base(numpy_model()), open_base(numpy_model(seed=5))
    _, data = encode(numpy_model(step=0.1), "delta | nf4", holding(base))
    target = numpy_model()
    before = {name: bits(value) for name, value in target.items() if isinstance(value, np.ndarray)}
    for context in (NO_CONTEXT, CodecContext(base=other, bases={other.id: other})):
        with pytest.raises(MissingBase, match=base.id):
            decode(data, context, lambda envelope: open_sink(envelope, target))
    assert all(bits(target[name]) == value for name, value in before.items())
    # A base that calls itself by the right id, but lacks a tensor.
    poor = open_base({"x": np.ones(3, np.float32)}, base.id)
    with pytest.raises(MissingBase, match="no tensor"):
        decode(data, CodecContext(base=poor))


DELTA = {"name": "delta", "base": "sha256:" + "0" * 64}
ROTATE = {"name": "rotate", "blocksize": 64, "seed": 1}


def one_item(codec: Mapping[str, object], payload: bytes, count: int) -> bytes:
    """A message of one float32 item in one slice, encoded by hand."""
    entry = {"n": "w", "d": "float32", "s": [count], "q": dict(codec)}
    piece = {"i": 0, "n": "w", "d": "float32", "q": dict(codec), "o": 0, "c": count}
    tally, data = Tally(), b""
    drafts: list[tuple[Kind, Mapping[str, object], bytes]] = [
        (Kind.OPEN, {"headers": {}, "container": "numpy", "items": 1}, b""),
        (Kind.MANIFEST, {"first": 0}, pack_array([pack(entry)])),
        (Kind.SLICE, piece, payload),
    ]
    for kind, header, body in drafts:
        head = encode_frame(kind, header, body)
        tally.add_head(kind, head, len(body))
        data += head + body
    return data + tally.close(1, 0, 0)


HUGE = 1 << 40


@pytest.mark.parametrize(
    ("codec", "payload", "count", "error", "text"),
    [
        # An empty payload says that a slice equals the base, and there has to be one.
        ({"name": "none"}, b"", 64, PayloadMismatch, "0 bytes"),
        ({"name": "nf4", "blocksize": 64}, b"", 64, PayloadMismatch, "0 bytes"),
        ({"name": "nf4", "blocksize": 64, "stages": [ROTATE]}, b"", 64, PayloadMismatch, "0 bytes"),
        ({"name": "lossless"}, b"", 64, PayloadMismatch, "0 bytes"),
        # Nothing may be claimed that would have to be made out of nothing.
        ({"name": "nf4", "blocksize": 64, "stages": [DELTA]}, b"", HUGE, LimitExceeded, "limit is 524288"),
        ({"name": "none", "stages": [{**DELTA, "name": "same"}]}, b"", HUGE, LimitExceeded, "limit is"),
        ({"name": "lossless"}, b"x", HUGE, LimitExceeded, "limit is"),
        ({"name": "nf4", "blocksize": 64, "stages": [ROTATE]}, b"x", HUGE, LimitExceeded, "limit is"),
        # Neither more nor less than the codec makes.
        ({"name": "nf4", "blocksize": 64, "stages": [ROTATE]}, bytes(35), 64, PayloadMismatch, "expected 36"),
        ({"name": "nf4", "blocksize": 64, "stages": [DELTA]}, bytes(37), 64, PayloadMismatch, "1 to 36"),
    ],
)
def test_slices_that_cannot_be_are_refused(
    codec: Mapping[str, object], payload: bytes, count: int, error: type[TensorbusError], text: str
) -> None:
    """By their sizes alone, before memory is taken or a value is decoded; the item is named."""
    with pytest.raises(error, match=f"'w'.*{text}"):
        events(one_item(codec, payload, count))


def test_a_slice_that_is_shorter_than_its_codec_says_is_refused() -> None:
    """Between nothing and the largest size, the codec itself decides."""
    base = open_base({"w": np.zeros(64, np.float32)})
    codec = {"name": "nf4", "blocksize": 64, "stages": [{"name": "delta", "base": base.id}]}
    with pytest.raises(PayloadMismatch, match="'w'"):
        decode(one_item(codec, bytes(35), 64), CodecContext(base=base))
