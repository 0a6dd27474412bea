"""Promise: a data directory that a release has written is taken over by each later one, with all that it has.

A file is never rewritten: other tables are another format, with another number. ``stores/make.py`` makes the
file of a new one. That of format 2 was made by a release before the present one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tensorbus.bus.broker import Broker
from tensorbus.bus.client import Client
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.stores.schema import VERSION
from tensorbus.bus.testing import running_broker
from tensorbus.errors import StoreVersion

FILES = sorted((Path(__file__).parent / "stores").glob("format-*.tar.xz"))
PATIENCE = 30.0


@pytest.fixture(params=FILES, ids=lambda path: path.name.partition(".")[0])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the directory."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
async def bus(data: Path) -> AsyncIterator[Client]:
    """A client of a broker that runs on it, with the token that was made then."""
    async with running_broker(data) as url, Client(url, (data / "token.txt").read_text()) as client:
        yield client


def test_the_present_format_has_a_file() -> None:
    """So that the next release is held to it."""
    assert f"format-{VERSION}.tar.xz" in [path.name for path in FILES]


async def test_messages_are_there_and_whole(bus: Client) -> None:
    """By key; what they hold, how it was encoded and their headers; nothing is damaged."""
    found = {str(info.key): info async for info in bus.messages()}
    notes = [f"note-{number}" for number in range(5)]
    assert list(found) == ["round-1", "round-2", "large", *notes, "None"], "the last one is a dead letter"
    assert found["round-1"].headers == {"round": 1, "final": False}
    for key, factor in (("round-1", 1), ("round-2", 2)):
        model = await (await bus.fetch(found[key].id)).load()
        assert isinstance(model, dict)
        model = cast("dict[str, Any]", model)
        np.testing.assert_array_equal(model["w"], np.full((64, 64), factor, np.float32))
        np.testing.assert_allclose(model["b"], np.arange(8), atol=1 if key == "round-2" else 0)
    assert await (await bus.fetch(found["large"].id)).load() == bytes(100_000)
    await bus.scrub()
    async with asyncio.timeout(PATIENCE):
        while not (report := await bus.scrub_report()).finished:
            await asyncio.sleep(0.01)
    assert (await bus.damaged()).damaged == ()
    assert (report.damaged, report.orphans, report.rows) == ((), (), ())


async def test_a_consumer_goes_on_where_it_was(bus: Client) -> None:
    """What was handed out and not settled comes again; what was settled or refused does not."""
    async with (
        asyncio.timeout(PATIENCE),
        bus.subscribe("notes.>", consumer="reader", ack_wait=1) as deliveries,
    ):
        for note, attempt in (("note 1", 2), ("note 4", 1)):
            delivery = await deliveries.receive()
            assert delivery is not None
            assert (await delivery.load(), delivery.attempt) == (note.encode(), attempt)
            await delivery.ack()
    reader = await bus.consumer("reader")
    assert (reader.ack_pending, reader.backlog) == (0, 0)


async def test_keys_policies_letters_and_uploads_are_as_they_were(bus: Client) -> None:
    """Also the key of a message that was deleted, and an upload that nobody went on with."""
    for topic, key in (("models.a", "round-1"), ("notes.day", "gone")):
        assert (await bus.publish(topic, b"again", key=key)).duplicate
    assert [(policy.name, policy.config.max_messages) for policy in await bus.policies()] == [("notes", 100)]
    (letter,) = [info async for info in bus.dead_letters()]
    assert letter.dead is not None
    assert letter.dead.reason == "cannot be read"
    assert (await bus.replay(letter.id)).topic == "notes.day"
    (upload,) = await bus.open_messages()
    assert (upload.topic, upload.key) == ("models.half", "half")


async def test_a_format_between_two_releases_is_refused_in_words(tmp_path: Path) -> None:
    """Tables are compared, not only the number; tables of others, as a repair leaves them, do no harm."""
    async with Broker(FileStore(tmp_path)):
        pass
    with sqlite3.connect(tmp_path / "meta.db") as rows:
        rows.execute("CREATE TABLE lost_and_found (id INTEGER)")
    rows.close()
    async with Broker(FileStore(tmp_path)):
        pass
    with sqlite3.connect(tmp_path / "meta.db") as rows:
        rows.execute("DROP TABLE policies")
    rows.close()
    with pytest.raises(StoreVersion, match="policies"):
        await Broker(FileStore(tmp_path)).start()
