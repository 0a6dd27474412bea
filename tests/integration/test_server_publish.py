"""What a publisher may rely on, over real HTTP against a real broker in this event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from storing import frames_left
from tensorbus.bus.broker import BrokerSettings
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.testing import running_broker
from tensorbus.streaming.raw import RawEncoder

FRAMES = {"Content-Type": "application/vnd.tensorbus.frames"}
POST = "/v1/topics/fl.test.updates/messages"
MIB = 1 << 20
LIMIT = 4 * MIB
UPLOADS = 32
LARGE = 3 * MIB
"""Large enough to be received past aiohttp; see bus/server/receiver.py."""


def message(size: int = 100_000, value: bytes = b"a") -> list[bytes]:
    """The frames of a message whose one item is ``size`` times ``value``."""
    encoder = RawEncoder({"site": "a"}, "text/plain", size)
    opening = encoder.open()
    slices = b"".join(b"".join((head, bytes(payload))) for head, payload in encoder.slices(value * size))
    return [opening, slices, encoder.close()]


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a broker of its own, with small limits."""
    limits = BrokerSettings(max_message_bytes=LIMIT, max_open_messages=UPLOADS)
    async with running_broker(tmp_path, limits, ServerSettings(idle_timeout=2.0)) as address:
        yield address


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with aiohttp.ClientSession(url) as session:
        yield session


async def listed(http: aiohttp.ClientSession, **query: str) -> list[dict[str, object]]:
    """Messages as listed."""
    async with http.get("/v1/messages", params=query) as answer:
        assert answer.status == 200
        return (await answer.json())["messages"]


async def problem(answer: aiohttp.ClientResponse, status: int, slug: str) -> str:
    """Check a problem document; returns its detail."""
    assert answer.status == status, await answer.text()
    assert answer.content_type == "application/problem+json"
    document = await answer.json(content_type=None)
    assert document["type"] == f"urn:tensorbus:problem:{slug}"
    assert document["status"] == status
    assert document["instance"] and document["title"]
    return document["detail"]


