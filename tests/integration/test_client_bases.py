"""Messages against a base that both ends have: what is sent, what comes back, and what is said without it."""

# safetensors leaves parts of its functions untyped.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.errors import MissingBase, NotFound, StorageError
from tensorbus.streaming.base_files import open_base

Arrays = dict[str, npt.NDArray[Any]]
TOPIC = "models.change"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A real broker."""
    async with running_broker(tmp_path / "broker") as address:
        yield address


def weights(seed: int = 0) -> Arrays:
    """What both ends have: one tensor of several slices, one of one, an integer."""
    random = np.random.default_rng(seed)
    return {
        "long": random.normal(size=(1500, 1000)).astype(np.float32),
        "small": random.normal(size=(30, 40)).astype(np.float32),
        "steps": np.arange(100),
    }


def tuned() -> Arrays:
    """The same after some training of the long one."""
    changed = weights()
    changed["long"] += 0.01 * np.random.default_rng(9).normal(size=changed["long"].shape).astype(np.float32)
    return changed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The weights as a file."""
    path = tmp_path / "weights.safetensors"
    save_file(weights(), path)
    return path


@pytest.mark.parametrize(
    "codec", ["delta | nf4", "delta | int8", "delta | none", "same | none", "same | nf4"]
)
async def test_a_change_comes_back_as_the_whole(url: str, file: Path, tmp_path: Path, codec: str) -> None:
    """In every way of reading, from a base that one end has as a file and the other in memory."""
    async with Client(url, bases=[file]) as sender, Client(url) as receiver:
        receiver.add_base(weights())
        receipt = await sender.publish(TOPIC, tuned(), codec=codec)
        message = await receiver.fetch(receipt.id)
        loaded = cast(Arrays, await message.load())
        error = np.abs(loaded["long"] - tuned()["long"]).mean()
        assert error <= {"delta | nf4": 0.002, "delta | int8": 0.0003, "same | nf4": 0.2}.get(codec, 1e-7)
        for name in ("small", "steps"):
            np.testing.assert_array_equal(loaded[name], weights()[name])  # not sent at all
        into = {name: np.empty_like(value) for name, value in loaded.items()}
        assert await message.load(into=into) is into
        await message.save(tmp_path / "got.safetensors")
        await message.save(tmp_path / "one.safetensors", item="long")
        whole = {item.name: item.value async for item in message.items()}
        one = {"long": (await message.item("long")).value}
        saved, saved_one = load_file(tmp_path / "got.safetensors"), load_file(tmp_path / "one.safetensors")
        for got in (into, saved, saved_one, whole, one):
            for name, value in got.items():
                np.testing.assert_array_equal(cast(Any, value), loaded[name])
        sums = np.zeros(loaded["long"].size, np.float32)
        async for event in message.slices():
            if event.spec.name == "long":
                assert event.codec.base == open_base(file).id
                part = sums[event.offset : event.offset + event.count]
                event.codec.accumulate(event.payload, event.offset, part, 1.0)
        np.testing.assert_allclose(sums, loaded["long"].ravel(), atol=1e-6)


async def test_what_equals_the_base_takes_no_payload(url: str, file: Path) -> None:
    """An unchanged model is little but its manifest, bit for bit the same at the other end."""
    async with Client(url, bases=[file]) as bus:
        for codec in ("delta | nf4", "same | none"):
            receipt = await bus.publish(TOPIC, file, codec=codec)
            assert receipt.bytes_on_wire < 3000 < receipt.bytes_original
            loaded = cast("dict[str, torch.Tensor]", await (await bus.fetch(receipt.id)).load())
            for name, value in weights().items():
                np.testing.assert_array_equal(loaded[name].numpy(), value)


async def test_a_message_is_followed_against_a_base(url: str, file: Path) -> None:
    """Also while it is still being published, when its manifest has not come yet."""
    async with Client(url, bases=[file]) as bus, bus.subscribe(TOPIC, follow=True, start="new") as deliveries:
        publishing = asyncio.create_task(bus.publish(TOPIC, tuned(), codec="delta | none"))
        delivery = await deliveries.receive(timeout=30)
        assert delivery is not None
        loaded = cast(Arrays, await delivery.load())
        np.testing.assert_allclose(loaded["long"], tuned()["long"], atol=1e-6)
        await publishing
        await delivery.ack()


