"""What a reader of messages may rely on, over real HTTP against a real broker in this event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
from yarl import URL

from storing import frames_left
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.testing import running_broker
from tensorbus.streaming.frames import Kind, encode_frame
from tensorbus.streaming.packing import pack, pack_array
from tensorbus.streaming.sequence import Entry, Envelope, SliceHeader, Tally

FRAMES = {"Content-Type": "application/vnd.tensorbus.frames"}
POST = "/v1/topics/fl.test.updates/messages"
MIB = 1 << 20


def message(**items: bytes) -> list[bytes]:
    """The frames of a message of byte items: opening, a slice for each with a value, closing.

    ``__`` in a name stands for a slash.
    """
    tally = Tally()
    entries = [
        Entry(name.replace("__", "/"), "uint8", (len(value),), "bytes") for name, value in items.items()
    ]
    sizes = sum(map(len, items.values()))
    opening = encode_frame(Kind.OPEN, Envelope({}, "bytes", items=len(items), original_bytes=sizes).to_map())
    tally.add_head(Kind.OPEN, opening)
    manifest = pack_array([pack(entry.to_map()) for entry in entries])
    head = encode_frame(Kind.MANIFEST, {"first": 0}, manifest)
    tally.add_head(Kind.MANIFEST, head, len(manifest))
    parts = [opening + head + manifest]
    for index, (entry, value) in enumerate(zip(entries, items.values(), strict=True)):
        if not value:
            continue
        header = SliceHeader(index, entry.name, entry.dtype, entry.codec, 0, len(value)).to_map()
        head = encode_frame(Kind.SLICE, header, value)
        tally.add_head(Kind.SLICE, head, len(value))
        parts.append(head + value)
    return [*parts, tally.close(len(items), sizes, 0)]


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a broker of its own."""
    async with running_broker(tmp_path, settings=ServerSettings(idle_timeout=2.0)) as address:
        yield address


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with aiohttp.ClientSession(url) as session:
        yield session


async def published(http: aiohttp.ClientSession, body: bytes) -> str:
    """Publish frames; returns the message's id."""
    async with http.post(POST, data=body, headers=FRAMES) as answer:
        assert answer.status == 201, await answer.text()
        return (await answer.json())["id"]


async def test_a_large_manifest_comes_bit_by_bit(http: aiohttp.ClientSession) -> None:
    """One that is longer than what is held at a time is told as a whole, and its items are found."""
    names = [f"layer.{number}.weight" for number in range(2500)]
    message_id = await published(http, b"".join(message(**dict.fromkeys(names, b"w"))))
    async with http.get(f"/v1/messages/{message_id}") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        told = await answer.json()
    assert [entry["n"] for entry in told["manifest"]] == names
    assert (told["id"], told["items"]) == (message_id, 2500)
    async with http.head(f"/v1/messages/{message_id}") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
    async with http.get(f"/v1/messages/{message_id}/items/{names[-1]}") as answer:
        assert answer.status == 200 and (await answer.read()).endswith(b"w")


async def test_the_body_comes_back_byte_for_byte(http: aiohttp.ClientSession) -> None:
    """GET …/frames is what was published, with its length, type and digest."""
    body = b"".join(message(weight=bytes(range(256)) * 20_000, bias=b"b"))
    name = await published(http, body)
    async with http.get(f"/v1/messages/{name}/frames") as answer:
        assert answer.status == 200
        assert answer.content_type == FRAMES["Content-Type"]
        assert answer.content_length == len(body)
        assert await answer.read() == body
        tag = answer.headers["ETag"]
    async with http.get(f"/v1/messages/{name}") as answer:
        assert tag == f'"{(await answer.json())["digest"]}"'


async def test_many_readers_share_one_connection_each_after_the_other(url: str) -> None:
    """The connection stays usable after bodies that bypassed aiohttp's transport."""
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(url, connector=connector) as http:
        body = b"".join(message(weight=b"w" * MIB))
        name = await published(http, body)
        for _ in range(5):
            async with http.get(f"/v1/messages/{name}/frames") as answer:
                assert await answer.read() == body


async def test_a_download_resumes_with_range_and_entity_tag(http: aiohttp.ClientSession) -> None:
    """Range with If-Range gives the rest of the same version, and the whole of another one."""
    body = b"".join(message(weight=b"w" * 100_000))
    address = f"/v1/messages/{await published(http, body)}/frames"
    async with http.head(address) as answer:
        assert answer.content_length == len(body)
        assert answer.headers["Accept-Ranges"] == "bytes"
        tag = answer.headers["ETag"]
    async with http.get(address, headers={"Range": "bytes=50000-", "If-Range": tag}) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes 50000-{len(body) - 1}/{len(body)}"
        assert await answer.read() == body[50000:]
    async with http.get(address, headers={"Range": "bytes=50000-", "If-Range": '"other"'}) as answer:
        assert answer.status == 200
        assert await answer.read() == body
    async with http.get(address, headers={"Range": f"bytes={len(body)}-"}) as answer:
        assert answer.status == 416
        assert answer.headers["Content-Range"] == f"bytes */{len(body)}"
        assert answer.content_type == "application/problem+json"
    async with http.get(address, headers={"If-Match": '"other"'}) as answer:
        assert answer.status == 412
        assert answer.content_type == "application/problem+json"
    async with http.get(address, headers={"If-None-Match": tag}) as answer:
        assert answer.status == 304
        assert await answer.read() == b""


