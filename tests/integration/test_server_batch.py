"""What a publisher of batches may rely on, over real HTTP against a real broker in this event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tensorbus.bus.access import Rights, TokenFile, TokenPlan
from tensorbus.bus.access.token import Quotas
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.batches import MAX_BYTES, MAX_RECORDS, Record
from tensorbus.bus.messages import Receipt
from tensorbus.bus.server.batch import LENGTHS
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.testing import running_broker
from tensorbus.streaming.raw import RawEncoder

TOPIC = "fl.test.updates"
PATH = f"/v1/topics/{TOPIC}/batch"
POST = f"/v1/topics/{TOPIC}/messages"
FRAMES = {"Content-Type": "application/vnd.tensorbus.frames"}
INLINE = 8 << 10

Results = list[dict[str, Any]]


def frames(number: int = 0, size: int = 100) -> bytes:
    """A message whose header ``n`` is its number."""
    encoder = RawEncoder({"n": number}, "text/plain", size)
    opening = encoder.open()
    slices = b"".join(bytes(part) for pair in encoder.slices(bytes(size)) for part in pair)
    return opening + slices + encoder.close()


def packed(records: Iterable[tuple[str, bytes]]) -> bytes:
    """The body of a batch."""
    return b"".join(LENGTHS.pack(len(key), len(body)) + key.encode() + body for key, body in records)


async def send(http: aiohttp.ClientSession, records: Iterable[tuple[str, bytes]]) -> Results:
    """What became of the records."""
    async with http.post(PATH, data=packed(records)) as answer:
        assert answer.status == 200, await answer.text()
        return (await answer.json())["results"]


async def refused(http: aiohttp.ClientSession, body: bytes) -> tuple[int, str]:
    """Status and detail of a batch that is refused as a whole."""
    async with http.post(PATH, data=body) as answer:
        return answer.status, (await answer.json())["detail"]


async def stored(http: aiohttp.ClientSession) -> Results:
    """The messages of the topic by seq."""
    async with http.get("/v1/messages", params={"topic": TOPIC, "limit": "1000"}) as answer:
        return (await answer.json())["messages"]


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own, with a small limit of a message in a batch."""
    async with (
        running_broker(tmp_path, BrokerSettings(inline_bytes=INLINE)) as url,
        aiohttp.ClientSession(url) as session,
    ):
        yield session


async def test_the_order_of_a_batch_is_the_order_of_seqs(http: aiohttp.ClientSession) -> None:
    """The receipts come in the records' order, and so do the messages in the log."""
    results = await send(http, [(f"k{number}" if number % 2 else "", frames(number)) for number in range(40)])
    assert [each["seq"] for each in results] == list(range(1, 41))
    assert [each["key"] for each in results[:3]] == [None, "k1", None]
    listed = await stored(http)
    assert [each["headers"]["n"] for each in listed] == list(range(40))
    assert [each["id"] for each in listed] == [each["id"] for each in results]
    assert {each["state"] for each in listed} == {"sealed"}


async def test_a_message_of_a_batch_is_what_it_is_when_published_alone(http: aiohttp.ClientSession) -> None:
    """All that is told of it, and its bytes."""
    body = frames(7)
    (together,) = await send(http, [("a", body)])
    async with http.post(POST, data=body, headers=FRAMES) as answer:
        alone = await answer.json()
    assert together.keys() == alone.keys()
    told: Results = []
    for each in (together, alone):
        async with http.get(f"/v1/messages/{each['id']}") as answer:
            told.append(await answer.json())
        async with http.get(f"/v1/messages/{each['id']}/frames") as answer:
            assert await answer.read() == body
    names = told[0].keys() - {"id", "seq", "key", "created", "sealed"}
    assert {name: told[0][name] for name in names} == {name: told[1][name] for name in names}


