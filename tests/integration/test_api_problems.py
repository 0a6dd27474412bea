"""Whatever goes wrong, the answer is a problem document, also where aiohttp answers by itself."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tensorbus.bus.testing import running_broker

LONG = b"a" * 9000
HOST = b"Host: x\r\nConnection: close\r\n"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A broker of its own."""
    async with running_broker(tmp_path) as url:
        yield url


async def say(url: str, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send these bytes, and read the answer until the server closes: status, fields, body."""
    where = URL(url)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    writer.write(sent)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), fields, body


@pytest.mark.parametrize(
    ("sent", "status", "slug"),
    [
        (b"GARBAGE\r\n\r\n", 400, "bad-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad-request"),
        (b"GET / HTTP/3.9\r\n\r\n", 400, "bad-request"),
        (b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A b: c\r\n\r\n", 400, "bad-request"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: x\r\n\r\n", 400, "bad-request"),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "bad-request",
        ),
        (b"GET /" + LONG + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "uri-too-long"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + LONG + b"\r\n\r\n", 431, "request-header-fields-too-large"),
        (
            b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 1000 + b"\r\n",
            431,
            "request-header-fields-too-large",
        ),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"Expect: tea\r\n\r\n", 417, "expectation-failed"),
        (b"GET /nothing HTTP/1.1\r\n" + HOST + b"Expect: tea\r\n\r\n", 417, "expectation-failed"),
        (b"CONNECT x:443 HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not-found"),
        (b"PURGE /v1/topics HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method-not-allowed"),
    ],
)
async def test_what_is_no_request_is_answered_with_a_problem_and_one_line_of_the_log(
    url: str, sent: bytes, status: int, slug: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Malformed requests get a problem document with their status; the log has no traceback of ours."""
    answered, fields, body = await say(url, sent)
    assert answered == status
    assert fields["content-type"] == "application/problem+json"
    assert fields["x-request-id"]
    problem = json.loads(body)
    assert problem["type"] == f"urn:tensorbus:problem:{slug}"
    assert problem["status"] == status
    assert problem["title"] and problem["detail"]
    assert not [record for record in caplog.records if record.exc_info]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_errors_of_head_requests_have_a_head_only(url: str) -> None:
    """HEAD is answered like GET, without the body."""
    async with aiohttp.ClientSession(url) as http, http.head("/v1/messages/" + "0" * 32) as answer:
        assert answer.status == 404
        assert answer.content_type == "application/problem+json"
        assert int(answer.headers["Content-Length"]) > 0
        assert await answer.read() == b""


async def test_a_wrong_path_says_where_to_look(url: str) -> None:
    """404 names the path, and what describes the right ones."""
    async with aiohttp.ClientSession(url) as http:
        for path in ("/topics", "/v1/topic"):
            async with http.get(path) as answer:
                detail: str = (await answer.json(content_type=None))["detail"]
            assert path in detail and "/openapi.json" in detail and "/docs" in detail
            assert ("below /v1/" in detail) == (not path.startswith("/v1/"))


async def test_a_problem_names_its_request(url: str) -> None:
    """The id in the answer's head, which the log has as well, is in the document too."""
    own = {"X-Request-Id": "my-request.1"}
    async with aiohttp.ClientSession(url) as http, http.get("/nothing", headers=own) as answer:
        document: dict[str, Any] = await answer.json(content_type=None)
        assert answer.headers["X-Request-Id"] == document["request_id"] == "my-request.1"
        assert document["instance"] == "/nothing"


async def test_a_client_that_leaves_is_no_fault(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that breaks in the midst of a head or a body leaves no traceback."""
    where = URL(url)
    assert where.host is not None and where.port is not None
    for sent in (
        b"GET /hea",
        b"POST /v1/topics/a/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab",
    ):
        with socket.create_connection((where.host, where.port)) as peer:
            peer.sendall(sent)
    async with aiohttp.ClientSession(url) as http, http.get("/healthz") as answer:
        assert answer.status == 200
    assert not [record for record in caplog.records if record.exc_info]
