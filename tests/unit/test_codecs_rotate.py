"""Promises of ``rotate``: it is a rotation, linear, the same to the bit from every kernel, and it pays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.base import Accumulator, SliceCodec
from tensorbus.codecs.bases import ItemBase
from tensorbus.codecs.chain import bind, codec_of
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.kernels import forced, usable
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.registry import stage
from tensorbus.codecs.residuals import MemoryResiduals
from tensorbus.codecs.stages.rotate import BLOCKSIZES, Rotate
from tensorbus.errors import InvalidSpecification, NonFiniteValues, PayloadMismatch
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.container import ContainerDecoder, ContainerEncoder
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.sinks import open_sink
from tensorbus.streaming.sources import open_source

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

FLOAT32 = DTYPES["float32"]
SOURCES = ("float32", "float64", "float16", "bfloat16")


KERNELS = usable()


def chain(pipeline: str, count: int, dtype: DType = FLOAT32) -> SliceCodec:
    """The pipeline as it is bound to a flat tensor; always all of it, even where it does not pay."""
    parsed = Pipeline.parse(pipeline)
    config = parsed.quantizer.config()
    if parsed.stages:
        config["stages"] = [one.config() for one in parsed.stages]
    return codec_of(ItemSpec("x", dtype, (count,), codec=config))


def raw(values: Array) -> memoryview:
    """The array's own bytes."""
    return values.reshape(-1).view(np.uint8).data


def encode(codec: SliceCodec, values: Array) -> bytes:
    """The payload."""
    out = bytearray(codec.encoded_size(values.size))
    return bytes(out[: codec.encode(raw(values).toreadonly(), 0, memoryview(out)).nbytes])


def decode(codec: SliceCodec, payload: bytes, like: Array) -> Array:
    """The values."""
    values = np.empty_like(like)
    codec.decode(memoryview(payload), 0, raw(values))
    return values


def rotated(values: Floats, blocksize: int = 1024) -> Floats:
    """What the quantizer behind the stage gets to see."""
    return np.frombuffer(encode(chain(f"rotate:{blocksize} | none", values.size), values), np.float32)


def relative_error(before: Array, after: Array) -> float:
    """Mean square error over mean square."""
    exact = before.astype(np.float64)
    return float(np.square(exact - after.astype(np.float64)).sum() / np.square(exact).sum())


