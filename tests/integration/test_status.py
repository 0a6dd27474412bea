"""GET /v1/status and its stream: what they tell, to whom, and that nobody works while nobody looks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tensorbus.bus.access import Quotas, Rights, TokenFile, TokenPlan
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

Status = dict[str, Any]
PATIENCE = 20.0


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A broker."""
    async with running_broker(tmp_path / "data") as address:
        yield address


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of it."""
    async with aiohttp.ClientSession(url) as session:
        yield session


async def look(http: aiohttp.ClientSession, **wanted: str | int) -> Status:
    """The status, as soon as it is a new one."""
    await asyncio.sleep(0.55)  # what was found half a second ago is told again
    async with http.get("/v1/status", params=wanted) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def events(http: aiohttp.ClientSession, query: str = "") -> AsyncGenerator[tuple[str, Status]]:
    """The events of a stream."""
    async with http.get(f"/v1/status/stream?{query}") as answer:
        assert answer.content_type == "text/event-stream"
        name = ""
        async for line in answer.content:
            if line.startswith(b"event: "):
                name = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                yield name, json.loads(line[6:])


async def test_lists_are_searched_ordered_and_cut(http: aiohttp.ClientSession, url: str) -> None:
    """Each has a count of all that match; a page of them is shown, in the order that was asked for."""
    async with Client(url) as bus:
        for number in range(7):
            await bus.publish(f"plant.{number}", b"x" * 100 * number)
        await bus.publish("plant.0", b"again")
        await bus.publish("Other.topic", b"")
    await http.put("/v1/consumers/all", json={"filter": "plant.>"})
    await http.put("/v1/consumers/one", json={"filter": "Other.topic"})
    found = await look(http, search="PLANT", topics=2, topics_from=1, topics_by="bytes", consumers_by="lag")
    assert found["topics"]["count"] == 7
    assert [topic["topic"] for topic in found["topics"]["shown"]] == ["plant.5", "plant.4"]
    assert [consumer["name"] for consumer in found["consumers"]["shown"]] == ["all"]
    assert found["consumers"]["shown"][0]["backlog"] == 8
    assert found["totals"]["topics"] == 8 and found["totals"]["sealed"] == 9
    found = await look(http, topics_by="messages", topics=1, consumers=0)
    assert found["topics"]["shown"][0]["topic"] == "plant.0"
    assert found["consumers"] == {"count": 2, "from": 0, "shown": []}
    async with http.get("/v1/status?topics=201") as answer:
        assert answer.status == 400


async def test_troubles_of_consumers(http: aiohttp.ClientSession) -> None:
    """What was handed out more than once, by message and attempt; and how many letters are on its topic."""
    await http.put("/v1/consumers/trainer", json={"filter": "jobs.*", "ack_wait": 60})
    for number in range(3):
        await http.post(f"/v1/topics/jobs.{number}/messages", data=b"x")
    for _ in range(2):
        async with http.post("/v1/consumers/trainer/deliveries", json={"max": 3, "wait": 5}) as answer:
            handed = (await answer.json())["deliveries"]
        for delivery in handed[:2]:
            await http.post(f"/v1/consumers/trainer/deliveries/{delivery['token']}/nak", json={})
    async with http.post("/v1/consumers/trainer/deliveries", json={"max": 1, "wait": 5}) as answer:
        (last,) = (await answer.json())["deliveries"]
    await http.post(f"/v1/consumers/trainer/deliveries/{last['token']}/term", json={"reason": "no"})
    (consumer,) = (await look(http))["consumers"]["shown"]
    assert consumer["redelivering"] == 1
    assert [(each["attempt"], each["held"]) for each in consumer["redelivered"]] == [(2, False)]
    assert (consumer["dead_letter"], consumer["dead"]) == ("dead.trainer", 1)


async def test_codecs_are_counted_on_their_way_in_and_out(http: aiohttp.ClientSession, url: str) -> None:
    """Values against the wire, for each codec; a part of a message counts as that part of its values."""
    import numpy as np

    async with Client(url) as bus:
        receipt = await bus.publish("m.a", {"w": np.zeros(100_000, np.float32)}, codec="nf4")
    async with http.get(f"/v1/messages/{receipt.id}/frames", headers={"Range": "bytes=0-27999"}) as answer:
        part = len(await answer.read())
    (codec,) = (await look(http))["codecs"]
    wire = receipt.bytes_on_wire
    assert codec["codec"] == "nf4"
    assert codec["received"] == {"messages": 1, "original_bytes": 400_000, "wire_bytes": wire}
    assert codec["sent"]["wire_bytes"] == part == 28_000
    assert codec["sent"]["original_bytes"] == pytest.approx(400_000 * part / wire, abs=1)


async def test_an_upload_and_its_follower_are_shown(http: aiohttp.ClientSession) -> None:
    """How far they are, of how much; and nothing of them when they are over."""
    size = 3 << 20
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield bytes(size // 2)
        await go_on.wait()
        yield bytes(size - size // 2)

    length = {"Content-Length": str(size)}
    sending = asyncio.create_task(
        http.post("/v1/topics/big.one/messages", data=body(), headers=length).__aenter__()
    )
    async with asyncio.timeout(PATIENCE):
        while not (shown := (await look(http))["transfers"]["shown"]) or not shown[0]["bytes"]:
            pass
        upload = shown[0]
        reading = asyncio.create_task(http.get(f"/v1/messages/{upload['message']}/frames").__aenter__())
        while len(shown := (await look(http))["transfers"]["shown"]) < 2 or not shown[1]["bytes"]:
            pass
    assert (upload["direction"], upload["topic"], upload["idle"]) == ("upload", "big.one", False)
    assert 0 < upload["bytes"] <= size // 2 + 1000
    assert upload["total"] >= size
    assert (shown[1]["direction"], shown[1]["message"]) == ("download", upload["message"])
    go_on.set()
    (await sending).release()
    followed = await reading
    assert len(await followed.read()) > size
    assert (await look(http))["transfers"] == {"count": 0, "shown": []}


async def test_the_stream_tells_all_at_first_and_then_what_changes(
    http: aiohttp.ClientSession, url: str
) -> None:
    """Members that are as before are left out; without traffic there is no event for its own sake."""
    async with asyncio.timeout(PATIENCE):
        stream = events(http)
        name, first = await anext(stream)
        assert name == "status"
        assert first.keys() >= {"at", "totals", "topics", "consumers", "jobs", "transfers", "disk"}
        await http.post("/v1/topics/a.b/messages", data=b"x")
        changed: Status = {}
        while "topics" not in changed:
            name, changed = await anext(stream)
        assert changed["topics"]["shown"][0]["topic"] == "a.b"
        assert "consumers" not in changed and "broker" not in changed
        await stream.aclose()


async def test_nobody_looks_while_nobody_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchers share their looks, and the last one to leave ends them."""
    from tensorbus.bus.server.status.snapshot import Looker

    looks = 0
    real = Looker.look

    async def counted(self: Looker) -> Any:
        nonlocal looks
        looks += 1
        return await real(self)

    monkeypatch.setattr(Looker, "look", counted)
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as http, asyncio.timeout(PATIENCE):
        streams = [events(http, f"topics={number}") for number in range(1, 9)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        assert looks <= 2
        await asyncio.gather(*(stream.aclose() for stream in streams))
        await asyncio.sleep(0.3)  # the server hears of it
        before = looks
        await http.post("/v1/topics/a.b/messages", data=b"x")
        await asyncio.sleep(2.5)
        assert looks == before


async def test_a_token_sees_what_it_may_read(tmp_path: Path) -> None:
    """Other topics, consumers, policies and jobs do not exist for it; a revoked one is cut off."""
    tokens = TokenFile(tmp_path)
    _, admin = tokens.create(TokenPlan("admin", Rights(admin=(">",))))
    info, site = tokens.create(
        TokenPlan(
            "site", Rights(publish=("mine.>",), subscribe=("mine.>", "fl.a.model")), quotas=Quotas(10**6)
        )
    )
    async with running_broker(tmp_path) as url:
        theirs = aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {site}"})
        ours = aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {admin}"})
        async with ours as every, theirs as http, aiohttp.ClientSession(url) as nobody:
            async with nobody.get("/v1/status") as answer:
                assert answer.status == 401
            await http.post("/v1/topics/mine.x/messages", data=b"x" * 100)
            for topic in ("secret.x", "fl.a.model", "fl.a.updates"):
                await every.post(f"/v1/topics/{topic}/messages", data=b"x")
            await every.put("/v1/consumers/hidden", json={"filter": "secret.>"})
            await every.put("/v1/policies/hidden", json={"filter": "secret.>", "max_bytes": 10**6})
            found = await look(http)
            assert [topic["topic"] for topic in found["topics"]["shown"]] == ["fl.a.model", "mine.x"]
            assert found["consumers"]["count"] == found["jobs"]["count"] == 0
            assert [quota["name"] for quota in found["quotas"]["shown"]] == ["site"]
            assert found["you"]["name"] == "site"
            assert 0 < found["you"]["used_bytes"] < found["you"]["max_bytes"] == 10**6
            found = await look(every)
            assert found["topics"]["count"] == 4 and found["jobs"]["count"] == 1
            assert {quota["name"] for quota in found["quotas"]["shown"]} == {"hidden", "site"}
            assert "hidden" not in json.dumps(await look(http))

            async with asyncio.timeout(PATIENCE):
                stream = events(http)
                await anext(stream)
                tokens.revoke(info.id)
                name, told = await anext(stream)
                while name != "problem":
                    name, told = await anext(stream)
                assert told["status"] == 401
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)


async def test_the_page_and_its_files(http: aiohttp.ClientSession) -> None:
    """All that it names is served, may be kept, and runs under a policy that lets nothing else run."""
    async with http.get("/") as answer:
        policy, text = answer.headers["Content-Security-Policy"], await answer.text()
        assert answer.content_type == "text/html"
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert 'href="docs"' in text
    for name, media_type in (
        ("main.js", "text/javascript"),
        ("style.css", "text/css"),
        ("icon.svg", "image/svg+xml"),
    ):
        async with http.get(f"/page/{name}") as answer:
            assert (answer.status, answer.content_type) == (200, media_type)
            etag = answer.headers["ETag"]
        async with http.get(f"/page/{name}", headers={"If-None-Match": etag}) as answer:
            assert answer.status == 304
    for name in ("__init__.py", "..%2fserver.py", "nothing.js"):
        async with http.get(f"/page/{name}") as answer:
            assert (answer.status, answer.content_type) == (404, "application/problem+json")
