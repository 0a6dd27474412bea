"""Who may do what: rights of tokens by topic, for messages, consumers, letters and uploads."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest

from guarding import Place
from tensorbus.bus.access import Rights, TokenFile, TokenPlan
from tensorbus.bus.client import Client, ClientSettings
from tensorbus.bus.testing import running_broker
from tensorbus.errors import Forbidden, NotFound


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place]:
    """A broker that asks for tokens."""
    tokens = TokenFile(tmp_path)
    tokens.revoke(tokens.create(TokenPlan("first"))[0].id)
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as http:
        yield Place(url, http, tokens)


# --- rights ------------------------------------------------------------------------------------------


async def test_a_site_publishes_and_reads_where_it_may(place: Place) -> None:
    """A site's token: its own topic to write, the models to read, and nothing else."""
    site = place.make(publish=("fl.a.updates",), subscribe=("fl.models",))
    root = place.make(admin=(">",))
    settings = ClientSettings(retry_for=30)
    model = {"w": bytes(range(200))}["w"]
    async with Client(place.url, site, settings) as bus, Client(place.url, root, settings) as owner:
        update = await bus.publish("fl.a.updates", b"update", key="round-1")
        assert (await bus.receipt("fl.a.updates", "round-1")) is not None
        for refused in (
            bus.publish("fl.b.updates", b"update"),
            bus.receipt("fl.b.updates", "round-1"),
        ):
            with pytest.raises(Forbidden, match=r"fl\.b\.updates"):
                await refused
        with pytest.raises(NotFound):
            await bus.fetch(update.id)
        receipt = await owner.publish("fl.models", model)
        assert await (await bus.fetch(receipt.id)).load() == model
        with pytest.raises(Forbidden):
            await bus.delete(receipt.id)
        assert [info.id async for info in bus.messages()] == [receipt.id]
        assert [topic.topic for topic in await bus.topics()] == ["fl.models"]
        assert {topic.topic for topic in await owner.topics()} == {"fl.models", "fl.a.updates"}
        async with bus.subscribe("fl.models", consumer="site-a") as deliveries:
            async for delivery in deliveries:
                assert await delivery.load() == model
                await delivery.ack()
                break
        with pytest.raises(Forbidden):
            async with bus.subscribe("fl.>"):
                pass
        with pytest.raises(Forbidden):
            await bus.tokens()


async def test_several_filters_show_their_topics_and_no_others(place: Place) -> None:
    """A listing is thinned to what the token may read, whatever filter it asks with, over all its pages."""
    root = place.make(admin=(">",))
    reader = place.make(subscribe=("a.one", "b.*", "c.>"))
    topics = ["a.one", "a.two", "b.one", "c.x.y", "d"]
    for topic in topics * 2:
        await place.publish(root, topic)
    async with Client(place.url, reader) as bus:
        seen = [info.topic async for info in bus.messages()]
        assert sorted(seen) == sorted(["a.one", "b.one", "c.x.y"] * 2)
        assert [info.topic async for info in bus.messages("a.*")] == ["a.one"] * 2
        assert [info.topic async for info in bus.messages("*.one")] == ["a.one", "b.one"] * 2
        assert [info.topic async for info in bus.messages("d")] == []


async def test_a_consumer_is_its_makers(place: Place) -> None:
    """Others with the same rights may work for it, but not delete it; an admin of its topics may."""
    one, two = place.make(subscribe=("a.>",)), place.make(subscribe=("a.>",))
    admin = place.make(admin=("a.>",))
    assert (await place.ask(one, "PUT", "/v1/consumers/c", json={"filter": "a.b"}))[0] == 201
    assert (await place.ask(two, "PUT", "/v1/consumers/c", json={"filter": "a.b"}))[0] == 200
    assert (await place.ask(two, "POST", "/v1/consumers/c/deliveries", json={"wait": 0}))[0] == 200
    assert (await place.ask(two, "DELETE", "/v1/consumers/c"))[0] == 403
    assert (await place.ask(one, "DELETE", "/v1/consumers/c"))[0] == 204
    assert (await place.ask(one, "PUT", "/v1/consumers/c", json={"filter": "a.b"}))[0] == 201
    assert (await place.ask(admin, "DELETE", "/v1/consumers/c"))[0] == 204


async def test_a_consumers_owner_survives_a_restart(tmp_path: Path) -> None:
    """Who made it is stored with it."""
    tokens = TokenFile(tmp_path)
    one, two = (str(tokens.create(TokenPlan(name, Rights(subscribe=(">",))))[1]) for name in ("one", "two"))
    for token, method, expected in ((one, "PUT", 201), (two, "DELETE", 403), (one, "DELETE", 204)):
        async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as http:
            place = Place(url, http, tokens)
            body = {"json": {"filter": "a"}} if method == "PUT" else {}
            assert (await place.ask(token, method, "/v1/consumers/c", **body))[0] == expected


async def test_a_consumers_name_tells_nothing_of_a_foreign_one(place: Place) -> None:
    """A name that is taken is refused without a word on whose it is, or what it selects."""
    root, other = place.make(admin=(">",)), place.make(subscribe=("other.>",))
    await place.ask(root, "PUT", "/v1/consumers/c", json={"filter": "secret.plans"})
    status, document, _ = await place.ask(other, "PUT", "/v1/consumers/c", json={"filter": "other.>"})
    assert status == 409
    assert "secret" not in json.dumps(document)


async def test_dead_letters_are_no_way_to_publish(place: Place) -> None:
    """Who may only read cannot have messages put on a topic of their choice."""
    reader = place.make(subscribe=("a.>",))
    wanted = {"filter": "a.b", "max_deliver": 1, "dead_letter": "fl.models"}
    assert (await place.ask(reader, "PUT", "/v1/consumers/c", json=wanted))[0] == 403


async def test_another_publishers_upload_is_not_taken_over(place: Place) -> None:
    """Two tokens on one topic: neither can see, feed or drop an upload of the other, nor take its key."""
    one, two = place.make(publish=("a",)), place.make(publish=("a",))
    new = {"Upload-Length": "9", "Tus-Resumable": "1.0.0", "Idempotency-Key": "k"}
    status, _, made = await place.ask(one, "POST", "/v1/topics/a/uploads", headers=new)
    assert status == 201
    path, tus = made.headers["Location"], {"Tus-Resumable": "1.0.0"}
    for method in ("HEAD", "PATCH", "DELETE", "GET"):
        assert (await place.ask(two, method, path, headers=tus))[0] == 404
    assert (await place.ask(two, "POST", "/v1/topics/a/uploads", headers=new))[0] == 409
    status, _, _ = await place.ask(
        two, "POST", "/v1/topics/a/messages", data=b"x", headers={"Idempotency-Key": "k"}
    )
    assert status == 409
    assert (await place.ask(one, "HEAD", path, headers=tus))[0] == 200
    assert (await place.ask(place.make(admin=("a",)), "DELETE", path, headers=tus))[0] == 204
