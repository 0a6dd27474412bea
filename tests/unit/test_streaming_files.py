"""Promises about safetensors files: published and received slice by slice, and whole or not at all."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (Parts of torch and safetensors have no annotations.)

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from tensorbus.codecs.base import Sink
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import (
    CodecError,
    LimitExceeded,
    ManifestMismatch,
    StorageError,
    StorageFull,
    TensorbusError,
    TruncatedFrames,
    UnsupportedContainer,
    UnsupportedDtype,
)
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.byte_files import BytesFileSink, BytesFileSource
from tensorbus.streaming.container import ContainerDecoder, ContainerEncoder
from tensorbus.streaming.files import SafetensorsSink, SafetensorsSource
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.headers import Envelope
from tensorbus.streaming.part_file import PartFile
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.sinks import open_sink
from tensorbus.streaming.sources import open_source

State = dict[str, torch.Tensor]


def state() -> State:
    """Several dtypes and shapes."""
    torch.manual_seed(3)
    return {
        "model.embed": torch.randn(700, 900),
        "model.bf16": torch.randn(31, 7).bfloat16(),
        "model.fp8": torch.randn(16).to(torch.float8_e4m3fn),
        "model.ids": torch.arange(7),
        "model.mask": torch.tensor([True, False]),
        "model.scalar": torch.tensor(2.5),
        "model.empty": torch.empty(0, 4),
    }


def encode(container: object, codec: str | None = None) -> bytes:
    """The whole message; its size was known before."""
    source = open_source(container)
    encoder = ContainerEncoder(source, Pipeline.parse(codec), {})
    pool = BufferPool(1)
    data = b""
    for frame in encoder.frames(pool.acquire):
        data += frame.head + frame.payload
        if frame.buffer is not None:
            pool.release(frame.buffer)
    source.close()
    assert len(data) == encoder.wire_bytes
    return data


def receive(data: bytes, make_sink: Callable[[Envelope], Sink]) -> object:
    """What the sink makes of the message; it is told when that fails."""
    parser, checker = FrameParser(), MessageChecker()
    decoder = ContainerDecoder(checker, make_sink)
    try:
        for at in range(0, len(data), 70_001):
            for frame in parser.feed(data[at : at + 70_001]):
                checker.accept(frame)
                decoder.accept(frame)
        return decoder.finish()
    except TensorbusError:
        decoder.abort()
        raise


def save(data: bytes, path: Path) -> object:
    """The message as a file at ``path``."""
    return receive(data, lambda envelope: SafetensorsSink(path, envelope.metadata))


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Same names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(
            found[name].view(torch.uint8) if tensor.dim() else found[name],
            tensor.view(torch.uint8) if tensor.dim() else tensor,
        )


def test_a_file_arrives_as_a_file(tmp_path: Path) -> None:
    """What safetensors wrote is published from the file; what is received, safetensors reads."""
    save_file(state(), tmp_path / "a.safetensors", {"format": "pt", "note": "ünïcode"})
    data = encode(tmp_path / "a.safetensors")
    assert save(data, tmp_path / "b.safetensors") == tmp_path / "b.safetensors"
    assert_equal(load_file(tmp_path / "b.safetensors"), state())
    source = SafetensorsSource(tmp_path / "b.safetensors")
    assert source.metadata == {"format": "pt", "note": "ünïcode"}
    source.close()
    assert names(tmp_path) == ["a.safetensors", "b.safetensors"]


def names(folder: Path) -> list[str]:
    """Of all files in the folder."""
    return sorted(path.name for path in folder.iterdir())


def open_files() -> int:
    """Descriptors that this process holds; 0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def test_a_file_arrives_in_memory_and_the_other_way(tmp_path: Path) -> None:
    """The kind of container at one end says nothing about the other."""
    save_file(state(), tmp_path / "a.safetensors")
    loaded = receive(encode(str(tmp_path / "a.safetensors")), open_sink)
    assert isinstance(loaded, dict)
    assert_equal(loaded, state())
    save(encode(state()), tmp_path / "b.safetensors")
    assert_equal(load_file(tmp_path / "b.safetensors"), state())


def test_a_quantised_file_arrives_at_full_precision(tmp_path: Path) -> None:
    """nf4 on the wire, float32 in both files, and the same values as from memory."""
    save_file(state(), tmp_path / "a.safetensors")
    from_file, from_memory = encode(tmp_path / "a.safetensors", "nf4"), encode(state(), "nf4")
    save(from_file, tmp_path / "b.safetensors")
    save(from_memory, tmp_path / "c.safetensors")
    found = load_file(tmp_path / "b.safetensors")
    assert_equal(found, load_file(tmp_path / "c.safetensors"))
    assert found["model.embed"].dtype == torch.float32
    assert 0 < (found["model.embed"] - state()["model.embed"]).abs().mean() < 0.1