def heavy_tailed(count: int, seed: int = 0) -> Floats:
    """As the deltas of a training step are: a few values are much larger than the rest."""
    random = np.random.default_rng(seed)
    return (random.standard_t(2.5, count) * 1e-4).astype(np.float32)


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator as its authors write it down."""
    state, outputs = seed, list[int]()
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


def test_rotation_is_the_documented_one() -> None:
    """H times the signs of splitmix64 over the root of the block; the tail in blocks of its binary digits."""
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    signs = np.array([-1.0 if z >> 63 else 1.0 for z in splitmix64(1, 64)])
    values = np.random.default_rng(1).standard_normal(2 * 64 + 32 + 8 + 1).astype(np.float32)
    expected: list[npt.NDArray[np.float64]] = []
    at = 0
    for size in (64, 64, 32, 8, 1):
        hadamard = np.ones((1, 1))
        while len(hadamard) < size:
            hadamard = np.kron(np.array([[1, 1], [1, -1]]), hadamard)
        expected.append(hadamard @ (signs[:size] * values[at : at + size]) / math.sqrt(size))
        at += size
    np.testing.assert_allclose(rotated(values, 64), np.concatenate(expected), rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    blocksize=st.sampled_from(BLOCKSIZES),
    count=st.one_of(st.integers(1, 200), st.integers(1, 70_000)),
    source=st.sampled_from(SOURCES),
    scale=st.sampled_from([1.0, 1e-3, 1e3, 1e-42]),
    weight=st.floats(-1e3, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_kernel_gives_the_same_bytes(
    blocksize: int, count: int, source: str, scale: float, weight: float, seed: int
) -> None:
    """Rotated values, values and sums are equal to the bit: numpy, plain C, AVX2, AVX-512, NEON."""
    dtype = DTYPES[source]
    normal = np.random.default_rng(seed).standard_normal(count) * scale
    if source == "bfloat16":
        values: Array = (normal.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    else:
        values = normal.astype(source)
    codec = chain(f"rotate:{blocksize} | none", count, dtype)
    results: list[tuple[bytes, ...]] = []
    for kernels, isa in KERNELS:
        with forced(kernels, isa):
            before = values.copy()
            payload = encode(codec, values)
            assert raw(values) == raw(before), "the original was overwritten"
            results.append((payload, decode(codec, payload, values).tobytes()))
            for precision in (np.float32, np.float64):
                sums = cast(Accumulator, np.ones(count, precision))
                codec.accumulate(memoryview(payload), 0, sums, weight)
                results[-1] += (sums.tobytes(),)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 63, 1000, 4096, 12_345])
def test_nothing_is_lost_or_padded(blocksize: int, count: int) -> None:
    """As many values come out as went in, with the same sum of squares, and turned back they are the same."""
    values = heavy_tailed(count, seed=count)
    there = rotated(values, blocksize)
    assert there.size == count
    squares = [np.square(one.astype(np.float64)).sum() for one in (values, there)]
    np.testing.assert_allclose(squares[0], squares[1], rtol=1e-5)
    codec = chain(f"rotate:{blocksize} | none", count)
    assert relative_error(values, decode(codec, there.tobytes(), values)) < 1e-12


def test_rotation_is_linear() -> None:
    """The sum of rotated updates, rotated back once, is the sum of the updates: it commutes with folding."""
    updates = [heavy_tailed(5000, seed) for seed in range(8)]
    total = np.sum([rotated(update).astype(np.float64) for update in updates], axis=0).astype(np.float32)
    codec = chain("rotate | none", 5000)
    back = decode(codec, total.tobytes(), total)
    assert relative_error(np.asarray(np.sum(updates, axis=0, dtype=np.float64)), back) < 1e-11


def test_slices_have_the_bytes_of_the_whole() -> None:
    """Slices cut at multiples of the blocksize, joined, are the whole; it suits both ends of a chain."""
    values = heavy_tailed(4096 * 20 + 1234)
    for pipeline, blocksize in (("rotate:4096 | lloyd:2", 4096), ("rotate:64 | lloyd:3", 1024)):
        codec = chain(pipeline, values.size)
        assert codec.blocksize == blocksize
        whole = encode(codec, values)
        for step in (blocksize, 7 * blocksize):
            parts = [encode(codec, values[at : at + step]) for at in range(0, values.size, step)]
            assert b"".join(parts) == whole


@pytest.mark.parametrize(("bits", "promised"), [(2, 0.1175), (3, 0.03454)])
def test_heavy_tails_get_the_error_of_normal_values(bits: int, promised: float) -> None:
    """Behind a rotation, lloyd has its error on normal values, whatever the values are; without, far more."""
    values = heavy_tailed(1 << 19)
    plain, turned = chain(f"lloyd:{bits}", values.size), chain(f"rotate | lloyd:{bits}", values.size)
    error = relative_error(values, decode(turned, encode(turned, values), values))
    assert abs(error / promised - 1) < 0.05
    assert relative_error(values, decode(plain, encode(plain, values), values)) > 1.5 * error


def test_nf4_gains_from_rotation() -> None:
    """On heavy tails nf4 behind a rotation has the error that it has on normal values, 0.0085 at block 64."""
    values = heavy_tailed(1 << 18)
    plain, turned = chain("nf4", values.size), chain("rotate | nf4", values.size)
    error = relative_error(values, decode(turned, encode(turned, values), values))
    assert error < 0.0091 < relative_error(values, decode(plain, encode(plain, values), values))


@pytest.mark.parametrize(("pipeline", "once"), [("rotate | lloyd:2", 0.1175), ("rotate | lloyd:3", 0.03454)])
def test_feedback_takes_ten_times_the_error_off_a_sum(pipeline: str, once: float) -> None:
    """Over 20 rounds, the sum of what was sent with feedback is 10 times closer than one update alone."""
    spec, residuals = ItemSpec("x", FLOAT32, (50_000,)), MemoryResiduals()
    meant, sent = np.zeros(50_000), np.zeros(50_000)
    for number in range(20):
        update = heavy_tailed(50_000, seed=number)
        context = CodecContext(residuals=residuals.begin(str(number)))
        payload = encode(bind(Pipeline.parse(f"feedback | {pipeline}"), spec, context), update)
        assert context.residuals is not None
        context.residuals.seal()
        residuals.commit()
        meant += update
        sent += decode(chain(pipeline, 50_000), payload, update)
    assert relative_error(meant, sent) < once / 10


def transfer(container: object, pipeline: str, context: CodecContext = NO_CONTEXT) -> Mapping[str, Array]:
    """The container as a subscriber gets it, by way of its frames."""
    encoder = ContainerEncoder(open_source(container), Pipeline.parse(pipeline), {}, context=context)
    pool, parser, checker = BufferPool(1), FrameParser(), MessageChecker()
    decoder = ContainerDecoder(checker, open_sink, context=context)
    for made in encoder.frames(pool.acquire):
        for frame in parser.feed(made.head + bytes(made.payload)):
            checker.accept(frame)
            decoder.accept(frame)
        if made.buffer is not None:
            pool.release(made.buffer)
    return cast("Mapping[str, Array]", decoder.finish())


@pytest.mark.parametrize(
    ("pipeline", "promised"),
    [
        ("rotate | lloyd:2", 0.1175),
        ("rotate | lloyd:3", 0.03454),
        ("rotate | nf4", 0.0086),
        ("delta | rotate | lloyd:2", 0.1175),
        ("delta | feedback | rotate | lloyd:2", 0.1175),
    ],
)
def test_whole_containers_pass_through(pipeline: str, promised: float) -> None:
    """Tensors of every shape and dtype go through the chain; large ones with the promised error."""
    model: dict[str, Array] = {
        "large": heavy_tailed(1_500_001),
        "matrix": heavy_tailed(300 * 77).reshape(300, 77).T,
        "half": heavy_tailed(5000).astype(np.float16),
        "double": heavy_tailed(4099).astype(np.float64),
        "small": heavy_tailed(3),
        "none": np.empty((0, 4), np.float32),
        "ids": np.arange(50),
    }
    base = {name: np.ones_like(values) for name, values in model.items()}
    if "delta" in pipeline:
        model = {name: base[name] + values for name, values in model.items()}
    context = CodecContext(base=ItemBase(open_source(base).items()), residuals=MemoryResiduals().begin("1"))
    got = transfer(model, pipeline, context)
    assert np.array_equal(got["ids"], model["ids"])
    assert [(name, got[name].dtype, got[name].shape) for name in model] == [
        (name, values.dtype, values.shape) for name, values in model.items()
    ]
    origin = base["large"] if "delta" in pipeline else np.zeros_like(base["large"])
    assert abs(relative_error(model["large"] - origin, got["large"] - origin) / promised - 1) < 0.05
    for name in ("matrix", "half", "double", "small"):
        np.testing.assert_allclose(got[name], model[name], atol=0.01)


@pytest.mark.parametrize(("kernels", "isa"), KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_refused(kernels: str, isa: str | None, bad: float) -> None:
    """A rotation spreads NaN and Inf over a block: the quantizer behind it refuses them; so does a sum."""
    values = heavy_tailed(70_000)
    values[66_000] = bad
    with forced(kernels, isa):
        with pytest.raises(NonFiniteValues):
            encode(chain("rotate | lloyd:2", values.size), values)
        codec, sums = chain("rotate | none", values.size), np.zeros(values.size, np.float32)
        with pytest.raises(NonFiniteValues):
            codec.accumulate(memoryview(values.tobytes()), 0, sums, 1.0)


@pytest.mark.parametrize(("kernels", "isa"), KERNELS)
@pytest.mark.parametrize("source", ["float16", "bfloat16"])
def test_values_at_the_end_of_a_16_bit_dtype_stay_finite(kernels: str, isa: str | None, source: str) -> None:
    """Errors of the codes carry no value beyond the range of its dtype: it is then the largest number."""
    values = np.full(1024, 0x7BFF if source == "float16" else 0x7B7F, np.uint16)
    values[1::3] |= 0x8000
    codec = chain("rotate | lloyd:2", 1024, DTYPES[source])
    with forced(kernels, isa):
        sums = np.zeros(1024, np.float64)
        codec.accumulate(memoryview(encode(codec, values)), 0, sums, 1.0)
    assert np.isfinite(sums).all()
    if source == "float16":
        assert np.abs(sums).max() == 65504


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=700), count=st.integers(1, 2000))
def test_any_bytes_are_refused_or_are_values(data: bytes, count: int) -> None:
    """Bytes from anywhere are a PayloadMismatch, unless they are of the right size: then they are values."""
    codec = chain("rotate:64 | lloyd:2", count)
    for kernels, isa in KERNELS:
        with forced(kernels, isa):
            if len(data) != codec.encoded_size(count):
                with pytest.raises(PayloadMismatch):
                    decode(codec, data, np.empty(count, np.float32))
            payload = (data * (codec.encoded_size(count) // max(len(data), 1) + 1))[
                : codec.encoded_size(count)
            ]
            if data:
                decode(codec, payload, np.empty(count, np.float32))


def test_configuration_rebuilds_the_stage() -> None:
    """Blocksize and seed travel with the data, and another seed is another rotation."""
    assert Pipeline.parse("rotate:256 | nf4").stages[0].config() == {
        "name": "rotate",
        "blocksize": 256,
        "seed": 1,
    }
    assert cast(Rotate, stage({"name": "rotate", "seed": 7})).seed == 7
    values = heavy_tailed(1024)
    assert encode(chain("rotate:seed=7 | none", 1024), values) != encode(chain("rotate | none", 1024), values)


@pytest.mark.parametrize("bad", [{"blocksize": 32}, {"blocksize": 1000}, {"seed": -1}, {"seed": 1.5}])
def test_other_parameters_are_refused(bad: dict[str, object]) -> None:
    """Powers of two from 64 to 4096, and seeds of 63 bits."""
    with pytest.raises(InvalidSpecification):
        stage({"name": "rotate", **bad})
