"""What whoever runs a broker sees: the API's description, health, figures, errors without internals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from openapi_spec_validator import validate

from tensorbus.bus.broker import Broker
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.server.server import build_app
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.testing import running_broker


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as session:
        yield session


async def described(http: aiohttp.ClientSession) -> dict[str, Any]:
    """The OpenAPI document."""
    async with http.get("/openapi.json") as answer:
        assert answer.status == 200
        return await answer.json()


async def test_the_description_is_valid(http: aiohttp.ClientSession) -> None:
    """/openapi.json is an OpenAPI 3.1 document that the reference validator accepts."""
    document = await described(http)
    assert document["openapi"].startswith("3.1")
    validate(document)


async def test_every_route_is_described_and_nothing_else(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """The routes of the application and the operations of the document are the same."""
    app = build_app(Broker(FileStore(tmp_path / "other")), ServerSettings())
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    }
    operations = {
        (method.upper(), path)
        for path, methods in (await described(http))["paths"].items()
        for method in cast(dict[str, object], methods)
    }
    assert operations <= routes
    # aiohttp answers HEAD wherever it answers GET; only where it is of use is it described.
    assert {route for route in routes - operations if route[0] != "HEAD"} == set()


async def test_health_and_readiness(http: aiohttp.ClientSession) -> None:
    """/healthz says that the process lives, /readyz that the store answers."""
    for path, status in (("/healthz", "alive"), ("/readyz", "ready")):
        async with http.get(path) as answer:
            assert (answer.status, await answer.json()) == (200, {"status": status})


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/v1/messages/../../etc/passwd", 404, "not-found"),
        ("DELETE", "/v1/topics", 405, "method-not-allowed"),
        ("GET", "/v1/messages?limit=0", 400, "invalid-request"),
        ("GET", "/v1/messages?limit=" + "9" * 5000, 400, "invalid-request"),
        ("GET", "/v1/messages?order=up", 400, "invalid-request"),
        ("GET", "/v1/messages?topics=a", 400, "invalid-request"),
        ("GET", "/v1/messages?topic=a..b", 400, "invalid-name"),
    ],
)
async def test_errors_of_http_itself_are_problems_too(
    http: aiohttp.ClientSession, method: str, path: str, status: int, slug: str
) -> None:
    """Unknown paths, methods and parameters are answered with a problem document that says what to do."""
    async with http.request(method, path) as answer:
        assert answer.status == status
        assert answer.content_type == "application/problem+json"
        document = await answer.json(content_type=None)
    assert document["type"] == f"urn:tensorbus:problem:{slug}"
    assert document["detail"]
    if status == 405:
        assert "GET" in answer.headers["Allow"]


async def test_the_unexpected_tells_nothing_to_the_outside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault in the program is a bare 500 for the client, and a traceback in the log."""

    async def fault(_request: web.Request) -> web.Response:
        raise RuntimeError("password=hunter2")

    async with Broker(FileStore(tmp_path)) as broker:
        app = build_app(broker, ServerSettings())
        app.router.add_get("/fault", fault)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        try:
            async with aiohttp.request("GET", f"http://{host}:{port}/fault") as answer:
                assert answer.status == 500
                assert answer.content_type == "application/problem+json"
                assert "hunter2" not in await answer.text()
        finally:
            await runner.cleanup()
    assert "hunter2" in caplog.text
