"""Promise: what a release of each codec encoded is decoded for ever, and encoded to the same bytes.

A file is never rewritten: other bytes for the same values are another codec, with another name or parameter.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.chain import codec_of
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.registry import QUANTIZERS, quantizer

FILES = Path(__file__).parent / "codecs"
FLOAT32 = DTYPES["float32"]
# A tail, an odd count, and more than one block; of nf4-dq more than one group.
COUNTS = {
    "int8": 4096 + 65,
    "nf4-dq": 16384 + 65,
    "uniform": 4096 + 65,
    "lloyd": 2048 + 65,
    "lossless": 4096 + 65,
}

DECODED = {
    "none": "3ed09b39142edb20b02501c003254875304b10f9bf6aee52c590661e948bca47",
    "fp16": "5aafe5cbdd1e0435c8a8269e13958cc8c7290d67f7fbf47399d29266be40fde4",
    "bf16": "b8618fabb5e2bfa33d5f72541ce688f01ef998b5a98db091cd0d5ebf004a9e3c",
    "int8": "4383f8f4f82f7dc9b0db0c9f1737fb78a24689542cb69ac95663733165f9f360",
    "fp4": "0136ebf143ff643114c7e84374e83e30b941b6f64748f7458ad9668865a65a85",
    "nf4": "4a67a16d5af3d0a401272825b1eccc34076077bc7eb4ed0204ca2cf2d32f369d",
    "nf4-dq": "9ee1b33935d54fdd4b6450bb90ea214845ff8b5daa34cd79583998566486efda",
    "uniform": "2adbf69a6e77aa6d22e978cf4a90ca05355965780c8b780656e4f6f93934b840",
    "lloyd": "d1c965ce9c43fb13f2669bea09354c5a9176c69f6cf377132094307ee228693c",
    "lossless": "e598a68c6a07d1addd11f53fd7d6657bcac16c00e05961f69bfe8dba3dc01fc5",
}
"""SHA-256 of the decoded float32."""

ROTATED = "287e183d31dcfe06cb99ac1ab7c1bbb303e8ee8957c8256bc632715754c1ebc1"


FINE = "08b1b9c70c5ac775402c1a3cf87ca0228ba8804064f7725a07ac8e5064e9112c"


def golden_values(count: int) -> npt.NDArray[np.float32]:
    """Values in [-1, 1] that need no random generator: a multiplicative hash, cubed to crowd around 0."""
    hashed = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
    values = ((hashed.astype(np.float64) - 2**31) / 2**31).astype(np.float32)
    values = values * values * values
    values[::50] = 0
    return values


@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_bytes_of_every_codec_stay(name: str) -> None:
    """The payload of fixed values is the stored one, and the stored one decodes to what it did."""
    values = golden_values(COUNTS.get(name, 257))
    codec = quantizer(name)
    payload = bytearray(codec.encoded_size(values.size, FLOAT32))
    encoded = codec.encode(values.view(np.uint8).data, FLOAT32, memoryview(payload))
    stored = (FILES / f"{name}.payload").read_bytes()
    assert bytes(payload[: encoded.nbytes]) == stored
    decoded = np.empty_like(values)
    codec.decode(memoryview(stored), FLOAT32, decoded.view(np.uint8).data)
    assert hashlib.sha256(decoded.tobytes()).hexdigest() == DECODED[name]


def test_bytes_of_a_rotation_stay() -> None:
    """The same for ``rotate | lloyd:3``, with a tail that is cut into its binary digits."""
    values = golden_values(2048 + 77)
    config: dict[str, object] = {"name": "lloyd", "bits": 3, "stages": [{"name": "rotate"}]}
    codec = codec_of(ItemSpec("x", FLOAT32, (values.size,), codec=config))
    payload = bytearray(codec.encoded_size(values.size))
    codec.encode(values.view(np.uint8).data, 0, memoryview(payload))
    stored = (FILES / "rotate-lloyd3.payload").read_bytes()
    assert bytes(payload) == stored
    decoded = np.empty_like(values)
    codec.decode(memoryview(stored), 0, decoded.view(np.uint8).data)
    assert hashlib.sha256(decoded.tobytes()).hexdigest() == ROTATED


def test_bytes_of_fine_steps_stay() -> None:
    """The same for ``uniform:0.02``, whose codes have low bits, with a value that escapes them."""
    values = golden_values(4096 + 65)
    values[100] = 20
    codec = quantizer({"name": "uniform", "step": 0.02})
    payload = bytearray(codec.encoded_size(values.size, FLOAT32))
    encoded = codec.encode(values.view(np.uint8).data, FLOAT32, memoryview(payload))
    stored = (FILES / "uniform-fine.payload").read_bytes()
    assert stored[:4] == b"\1\0\0\0"
    assert bytes(payload[: encoded.nbytes]) == stored
    decoded = np.empty_like(values)
    codec.decode(memoryview(stored), FLOAT32, decoded.view(np.uint8).data)
    assert decoded[100] == 20
    assert hashlib.sha256(decoded.tobytes()).hexdigest() == FINE
