"""What became of a key: a publisher that crashed learns for good whether its message was stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tensorbus.bus.server import ServerSettings
from tensorbus.bus.testing import running_broker
from tensorbus.streaming.raw import RawEncoder

KEY = "sft/round-1/../site+a?%&key=b"
"""Every character that an address could stumble over."""
TOPIC = "/v1/topics/fl.test.updates"
HEADERS = {"Content-Type": "application/vnd.tensorbus.frames", "Idempotency-Key": KEY}


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with (
        running_broker(tmp_path, None, ServerSettings(idle_timeout=2.0)) as url,
        aiohttp.ClientSession(url) as session,
    ):
        yield session


def message() -> list[bytes]:
    """The frames of a small message, in three parts."""
    encoder = RawEncoder({}, "text/plain", 1000)
    opening = encoder.open()
    slices = b"".join(b"".join((head, bytes(payload))) for head, payload in encoder.slices(bytes(1000)))
    return [opening, slices, encoder.close()]


async def asked(http: aiohttp.ClientSession, key: str = KEY) -> tuple[int, dict[str, object]]:
    """Status and answer of the question for a key."""
    async with http.get(f"{TOPIC}/receipt", params={"key": key}) as answer:
        return answer.status, await answer.json()


async def open_messages(http: aiohttp.ClientSession) -> list[object]:
    """What is being published."""
    async with http.get("/v1/messages", params={"state": "open"}) as answer:
        return (await answer.json())["messages"]


async def test_a_stored_key_is_answered_with_its_receipt_also_when_the_message_is_gone(
    http: aiohttp.ClientSession,
) -> None:
    """The receipt is the one that the publisher got, marked duplicate."""
    async with http.post(f"{TOPIC}/messages", data=b"".join(message()), headers=HEADERS) as answer:
        stored = await answer.json()
    assert await asked(http) == (200, stored | {"duplicate": True})
    async with http.delete(f"/v1/messages/{stored['id']}") as answer:
        assert answer.status == 204
    assert await asked(http) == (200, stored | {"duplicate": True, "gone": True})


async def test_a_key_that_was_never_stored_is_not_found(http: aiohttp.ClientSession) -> None:
    """Another topic's key, an unknown one, and no key at all."""
    async with http.post("/v1/topics/other/messages", data=b"x", headers={"Idempotency-Key": KEY}) as answer:
        assert answer.status == 201
    status, problem = await asked(http)
    assert (status, problem["type"]) == (404, "urn:tensorbus:problem:not-found")
    for malformed in ("", "two words", "x" * 256):
        assert (await asked(http, malformed))[0] == 400
    async with http.get(f"{TOPIC}/receipt", params={"key": KEY, "kind": "x"}) as answer:
        assert answer.status == 400


@pytest.mark.parametrize("whole", [True, False])
async def test_an_upload_under_way_is_waited_for(http: aiohttp.ClientSession, whole: bool) -> None:
    """The answer comes with its end: stored, or given up because its publisher went away."""
    opening, slices, closing = message()
    go_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield opening
        await go_on.wait()
        yield slices + closing

    async def upload() -> int:
        async with http.post(f"{TOPIC}/messages", data=pieces(), headers=HEADERS) as answer:
            return answer.status

    uploading = asyncio.create_task(upload())
    while not await open_messages(http):
        await asyncio.sleep(0)
    asking = asyncio.create_task(asked(http))
    assert not (await asyncio.wait([asking], timeout=0.2))[0]
    if whole:
        go_on.set()
        assert await uploading == 201
    else:
        uploading.cancel()
    status, _ = await asking
    assert status == (200 if whole else 404)