async def test_a_bad_record_does_not_spoil_the_others(http: aiohttp.ClientSession) -> None:
    """Each has its own problem in its place; the good ones are stored."""
    whole = frames(1)
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    results = await send(
        http,
        [
            ("", whole),
            ("", bytes(damaged)),
            ("", whole[:-3]),
            ("a b", whole),
            ("", b""),
            ("", frames(2, INLINE)),
            ("k" * 300, whole),
            ("", whole + b"x"),
            ("", whole),
        ],
    )
    said = [each.get("type", "").rpartition("/")[2].rpartition(":")[2] for each in results]
    assert [bool(each) for each in said] == [False, *[True] * 7, False], results
    assert [results[place]["status"] for place in range(1, 8)] == [422, 422, 400, 422, 413, 400, 422]
    assert all(each["detail"] for each in results[1:8])
    assert [each["seq"] for each in await stored(http)] == [1, 2]


async def test_a_key_is_stored_once(http: aiohttp.ClientSession) -> None:
    """Within a batch, over batches, and whatever way it comes by."""
    first = await send(http, [("a", frames(1)), ("a", frames(2)), ("b", frames(3))])
    assert [each["duplicate"] for each in first] == [False, True, False]
    assert first[0]["id"] == first[1]["id"]
    again = await send(http, [("b", frames(4)), ("c", frames(5)), ("a", frames(6))])
    assert [each["duplicate"] for each in again] == [True, False, True]
    assert again[0]["id"] == first[2]["id"]
    async with http.post(POST, data=frames(7), headers=FRAMES | {"Idempotency-Key": "c"}) as answer:
        assert answer.status == 200
        assert (await answer.json())["id"] == again[1]["id"]
    async with http.get(f"/v1/topics/{TOPIC}/receipt", params={"key": "c"}) as answer:
        assert (await answer.json())["seq"] == 3
    assert [each["headers"]["n"] for each in await stored(http)] == [1, 3, 5]


async def test_a_record_takes_the_place_of_an_open_upload_of_its_key(http: aiohttp.ClientSession) -> None:
    """As a second upload of a key does; the others keep their order."""
    begun = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield frames(0)[:50]
        await asyncio.sleep(0)
        begun.set()
        await asyncio.Event().wait()

    headers = FRAMES | {"Idempotency-Key": "a"}
    first = asyncio.create_task(http.post(POST, data=half(), headers=headers))
    await begun.wait()
    while True:
        async with http.get("/v1/messages", params={"state": "open"}) as answer:
            if (await answer.json())["messages"]:
                break
    results = await send(http, [("", frames(1)), ("a", frames(2)), ("a", frames(3)), ("", frames(4))])
    assert [each["duplicate"] for each in results] == [False, False, True, False]
    assert [each["headers"]["n"] for each in await stored(http)] == [1, 2, 4]
    first.cancel()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 422, "empty"),
        (b"abc", 422, "record 1 at byte 0"),
        (packed([("", b"ab")]) + LENGTHS.pack(1, 9) + b"x", 422, "record 2 at byte 10"),
        (LENGTHS.pack(0xFFFFFFFF, 0xFFFFFFFF), 422, "4294967295"),
        (packed([("", b"")] * (MAX_RECORDS + 1)), 413, str(MAX_RECORDS)),
        (bytes(MAX_BYTES + 1), 413, str(MAX_BYTES)),
    ],
)
async def test_a_malformed_batch_is_refused_as_a_whole(
    http: aiohttp.ClientSession, body: bytes, status: int, said: str
) -> None:
    """One problem says where; nothing is stored."""
    got, detail = await refused(http, body)
    assert got == status
    assert said in detail
    assert await stored(http) == []


