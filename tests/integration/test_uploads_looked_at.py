"""To look at an upload changes nothing: not its quota, and not for want of room."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tensorbus.bus.access import Quotas, Rights, TokenFile, TokenPlan
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.stores.values import NO_TERMS, StoredDelivery, Terms
from tensorbus.errors import StorageFull
from tensorbus.streaming.raw import RawEncoder

TUS = {"Tus-Resumable": "1.0.0"}
EXABYTE = 1 << 60


def body(size: int) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(os.urandom(size)))
    return opening + slices + encoder.close()


class FullForRows(FileStore):
    """A store that has no room for another row."""

    async def seal(
        self,
        info: MessageInfo,
        followers: Sequence[StoredDelivery],
        body: bytes | None = None,
        terms: Terms = NO_TERMS,
    ) -> Receipt:
        """As SQLite on a full disk."""
        raise StorageFull("database or disk is full")


@asynccontextmanager
async def served(store: FileStore) -> AsyncGenerator[aiohttp.ClientSession]:
    """A broker on a store."""
    where = ServerSettings(host="127.0.0.1", port=0)
    async with (
        Broker(store, BrokerSettings(sweep_interval=0)) as broker,
        Server(broker, where, TokenFile(store.path)) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        yield http


class Tus:
    """One upload's client."""

    def __init__(self, http: aiohttp.ClientSession, token: str | None = None) -> None:
        self._http = http
        self._headers = TUS | ({} if token is None else {"Authorization": f"Bearer {token}"})

    async def create(self, length: int) -> str:
        """The path of a new upload."""
        headers = self._headers | {"Upload-Length": str(length)}
        async with self._http.post("/v1/topics/a/uploads", headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            return answer.headers["Location"]

    async def patch(self, path: str, offset: int, data: bytes) -> int:
        """The status."""
        more = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        async with self._http.patch(path, data=data, headers=self._headers | more) as answer:
            return answer.status

    async def head(self, path: str) -> tuple[int, Any]:
        """Status and offset."""
        async with self._http.head(path, headers=self._headers) as answer:
            return answer.status, int(answer.headers.get("Upload-Offset", -1))


@pytest.mark.parametrize("size", [1000, 300_000])
async def test_head_answers_while_the_disk_is_full(tmp_path: Path, size: int) -> None:
    """The offset, with 200; only what writes is refused, and goes on when there is room."""
    frames = body(size)
    half = len(frames) // 2
    async with served(FileStore(tmp_path)) as http:
        path = await Tus(http).create(len(frames))
        assert await Tus(http).patch(path, 0, frames[:half]) == 204
        assert await Tus(http).head(path) == (200, half)
    async with served(FileStore(tmp_path, reserve_bytes=EXABYTE)) as http:
        status, offset = await Tus(http).head(path)
        assert status == 200 and 0 <= offset <= half
        assert await Tus(http).patch(path, offset, frames[offset:]) == 507
        status, offset = await Tus(http).head(path)
        assert status == 200 and offset <= half
    async with served(FileStore(tmp_path)) as http:
        status, offset = await Tus(http).head(path)
        assert (status, await Tus(http).patch(path, offset, frames[offset:])) == (200, 204)


async def test_head_of_an_upload_that_cannot_be_listed(tmp_path: Path) -> None:
    """All of it has come, then a crash before it was listed: without room its end is missing."""
    frames = body(300_000)
    async with served(FileStore(tmp_path)) as http:
        path = await Tus(http).create(len(frames))
        assert await Tus(http).patch(path, 0, frames[:-10]) == 204
    file = tmp_path / "frames" / f"{path.rpartition('/')[2]}.frames"
    file.write_bytes(frames)
    async with served(FullForRows(tmp_path)) as http:
        status, offset = await Tus(http).head(path)
        assert status == 200 and 0 < offset < len(frames)
        assert await Tus(http).patch(path, offset, frames[offset:]) == 507
    async with served(FileStore(tmp_path)) as http:
        status, offset = await Tus(http).head(path)
        assert status == 200 and 0 < offset < len(frames)
        assert await Tus(http).patch(path, offset, frames[offset:]) == 204


async def test_an_upload_is_charged_to_who_began_it(tmp_path: Path) -> None:
    """Whoever else looks at it or goes on with it, with more room of their own or with less."""
    tokens = TokenFile(tmp_path)
    frames = body(1000)

    def made(name: str, max_bytes: int | None, *admin: str) -> str:
        rights = Rights(publish=("a",), admin=admin)
        return str(tokens.create(TokenPlan(name, rights, quotas=Quotas(max_bytes=max_bytes)))[1])

    poor, rich = made("poor", len(frames) + 10), made("rich", 10 * len(frames))
    free, strict = made("free", None, "a"), made("strict", 10, "a")
    async with served(FileStore(tmp_path)) as http:
        path = await Tus(http, rich).create(len(frames))
        assert (await Tus(http, strict).head(path))[0] == 200
        assert await Tus(http, rich).patch(path, 0, frames) == 204
        over = await Tus(http, poor).create(len(frames))
        async with http.post(
            "/v1/topics/a/messages", data=b"x", headers={"Authorization": f"Bearer {poor}"}
        ) as answer:
            assert answer.status == 507
    async with served(FileStore(tmp_path)) as http:
        # Nobody has taken room for it in this process yet.
        async with http.post(
            "/v1/topics/a/messages", data=b"x", headers={"Authorization": f"Bearer {poor}"}
        ) as answer:
            assert answer.status == 201
        assert (await Tus(http, free).head(over))[0] == 200
        assert await Tus(http, free).patch(over, 0, frames) == 507
        path = await Tus(http, rich).create(len(frames))
    async with served(FileStore(tmp_path)) as http:
        assert (await Tus(http, strict).head(path))[0] == 200
        assert await Tus(http, strict).patch(path, 0, frames) == 204