class Tied(torch.nn.Module):
    """A model with a tied output head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 5)
        self.head = torch.nn.Linear(5, 11, bias=False)
        self.head.weight = self.embed.weight


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    """Sent once and written once, as save_model does it; load_model reads it, and so do we."""
    model = Tied()
    save_model(model, str(tmp_path / "a.safetensors"))
    for container in (model, tmp_path / "a.safetensors"):
        data = encode(container)
        assert len(data) < 11 * 5 * 4 + 1000
        save(data, tmp_path / "b.safetensors")
        again = Tied()
        load_model(again, str(tmp_path / "b.safetensors"))
        assert torch.equal(again.head.weight, model.head.weight)
        loaded = receive(encode(tmp_path / "b.safetensors"), open_sink)
        assert isinstance(loaded, dict)
        assert loaded["head.weight"].data_ptr() == loaded["embed.weight"].data_ptr()


def test_a_part_of_a_tensor_becomes_a_tensor(tmp_path: Path) -> None:
    """The format cannot share parts: a contiguous one is written out, a strided one is refused by name."""
    base = torch.randn(600, 1000)
    save(encode({"rows": base[100:400], "base": base}), tmp_path / "a.safetensors")
    assert_equal(load_file(tmp_path / "a.safetensors"), {"base": base, "rows": base[100:400]})
    with pytest.raises(UnsupportedContainer, match="'turned' is a strided view of 'base'"):
        save(encode({"base": base, "turned": base.T}), tmp_path / "b.safetensors")
    assert names(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("container", "error", "text"),
    [
        ({"w": torch.ones(3), "epoch": 3}, UnsupportedContainer, "'epoch' is a scalar"),
        ({"w": torch.ones(3), "blob": b"x"}, UnsupportedContainer, "'blob' is a bytes"),
        ({"w": torch.ones(3, dtype=torch.complex128)}, UnsupportedDtype, "'w' is complex128"),
        (b"just bytes", UnsupportedContainer, "'body'"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, container: object, error: type[TensorbusError], text: str
) -> None:
    """Before anything is written, and naming the item."""
    with pytest.raises(error, match=text):
        save(encode(container), tmp_path / "a.safetensors")
    assert names(tmp_path) == []


def test_a_message_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Half a message: no file, no part of one, and what was there before is untouched."""
    (tmp_path / "a.safetensors").write_bytes(b"before")
    data = encode(state())
    with pytest.raises(TruncatedFrames):
        save(data[: len(data) // 2], tmp_path / "a.safetensors")
    assert names(tmp_path) == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == b"before"
    save(data, tmp_path / "a.safetensors")
    assert_equal(load_file(tmp_path / "a.safetensors"), state())


def test_an_empty_container_is_a_file(tmp_path: Path) -> None:
    """A state_dict without tensors is a header."""
    save(encode({}), tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors") == {}


def test_values_come_before_the_manifest_is_complete(tmp_path: Path) -> None:
    """A message that declares items as it goes cannot be written in place, and says so."""
    sink = SafetensorsSink(tmp_path / "a.safetensors")
    specs = [item.spec for item in open_source(state()).items()]
    sink.begin(specs[0])
    sink.buffer(specs[0], 0, 1)
    with pytest.raises(ManifestMismatch, match=f"'{specs[1].name}' is announced after values"):
        sink.begin(specs[1])
    sink.abort()
    assert names(tmp_path) == []


def header(table: object, tail: bytes = b"") -> bytes:
    """A file by hand."""
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + tail


DAMAGED: dict[str, tuple[bytes, type[TensorbusError]]] = {
    "empty": (b"", CodecError),
    "seven bytes": (b"\1" * 7, CodecError),
    "a header of 2^63 bytes": ((2**63).to_bytes(8, "little") + b"{}", LimitExceeded),
    "a header longer than the file": ((1000).to_bytes(8, "little") + b"{}", CodecError),
    "no JSON": ((4).to_bytes(8, "little") + b"\xff\xff\xff\xff", CodecError),
    "values that are missing": (
        header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        CodecError,
    ),
    "values that nobody named": (header({}, b"1234"), CodecError),
    "a shape of 2^63": (
        header({"w": {"dtype": "F32", "shape": [2**63], "data_offsets": [0, 8]}}, bytes(8)),
        CodecError,
    ),
    "an unknown dtype": (
        header({"w": {"dtype": "F7", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
        UnsupportedDtype,
    ),
    "a name that is a path": (
        header({"../w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
        TensorbusError,
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused(tmp_path: Path, case: str) -> None:
    """Naming the file, and holding nothing open."""
    data, error = DAMAGED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    before = open_files()
    with pytest.raises(error, match=r"bad\.safetensors"):
        open_source(path)
    assert open_files() == before


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a directory, or cut short while it is being published."""
    with pytest.raises(StorageError, match=r"nowhere\.safetensors.*No such file"):
        open_source(tmp_path / "nowhere.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(TensorbusError, match=r"folder\.safetensors"):
        open_source(tmp_path / "folder.safetensors")
    path = tmp_path / "a.safetensors"
    save_file(state(), path)
    source = open_source(path)
    encoder = ContainerEncoder(source, Pipeline.parse("int8"), {})
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(StorageError, match=r"item 'model\..*a\.safetensors.*ends at byte"):
        for _ in encoder.frames(lambda: memoryview(bytearray(1 << 20))):
            pass
    source.close()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A folder that does not exist is StorageError, a file larger than the disk StorageFull; none stays."""
    with pytest.raises(StorageError, match="nowhere"):
        save(encode(state()), tmp_path / "nowhere" / "a.safetensors")
    free = os.statvfs(tmp_path)
    with pytest.raises(StorageFull, match="huge") as caught:
        PartFile(tmp_path / "huge", min(2 * free.f_blocks * free.f_frsize, 2**62))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.ENOSPC, errno.EFBIG)
    assert names(tmp_path) == []


def test_any_file_is_a_byte_string(tmp_path: Path) -> None:
    """A file that is no safetensors is published and received as its bytes, never loaded."""
    content = os.urandom(2_500_000)
    (tmp_path / "in.bin").write_bytes(content)
    data = encode(BytesFileSource(tmp_path / "in.bin"))
    assert receive(data, lambda _: BytesFileSink(tmp_path / "out.bin")) == tmp_path / "out.bin"
    assert (tmp_path / "out.bin").read_bytes() == content
    assert receive(data, open_sink) == content
    for container in ({"w": torch.ones(2)}, {}):
        with pytest.raises(UnsupportedContainer):
            receive(encode(container), lambda _: BytesFileSink(tmp_path / "other.bin"))
    assert names(tmp_path) == ["in.bin", "out.bin"]
