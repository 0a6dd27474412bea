"""Bad input and half-done work: a clear error of the right class, and nothing is left behind."""

# safetensors leaves parts of its functions untyped.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from tensorbus.bus.broker import BrokerSettings
from tensorbus.bus.client import Client, ClientSettings, Progress
from tensorbus.bus.messages import HeaderValue
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.quantizers.bf16 import BF16
from tensorbus.errors import (
    InvalidName,
    InvalidRequest,
    InvalidSpecification,
    LimitExceeded,
    ManifestMismatch,
    NonFiniteValues,
    NotFound,
    StorageError,
    TensorbusError,
    UnknownCodec,
    UnsupportedContainer,
)

LARGE = {"w": torch.randn(2000, 1500)}


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncGenerator[Client]:
    """A client of a broker of its own."""
    settings = ClientSettings(retry_for=2.0)
    async with running_broker(tmp_path / "data") as url, Client(url, settings=settings) as client:
        yield client


async def _nothing_stored(bus: Client, tmp_path: Path) -> bool:
    """Nothing was ever sealed, and the broker drops the half once it notices that its publisher is gone."""
    async with asyncio.timeout(5):
        while any((tmp_path / "data" / "frames").iterdir()):
            await asyncio.sleep(0.01)
    return await bus.topics() == []


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        ("fp16", float("nan")),
        ("bf16", float("inf")),
        ("int8", float("-inf")),
        ("fp4", float("nan")),
        ("nf4", float("inf")),
        ("nf4-dq", float("-inf")),
    ],
)
async def test_values_that_are_no_numbers_are_refused(
    bus: Client, tmp_path: Path, codec: str, value: float
) -> None:
    """NaN or Inf in a tensor to be quantised: the error names it, and the broker has nothing of it."""
    bad = torch.zeros(1_500_000)
    bad[-1] = value
    with pytest.raises(NonFiniteValues, match="layer_bad"):
        await bus.publish("models.bad", {"fine": torch.randn(2_000_000), "layer_bad": bad}, codec=codec)
    assert await _nothing_stored(bus, tmp_path)


async def test_without_a_codec_they_are_values_like_any_other(bus: Client) -> None:
    """Sent exactly, NaN and Inf arrive as they are."""
    receipt = await bus.publish("models.nan", {"w": np.array([np.nan, np.inf, 1.0])})
    got = cast("dict[str, npt.NDArray[np.float64]]", await (await bus.fetch(receipt.id)).load())
    assert np.array_equal(got["w"], [np.nan, np.inf, 1.0], equal_nan=True)


async def test_clipped_values_are_counted(bus: Client) -> None:
    """fp16 clips at its largest finite value, and the receipt says where and how often."""
    receipt = await bus.publish(
        "models.clip", {"w": torch.tensor([1e6, -1e6, 1.0]), "b": torch.ones(3)}, codec="fp16"
    )
    assert receipt.clipped == {"w": 2}
    got = cast("dict[str, torch.Tensor]", await (await bus.fetch(receipt.id)).load())
    assert torch.equal(got["w"], torch.tensor([65504.0, -65504.0, 1.0]))


@pytest.mark.parametrize("topic", ["", "a..b", "..", "a.*", "a\0b", "x" * 10_000, "ü"])
async def test_malformed_topics_are_refused(bus: Client, topic: str) -> None:
    """A topic is judged before anything is sent."""
    with pytest.raises(InvalidName):
        await bus.publish(topic, b"1")


@pytest.mark.parametrize("name", ["", "..", "a\0b", "x" * 10_000])
async def test_malformed_item_names_are_refused(bus: Client, tmp_path: Path, name: str) -> None:
    """An item's name is judged before anything is sent."""
    with pytest.raises(TensorbusError) as caught:
        await bus.publish("models.names", {name: torch.zeros(1)})
    assert caught.value.status == 400
    assert await _nothing_stored(bus, tmp_path)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"a": [1]}, InvalidRequest),
        ({"a": float("nan")}, InvalidRequest),
        ({str(number): number for number in range(65)}, LimitExceeded),
        ({"a": "x" * 20_000}, LimitExceeded),
    ],
)
async def test_malformed_headers_are_refused(
    bus: Client, headers: dict[str, HeaderValue], error: type[TensorbusError]
) -> None:
    """Headers are few, small and plain."""
    with pytest.raises(error):
        await bus.publish("models.headers", b"1", headers=headers)


