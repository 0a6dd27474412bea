"""Updates at a broker, as reducers read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tensorbus.aggregator.bus_update import BusUpdate
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.exact import Exact
from tensorbus.aggregator.updates import Contribution, FoldingInterrupted, Update
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.item import Item
from tensorbus.errors import NotFound
from tensorbus.streaming.sources import ItemSource

RANDOM = np.random.default_rng(5)
MODEL = {
    "w": RANDOM.normal(size=(900, 700)).astype(np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "b": RANDOM.normal(size=33).astype(np.float16),
}


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncGenerator[Client]:
    """A client of a broker of its own."""
    async with running_broker(tmp_path / "data") as url, Client(url) as client:
        yield client


async def stored(bus: Client, container: object, codec: str | None = None) -> BusUpdate:
    """It, published and fetched."""
    return BusUpdate(await bus.fetch((await bus.publish("fl.updates", container, codec=codec)).id))


async def test_one_item_comes_without_the_rest(bus: Client) -> None:
    """Slice by slice, still encoded; a view has no slices of its own, and an empty tensor none at all."""
    update = await stored(bus, {**MODEL, "tied": MODEL["w"]}, "nf4")
    for name in ("w", "b", "empty"):
        alone = [(e.spec.name, e.offset, bytes(e.payload)) async for e in update.item_slices(name)]
        among = [(e.spec.name, e.offset, bytes(e.payload)) async for e in update.slices()]
        assert alone == [event for event in among if event[0] == name]
    for name, why in (("tied", "view of 'w'"), ("other", "no item 'other'")):
        with pytest.raises(NotFound, match=why):
            await anext(update.message.item_slices(name))


async def test_a_message_that_is_gone_interrupts(bus: Client) -> None:
    """The round is then taken up again from what is there."""
    update = await stored(bus, MODEL)
    await bus.delete(update.id)
    for slices in (update.slices(), update.item_slices("w")):
        with pytest.raises(FoldingInterrupted, match=update.id):
            await anext(slices)


def values(items: Sequence[Item]) -> list[bytes]:
    """Their bytes."""
    return [bytes(item.read(0, item.spec.count)) for item in items]


async def test_the_sums_of_a_region_come_over_the_broker_exactly(bus: Client) -> None:
    """Frames of 1 MiB cut 128-bit sums in two; the result is that of the updates themselves."""
    workspace = Workspace(lambda: Path("unused"), deterministic=True)
    model = await stored(bus, MODEL)
    sites = [
        await stored(bus, {name: value + value.dtype.type(step) for name, value in MODEL.items()}, "nf4")
        for step in range(3)
    ]
    flat, region, root = (Exact(Layout.of(model.manifest), workspace) for _ in range(3))

    async def find(base: str) -> Update:
        raise AssertionError(base)

    for reducer in (flat, region, root):
        await reducer.reset()
    for at, update in enumerate(sites):
        told = Contribution(update.id, f"s{at}", 1, 0.1 + at, "")
        await flat.add(update, told, lambda _: None)
        await (root if at == 1 else region).add(update, told, lambda _: None)
    sums = await stored(bus, ItemSource("numpy", region.partial()))
    await root.add(sums, Contribution(sums.id, "r", 1, 0.1 + 2.1, "", partial=True), lambda _: None)
    assert values(await root.close(model, find)) == values(await flat.close(model, find))
    for reducer in (flat, region, root):
        await reducer.aclose()
