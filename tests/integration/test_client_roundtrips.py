"""What is published comes back: every kind of container, every codec, through a real broker."""

# torch and safetensors leave parts of these functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import Item, ItemSpec

LOSSY = {"fp16": 1e-3, "bf16": 8e-3, "int8": 3e-2, "fp4": 0.2, "nf4": 0.13, "nf4-dq": 0.14}
"""Codecs, with the relative error (root mean square) that normal values may come back with."""

Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncGenerator[Client]:
    """A client of a broker of its own."""
    async with running_broker(tmp_path / "data") as url, Client(url) as client:
        yield client


async def _back(
    bus: Client, container: object, codec: str | None = None, keep: tuple[str, ...] = ()
) -> object:
    receipt = await bus.publish("models.test", container, codec=codec, keep=keep)
    return await (await bus.fetch(receipt.id)).load()


def _relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (got.double() - expected.double()).norm() / expected.double().norm()
    return float(difference)


def _state_dict() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "embedding": torch.randn(300, 1001),
        "norm.weight": torch.rand(257),
        "half": torch.randn(64, 64).half(),
        "brain": torch.randn(64, 64).bfloat16(),
        "steps": torch.arange(-5, 5),
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 7),
        "transposed": torch.randn(33, 65).T,
        "byte": torch.arange(256, dtype=torch.uint8),
    }


async def test_torch_comes_back_bit_for_bit(bus: Client) -> None:
    """Without a codec, a state_dict of every sort of tensor arrives with the same names, order and bits."""
    sent = _state_dict()
    got = cast("dict[str, torch.Tensor]", await _back(bus, sent))
    assert list(got) == list(sent)
    for name, tensor in sent.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)


@pytest.mark.parametrize("codec", LOSSY)
async def test_torch_comes_back_within_the_codecs_error(bus: Client, codec: str) -> None:
    """A quantised state_dict has its original dtypes back, floats within the error, everything else exact."""
    sent = _state_dict()
    got = cast("dict[str, torch.Tensor]", await _back(bus, sent, codec, keep=("norm*",)))
    for name, tensor in sent.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        if name in ("embedding", "transposed"):
            assert 0 < _relative_error(got[name], tensor) < LOSSY[codec]
        elif name not in ("half", "brain"):
            assert torch.equal(got[name], tensor)
    if codec in ("fp16", "bf16"):
        assert torch.equal(got["half"], sent["half"])
        assert torch.equal(got["brain"], sent["brain"])