async def test_one_item_is_fetched_by_name(http: aiohttp.ClientSession) -> None:
    """GET …/items/{name} is exactly the item's slice frames; names are URL-escaped, slashes may stand."""
    parts = message(a=b"1" * 10, empty=b"", model__embed=b"2" * 70_000)
    name = await published(http, b"".join(parts))
    for escaped in ("model/embed", quote("model/embed", safe="")):
        async with http.get(f"/v1/messages/{name}/items/{escaped}") as answer:
            assert answer.status == 200
            assert await answer.read() == parts[2]
    async with http.get(f"/v1/messages/{name}/items/a", headers={"Range": "bytes=1-3"}) as answer:
        assert answer.status == 206
        assert await answer.read() == parts[1][1:4]
    async with http.get(f"/v1/messages/{name}/items/empty") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    async with http.get(f"/v1/messages/{name}/items/nothing") as answer:
        assert answer.status == 404
        assert (await answer.json(content_type=None))["type"] == "urn:tensorbus:problem:not-found"


@pytest.mark.parametrize("name", ["0" * 32, "nonsense", "..%2F..%2Fetc%2Fpasswd", "A" * 32, "%00"])
async def test_an_unknown_message_is_a_problem(http: aiohttp.ClientSession, name: str) -> None:
    """404, or 400 for what is no id; never a file of that name."""
    for tail in ("", "/frames", "/items/x"):
        async with http.get(URL(f"/v1/messages/{name}{tail}", encoded=True)) as answer:
            assert answer.status in (400, 404)
            assert answer.content_type == "application/problem+json"


async def test_a_deleted_message_is_gone(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """DELETE answers 204, gives the file back, and is refused the second time."""
    name = await published(http, b"".join(message(weight=b"w")))
    async with http.delete(f"/v1/messages/{name}") as answer:
        assert answer.status == 204
    async with http.delete(f"/v1/messages/{name}") as answer:
        assert answer.status == 404
    await frames_left.becomes(tmp_path, ())


async def test_first_frames_arrive_before_the_last_are_sent(http: aiohttp.ClientSession) -> None:
    """A follower of an open message has its first frames while the publisher still holds back the rest."""
    parts = message(a=b"1" * 3_000_000, b=b"2" * 10)
    body = b"".join(parts)
    early = len(parts[0]) + len(parts[1])
    go_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield parts[0] + parts[1]
        await go_on.wait()
        yield parts[2] + parts[3]

    async def publish() -> None:
        async with http.post(POST, data=pieces(), headers=FRAMES) as answer:
            assert answer.status == 201

    publisher = asyncio.create_task(publish())
    name = await open_message(http)
    async with http.get(f"/v1/messages/{name}/frames") as answer:
        assert answer.status == 200
        assert answer.headers.get("Transfer-Encoding") == "chunked"
        assert await answer.content.readexactly(early) == body[:early]
        # Only now may the publisher send the rest: the order of these lines is the promise.
        assert not publisher.done()
        go_on.set()
        assert await answer.content.read() == body[early:]
    await publisher


async def test_a_follower_never_takes_an_aborted_message_for_a_whole_one(http: aiohttp.ClientSession) -> None:
    """When the publisher leaves, the follower's connection breaks within the body."""
    parts = message(a=b"1" * 1000, b=b"2" * 10)
    leave = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield parts[0] + parts[1]
        await leave.wait()
        raise ConnectionAbortedError("the publisher leaves")

    async def publish() -> None:
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            async with http.post(POST, data=pieces(), headers=FRAMES) as answer:
                await answer.read()

    publisher = asyncio.create_task(publish())
    name = await open_message(http)
    async with http.get(f"/v1/messages/{name}/frames") as answer:
        await answer.content.readexactly(len(parts[0]))
        leave.set()
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await answer.content.read()
    await publisher


async def test_a_reader_who_stops_reading_is_dropped(url: str, http: aiohttp.ClientSession) -> None:
    """After the idle time-out the connection is closed and counted out; others are not disturbed."""
    name = await published(http, b"".join(message(a=b"1" * (15 * MIB), b=b"2" * (15 * MIB))))
    reader = await silent_reader(url, f"/v1/messages/{name}/frames")
    try:
        while await figure(http, "open_downloads") == 0:
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while await figure(http, "open_downloads"):
                await asyncio.sleep(0.05)
    finally:
        reader.close()
    assert await figure(http, "sent_bytes_total") < 30 * MIB


async def test_a_slow_reader_is_not_cut_off(url: str, http: aiohttp.ClientSession) -> None:
    """A download that takes longer than the idle time-out goes on as long as its reader takes bytes."""
    body = b"".join(message(a=b"1" * (15 * MIB)))
    name = await published(http, body)
    reader = await silent_reader(url, f"/v1/messages/{name}/frames")
    loop = asyncio.get_running_loop()
    taken = 0
    with reader:
        for _ in range(8):
            taken += len(await loop.sock_recv(reader, 200_000))
            await asyncio.sleep(0.5)  # the pace of the reader: 4 s, with a time-out of 2 s
        while data := await loop.sock_recv(reader, MIB):
            taken += len(data)
    assert taken > len(body)


async def open_message(http: aiohttp.ClientSession) -> str:
    """The id of the one message that is being published, as soon as there is one."""
    while True:
        async with http.get("/v1/messages?state=open") as answer:
            found = (await answer.json())["messages"]
        if found:
            return found[0]["id"]


async def figure(http: aiohttp.ClientSession, name: str) -> int:
    """One figure of /metrics."""
    async with http.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith(f"tensorbus_{name} "))))


async def silent_reader(url: str, path: str) -> socket.socket:
    """A connection with a small receive buffer that has asked for ``path`` and reads nothing yet."""
    address = urlsplit(url)
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    reader.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(reader, (address.hostname, address.port))
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    await loop.sock_sendall(reader, request.encode())
    return reader
