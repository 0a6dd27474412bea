"""Small messages that are published at the same time go together, and each is still its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from tensorbus.bus.access import Rights, TokenFile, TokenPlan
from tensorbus.bus.broker import BrokerSettings
from tensorbus.bus.client import Client, ClientSettings
from tensorbus.bus.testing import running_broker
from tensorbus.errors import BrokerUnavailable, Forbidden, InvalidName, NonFiniteValues, QuotaExceeded

TOPIC = "notes.small"
BATCH = "/v1/topics/{topic}/batch"
SINGLE = "/v1/topics/{topic}/messages"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A broker of its own."""
    async with running_broker(tmp_path) as address:
        yield address


async def requests(url: str) -> Counter[str]:
    """How many requests to publish there were, by route."""
    async with aiohttp.ClientSession(url) as http, http.get("/metrics") as answer:
        text = await answer.text()
    found: Counter[str] = Counter()
    for line in text.splitlines():
        for route in (BATCH, SINGLE):
            if line.startswith("tensorbus_http_requests_total") and f'route="{route}"' in line:
                found[route] += int(float(line.rpartition(" ")[2]))
    return found


async def test_a_lone_message_is_one_plain_request(url: str) -> None:
    """One after another, each goes by itself and waits for nothing."""
    async with Client(url) as bus:
        for number in range(3):
            await bus.publish(TOPIC, b"x", headers={"n": number})
    assert await requests(url) == {SINGLE: 3}


async def test_what_is_published_at_once_goes_together(url: str) -> None:
    """In the order in which it was given, in few requests, each with a receipt of its own."""
    async with Client(url) as bus:
        publishing = [bus.publish(TOPIC, bytes([n]), headers={"n": n}) for n in range(100)]
        receipts = await asyncio.gather(*publishing)
        assert [receipt.seq for receipt in receipts] == list(range(1, 101))
        assert not any(receipt.duplicate for receipt in receipts)
        assert [info.headers["n"] async for info in bus.messages(TOPIC)] == list(range(100))
        assert [await (await bus.fetch(receipts[n].id)).load() for n in (0, 99)] == [b"\x00", b"c"]
    assert (await requests(url)).total() <= 5


async def test_more_than_fits_takes_more_requests(url: str) -> None:
    """Neither too many messages in one, nor too many bytes; other topics go their own ways."""
    async with Client(url) as bus:
        large = [bus.publish("notes.large", bytes(30_000)) for _ in range(80)]
        many = [bus.publish(TOPIC, b"", key=f"k{n}") for n in range(600)]
        receipts = await asyncio.gather(*large, *many)
    assert {receipt.bytes_original for receipt in receipts[:80]} == {30_000}
    assert [receipt.key for receipt in receipts[80:]] == [f"k{n}" for n in range(600)]
    assert (await requests(url))[BATCH] >= 5


async def test_each_has_its_own_outcome(url: str) -> None:
    """Bad arguments, values that cannot be encoded, a key that was there, a topic that is full."""
    async with aiohttp.ClientSession(url) as http:
        policy = {"filter": TOPIC, "max_messages": 2, "discard": "new"}
        async with http.put("/v1/policies/small", json=policy) as answer:
            assert answer.status == 201
    async with Client(url) as bus:
        outcomes = await asyncio.gather(
            bus.publish(TOPIC, b"1", key="a"),
            bus.publish(TOPIC, b"2", key="a b"),
            bus.publish(TOPIC, {"w": np.full(4096, np.nan, np.float32)}, codec="nf4"),
            bus.publish(TOPIC, b"3", key="b"),
            bus.publish(TOPIC, b"4", key="a"),
            bus.publish(TOPIC, b"5", key="c"),
            return_exceptions=True,
        )
    assert [type(each) for each in outcomes if isinstance(each, BaseException)] == [
        InvalidName,
        NonFiniteValues,
        QuotaExceeded,
    ]
    receipts = [each for each in outcomes if not isinstance(each, BaseException)]
    assert [receipt.duplicate for receipt in receipts] == [False, False, True]
    assert receipts[0].id == receipts[2].id


async def test_a_caller_that_leaves_does_not_take_others_along(url: str) -> None:
    """Those that wait with it get their receipts."""
    async with Client(url) as bus:
        tasks = [asyncio.create_task(bus.publish(TOPIC, b"x", key=f"k{n}")) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[5:10]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in done].count(True) == 5
    assert not any(isinstance(each, Exception) for each in done)


async def test_messages_that_are_too_large_for_a_batch_there_go_alone(tmp_path: Path) -> None:
    """The broker says how large they may be; nobody has to know."""
    async with (
        running_broker(tmp_path, BrokerSettings(inline_bytes=1000)) as url,
        Client(url) as bus,
    ):
        publishing = [bus.publish(TOPIC, bytes(2000 * (n % 2))) for n in range(10)]
        receipts = await asyncio.gather(*publishing)
        assert [receipt.bytes_original for receipt in receipts] == [0, 2000] * 5


async def test_refusals_and_a_broker_that_is_away_reach_everybody(tmp_path: Path) -> None:
    """A right that is missing at once, a broker that does not come back after the time for that."""
    data = tmp_path / "data"
    data.mkdir()
    _, credential = TokenFile(data).create(TokenPlan("site", Rights(publish=("other",))))
    async with running_broker(data) as url:
        settings = ClientSettings(retry_for=0.3)
        async with Client(url, token=str(credential), settings=settings) as bus:
            refused = await asyncio.gather(
                *(bus.publish(TOPIC, b"x") for _ in range(5)), return_exceptions=True
            )
            assert {type(each) for each in refused} == {Forbidden}
            away = Client("http://127.0.0.1:9", settings=settings)
            async with away:
                unheard = await asyncio.gather(
                    *(away.publish(TOPIC, b"x") for _ in range(5)), return_exceptions=True
                )
            assert {type(each) for each in unheard} == {BrokerUnavailable}
