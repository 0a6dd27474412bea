"""What the codecs lose, and in how many bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.chain import bind
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import MemoryResiduals
from tensorbus.streaming.frames import FRAME_BYTES
from tensorbus.streaming.slicing import slice_bounds, slice_elements

ROUNDS = 20

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quality:
    """Bits of payload a parameter, and the mean square error over the mean square of the values."""

    bits: float
    error: float


def gaussian() -> dict[str, Floats]:
    """Sixteen million weights, N(0, 0.02²), in one tensor."""
    values = np.random.default_rng(1).standard_normal((4096, 4096), np.float32) * np.float32(0.02)
    return {"weight": values}


def measure(pipeline: str, tensors: Mapping[str, Floats]) -> Quality:
    """Encode and decode every tensor, as it would be sent."""
    bits, error, power, count = 0, 0.0, 0.0, 0
    for name, values in tensors.items():
        decoded, nbytes = _through(pipeline, name, values, NO_CONTEXT)
        bits += 8 * nbytes
        count += values.size
        error += _square(decoded - values)
        power += _square(values)
    return Quality(bits / count, error / power)


def with_feedback(pipeline: str) -> float:
    """Relative mean square error of the sum of twenty heavy-tailed updates, each sent with error feedback."""
    random = np.random.default_rng(2)
    residuals = MemoryResiduals()
    shape = (1024, 1024)
    true, sent = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for number in range(ROUNDS):
        update = (random.standard_t(4, shape) * 1e-4).astype(np.float32)
        one = residuals.begin(str(number))
        decoded, _ = _through(f"feedback | {pipeline}", "weight", update, CodecContext(residuals=one))
        one.seal()
        residuals.commit()
        true += update
        sent += decoded
    return _square(sent - true) / _square(true)


def _through(pipeline: str, name: str, values: Floats, context: CodecContext) -> tuple[Floats, int]:
    """The values after the way through ``pipeline``, and the bytes of payload."""
    spec = ItemSpec(name, DTYPES["float32"], values.shape)
    codec = bind(Pipeline.parse(pipeline), spec, context)
    flat, decoded = values.reshape(-1), np.empty(values.size, np.float32)
    frame = memoryview(bytearray(FRAME_BYTES))
    nbytes = 0
    for start, count in slice_bounds(spec.count, slice_elements(0, spec, codec, FRAME_BYTES)):
        encoded = codec.encode(flat[start : start + count].view(np.uint8).data, start, frame)
        codec.decode(frame[: encoded.nbytes], start, decoded[start : start + count].view(np.uint8).data)
        nbytes += encoded.nbytes
    return decoded.reshape(values.shape), nbytes


def _square(values: Floats) -> float:
    return float(np.square(values, dtype=np.float64).sum())