async def test_malformed_codecs_are_refused(bus: Client) -> None:
    """A codec that is not installed, or takes no such parameter, is named."""
    with pytest.raises(UnknownCodec, match="nf5"):
        await bus.publish("models.codec", LARGE, codec="nf5")
    with pytest.raises(InvalidSpecification):
        await bus.publish("models.codec", LARGE, codec="nf4:speed=9")
    with pytest.raises(InvalidSpecification):
        await bus.publish("models.codec", LARGE, codec={"quantiser": "nf4"})


async def test_unknown_containers_are_refused(bus: Client, tmp_path: Path) -> None:
    """What is no container is named by its type; a file that is missing by its path."""
    with pytest.raises(UnsupportedContainer, match="object"):
        await bus.publish("models.what", object())
    with pytest.raises(UnsupportedContainer, match="nested"):
        await bus.publish("models.what", {"w": torch.zeros(2), "nested": {"x": torch.zeros(1)}})
    with pytest.raises(StorageError, match=r"gone\.safetensors"):
        await bus.publish("models.what", tmp_path / "gone.safetensors")


class Unpredictable(BF16):
    """A codec whose output size is known only afterwards; bodies are then sent in chunks of HTTP."""

    name = "unpredictable"
    fixed_size = False


async def test_a_body_of_unknown_size_is_stored(bus: Client) -> None:
    """A codec that decides its size as it goes needs no Content-Length."""
    told: list[Progress] = []
    receipt = await bus.publish(
        "models.chunked", LARGE, codec=Pipeline(Unpredictable()), progress=told.append
    )
    assert told[0].total_on_wire is None
    assert told[-1].total_on_wire == receipt.bytes_on_wire
    info = await bus.message(receipt.id)
    assert (info.bytes, info.state) == (receipt.bytes_on_wire, "sealed")


async def test_a_refusal_in_the_midst_of_a_body_is_heard(tmp_path: Path) -> None:
    """The broker stops reading at its limit: its answer arrives, not just a broken connection."""
    limits = BrokerSettings(max_message_bytes=5_000_000)
    async with running_broker(tmp_path / "data", limits) as url, Client(url) as bus:
        for codec in (Pipeline(Unpredictable()), None):
            with pytest.raises(LimitExceeded, match="5000000"):
                await bus.publish("models.chunked", LARGE, codec=codec)
        assert await _nothing_stored(bus, tmp_path)


async def test_a_file_that_shrinks_is_the_publishers_error(bus: Client, tmp_path: Path) -> None:
    """A file that is cut off while it is published ends the publish, which is not tried again."""
    path = tmp_path / "in.safetensors"
    save_file({"w": torch.randn(3000, 2000)}, path)

    def cut(progress: Progress) -> None:
        if progress.bytes_on_wire > 5_000_000:
            os.truncate(path, 10_000_000)

    with pytest.raises(StorageError, match=r"in\.safetensors"):
        await bus.publish("models.file", path, progress=cut)
    assert await _nothing_stored(bus, tmp_path)


async def test_a_url_is_judged_at_once() -> None:
    """A URL of another scheme is refused with an example, one with a password without repeating it."""
    with pytest.raises(InvalidRequest, match="token") as caught:
        Client("http://me:secret@host")
    assert "secret" not in str(caught.value)
    for url in ("", "127.0.0.1:8080", "ftp://host", "http://"):
        with pytest.raises(InvalidRequest, match="http://127"):
            Client(url)


async def test_unknown_ids_are_not_found(bus: Client) -> None:
    """An id that does not exist is NotFound, one that is none is InvalidName."""
    with pytest.raises(NotFound):
        await bus.fetch("0" * 32)
    with pytest.raises(NotFound):
        await bus.delete("0" * 32)
    with pytest.raises(InvalidName):
        await bus.fetch("../etc/passwd")
    with pytest.raises(NotFound):
        await bus.delete_consumer("nobody")


async def test_an_unknown_item_is_not_found(bus: Client, tmp_path: Path) -> None:
    """A message without the item wanted says so, and writes nothing."""
    message = await bus.fetch((await bus.publish("models.item", LARGE)).id)
    with pytest.raises(NotFound, match="'v'"):
        await message.item("v")
    with pytest.raises(NotFound, match="'v'"):
        await message.save(tmp_path / "v.safetensors", item="v")
    assert not list(tmp_path.glob("v*"))