async def nothing_is_left(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """No message, open or sealed, and no byte of one in the store."""
    assert await listed(http) == []
    assert await listed(http, state="open") == []
    await frames_left.becomes(tmp_path, ())  # the frames go when no thread uses them any more


async def test_a_published_message_is_acknowledged_and_listed(http: aiohttp.ClientSession) -> None:
    """201 with a receipt and the message's address; the same message is then found by listing."""
    body = b"".join(message())
    async with http.post(POST, data=body, headers=FRAMES) as answer:
        receipt = await answer.json()
        assert answer.status == 201
        assert answer.headers["Location"] == f"/v1/messages/{receipt['id']}"
    assert receipt["bytes"] == len(body)
    assert receipt["topic"] == "fl.test.updates"
    assert receipt["duplicate"] is False
    [found] = await listed(http, topic="fl.*.updates")
    assert found["id"] == receipt["id"]
    assert found["headers"] == {"site": "a"}
    assert found["digest"] == receipt["digest"]


async def test_a_body_of_unknown_length_may_be_cut_anywhere(http: aiohttp.ClientSession) -> None:
    """Chunked transfer, cut without regard to frames, is the same message as one with Content-Length."""
    body = b"".join(message(3000))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    async with http.post(POST, data=pieces(), headers=FRAMES) as chunked:
        first = await chunked.json()
    async with http.post(POST, data=body, headers=FRAMES) as whole:
        second = await whole.json()
    assert first["digest"] == second["digest"]
    assert first["bytes"] == second["bytes"] == len(body)


async def test_a_repeated_key_is_answered_with_the_first_receipt(http: aiohttp.ClientSession) -> None:
    """Publishing again with the same Idempotency-Key stores nothing and says so: 200, duplicate."""
    headers = {**FRAMES, "Idempotency-Key": "round-1/site-a"}
    async with http.post(POST, data=b"".join(message()), headers=headers) as answer:
        first = await answer.json()
        assert answer.status == 201
    async with http.post(POST, data=b"".join(message(5)), headers=headers) as answer:
        again = await answer.json()
        assert answer.status == 200
    assert again == {**first, "duplicate": True}
    assert len(await listed(http)) == 1


async def test_a_plain_body_becomes_one_item_called_body(http: aiohttp.ClientSession) -> None:
    """Any other media type is wrapped as bytes, with Tensorbus-Header fields as headers of the message."""
    headers = {
        "Content-Type": "text/plain",
        "Tensorbus-Header-Site": "a",
        "Tensorbus-Header-num_examples": "8",
    }
    async with http.post(POST, data=b"hello", headers=headers) as answer:
        assert answer.status == 201
        receipt = await answer.json()
    async with http.get(f"/v1/messages/{receipt['id']}") as answer:
        info = await answer.json()
    assert info["container"] == "bytes"
    assert info["headers"] == {"site": "a", "num_examples": "8"}
    assert [(entry["n"], entry["k"], entry["s"]) for entry in info["manifest"]] == [("body", "bytes", [5])]


async def test_an_empty_plain_body_is_a_message_too(http: aiohttp.ClientSession) -> None:
    """Nothing is something: an item of zero bytes."""
    async with http.post(POST, data=b"", headers={"Content-Type": "text/plain"}) as answer:
        assert answer.status == 201


async def test_a_plain_body_has_to_say_its_length(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """411 for a plain body in chunked transfer, because the manifest comes first and names the size."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"hello"

    async with http.post(POST, data=pieces(), headers={"Content-Type": "text/plain"}) as answer:
        await problem(answer, 411, "length-required")
    await nothing_is_left(http, tmp_path)


@pytest.mark.parametrize("topic", ["a..b", "a%2Fb", "a%00b", "a.*", "%2e%2e", "a" * 300, "ä"])
async def test_a_bad_topic_is_refused(http: aiohttp.ClientSession, topic: str, tmp_path: Path) -> None:
    """400 with the reason; no part of the name reaches the file system."""
    path = URL(f"/v1/topics/{topic}/messages", encoded=topic != "ä")
    async with http.post(path, data=b"".join(message()), headers=FRAMES) as answer:
        await problem(answer, 400, "invalid-name")
    await nothing_is_left(http, tmp_path)


def damaged(size: int) -> Iterable[tuple[str, bytes, str]]:
    """What can be wrong with a body: a name, the body, and the problem it has to be answered with."""
    opening, slices, closing = message(size)
    yield "cut in a frame", (opening + slices)[:-1], "truncated-frames"
    yield "without a close frame", opening + slices, "truncated-frames"
    yield "cut within the open frame", opening[:30], "truncated-frames"
    yield "one bit flipped", opening + slices[:-1] + bytes([slices[-1] ^ 1]) + closing, "checksum-mismatch"
    yield "a frame twice", opening + slices + slices + closing, "frame-sequence"
    yield "no frames at all", b"GIF89a" * 10, "frame"
    yield "bytes after the close frame", opening + slices + closing + opening, "frame-sequence"
    yield "unknown version", opening[:4] + b"\x63" + opening[5:] + slices + closing, "unsupported-version"


CASES = [
    pytest.param(body, slug, id=f"{size}: {name}")
    for size in (2000, LARGE // 2)
    for name, body, slug in damaged(size)
]


@pytest.mark.parametrize(("body", "slug"), CASES)
async def test_bad_frames_are_refused(
    http: aiohttp.ClientSession, tmp_path: Path, body: bytes, slug: str
) -> None:
    """422, naming what is wrong; nothing is stored and nothing stays on the disk."""
    async with http.post(POST, data=body, headers=FRAMES) as answer:
        assert await problem(answer, 422, slug)
    await nothing_is_left(http, tmp_path)


async def test_a_body_over_the_limit_is_refused_by_its_length(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """413 from Content-Length alone, and the sender sees it although it was still sending."""
    async with http.post(POST, data=b"x" * (2 * LIMIT), headers=FRAMES) as answer:
        await problem(answer, 413, "limit-exceeded")
    await nothing_is_left(http, tmp_path)


async def test_a_body_over_the_limit_is_refused_while_it_comes(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """413 for a chunked body as soon as it is over the limit; the sender sees the answer, not a reset."""
    parts = message(LIMIT + MIB)

    async def pieces() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async with http.post(POST, data=pieces(), headers=FRAMES) as answer:
        await problem(answer, 413, "limit-exceeded")
    await nothing_is_left(http, tmp_path)


async def test_a_compressed_body_is_refused(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """400 for Content-Encoding: what arrives is what is stored, byte for byte."""
    headers = {**FRAMES, "Content-Encoding": "gzip"}
    async with http.post(POST, data=b"x", headers=headers) as answer:
        await problem(answer, 400, "invalid-request")
    await nothing_is_left(http, tmp_path)


async def test_a_second_upload_with_the_same_key_replaces_the_first(http: aiohttp.ClientSession) -> None:
    """A publisher that lost its connection need not wait for the broker to notice: its new upload wins."""
    parts = message()
    started, go_on = asyncio.Event(), asyncio.Event()
    headers = {**FRAMES, "Idempotency-Key": "k"}

    async def pieces() -> AsyncIterator[bytes]:
        yield parts[0]
        started.set()
        await go_on.wait()
        yield parts[1] + parts[2]

    async def first() -> int:
        async with http.post(POST, data=pieces(), headers=headers) as answer:
            await problem(answer, 410, "message-replaced")
            return answer.status

    lost = asyncio.create_task(first())
    await started.wait()
    while not await listed(http, state="open"):
        await asyncio.sleep(0)
    async with http.post(POST, data=b"".join(parts), headers=headers) as answer:
        assert answer.status == 201
    go_on.set()
    assert await lost == 410
    assert len(await listed(http)) == 1


async def test_uploads_at_a_time_are_limited(http: aiohttp.ClientSession) -> None:
    """One more upload than allowed is refused with 503 and comes later; the others go on."""
    parts = message()
    go_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield parts[0]
        await go_on.wait()
        yield parts[1] + parts[2]

    async def upload() -> int:
        async with http.post(POST, data=pieces(), headers=FRAMES) as answer:
            return answer.status

    uploads = [asyncio.create_task(upload()) for _ in range(UPLOADS)]
    while len(await listed(http, state="open")) < UPLOADS:
        await asyncio.sleep(0)
    async with http.post(POST, data=b"".join(parts), headers=FRAMES) as answer:
        await problem(answer, 503, "broker-busy")
    go_on.set()
    assert await asyncio.gather(*uploads) == [201] * UPLOADS