async def test_without_the_base_the_error_says_which_one_it_is(url: str, file: Path, tmp_path: Path) -> None:
    """Nothing is written or overwritten; other bases do not help; what needs none can be read."""
    async with Client(url, bases=[file]) as sender:
        receipt = await sender.publish(TOPIC, tuned(), codec="delta | nf4")
    base_id = open_base(file).id
    for bases in ([], [weights(3)]):
        async with Client(url, bases=bases) as bus:
            message = await bus.fetch(receipt.id)
            into = weights(5)
            for reading in (
                message.load(),
                message.load(into=into),
                message.save(tmp_path / "no.safetensors"),
                message.item("long"),
                anext(message.items()),
            ):
                with pytest.raises(MissingBase, match=base_id):
                    await reading
            np.testing.assert_array_equal(into["long"], weights(5)["long"])
            assert not (tmp_path / "no.safetensors").exists()
            assert (await message.item("steps")).value is not None
            with pytest.raises(NotFound):
                await message.item("nothing")


async def test_which_base_is_meant(url: str, file: Path) -> None:
    """The one that is given, else the client's only one; with several or none, publishing says so."""
    async with Client(url) as bus:
        with pytest.raises(MissingBase, match="give base="):
            await bus.publish(TOPIC, tuned(), codec="delta | nf4")
        bus.add_base(weights(3))
        receipts = [await bus.publish(TOPIC, tuned(), codec="delta | nf4")]
        bus.add_base(file)
        with pytest.raises(MissingBase, match="give base="):
            await bus.publish(TOPIC, tuned(), codec="delta | nf4")
        receipts.append(await bus.publish(TOPIC, tuned(), codec="delta | nf4", base=file))
        receipts.append(await bus.publish(TOPIC, tuned(), codec="delta | nf4", base=weights()))
        given = open_base(file)
        pinned = {"stages": [{"name": "delta", "base": given.id}], "quantizer": {"name": "nf4"}, "keep": []}
        receipts.append(await bus.publish(TOPIC, tuned(), codec=pinned))
        ids: list[object] = []
        for receipt in receipts:
            stages = cast("list[dict[str, object]]", (await bus.message(receipt.id)).pipeline["stages"])
            ids.append(stages[0]["base"])
            assert await (await bus.fetch(receipt.id)).load()
    assert ids == [open_base(weights(3)).id, *([given.id] * 3)]


async def test_a_base_is_opened_when_it_is_needed(url: str, tmp_path: Path) -> None:
    """A client whose messages need none never looks at it; one that does says that it cannot be read."""
    async with Client(url, bases=[tmp_path / "missing.safetensors"]) as bus:
        receipt = await bus.publish(TOPIC, tuned(), codec="nf4")
        assert await (await bus.fetch(receipt.id)).load()
        with pytest.raises(StorageError, match="missing"):
            await bus.publish(TOPIC, tuned(), codec="delta | nf4")


async def test_torch_models_with_tied_tensors_against_a_file(url: str, tmp_path: Path) -> None:
    """A state_dict that names a tied tensor twice is a change from a file that has it once."""
    from safetensors.torch import save_model

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(300, 64, dtype=torch.bfloat16)
            self.head = torch.nn.Linear(64, 300, bias=False, dtype=torch.bfloat16)
            self.head.weight = self.embed.weight

    model = Net()
    save_model(model, str(tmp_path / "net.safetensors"))
    with torch.no_grad():
        model.embed.weight += 0.25
    async with Client(url, bases=[tmp_path / "net.safetensors"]) as bus:
        receipt = await bus.publish(TOPIC, model, codec="delta | int8")
        assert receipt.bytes_on_wire < 300 * 64 * 1.2
        got = Net()
        await (await bus.fetch(receipt.id)).load(into=got)
    assert got.embed.weight.data_ptr() == got.head.weight.data_ptr()
    assert torch.allclose(got.embed.weight, model.embed.weight, atol=0.02)
