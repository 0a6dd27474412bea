"""Messages as this format has always written them.

Each file in ``frames/`` is a small message, committed once. Encoding the same container must give the same
bytes, and every reader must understand the file for ever. A change of these bytes is a change of the wire
format: it takes an ADR, and then ``TENSORBUS_WRITE_GOLDEN=1 pytest tests/golden/test_streaming_golden.py``
writes them anew.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (Parts of torch and safetensors have no annotations.)

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import MemoryResiduals
from tensorbus.streaming.base_files import open_base
from tensorbus.streaming.container import ContainerDecoder, ContainerEncoder
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.raw import RawEncoder
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.sinks import open_sink
from tensorbus.streaming.sources import open_source

FOLDER = Path(__file__).parent / "frames"
HEADERS: dict[str, str | int | float | bool | None] = {
    "job": "golden",
    "round": 1,
    "weight": 0.5,
    "final": False,
    "site": None,
}


def ramp(count: int) -> npt.NDArray[np.float32]:
    """Values that every machine computes alike: multiples of 1/128 from -3.9 to 3.9."""
    return ((np.arange(count, dtype=np.int64) * 7919 % 1009 - 504) / 128).astype(np.float32)


def numpy_container() -> dict[str, object]:
    """Every kind of item, shared and strided arrays, and names of several scripts."""
    embed = ramp(1200).reshape(-1, 10)
    return {
        "embed.weight": embed,
        "head.weight": embed,
        "rows": embed[3:7],
        "turned": ramp(12).reshape(3, 4).T.copy().T,
        "double": ramp(5).astype(np.float64),
        "half": ramp(7).astype(np.float16),
        "ids": np.arange(-3, 3, dtype=np.int64),
        "mask": np.array([[True, False], [False, True]]),
        "complex": np.array([1 + 2j, -1j], np.complex64),
        "0-d": np.array(2.5, np.float32),
        "empty": np.empty((0, 3), np.float32),
        "Größe/重み": np.array([1], np.uint8),
        "none": None,
        "yes": True,
        "epoch": 3,
        "rate": 1e-3,
        "note": "text",
        "blob": bytes(range(8)),
    }


def torch_container() -> dict[str, torch.Tensor]:
    """Dtypes that numpy lacks, and a transposed view."""
    weight = torch.from_numpy(ramp(60).reshape(6, 10))
    return {
        "weight": weight,
        "weight.T": weight.t(),
        "bf16": torch.from_numpy(ramp(9)).bfloat16(),
        "fp8": torch.from_numpy(ramp(9)).to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False]),
        "int16": torch.arange(4, dtype=torch.int16),
    }


def safetensors_file(folder: Path) -> Path:
    """A file with metadata and a tied tensor."""
    values = ramp(30).tobytes()
    table = {
        "__metadata__": {"format": "pt", "head": "w"},
        "w": {"dtype": "F32", "shape": [5, 5], "data_offsets": [0, 100]},
        "b": {"dtype": "BF16", "shape": [10], "data_offsets": [100, 120]},
    }
    text = json.dumps(table).encode()
    path = folder / "golden.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    return path


@dataclass(frozen=True)
class Golden:
    """One message: its container, codec, and the size of its frames, small so that there are several.

    ``base`` is what it is encoded against, if anything.
    """

    container: Callable[[Path], object]
    codec: str = "none"
    frame_bytes: int = 2048
    base: Callable[[], dict[str, npt.NDArray[np.float32]]] | None = None

    def context(self) -> CodecContext:
        """What both ends hold; the residuals are those of a first message."""
        if self.base is None:
            return NO_CONTEXT
        return CodecContext(base=open_base(self.base()), residuals=MemoryResiduals().begin("golden"))


def tensor(count: int) -> Callable[[Path], object]:
    """A tensor for a codec to encode, and one that is kept exact."""
    return lambda _: {"kept.norm": ramp(5), "w": ramp(count)}


def before(count: int) -> Callable[[], dict[str, npt.NDArray[np.float32]]]:
    """The base of such a tensor: it changed from element 3000 on."""

    def make() -> dict[str, npt.NDArray[np.float32]]:
        values = ramp(count)
        values[3000:] -= ramp(count + 7)[7:][3000:] / 128
        return {"w": values}

    return make


GOLDEN = {
    "numpy": Golden(lambda _: numpy_container()),
    "numpy-nf4": Golden(lambda _: numpy_container(), "nf4"),
    "torch": Golden(lambda _: torch_container()),
    "safetensors": Golden(safetensors_file),
    "bytes": Golden(lambda _: bytes(range(256)) * 10),
    "empty": Golden(lambda _: cast("dict[str, object]", {})),
    "fp16": Golden(tensor(2000), "fp16"),
    "bf16": Golden(tensor(2000), "bf16"),
    "int8": Golden(tensor(5000), "int8", 4500),
    "fp4": Golden(tensor(5001), "fp4"),
    "nf4": Golden(tensor(5001), "nf4"),
    "nf4-blocksize-128": Golden(tensor(5001), "nf4:blocksize=128"),
    "nf4-dq": Golden(tensor(16_500), "nf4-dq", 10_000),
    "delta-nf4": Golden(tensor(5001), "delta | nf4", base=before(5001)),
    "delta-feedback-rotate-lloyd": Golden(
        tensor(5001), "delta | feedback | rotate:256 | lloyd:2,blocksize=256", 1024, before(5001)
    ),
    "same": Golden(tensor(5001), "same | none", base=before(5001)),
    "same-lossless": Golden(tensor(5001), "same | lossless", 150_000, before(5001)),
}


def encode(golden: Golden, folder: Path) -> bytes:
    """The whole message."""
    source = open_source(golden.container(folder))
    pipeline = Pipeline.parse(golden.codec, keep=["*.norm"])
    encoder = ContainerEncoder(
        source, pipeline, HEADERS, frame_bytes=golden.frame_bytes, context=golden.context()
    )
    data = b"".join(
        frame.head + frame.payload
        for frame in encoder.frames(lambda: memoryview(bytearray(golden.frame_bytes)))
    )
    source.close()
    return data


def decode(data: bytes, context: CodecContext = NO_CONTEXT) -> tuple[MessageChecker, object]:
    """What a reader learns of the message, and the container in it."""
    parser, checker = FrameParser(), MessageChecker()
    decoder = ContainerDecoder(checker, open_sink, size=len(data), context=context)
    for frame in parser.feed(data):
        checker.accept(frame)
        decoder.accept(frame)
    parser.finish()
    return checker, decoder.finish()


def kept(name: str, data: bytes) -> bytes:
    """The committed file, after writing it if that was asked for."""
    path = FOLDER / f"{name}.frames"
    if os.environ.get("TENSORBUS_WRITE_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        path.write_bytes(data)
    return path.read_bytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_message_is_written_as_it_always_was(tmp_path: Path, name: str) -> None:
    """The same container gives the same bytes, in every release."""
    data = encode(GOLDEN[name], tmp_path)
    assert data == kept(name, data)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_message_is_read_as_it_always_was(tmp_path: Path, name: str) -> None:
    """The committed bytes give back the container that they were made from, as exactly as the codec can."""
    checker, found = decode((FOLDER / f"{name}.frames").read_bytes(), GOLDEN[name].context())
    assert checker.envelope.headers == HEADERS
    original = GOLDEN[name].container(tmp_path)
    if isinstance(original, bytes):
        assert found == original
        return
    loaded = cast("dict[str, Any]", found)
    if isinstance(original, Path):
        assert loaded["head"].data_ptr() == loaded["w"].data_ptr()
        assert (
            loaded["w"].numpy().tobytes() + loaded["b"].view(torch.uint8).numpy().tobytes()
            == ramp(30).tobytes()
        )
        return
    expected = cast("dict[str, Any]", original)
    exact = {entry.name for entry in checker.entries if entry.codec == {"name": "none"}}
    assert list(loaded) == list(expected)
    for entry, (name, value) in zip(checker.entries, expected.items(), strict=True):
        if not isinstance(value, np.ndarray | torch.Tensor):
            assert loaded[name] == value and type(loaded[name]) is type(value)
            continue
        assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
        error = abs(np.array(loaded[name].tolist(), complex) - np.array(value.tolist(), complex)).max(
            initial=0
        )
        assert error <= (0 if (entry.view.of if entry.view else name) in exact else 0.7)


def test_a_plain_body_is_written_as_it_always_was() -> None:
    """What the broker makes of curl's bytes."""
    body = b"hello, bus\n" * 3
    encoder = RawEncoder({"from": "curl"}, "text/plain", len(body))
    data = (
        encoder.open() + b"".join(head + payload for head, payload in encoder.slices(body)) + encoder.close()
    )
    assert data == kept("plain-body", data)
    assert decode(data)[1] == body


def test_every_golden_file_is_read() -> None:
    """No file lies there that no test looks at."""
    assert {path.stem for path in FOLDER.iterdir()} == {*GOLDEN, "plain-body"}
