"""Who may do what: every route asks, and what a token may not see does not exist for it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tensorbus.bus.access import Quotas, Rights, TokenFile, TokenPlan
from tensorbus.bus.broker import Broker
from tensorbus.bus.client import Client, ClientSettings
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.server.access import PUBLIC
from tensorbus.bus.server.audit import ACTIONS, UNTOLD
from tensorbus.bus.server.server import build_app
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.testing import running_broker
from tensorbus.errors import Forbidden, NotFound, QuotaExceeded, Unauthorized

SECRET = "secret.models"


@dataclass
class Place:
    """A broker with tokens, and a session that sends none by itself."""

    url: str
    http: aiohttp.ClientSession
    tokens: TokenFile

    def make(self, *, quotas: Quotas | None = None, **rights: tuple[str, ...]) -> str:
        """A token's text."""
        plan = TokenPlan("somebody", Rights(**rights), quotas=quotas or Quotas())
        return str(self.tokens.create(plan)[1])

    async def ask(
        self, token: str | None, method: str, path: str, **more: Any
    ) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Status, JSON (or bytes) and the response of one request."""
        shown = {} if token is None else {"Authorization": f"Bearer {token}"}
        more["headers"] = more.get("headers", {}) | shown
        async with self.http.request(method, path, **more) as answer:
            if answer.content_type == "text/event-stream":  # it does not end: the first event of it
                body = await answer.content.readuntil(b"\n\n")
            else:
                body = await answer.read()
            document = json.loads(body) if "json" in answer.content_type and body else body
            return answer.status, document, answer

    async def publish(self, token: str, topic: str, data: bytes = b"x", **headers: str) -> str:
        """The id of a new message."""
        path = f"/v1/topics/{topic}/messages"
        status, receipt, _ = await self.ask(token, "POST", path, data=data, headers=headers)
        assert status == 201, receipt
        return receipt["id"]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place]:
    """A broker that asks for tokens."""
    tokens = TokenFile(tmp_path)
    tokens.revoke(tokens.create(TokenPlan("first"))[0].id)
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as http:
        yield Place(url, http, tokens)


# --- every route -------------------------------------------------------------------------------------

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/topics/{topic}/messages"): {"data": b"x"},
    ("POST", "/v1/topics/{topic}/batch"): {"data": bytes(8)},
    ("PUT", "/v1/consumers/{name}"): {"json": {"filter": "secret.>"}},
    ("PUT", "/v1/policies/{name}"): {"json": {"filter": "secret.>"}},
    ("POST", "/v1/tokens"): {"json": {"name": "x", "admin": [">"]}},
    ("POST", "/v1/topics/{topic}/uploads"): {"headers": {"Upload-Length": "9", "Tus-Resumable": "1.0.0"}},
    ("HEAD", "/v1/uploads/{id}"): {"headers": {"Tus-Resumable": "1.0.0"}},
    ("PATCH", "/v1/uploads/{id}"): {"headers": {"Tus-Resumable": "1.0.0"}},
    ("DELETE", "/v1/uploads/{id}"): {"headers": {"Tus-Resumable": "1.0.0"}},
    ("POST", "/v1/uploads/{id}"): {"headers": {"Tus-Resumable": "1.0.0", "X-HTTP-Method-Override": "DELETE"}},
    ("DELETE", "/v1/dead-letters"): {"params": {"topic": "secret.>"}},
}
"""What a well-formed request to a route needs."""

LISTS = {
    "/v1/topics",
    "/v1/messages",
    "/v1/consumers",
    "/v1/policies",
    "/v1/damaged",
    "/v1/dead-letters",
    "/v1/status",
    "/v1/status/stream",
}
"""Answered to everybody with a token, with what that token may see."""
ANY_TOKEN = {
    ("GET", "/metrics"),
    ("HEAD", "/metrics"),
    ("OPTIONS", "/v1/uploads/{id}"),
    ("OPTIONS", "/v1/topics/{topic}/uploads"),
}
"""Answered to everybody with a token: figures of the whole broker, and what it can do of tus."""


def routes(tmp_path: Path) -> list[tuple[str, str]]:
    """Method and path of every route that the server has."""
    app = build_app(Broker(FileStore(tmp_path / "unused")), ServerSettings())
    found = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    }
    return sorted(found)


async def test_every_route_is_public_or_refuses(place: Place, tmp_path: Path) -> None:
    """No route is forgotten: without a token 401; with one for other topics 403, or 404 as for nothing."""
    root = place.make(admin=(">",))
    other = place.make(publish=("other.>",), subscribe=("other.>",), admin=("others.>",))
    message = await place.publish(root, SECRET)
    status, _, made = await place.ask(
        root,
        "POST",
        f"/v1/topics/{SECRET}/uploads",
        headers={"Upload-Length": "9", "Tus-Resumable": "1.0.0"},
    )
    assert status == 201
    upload = made.headers["Location"].rpartition("/")[2]
    for path in ("/v1/consumers/c", "/v1/policies/c"):
        assert (await place.ask(root, "PUT", path, json={"filter": "secret.>"}))[0] == 201
    _, pulled, _ = await place.ask(root, "POST", "/v1/consumers/c/deliveries", json={"wait": 0})
    delivery = pulled["deliveries"][0]["token"]
    token_id = place.tokens.tokens()[0].id

    wrong: list[str] = []
    for method, route in routes(tmp_path):
        ids = {"/v1/uploads": upload, "/v1/tokens": token_id}
        path = route.format(
            topic=SECRET,
            id=ids.get("/".join(route.split("/")[:3]), message),
            name="body" if "/items/" in route else "c",
            token=delivery,
            stream="0" * 32,
            file="style.css" if route.startswith("/page/") else "swagger-ui.css",
        )
        example = BODIES.get((method, route), {"json": {}} if method in ("POST", "PUT") else {})
        if route in PUBLIC:
            if (await place.ask(None, method, path))[0] != 200:
                wrong.append(f"{method} {route} is called public, and is not")
            continue
        nobody, _, refused = await place.ask(None, method, path, **dict(example))
        if nobody != 401 or not refused.headers["WWW-Authenticate"].startswith("Bearer"):
            wrong.append(f"{method} {route} without a token: {nobody}")
        status, document, _ = await place.ask(other, method, path, **dict(example))
        if (method, route) in ANY_TOKEN:
            expected = status < 300
        elif route in LISTS and method in ("GET", "HEAD"):
            expected = status == 200 and "secret" not in json.dumps(document or {}, default=str)
        else:
            expected = status in (403, 404)
        if not expected:
            wrong.append(f"{method} {route} with a token for other topics: {status} {document}")
    assert not wrong, "\n".join(wrong)


async def test_what_may_not_be_seen_looks_like_what_is_not_there(place: Place) -> None:
    """The answers about a foreign message, and about none, are the same but for the id."""
    root, other = place.make(admin=(">",)), place.make(subscribe=("other.>",))
    message = await place.publish(root, SECRET)
    await place.ask(root, "PUT", "/v1/consumers/theirs", json={"filter": "secret.>"})
    await place.ask(root, "PUT", "/v1/policies/theirs", json={"filter": "secret.>"})
    asked = [
        ("GET", "/v1/messages/{}", message, "0" * 32),
        ("HEAD", "/v1/messages/{}/frames", message, "0" * 32),
        ("GET", "/v1/messages/{}/frames", message, "0" * 32),
        ("GET", "/v1/messages/{}/items/body", message, "0" * 32),
        ("DELETE", "/v1/messages/{}", message, "0" * 32),
        ("GET", "/v1/consumers/{}", "theirs", "nobody"),
        ("DELETE", "/v1/consumers/{}", "theirs", "nobody"),
        ("POST", "/v1/consumers/{}/deliveries", "theirs", "nobody"),
        ("POST", "/v1/consumers/{}/deliveries/00/ack", "theirs", "nobody"),
        ("GET", "/v1/policies/{}", "theirs", "nobody"),
        ("DELETE", "/v1/policies/{}", "theirs", "nobody"),
    ]
    for method, path, there, absent in asked:
        answers: list[tuple[int, str]] = []
        for name in (there, absent):
            status, document, answer = await place.ask(other, method, path.format(name))
            text = json.dumps(document, default=str).replace(name, "?")
            text = re.sub(r'"request_id": "\w+"', "", text)
            answers.append((status, f"{text} {sorted(answer.headers)}"))
        assert answers[0] == answers[1], path
        assert answers[0][0] == 404


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


# --- names and files ---------------------------------------------------------------------------------

TRAVERSALS = [
    "..",
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2ftokens.json",
    "....//....//tokens.json",
    "..\\..\\tokens.json",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "tokens.json",
    "meta.db",
    "%00",
    "a%00.frames",
    "~root",
    "%c0%ae%c0%ae/",
    "." * 300,
]


async def test_no_name_leads_to_the_file_system(place: Place, tmp_path: Path) -> None:
    """Whatever is given as a topic, id, consumer, policy, token or item, no file is read or made by it."""
    root = place.make(admin=(">",))
    message = await place.publish(root, "a")
    secret = json.loads(place.tokens.path.read_text())["tokens"][0]["hash"].encode()
    before = _files(tmp_path)
    tus = {"Upload-Length": "9", "Tus-Resumable": "1.0.0"}
    text, everything = {"data": b"x"}, {"json": {"filter": "z"}}
    for name in TRAVERSALS:
        requests: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", f"/v1/topics/{name}/messages", text),
            ("GET", f"/v1/topics/{name}/receipt?key={name}", {}),
            ("GET", f"/v1/messages?topic={name}", {}),
            ("GET", f"/v1/messages/{name}", {}),
            ("GET", f"/v1/messages/{name}/frames", {}),
            ("DELETE", f"/v1/messages/{name}", {}),
            ("GET", f"/v1/messages/{message}/items/{name}", {}),
            ("PUT", f"/v1/consumers/{name}", everything),
            ("DELETE", f"/v1/consumers/{name}", {}),
            ("PUT", f"/v1/policies/{name}", everything),
            ("POST", f"/v1/topics/{name}/uploads", {"headers": tus}),
            ("HEAD", f"/v1/uploads/{name}", {"headers": tus}),
            ("DELETE", f"/v1/uploads/{name}", {"headers": tus}),
            ("DELETE", f"/v1/tokens/{name}", {}),
            ("POST", f"/v1/consumers/c/deliveries/{name}/ack", {}),
            ("GET", f"/docs/{name}", {}),
        ]
        for method, path, more in requests:
            headers = more.get("headers", {}) | {"Authorization": f"Bearer {root}"}
            # Sent as it is written here: the client must not tidy it.
            where = URL(f"{place.url}{path}", encoded=True)
            async with place.http.request(method, where, **(more | {"headers": headers})) as answer:
                content = await answer.read()
            assert answer.status < 500, (method, path)
            assert b"root:" not in content and secret not in content and b"SQLite" not in content
    # A topic may well be called `meta.db`; files are named after ids only.
    assert all(re.fullmatch(r"frames/[0-9a-f]{32}\.frames", made) for made in _files(tmp_path) - before)
    assert before <= _files(tmp_path)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- the audit log -----------------------------------------------------------------------------------


async def test_every_change_is_told_or_known_not_to_be(tmp_path: Path) -> None:
    """No route that changes something is missing in the audit log by oversight."""
    changing = {
        (method, path) for method, path in routes(tmp_path) if method not in ("GET", "HEAD", "OPTIONS")
    }
    assert changing == ACTIONS.keys() | UNTOLD
    assert not ACTIONS.keys() & UNTOLD
