"""tus 1.0 as its text has it, over real HTTP against a real broker."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from tensorbus.bus.broker import BrokerSettings
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.testing import running_broker
from tensorbus.streaming import checksum as crc32c
from tensorbus.streaming.raw import RawEncoder

NEW = "/v1/topics/fl.test.updates/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
PART = TUS | {"Content-Type": "application/offset+octet-stream"}
MIB = 1 << 20
LIMIT = 8 * MIB
LARGE = 3 * MIB
"""Large enough to be received past aiohttp; see bus/server/receiver.py."""


def message(size: int) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({"site": "a"}, "text/plain", size)
    parts = [encoder.open()]
    for start in range(0, size, 100_000):
        for head, payload in encoder.slices(bytes([start % 251]) * min(100_000, size - start)):
            parts.append(head + bytes(payload))
    return b"".join([*parts, encoder.close()])


BODY = message(300_000)


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    limits = BrokerSettings(max_message_bytes=LIMIT)
    async with (
        running_broker(tmp_path, limits, ServerSettings(idle_timeout=2.0)) as url,
        aiohttp.ClientSession(url) as session,
    ):
        yield session


async def create(
    http: aiohttp.ClientSession, length: int | None = len(BODY), headers: Mapping[str, str] | None = None
) -> str:
    """The address of a new upload."""
    size = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    async with http.post(NEW, headers=TUS | size | dict(headers or {})) as answer:
        assert answer.status == 201, await answer.text()
        assert answer.headers["Tus-Resumable"] == "1.0.0"
        assert answer.headers["Upload-Expires"].endswith("GMT")
        return answer.headers["Location"]


async def add(
    http: aiohttp.ClientSession, url: str, offset: int, part: bytes, **headers: str
) -> aiohttp.ClientResponse:
    """One PATCH; its answer, read."""
    async with http.patch(url, data=part, headers=PART | {"Upload-Offset": str(offset)} | headers) as answer:
        await answer.read()
        assert answer.headers["Tus-Resumable"] == "1.0.0"
        return answer


async def offset(http: aiohttp.ClientSession, url: str) -> int:
    """What HEAD says."""
    async with http.head(url, headers=TUS) as answer:
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Tus-Resumable"] == "1.0.0"
        return int(answer.headers["Upload-Offset"])


async def stored(http: aiohttp.ClientSession, url: str) -> bytes:
    """The message that an upload has become."""
    async with http.get(url.replace("uploads", "messages") + "/frames") as answer:
        assert answer.status == 200
        return await answer.read()


async def problem(answer: aiohttp.ClientResponse, status: int, slug: str) -> None:
    """Check a problem document."""
    assert answer.status == status, await answer.text()
    assert json.loads(await answer.text())["type"] == f"urn:tensorbus:problem:{slug}"


async def test_options_says_what_there_is(http: aiohttp.ClientSession) -> None:
    """Versions, extensions, checksums and the largest size; without Tus-Resumable in the request."""
    for url in (NEW, f"/v1/uploads/{'0' * 32}"):
        async with http.options(url) as answer:
            assert answer.status == 204
            assert answer.headers["Tus-Version"] == answer.headers["Tus-Resumable"] == "1.0.0"
            assert answer.headers["Tus-Extension"].split(",") == [
                "creation",
                "creation-with-upload",
                "creation-defer-length",
                "checksum",
                "expiration",
                "termination",
            ]
            assert answer.headers["Tus-Max-Size"] == str(LIMIT)
            assert answer.headers["Tus-Checksum-Algorithm"] == "sha1,sha256,md5,crc32c"


@pytest.mark.parametrize("size", [2000, 300_000, LARGE])
async def test_a_body_in_parts_becomes_a_message(http: aiohttp.ClientSession, size: int) -> None:
    """201, then 204s with the offset; the last names the message, and HEAD says that all is there."""
    body = message(size)
    url = await create(http, len(body), {"Upload-Metadata": "name d29ybGQ=,empty"})
    assert await offset(http, url) == 0
    step = len(body) // 3 + 1
    for start in (0, step, 2 * step):
        answer = await add(http, url, start, body[start : start + step])
        at = min(start + step, len(body))
        assert answer.status == 204
        assert answer.headers["Upload-Offset"] == str(at)
        assert ("Tensorbus-Message" in answer.headers) == (at == len(body))
        if at < len(body):
            async with http.head(url, headers=TUS) as head:
                assert head.headers["Upload-Offset"] == str(at)
                assert head.headers["Upload-Length"] == str(len(body))
                assert head.headers["Upload-Metadata"] == "name d29ybGQ=,empty"
                assert "Upload-Expires" in head.headers
            continue
        assert url == f"/v1/uploads/{answer.headers['Tensorbus-Message']}"
        assert answer.headers["Content-Location"] == url.replace("uploads", "messages")
        assert json.loads(answer.headers["Tensorbus-Receipt"])["bytes"] == len(body)
    assert await offset(http, url) == len(body)
    assert (await add(http, url, len(body), b"")).status == 204
    await problem(await add(http, url, 5, b""), 409, "conflict")
    assert await stored(http, url) == body


@pytest.mark.parametrize("size", [2000, 300_000, LARGE])
async def test_a_body_may_come_with_the_creation(http: aiohttp.ClientSession, size: int) -> None:
    """All of it: 201 is the acknowledgement. A part of it: 201 says how far it is."""
    body = message(size)
    for part in (body, body[: size // 2]):
        async with http.post(NEW, data=part, headers=PART | {"Upload-Length": str(len(body))}) as answer:
            assert answer.status == 201
            assert answer.headers["Upload-Offset"] == str(len(part))
            assert ("Tensorbus-Message" in answer.headers) == (part == body)
            url = answer.headers["Location"]
    assert (await add(http, url, size // 2, body[size // 2 :])).status == 204
    assert await stored(http, url) == body


async def test_a_length_may_be_deferred(http: aiohttp.ClientSession) -> None:
    """HEAD says so until it is known, which is for good; the close frame ends the body even before."""
    url = await create(http, None)
    async with http.head(url, headers=TUS) as head:
        assert head.headers["Upload-Defer-Length"] == "1"
        assert "Upload-Length" not in head.headers
    assert (await add(http, url, 0, BODY[:1000])).status == 204
    length = {"Upload-Length": str(len(BODY))}
    assert (await add(http, url, 1000, BODY[1000:2000], **length)).status == 204
    async with http.head(url, headers=TUS) as head:
        assert head.headers["Upload-Length"] == str(len(BODY))
    await problem(await add(http, url, 2000, b"", **{"Upload-Length": "5000"}), 409, "conflict")
    assert (await add(http, url, 2000, BODY[2000:])).status == 204
    other = await create(http, None)
    answer = await add(http, other, 0, BODY)
    assert "Tensorbus-Message" in answer.headers
    assert (await add(http, other, len(BODY), b"", **length)).status == 204


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5", "crc32c"])
@pytest.mark.parametrize("size", [300_000, LARGE])
async def test_a_part_that_does_not_match_its_checksum_is_dropped(
    http: aiohttp.ClientSession, algorithm: str, size: int
) -> None:
    """460 and exactly this part is gone; the same part again, unspoiled, is taken."""
    body = message(size)
    url = await create(http, len(body))
    half = len(body) // 2
    for start, part in ((0, body[:half]), (half, body[half:])):
        if algorithm == "crc32c":
            digest = crc32c.extend(0, part).to_bytes(4, "big")
        else:
            digest = hashlib.new(algorithm, part).digest()
        checksum = {"Upload-Checksum": f"{algorithm} {base64.b64encode(digest).decode()}"}
        spoiled = part[:-1] + bytes([part[-1] ^ 1])
        await problem(await add(http, url, start, spoiled, **checksum), 460, "chunk-mismatch")
        assert await offset(http, url) == start
        assert (await add(http, url, start, part, **checksum)).status == 204
    assert await stored(http, url) == body


async def test_what_is_wrong_is_answered_as_the_standard_says(http: aiohttp.ClientSession) -> None:
    """400, 404, 409, 412, 413 and 415, each before anything is stored."""
    url = await create(http)
    await problem(await add(http, url, 5, BODY), 409, "conflict")
    await problem(
        await add(http, url, 0, BODY, **{"Content-Type": "text/plain"}), 415, "unsupported-media-type"
    )
    await problem(await add(http, url, 0, BODY, **{"Upload-Checksum": "md4 AA=="}), 400, "invalid-request")
    await problem(await add(http, url, 0, BODY, **{"Upload-Checksum": "md5 ?"}), 400, "invalid-request")
    await problem(await add(http, url, 0, BODY, **{"Upload-Offset": "-1"}), 400, "invalid-request")
    await problem(await add(http, url, 0, BODY + b"1"), 413, "limit-exceeded")
    async with http.patch(url, data=BODY, headers=PART) as answer:
        await problem(answer, 400, "invalid-request")
    async with http.head(url) as answer:
        assert answer.status == 412
        assert answer.headers["Tus-Version"] == "1.0.0"
    async with http.head(url, headers={"Tus-Resumable": "0.2.2"}) as answer:
        assert answer.status == 412
    for missing in (f"/v1/uploads/{'0' * 32}",):
        async with http.head(missing, headers=TUS) as answer:
            assert answer.status == 404
        await problem(await add(http, missing, 0, BODY), 404, "not-found")
    for headers in (
        {},
        {"Upload-Length": "1", "Upload-Defer-Length": "1"},
        {"Upload-Length": "x"},
        {"Upload-Defer-Length": "2"},
        {"Upload-Length": "10", "Upload-Metadata": "a b c"},
        {"Upload-Length": "10", "Upload-Metadata": "a YQ==,a YQ=="},
    ):
        async with http.post(NEW, headers=TUS | headers) as answer:
            await problem(answer, 400, "invalid-request")
    async with http.post(NEW, headers=TUS | {"Upload-Length": str(LIMIT + 1)}) as answer:
        await problem(answer, 413, "limit-exceeded")
    async with http.post(NEW, headers={"Upload-Length": "1"}) as answer:
        assert answer.status == 412
    assert await offset(http, url) == 0


async def test_bytes_that_are_no_frames_are_refused(http: aiohttp.ClientSession) -> None:
    """422; what came before them stays, and the upload goes on there."""
    url = await create(http)
    assert (await add(http, url, 0, BODY[:150_000])).status == 204
    await problem(await add(http, url, 150_000, bytes(1000) + BODY[151_000:]), 422, "checksum-mismatch")
    at = await offset(http, url)
    assert 100_000 < at < 150_000
    assert (await add(http, url, at, BODY[at:])).status == 204
    assert await stored(http, url) == BODY


async def test_an_upload_is_terminated(http: aiohttp.ClientSession) -> None:
    """204, then 404; one that is complete is a message and is deleted as such."""
    url = await create(http)
    await add(http, url, 0, BODY[:1000])
    async with http.delete(url, headers=TUS) as answer:
        assert answer.status == 204
        assert answer.headers["Tus-Resumable"] == "1.0.0"
    async with http.head(url, headers=TUS) as answer:
        assert answer.status == 404
    whole = await create(http)
    await add(http, whole, 0, BODY)
    async with http.delete(whole, headers=TUS) as answer:
        await problem(answer, 409, "conflict")
    async with http.delete(whole.replace("uploads", "messages")) as answer:
        assert answer.status == 204
    async with http.head(whole, headers=TUS) as answer:
        assert answer.status == 404


async def test_a_method_may_stand_in_a_field(http: aiohttp.ClientSession) -> None:
    """For clients that can only POST."""
    url = await create(http)
    headers = PART | {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"}
    async with http.post(url, data=BODY, headers=headers) as answer:
        assert answer.status == 204
    async with http.post(url, headers=TUS) as answer:
        assert answer.status == 405


async def test_a_key_is_stored_once(http: aiohttp.ClientSession) -> None:
    """A second creation under a key that is stored is told where it is, and that it is complete."""
    key = {"Idempotency-Key": "round-1/a"}
    url = await create(http, headers=key)
    await add(http, url, 0, BODY)
    async with http.post(NEW, headers=TUS | key | {"Upload-Length": "77"}) as answer:
        assert answer.status == 201
        assert answer.headers["Location"] == url
        assert answer.headers["Upload-Offset"] == str(len(BODY))
        assert json.loads(answer.headers["Tensorbus-Receipt"])["duplicate"] is True


async def test_the_same_source_under_the_same_key_is_the_same_upload(http: aiohttp.ClientSession) -> None:
    """A client that was restarted finds what it had begun; without `source`, it begins anew."""
    same = {"Idempotency-Key": "k", "Upload-Metadata": "source c2FtZQ=="}
    url = await create(http, headers=same)
    await add(http, url, 0, BODY[:5000])
    async with http.post(NEW, headers=TUS | same | {"Upload-Length": str(len(BODY))}) as answer:
        assert (answer.headers["Location"], answer.headers["Upload-Offset"]) == (url, "5000")
    assert await create(http, headers={"Idempotency-Key": "k"}) != url
    async with http.head(url, headers=TUS) as answer:
        assert answer.status in (404, 410)


async def test_a_cut_part_counts_as_far_as_it_came(http: aiohttp.ClientSession) -> None:
    """The connection breaks in the midst of a PATCH of unknown length, and of one of known length."""
    body = message(LARGE)
    url = await create(http, len(body))
    go_on = asyncio.Event()

    for length in ({}, {"Content-Length": str(len(body))}):
        at = await offset(http, url)
        headers = PART | {"Upload-Offset": str(at)} | length
        count = 500_000 if not length else 2_000_000

        async def pieces(start: int = at, stop: int = at + count) -> AsyncIterator[bytes]:
            yield body[start:stop]
            await go_on.wait()

        headers["Content-Length"] = str(len(body) - at)
        if not length:
            del headers["Content-Length"]
        sending = asyncio.create_task(http.patch(url, data=pieces(), headers=headers).__aenter__())
        async with asyncio.timeout(10):
            while True:
                async with http.get(url) as answer:
                    if (await answer.json())["offset"] >= at + count - 200_000:
                        break
        sending.cancel()
        await asyncio.wait([sending])
        assert await offset(http, url) >= at + count - 200_000
    at = await offset(http, url)
    assert (await add(http, url, at, body[at:])).status == 204
    assert await stored(http, url) == body


async def test_whoever_asks_for_the_offset_takes_the_turn(http: aiohttp.ClientSession) -> None:
    """A PATCH that hangs is broken off, so that the offset stays what HEAD said."""
    url = await create(http)
    sent = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield BODY[:1000]
        sent.set()
        await asyncio.Event().wait()

    async def hang() -> int:
        async with http.patch(url, data=pieces(), headers=PART | {"Upload-Offset": "0"}) as answer:
            await problem(answer, 409, "conflict")
            return answer.status

    hanging = asyncio.create_task(hang())
    await sent.wait()
    while True:
        async with http.get(url) as answer:
            if (await answer.json())["offset"] == 1000:
                break
    assert await offset(http, url) == 1000
    assert await hanging == 409
    assert (await add(http, url, 1000, BODY[1000:])).status == 204


async def test_an_upload_is_described_as_json(http: aiohttp.ClientSession) -> None:
    """Who it is, how far it is and until when it is kept; the heads of its frames for whoever goes on."""
    url = await create(http, headers={"Idempotency-Key": "k", "Upload-Metadata": "source YQ=="})
    await add(http, url, 0, BODY[:250_000])
    async with http.get(url) as answer:
        found = await answer.json()
    assert found["offset"] == 250_000
    assert 200_000 < found["boundary"] < 250_000
    assert (found["state"], found["length"], found["key"]) == ("open", len(BODY), "k")
    assert found["metadata"] == {"source": "YQ=="}
    async with http.get(url + "/heads") as answer:
        heads = await answer.read()
        assert answer.headers["Tensorbus-Boundary"] == str(found["boundary"])
    assert heads.startswith(BODY[:20])
    assert heads.count(b"TNSB") == 2 + 2
    await add(http, url, 250_000, BODY[250_000:])
    async with http.get(url) as answer:
        assert (await answer.json())["state"] == "sealed"


async def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    """At the offset that HEAD says then, which may be a frame less."""
    async with running_broker(tmp_path) as address, aiohttp.ClientSession(address) as http:
        url = await create(http)
        await add(http, url, 0, BODY[:250_000])
    async with running_broker(tmp_path) as address, aiohttp.ClientSession(address) as http:
        at = await offset(http, url)
        assert 200_000 < at < 250_000
        assert (await add(http, url, at, BODY[at:])).status == 204
        assert await stored(http, url) == BODY


async def test_a_download_resumes_with_range_and_etag(tmp_path: Path) -> None:
    """As `curl -C -` does, also after a restart: the entity tag stays. Another one gets the whole."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        address = await first.enter_async_context(running_broker(tmp_path))
        async with aiohttp.ClientSession(address) as http:
            url = await create(http)
            await add(http, url, 0, BODY)
            frames = url.replace("uploads", "messages") + "/frames"
            async with http.get(frames, headers={"Range": "bytes=0-99999"}) as answer:
                assert answer.status == 206
                tag = answer.headers["ETag"]
                part = await answer.read()
        await first.aclose()
        address = await stack.enter_async_context(running_broker(tmp_path))
        async with aiohttp.ClientSession(address) as http:
            ranged = {"Range": f"bytes={len(part)}-"}
            async with http.get(frames, headers=ranged | {"If-Range": tag}) as answer:
                assert answer.status == 206
                assert part + await answer.read() == BODY
            async with http.get(frames, headers=ranged | {"If-Range": '"other"'}) as answer:
                assert answer.status == 200
            async with http.get(frames, headers={"Range": f"bytes={len(BODY)}-"}) as answer:
                assert answer.status == 416