async def test_a_batch_of_unknown_length_has_the_same_limit(http: aiohttp.ClientSession) -> None:
    """Whoever sends it in chunks is stopped as well."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2 * MAX_BYTES // 65536):
            yield bytes(65536)

    async with http.post(PATH, data=endless()) as answer:
        assert answer.status == 413


async def test_a_batch_wakes_who_waits_for_its_messages(http: aiohttp.ClientSession) -> None:
    """A pull that is held gets them, frames and all."""
    async with http.put("/v1/consumers/c", json={"filter": "fl.>"}) as answer:
        assert answer.status == 201
    ask = {"max": 10, "wait": 30, "inline": INLINE}

    async def pull() -> Results:
        async with http.post("/v1/consumers/c/deliveries", json=ask) as answer:
            return (await answer.json())["deliveries"]

    pulling = asyncio.create_task(pull())
    await send(http, [("", frames(number)) for number in range(3)])
    got = await pulling
    while len(got) < 3:
        got += await pull()
    assert [each["message"]["headers"]["n"] for each in got] == [0, 1, 2]
    assert all("frames" in each for each in got)


async def test_a_topics_quota_is_kept(http: aiohttp.ClientSession) -> None:
    """What is over it is refused, message by message; nothing of it is stored."""
    policy = {"filter": TOPIC, "max_messages": 3, "discard": "new"}
    async with http.put("/v1/policies/small", json=policy) as answer:
        assert answer.status == 201
    results = await send(http, [(f"k{number % 4}", frames(number)) for number in range(6)])
    assert [each.get("status") for each in results] == [None, None, None, 507, None, None]
    assert [each.get("duplicate") for each in results] == [False, False, False, None, True, True]
    assert [each["headers"]["n"] for each in await stored(http)] == [0, 1, 2]


async def test_old_messages_make_room_for_a_batch(http: aiohttp.ClientSession) -> None:
    """A policy that drops old messages is at work behind it; one message over its bytes is refused."""
    policy = {"filter": TOPIC, "max_bytes": 2000, "max_messages": 2}
    async with http.put("/v1/policies/small", json=policy) as answer:
        assert answer.status == 201
    results = await send(http, [("", frames(1)), ("", frames(2)), ("", frames(3, 3000)), ("", frames(4))])
    assert [each.get("status") for each in results] == [None, None, 413, None]
    while len(await stored(http)) > 2:
        pass
    assert [each["headers"]["n"] for each in await stored(http)] == [2, 4]


async def test_a_tokens_rights_and_quotas_are_kept(tmp_path: Path) -> None:
    """A batch counts as one upload, its bytes as what the token has stored."""
    data = tmp_path / "data"
    data.mkdir()
    size = len(frames(1))
    plan = TokenPlan("site", Rights(publish=("fl.>",)), quotas=Quotas(max_bytes=3 * size, max_uploads=1))
    _, credential = TokenFile(data).create(plan)
    headers = {"Authorization": f"Bearer {credential}"}
    async with running_broker(data) as url, aiohttp.ClientSession(url, headers=headers) as http:
        results = await send(http, [("", frames(1)) for _ in range(4)])
        assert [each.get("status") for each in results] == [None, None, None, 507]
        async with http.post("/v1/topics/other/batch", data=packed([("", frames(1))])) as answer:
            assert answer.status == 403


async def test_a_batch_is_all_there_after_a_restart(tmp_path: Path, store_kind: str) -> None:
    """What was acknowledged is; one transaction of the store held all of it, and the keys."""
    records = [Record(f"k{number}", frames(number)) for number in range(100)]
    async with Broker(FileStore(tmp_path)) as broker:
        before = sum(broker.measures.fsync["rows"].snapshot()[0])
        outcomes = await broker.publish_batch(TOPIC, records)
        if store_kind == "file":
            assert sum(broker.measures.fsync["rows"].snapshot()[0]) == before + 1
    assert all(isinstance(each, Receipt) for each in outcomes)
    async with Broker(FileStore(tmp_path)) as broker:
        page = await broker.messages(TOPIC, limit=1000)
        assert [info.headers["n"] for info in page.messages] == list(range(100))
        again = await broker.publish_batch(TOPIC, records)
        assert all(isinstance(each, Receipt) and each.duplicate for each in again)


async def test_who_asks_for_a_receipt_waits_for_the_batch(tmp_path: Path) -> None:
    """A publisher that lost its connection learns for good what became of its key."""
    async with Broker(FileStore(tmp_path)) as broker:
        publishing = asyncio.create_task(broker.publish_batch(TOPIC, [Record("a", frames(1))]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        publishing.cancel()
        assert (await broker.receipt(TOPIC, "a")).seq == 1
