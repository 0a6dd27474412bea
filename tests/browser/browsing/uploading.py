"""An upload that can be looked at while it is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from tensorbus.streaming.raw import RawEncoder


@asynccontextmanager
async def slow_upload(url: str, topic: str, size: int) -> AsyncGenerator[asyncio.Event]:
    """A resumable upload of which half has come, and that ends when the event is set."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    frames = [encoder.open()]
    for head, payload in encoder.slices(bytes(size)):
        frames += [head, bytes(payload)]
    frames.append(encoder.close())
    body = b"".join(frames)
    go_on = asyncio.Event()

    async def halves() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        await go_on.wait()
        yield body[len(body) // 2 :]

    tus = {"Tus-Resumable": "1.0.0"}
    async with aiohttp.ClientSession(url) as http:
        length = {"Upload-Length": str(len(body))}
        async with http.post(f"/v1/topics/{topic}/uploads", headers=tus | length) as made:
            place = made.headers["Location"]
        chunk = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        sending = asyncio.create_task(http.patch(place, data=halves(), headers=tus | chunk).__aenter__())
        try:
            yield go_on
            go_on.set()
            (await sending).release()
        finally:
            sending.cancel()
