"""Promises of ``clip``, ``gauss`` and ``skip``: nothing gets past them, and one message has one noise."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import InvalidSpecification, MissingBase, NonFiniteValues
from tensorbus.streaming.base_files import open_base
from tensorbus.streaming.container import ContainerDecoder, ContainerEncoder
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.sinks import open_sink
from tensorbus.streaming.sources import open_source

Arrays = dict[str, npt.NDArray[Any]]

FRAME = 64 << 10
"""So that larger tensors have several slices."""


def model(seed: int = 0) -> Arrays:
    """Tensors of several sizes; one has several slices, and one no block of any quantizer."""
    rng = np.random.default_rng(seed)
    shapes = {"embed": (300, 100), "layer.weight": (64, 64), "norm.weight": (64,), "one": (1,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def moved(base: Arrays, by: float, seed: int = 1) -> Arrays:
    """A model whose change from ``base`` has the L2 norm ``by``."""
    step = model(seed)
    norm = math.sqrt(sum(float((values.astype(np.float64) ** 2).sum()) for values in step.values()))
    return {
        name: (base[name] + values * (by / norm)).astype(base[name].dtype) for name, values in step.items()
    }


def context_of(base: Arrays) -> CodecContext:
    """Of a publisher and of a receiver who have the base."""
    held = open_base(base)
    return CodecContext(bases={held.id: held}, base=held)


def encoder_of(values: Arrays, pipeline: Pipeline, base: Arrays) -> ContainerEncoder:
    """What makes the message."""
    return ContainerEncoder(open_source(values), pipeline, {}, frame_bytes=FRAME, context=context_of(base))


def body_of(encoder: ContainerEncoder, threads: int = 1) -> bytes:
    """The message."""
    frames = encoder.frames(lambda: memoryview(bytearray(FRAME)), threads)
    return b"".join(frame.head + bytes(frame.payload) for frame in frames)


def received(body: bytes, base: Arrays) -> Arrays:
    """What a subscriber makes of it."""
    parser, checker = FrameParser(), MessageChecker()
    decoder = ContainerDecoder(checker, lambda envelope: open_sink(envelope, None), context=context_of(base))
    for frame in parser.feed(body):
        checker.accept(frame)
        decoder.accept(frame)
    return cast("Arrays", decoder.finish())


def change(values: Arrays, base: Arrays) -> npt.NDArray[np.float64]:
    """All differences in one row."""
    return np.concatenate([(values[name].astype(np.float64) - base[name]).reshape(-1) for name in values])


@pytest.mark.parametrize("quantizer", ["none", "nf4", "int8", "bf16", "lossless", "rotate | lloyd:3"])
@pytest.mark.parametrize("keep", [(), ("norm*", "layer*")])
def test_an_update_is_clipped_as_a_whole(quantizer: str, keep: tuple[str, ...]) -> None:
    """The norm of all tensors together is the limit, kept and small ones included; directions stay."""
    base = model()
    update = moved(base, 10.0)
    pipeline = Pipeline.parse(f"delta | clip:2.5 | {quantizer}", keep)
    got = change(received(body_of(encoder_of(update, pipeline, base)), base), base)
    plain = change(received(body_of(encoder_of(update, Pipeline.parse("delta | none"), base)), base), base)
    exact = quantizer in ("none", "lossless")
    assert np.linalg.norm(got) == pytest.approx(2.5, rel=1e-5 if exact else 0.2)
    if exact:
        np.testing.assert_allclose(got, plain / 4, rtol=1e-3, atol=1e-6)


def test_what_is_short_enough_stays_as_it_is() -> None:
    """Bit for bit."""
    base = model()
    update = moved(base, 2.0)
    clipped = body_of(encoder_of(update, Pipeline.parse("delta | clip:2.5 | none"), base))
    plain = received(body_of(encoder_of(update, Pipeline.parse("delta | none"), base)), base)
    for name, values in received(clipped, base).items():
        assert values.tobytes() == plain[name].tobytes()


def test_noise_has_the_deviation_that_was_asked_for_in_every_tensor() -> None:
    """Multiplier times norm, with mean zero, each value on its own, kept tensors and single values too."""
    base = model()
    update = moved(base, 10.0)
    pipeline = Pipeline.parse("delta | clip:2.0 | gauss:0.5 | none", ("norm*",))
    got = received(body_of(encoder_of(update, pipeline, base)), base)
    clipped = received(body_of(encoder_of(update, Pipeline.parse("delta | clip:2.0 | none"), base)), base)
    noise = change(got, clipped)
    assert noise.std() == pytest.approx(1.0, rel=0.02)
    assert abs(noise.mean()) < 0.03
    for name in ("embed", "layer.weight", "norm.weight"):
        part = got[name].astype(np.float64) - clipped[name]
        assert part.std() == pytest.approx(1.0, rel=0.3), name
        assert len(np.unique(part)) > part.size // 2
    assert got["one"] != clipped["one"]


def test_what_did_not_change_is_noised_as_well() -> None:
    """An update that equals the base must not be told from others by its empty payloads."""
    base = model()
    pipeline = Pipeline.parse("delta | clip:2.0 | gauss:0.5 | nf4")
    got = received(body_of(encoder_of(base, pipeline, base)), base)
    assert all((got[name] != base[name]).any() for name in base)


def test_a_message_sent_again_has_the_same_noise_and_another_message_another() -> None:
    """Else two sendings could be averaged, or the difference of two updates be seen without noise."""
    base = model()
    update = moved(base, 10.0)
    pipeline = Pipeline.parse("delta | clip:2.0 | gauss:1.0 | nf4")
    encoder = encoder_of(update, pipeline, base)
    assert body_of(encoder) == body_of(encoder) == body_of(encoder, threads=3)
    other = encoder_of(update, pipeline, base)
    assert body_of(other) != body_of(encoder)
    assert other.fingerprint() != encoder.fingerprint() == encoder.fingerprint()


def test_the_message_does_not_say_the_seed_nor_ask_for_anything_to_be_undone() -> None:
    """The envelope says what was done, the items what has to be undone."""
    base = model()
    encoder = encoder_of(moved(base, 1.0), Pipeline.parse("delta | clip:2.0 | gauss:1.0 | nf4"), base)
    privacy = encoder._context.privacy  # pyright: ignore[reportPrivateUsage]
    assert privacy is not None and privacy.seed not in body_of(encoder)
    assert encoder.envelope.pipeline["stages"] == [
        {"name": "delta", "base": open_base(base).id},
        {"name": "clip", "norm": 2.0},
        {"name": "gauss", "multiplier": 1.0},
    ]
    for spec in encoder.entries:
        stages = cast("list[dict[str, object]]", spec.codec["stages"])
        assert [stage["name"] for stage in stages] == ["delta"]


@pytest.mark.parametrize(
    "text",
    [
        "clip:1.0 | nf4",
        "delta | gauss:1.0 | nf4",
        "delta | rotate | clip:1.0 | nf4",
        "delta | feedback | clip:1.0 | nf4",
        "delta | clip:1.0 | feedback | nf4",
        "delta | clip:1.0 | rotate | gauss:1.0 | nf4",
        "same | clip:1.0 | nf4",
        "delta | clip:0 | nf4",
        "delta | clip:-1 | nf4",
        "delta | clip:1e31 | nf4",
        "delta | clip:much | nf4",
        "delta | clip:1 | gauss:0 | nf4",
        "delta | clip | nf4",
    ],
)
def test_orders_and_numbers_that_make_no_sense_are_refused(text: str) -> None:
    """Clipping needs the change, noise needs the clip, and residuals would undo both."""
    with pytest.raises(InvalidSpecification):
        Pipeline.parse(text)


def test_what_cannot_be_clipped_is_refused_and_can_be_left_out() -> None:
    """Integers would get past the noise."""
    base = {**model(), "steps": np.arange(4)}
    text = "delta | clip:1.0 | gauss:1.0 | nf4"
    with pytest.raises(InvalidSpecification, match=r"steps.*skip"):
        encoder_of(base, Pipeline.parse(text), base)
    assert "steps" not in received(body_of(encoder_of(base, Pipeline.parse(text, skip=["st*"]), base)), base)


def test_what_the_base_lacks_is_refused() -> None:
    """It has no change that could be bounded."""
    base = model()
    with pytest.raises(MissingBase, match="new"):
        encoder_of({**base, "new": np.ones(3, np.float32)}, Pipeline.parse("delta | clip:1 | none"), base)


def test_nan_is_refused_by_name() -> None:
    """A norm of NaN would clip nothing."""
    base = model()
    update = moved(base, 1.0)
    update["layer.weight"][3, 3] = np.nan
    with pytest.raises(NonFiniteValues, match=r"layer\.weight"):
        body_of(encoder_of(update, Pipeline.parse("delta | clip:1 | none"), base))


def test_what_is_skipped_is_not_in_the_message_under_any_of_its_names() -> None:
    """Neither its name nor its values, whichever of the names of one storage is meant."""
    embed = np.arange(5000, dtype=np.float32).reshape(50, 100)
    values: Arrays = {"embed": embed, "layer": np.ones(10, np.float32), "head": embed}
    for pattern in ("embed", "head", "*e?d"):
        pipeline = Pipeline.parse("none", skip=[pattern])
        encoder = encoder_of(values, pipeline, values)
        body = body_of(encoder)
        assert b"embed" not in body.replace(pattern.encode(), b"") and embed[:1].tobytes() not in body
        assert list(received(body, values)) == ["layer"]
        assert encoder.original_bytes == 40
    assert Pipeline.parse(pipeline.to_json()) == pipeline
    with pytest.raises(InvalidSpecification, match="nothing"):
        encoder_of(values, Pipeline.parse("none", skip=["*"]), values)
    assert "skip" not in Pipeline.parse("nf4").to_json()