async def test_loading_into_another_shape_is_refused(bus: Client) -> None:
    """A container that does not fit is left alone, and the mismatch is named."""
    message = await bus.fetch((await bus.publish("models.into", LARGE)).id)
    target = {"w": torch.zeros(3, 4)}
    with pytest.raises(ManifestMismatch, match="'w'"):
        await message.load(into=target)
    with pytest.raises(ManifestMismatch, match="'w'"):
        await message.load(into={"w": torch.zeros(2000, 1500, dtype=torch.float64)})
    with pytest.raises(ManifestMismatch):
        await message.load(into={**target, "more": torch.zeros(1)})
    assert torch.equal(target["w"], torch.zeros(3, 4))


@pytest.mark.parametrize("name", ["out.safetensors", "out.bin"])
async def test_a_save_that_is_cancelled_leaves_nothing(bus: Client, tmp_path: Path, name: str) -> None:
    """A half-written file disappears, and one that was there before stays as it was."""
    container = LARGE if name.endswith("safetensors") else np.random.default_rng(0).bytes(12_000_000)
    message = await bus.fetch((await bus.publish("models.save", container)).id)
    target = tmp_path / name
    target.write_bytes(b"before")
    half = asyncio.Event()

    async def stop(progress: Progress) -> None:
        if progress.bytes_original > 6_000_000:
            half.set()
            await asyncio.Event().wait()

    saving = asyncio.create_task(message.save(target, progress=stop))
    await half.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["data", name])


async def test_a_save_that_fails_leaves_nothing(bus: Client, tmp_path: Path) -> None:
    """What a safetensors file cannot hold, or a folder that is not there: a clear error, no file."""
    message = await bus.fetch((await bus.publish("models.save", {"w": np.zeros(3), "note": "text"})).id)
    with pytest.raises(TensorbusError, match="note"):
        await message.save(tmp_path / "out.safetensors")
    with pytest.raises(StorageError, match="nowhere"):
        await message.save(tmp_path / "nowhere" / "out.safetensors", item="w")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


async def test_a_callback_that_raises_ends_the_publish(bus: Client, tmp_path: Path) -> None:
    """An error in the progress callback is the caller's own, and nothing is stored."""

    def fail(progress: Progress) -> None:
        if progress.bytes_on_wire > 5_000_000:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await bus.publish("models.callback", LARGE, progress=fail)
    assert await _nothing_stored(bus, tmp_path)


async def test_progress_is_monotone_and_ends_at_the_totals(bus: Client) -> None:
    """Both ways, progress only grows, names the item, and ends where the receipt says."""
    container = {f"layer.{number}": torch.randn(700, 1000) for number in range(4)}
    for codec in (None, "nf4"):
        up: list[Progress] = []
        down: list[Progress] = []

        async def listen(progress: Progress, told: list[Progress] = down) -> None:
            await asyncio.sleep(0)
            told.append(progress)

        receipt = await bus.publish("models.progress", container, codec=codec, progress=up.append)
        await (await bus.fetch(receipt.id)).load(progress=listen)
        total = sum(tensor.nbytes for tensor in container.values())
        for told in (up, down):
            assert len(told) > 2
            assert {one.item for one in told} - {None} <= set(container)
            for before, after in pairwise(told):
                assert before.bytes_on_wire <= after.bytes_on_wire
                assert before.bytes_original <= after.bytes_original
            assert all(one.total_original == total for one in told)
            assert told[-1] == Progress(receipt.bytes_on_wire, receipt.bytes_on_wire, total, total, None)


async def test_listing_pages_through_everything(bus: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are listed by topic filter, in both orders, over more than one page."""
    ids = [(await bus.publish(f"list.{number % 2}", b"")).id for number in range(7)]
    monkeypatch.setattr("tensorbus.bus.client.client.PAGE", 3)
    assert [info.id async for info in bus.messages()] == ids
    assert [info.id async for info in bus.messages("list.0")] == ids[::2]
    assert [info.id async for info in bus.messages(newest_first=True)] == ids[::-1]
    assert [info.id async for info in bus.messages(after=5)] == ids[5:]
    topics = await bus.topics()
    assert [(topic.topic, topic.messages) for topic in topics] == [("list.0", 4), ("list.1", 3)]
