"""What a token may do with consumers, and what it is told of those of others."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tensorbus.bus.access import Rights, TokenFile, TokenPlan
from tensorbus.bus.broker import BrokerSettings
from tensorbus.bus.testing import running_broker


class Place:
    """A broker with tokens."""

    def __init__(self, http: aiohttp.ClientSession, tokens: TokenFile) -> None:
        self._http = http
        self._tokens = tokens

    def make(self, **rights: tuple[str, ...]) -> str:
        """A token's text."""
        return str(self._tokens.create(TokenPlan("somebody", Rights(**rights)))[1])

    async def ask(self, token: str, method: str, path: str, document: object = None) -> tuple[int, Any]:
        """Status and text."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self._http.request(method, path, json=document, headers=headers) as answer:
            return answer.status, await answer.text()

    async def handed(self, token: str, consumer: str) -> str:
        """The token of the next delivery."""
        async with self._http.post(
            f"/v1/consumers/{consumer}/deliveries",
            json={"wait": 0},
            headers={"Authorization": f"Bearer {token}"},
        ) as answer:
            (one,) = (await answer.json())["deliveries"]
            return one["token"]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place]:
    """A broker that asks for tokens, each of which may have three consumers."""
    tokens = TokenFile(tmp_path)
    tokens.revoke(tokens.create(TokenPlan("first"))[0].id)
    settings = BrokerSettings(max_owned_consumers=3)
    async with running_broker(tmp_path, settings) as url, aiohttp.ClientSession(url) as http:
        yield Place(http, tokens)


async def test_a_token_has_so_many_consumers_and_no_more(place: Place) -> None:
    """The next one is refused with 429; those that are there are found, and one that goes makes room."""
    one, two = place.make(subscribe=("a.>",)), place.make(subscribe=("a.>",))
    wanted = {"filter": "a.>"}
    for number in range(3):
        assert (await place.ask(one, "PUT", f"/v1/consumers/c{number}", wanted))[0] == 201
    status, text = await place.ask(one, "PUT", "/v1/consumers/c3", wanted)
    assert status == 429 and "3 consumers" in text
    assert (await place.ask(one, "PUT", "/v1/consumers/c2", wanted))[0] == 200
    assert (await place.ask(two, "PUT", "/v1/consumers/c3", wanted))[0] == 201
    assert (await place.ask(one, "DELETE", "/v1/consumers/c0"))[0] == 204
    assert (await place.ask(one, "PUT", "/v1/consumers/c4", wanted))[0] == 201


async def test_a_refusal_names_nothing_that_may_not_be_seen(place: Place) -> None:
    """Neither policies nor consumers of others, nor what they select; who may read all of it is told."""
    root, other = place.make(admin=(">",)), place.make(admin=("a.shared",))
    assert (await place.ask(root, "PUT", "/v1/policies/hush", {"filter": "*.shared"}))[0] == 201
    for token, told in ((other, False), (root, True)):
        status, text = await place.ask(token, "PUT", "/v1/policies/mine", {"filter": "a.shared"})
        assert status == 409 and ("hush" in text) == ("*.shared" in text) == told
    queue = {"filter": "*.shared", "retention": "workqueue"}
    assert (await place.ask(root, "PUT", "/v1/policies/hush", queue))[0] == 200
    assert (await place.ask(root, "PUT", "/v1/consumers/quiet", {"filter": "a.>"}))[0] == 201
    for token, told in ((other, False), (root, True)):
        status, text = await place.ask(token, "PUT", "/v1/consumers/mine", {"filter": "a.shared"})
        assert status == 409 and "mine" in text
        assert ("quiet" in text) == ("a.>" in text) == ("*.shared" in text) == told
    assert (await place.ask(root, "DELETE", "/v1/policies/hush"))[0] == 204
    assert (await place.ask(other, "PUT", "/v1/consumers/mine", {"filter": "a.shared"}))[0] == 201
    for token, told in ((other, False), (root, True)):
        queue = {"filter": "a.shared", "retention": "workqueue"}
        status, text = await place.ask(token, "PUT", "/v1/policies/mine", queue)
        assert status == 409 and ("quiet" in text) == ("a.>" in text) == told


async def test_attempts_that_end_in_a_letter_need_its_topic(place: Place) -> None:
    """A consumer with ``max_deliver`` sends dead letters by itself: its maker may publish where they go."""
    reader, both = place.make(subscribe=("a.>",)), place.make(subscribe=("a.>",), publish=("dead.c",))
    wanted = {"filter": "a.b", "max_deliver": 2}
    status, text = await place.ask(reader, "PUT", "/v1/consumers/c", wanted)
    assert status == 403 and "dead.c" in text
    assert (await place.ask(both, "PUT", "/v1/consumers/d", wanted))[0] == 403
    assert (await place.ask(both, "PUT", "/v1/consumers/c", wanted))[0] == 201


async def test_a_reader_refuses_nothing_into_a_foreign_topic(place: Place) -> None:
    """Who may only read can pull, give back and ack, but not have a message listed on ``dead.…``.

    A worker of a consumer whose maker may do so, can.
    """
    root, reader = place.make(admin=(">",)), place.make(subscribe=("a.>",))
    assert (await place.ask(reader, "PUT", "/v1/consumers/own", {"filter": "a.b"}))[0] == 201
    assert (await place.ask(root, "PUT", "/v1/consumers/given", {"filter": "a.b"}))[0] == 201
    assert (await place.ask(root, "POST", "/v1/topics/a.b/messages", {"a": 1}))[0] == 201
    own, given = await place.handed(reader, "own"), await place.handed(reader, "given")
    status, text = await place.ask(reader, "POST", f"/v1/consumers/own/deliveries/{own}/term", {})
    assert status == 403 and "dead.own" in text
    assert '"messages": []' in (await place.ask(root, "GET", "/v1/dead-letters"))[1]
    assert (await place.ask(reader, "POST", f"/v1/consumers/own/deliveries/{own}/ack", {}))[0] == 204
    assert (await place.ask(reader, "POST", f"/v1/consumers/given/deliveries/{given}/term", {}))[0] == 204
    assert "dead.given" in (await place.ask(root, "GET", "/v1/dead-letters"))[1]