async def test_bf16_is_exact(bus: Client) -> None:
    """Every bfloat16 bit pattern that is a number survives, in torch as in a safetensors file."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    got = cast("dict[str, torch.Tensor]", await _back(bus, {"w": patterns}))
    assert torch.equal(got["w"].view(torch.int16), patterns.view(torch.int16))


async def test_tied_tensors_arrive_shared(bus: Client) -> None:
    """A tied head and a slice of the same storage are sent once and share storage on arrival."""
    weight = torch.randn(100, 64)
    sent = {"embed": weight, "head": weight, "rows": weight[10:20]}
    receipt = await bus.publish("models.test", sent)
    assert receipt.bytes_original == weight.nbytes
    assert receipt.bytes_on_wire < weight.nbytes + 4096
    message = await bus.fetch(receipt.id)
    got = cast("dict[str, torch.Tensor]", await message.load())
    assert got["embed"].data_ptr() == got["head"].data_ptr()
    assert got["rows"].untyped_storage().data_ptr() == got["embed"].untyped_storage().data_ptr()
    one_by_one = {item.name: cast("torch.Tensor", item.value) async for item in message.items()}
    assert one_by_one["head"].data_ptr() == one_by_one["embed"].data_ptr()
    assert torch.equal(one_by_one["rows"], weight[10:20])
    assert torch.equal(cast("torch.Tensor", (await message.item("rows")).value), weight[10:20])


async def test_modules_are_published_and_loaded_in_place(bus: Client) -> None:
    """A Module is published as its state_dict, and another one is overwritten in place."""
    sent, target = torch.nn.Linear(20, 30), torch.nn.Linear(20, 30)
    where = target.weight.data_ptr()
    receipt = await bus.publish("models.test", sent)
    assert await (await bus.fetch(receipt.id)).load(into=target) is target
    assert target.weight.data_ptr() == where
    assert torch.equal(target.weight, sent.weight)


@pytest.mark.parametrize("codec", [None, *LOSSY])
async def test_numpy_comes_back(bus: Client, codec: str | None) -> None:
    """A dict of numpy arrays with scalars and bytes among them comes back as such."""
    sent: dict[str, object] = {
        "w": np.random.default_rng(0).standard_normal((130, 70)).astype(np.float32),
        "i": np.arange(10, dtype=np.int16),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)).astype(np.int64),
        "n": 3,
        "text": "ü",
        "nothing": None,
        "raw": b"\0\1",
    }
    got = cast("dict[str, object]", await _back(bus, sent, codec))
    for name, value in sent.items():
        if not isinstance(value, np.ndarray):
            assert got[name] == value
            continue
        array, expected = cast("npt.NDArray[np.generic]", got[name]), cast("npt.NDArray[np.generic]", value)
        assert array.dtype == expected.dtype
        if codec is None or name != "w":
            assert np.array_equal(array, expected)
        else:
            assert _relative_error(torch.from_numpy(array), torch.from_numpy(expected)) < LOSSY[codec]


async def test_bytes_come_back(bus: Client, tmp_path: Path) -> None:
    """A byte string comes back as one, from memory and into a file, whatever its size."""
    for data in (b"", b"x", np.random.default_rng(0).bytes(3_000_001)):
        receipt = await bus.publish("notes.test", data)
        message = await bus.fetch(receipt.id)
        assert await message.load() == data
        await message.save(tmp_path / "out.bin")
        assert (tmp_path / "out.bin").read_bytes() == data


@pytest.mark.parametrize("codec", [None, "nf4"])
async def test_safetensors_files_come_back(bus: Client, tmp_path: Path, codec: str | None) -> None:
    """A safetensors file is published by its path and written to another, which safetensors itself reads."""
    arrays: Arrays = {
        "w": np.random.default_rng(1).standard_normal((500, 333)).astype(np.float32),
        "b": np.arange(7, dtype=np.int32),
        "e": np.zeros((0, 4), np.float32),
    }
    save_file(arrays, tmp_path / "in.safetensors", metadata={"made": "here"})
    receipt = await bus.publish("models.test", tmp_path / "in.safetensors", codec=codec)
    message = await bus.fetch(receipt.id)
    assert message.info.container == "safetensors"
    await message.save(tmp_path / "out.safetensors")
    got = load_file(tmp_path / "out.safetensors")
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype
        if codec is None or name != "w":
            assert np.array_equal(got[name], array)
    loaded = cast("dict[str, torch.Tensor]", await message.load())
    assert torch.equal(loaded["w"], torch.from_numpy(got["w"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "in.safetensors", "out.safetensors"]


async def test_one_item_is_fetched_by_name(bus: Client, tmp_path: Path) -> None:
    """One tensor of a message is had without the others, as a value and as a file."""
    sent = {"a/b c": torch.randn(1000, 700), "other": torch.randn(2, 2), "none": torch.empty(0)}
    receipt = await bus.publish("models.test", sent, codec="bf16")
    message = await bus.fetch(receipt.id)
    item = await message.item("a/b c")
    assert torch.equal(cast("torch.Tensor", item.value), sent["a/b c"].bfloat16().float())
    assert cast("torch.Tensor", (await message.item("none")).value).shape == (0,)
    await message.save(tmp_path / "one.safetensors", item="a/b c")
    got = load_file(tmp_path / "one.safetensors")
    assert list(got) == ["a/b c"]
    assert np.array_equal(got["a/b c"], cast("torch.Tensor", item.value).numpy())


class _Counting(Item):
    """An item that is computed when it is read."""

    def __init__(self, name: str, count: int) -> None:
        self.spec = ItemSpec(name, dtype("int64"), (count,))

    def read(self, offset: int, count: int) -> memoryview:
        return np.arange(offset, offset + count).view(np.uint8).data


async def test_items_can_be_published_as_they_are(bus: Client) -> None:
    """A sequence of Items, read slice by slice, arrives as numpy arrays."""
    got = cast(
        "Mapping[str, npt.NDArray[np.int64]]", await _back(bus, [_Counting("a", 400_000), _Counting("b", 3)])
    )
    assert np.array_equal(got["a"], np.arange(400_000))
    assert np.array_equal(got["b"], np.arange(3))


async def test_slices_decode_and_accumulate_on_their_own(bus: Client) -> None:
    """The raw slices of a message cover each item once, and fold into an accumulator."""
    sent = {"w": torch.randn(700, 1000), "b": torch.randn(5)}
    receipt = await bus.publish("models.test", sent, codec="nf4")
    message = await bus.fetch(receipt.id)
    folded = {name: np.zeros(tensor.numel(), np.float32) for name, tensor in sent.items()}
    async for event in message.slices():
        part = folded[event.spec.name][event.offset : event.offset + event.count]
        event.codec.accumulate(event.payload, event.offset, part, 2.0)
    loaded = cast("dict[str, torch.Tensor]", await message.load())
    for name, tensor in loaded.items():
        assert np.allclose(folded[name], 2 * tensor.numpy().ravel())
