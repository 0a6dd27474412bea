"""What may not be seen does not exist: every route asks, no name leads to a file, every change is told."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from guarding import Place
from tensorbus.bus.access import TokenFile, TokenPlan
from tensorbus.bus.broker import Broker
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.server.access import PUBLIC
from tensorbus.bus.server.audit import ACTIONS, UNTOLD
from tensorbus.bus.server.server import build_app
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.testing import running_broker

SECRET = "secret.models"


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
