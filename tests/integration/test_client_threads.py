"""Publishing with several threads: what is sent is the same, and a publish that ends leaves none behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from tensorbus.bus.client import Client, ClientSettings, Progress
from tensorbus.bus.testing import running_broker
from tensorbus.errors import ClientClosed, NonFiniteValues

CONTAINER = {f"layer{index}": np.full(3_000_000, index + 0.5, np.float32) for index in range(12)}


def workers() -> list[str]:
    """The threads that encode ahead."""
    return [one.name for one in threading.enumerate() if one.name.startswith("tensorbus-ahead")]


async def test_every_number_of_threads_publishes_the_same_message(tmp_path: Path) -> None:
    """The broker's digest over all frames is the same; and no thread stays when the message is stored."""
    digests: set[str] = set()
    async with running_broker(tmp_path / "data") as url:
        for threads in (1, 2, 4):
            async with Client(url, settings=ClientSettings(threads=threads)) as bus:
                receipt = await bus.publish("models.test", CONTAINER, codec="nf4")
                digests.add(receipt.digest)
                assert not workers()
    assert len(digests) == 1


@pytest.mark.parametrize("codec", [None, "bf16", "nf4"])
async def test_a_cancelled_publish_leaves_no_thread(tmp_path: Path, codec: str | None) -> None:
    """When the cancelled call returns, no thread reads the container any more; for exact values none does."""
    begun = asyncio.Event()

    async def wait_for_ever(progress: Progress) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with (
        running_broker(tmp_path / "data") as url,
        Client(url, settings=ClientSettings(threads=3)) as bus,
    ):
        publishing = asyncio.create_task(
            bus.publish("models.test", CONTAINER, codec=codec, progress=wait_for_ever)
        )
        await begun.wait()
        assert bool(workers()) is (codec is not None)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        assert not workers()
        assert [info async for info in bus.messages()] == []


async def test_a_publish_of_a_closed_client_leaves_no_thread(tmp_path: Path) -> None:
    """Closing the client ends what its calls had under way, and they say so."""
    begun, closed = asyncio.Event(), asyncio.Event()

    async def wait_for_close(progress: Progress) -> None:
        begun.set()
        await closed.wait()

    async with running_broker(tmp_path / "data") as url:
        bus = Client(url, settings=ClientSettings(threads=3))
        publishing = asyncio.create_task(
            bus.publish("models.test", CONTAINER, codec="nf4", progress=wait_for_close)
        )
        await begun.wait()
        await bus.aclose()
        closed.set()
        with pytest.raises(ClientClosed):
            await publishing
        assert not workers()


async def test_a_publish_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    """A NaN in the last layer is reported by name, and nothing is stored."""
    container = {**CONTAINER, "last": np.full(3_000_000, np.nan, np.float32)}
    async with (
        running_broker(tmp_path / "data") as url,
        Client(url, settings=ClientSettings(threads=3)) as bus,
    ):
        with pytest.raises(NonFiniteValues, match="'last'"):
            await bus.publish("models.test", container, codec="nf4")
        assert not workers()
        assert [info async for info in bus.messages()] == []
