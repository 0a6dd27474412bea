"""Tokens over HTTP, their quotas, and a broker without any."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from guarding import Place
from tensorbus.bus.access import Quotas, Rights, TokenFile, TokenPlan
from tensorbus.bus.client import Client, ClientSettings
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.testing import running_broker
from tensorbus.errors import Forbidden, NotFound, QuotaExceeded, Unauthorized


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place]:
    """A broker that asks for tokens."""
    tokens = TokenFile(tmp_path)
    tokens.revoke(tokens.create(TokenPlan("first"))[0].id)
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as http:
        yield Place(url, http, tokens)


# --- tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        "Bearer tb_" + "0" * 12 + "_" + "0" * 64,
        "Bearer tb_../../etc_passwd",
    ],
)
async def test_what_is_no_valid_token_is_refused(place: Place, header: str) -> None:
    """401 with a challenge, a problem document, and the connection is closed."""
    place.make(admin=(">",))
    status, problem, answer = await place.ask(None, "GET", "/v1/messages", headers={"Authorization": header})
    assert (status, problem["type"]) == (401, "urn:tensorbus:problem:unauthorized")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="tensorbus"'
    assert answer.headers["Connection"] == "close"


async def test_tokens_over_http(place: Place) -> None:
    """An admin of everything makes, lists and revokes tokens; a revoked one is refused from then on."""
    root = place.make(admin=(">",))
    async with Client(place.url, root) as bus:
        info, text = await bus.create_token(TokenPlan("site", Rights(subscribe=("a.>",))))
        assert info.plan.name == "site"
        async with Client(place.url, text) as site:
            assert await site.topics() == []
            listed = await bus.tokens()
            assert info in listed
            _, document, _ = await place.ask(root, "GET", "/v1/tokens")
            assert text.rpartition("_")[2] not in json.dumps(document) and "hash" not in json.dumps(document)
            await bus.revoke_token(info.id)
            with pytest.raises(Unauthorized):
                await site.topics()
        with pytest.raises(NotFound):
            await bus.revoke_token(info.id)


async def test_admin_of_some_topics_makes_no_tokens(place: Place) -> None:
    """Only admin of everything does: others could give themselves more than they have."""
    almost = place.make(admin=("*", "*.>"))
    for method, path in (("GET", "/v1/tokens"), ("DELETE", "/v1/tokens/" + "0" * 12)):
        assert (await place.ask(almost, method, path))[0] == 403
    assert (await place.ask(almost, "POST", "/v1/tokens", json={"name": "x", "admin": [">"]}))[0] == 403


async def test_a_refused_token_is_told_at_once(place: Place) -> None:
    """The client does not try again what will be refused again."""
    settings = ClientSettings(retry_for=3600)
    place.make(admin=(">",))
    async with asyncio.timeout(20):
        async with Client(place.url, settings=settings) as bus:
            with pytest.raises(Unauthorized, match="token"):
                await bus.publish("a", b"x" * 3_000_000)
            with pytest.raises(Unauthorized):
                async with bus.subscribe("a"):
                    pass
        async with Client(place.url, place.make(publish=("b",)), settings) as bus:
            with pytest.raises(Forbidden):
                await bus.publish("a", bytes(9 << 20))
            with pytest.raises(Forbidden):
                await bus.publish("a", b"x")


async def test_no_secret_is_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a valid nor a refused token's secret appears in any log line."""
    caplog.set_level(logging.DEBUG)
    root = place.make(admin=(">",))
    wrong = root[:-64] + "1" * 64
    for token in (root, wrong):
        await place.ask(token, "POST", "/v1/topics/a/messages", data=b"x")
        await place.ask(token, "GET", "/nothing")
        await place.ask(token, "POST", "/v1/tokens", json={"name": "x", "publish": ["a"]})
    assert "401" in caplog.text and "201" in caplog.text
    for token in (root, wrong):
        assert token.rpartition("_")[2] not in caplog.text


async def test_quotas_of_a_token(place: Place) -> None:
    """What it may have stored, and how many uploads open, holds for one token and not for another."""
    small = place.make(publish=("a",), quotas=Quotas(max_bytes=100_000, max_uploads=1))
    other = place.make(publish=("a",))
    async with Client(place.url, small) as bus:
        await bus.publish("a", bytes(60_000))
        with pytest.raises(QuotaExceeded):
            await bus.publish("a", bytes(60_000))
        await bus.publish("a", bytes(10_000))
    await place.publish(other, "a", bytes(200_000))
    new = {"Upload-Length": "9", "Tus-Resumable": "1.0.0"}
    statuses = await asyncio.gather(
        *(place.ask(small, "POST", "/v1/topics/a/uploads", headers=new) for _ in range(5))
    )
    assert sorted(status for status, _, _ in statuses) == [201, 429, 429, 429, 429]
    [refused, *_] = [answer for status, _, answer in statuses if status == 429]
    assert refused.headers["Retry-After"]
    assert (await place.ask(small, "POST", "/v1/topics/a/messages", data=b"x"))[0] == 429
    assert (await place.ask(other, "POST", "/v1/topics/a/uploads", headers=new))[0] == 201


# --- without tokens ----------------------------------------------------------------------------------


async def test_the_first_token_closes_the_door(tmp_path: Path) -> None:
    """Without tokens whoever is on this machine may do everything; from the first one on, nobody may."""
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as http:
        place = Place(url, http, TokenFile(tmp_path))
        assert (await place.ask(None, "GET", "/v1/messages"))[0] == 200
        status, made, _ = await place.ask(None, "POST", "/v1/tokens", json={"name": "root", "admin": [">"]})
        assert status == 201
        assert (await place.ask(None, "GET", "/v1/messages"))[0] == 401
        assert (await place.ask(made["token"], "GET", "/v1/messages"))[0] == 200
        await place.ask(made["token"], "DELETE", f"/v1/tokens/{made['id']}")
        assert (await place.ask(None, "GET", "/v1/messages"))[0] == 401


async def test_a_web_page_cannot_use_a_broker_without_tokens(tmp_path: Path) -> None:
    """A browser's request for another site's page is refused; the broker's own pages are not."""
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as http:
        place = Place(url, http, TokenFile(tmp_path))
        path = "/v1/topics/a/messages"
        for origin, status in (("https://example.org", 403), ("null", 403), ("http://[", 403), (url, 201)):
            got, _, _ = await place.ask(None, "POST", path, data=b"x", headers={"Origin": origin})
            assert got == status


async def test_a_name_that_leads_here_opens_no_broker_without_tokens(tmp_path: Path) -> None:
    """A page of a site whose name was made to lead to this machine is of the same origin to its browser."""
    settings = ServerSettings(port=0, allow_remote=True)
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as http:
        place = Place(url, http, TokenFile(tmp_path))
        port = URL(url).port
        for host, status in (
            (f"rebound.example.org:{port}", 403),
            ("printer.local", 403),
            ("[::1", 403),
            (f"localhost:{port}", 200),
            ("broker.localhost", 200),
            (f"[::1]:{port}", 200),
            ("10.1.2.3", 200),
            ("broker:8080", 200),
        ):
            got, document, _ = await place.ask(None, "GET", "/v1/messages", headers={"Host": host})
            assert got == status, (host, document)
    async with running_broker(tmp_path, settings=settings) as url, aiohttp.ClientSession(url) as http:
        place = Place(url, http, TokenFile(tmp_path))
        status, _, _ = await place.ask(None, "GET", "/v1/messages", headers={"Host": "broker.example.org"})
        assert status == 200
