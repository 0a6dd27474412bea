"""Request bodies: small JSON ones as a whole, large ones as they arrive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import cast

from aiohttp import web
from aiohttp.http import HttpVersion11

from tensorbus.errors import InvalidRequest, LimitExceeded, TransferStalled, TruncatedFrames

from .context import context
from .limits import read_body

HANDED_ON = "Tensorbus-Forwarded"
"""The field of a request that comes by way of another broker of the store."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def count_in(request: web.Request, count: int) -> None:
    """So many bytes of a body came. Those that another broker hands on were counted there."""
    if HANDED_ON not in request.headers:
        context(request).counters.bytes_in += count


async def expect_later(request: web.Request) -> None:
    """Expect-handler of aiohttp for routes that call `accept` themselves, after their checks."""


async def accept(request: web.Request) -> None:
    """Tell a client that sent ``Expect: 100-continue`` to send its body.

    Raises:
        InvalidRequest: it expects something else.
    """
    expectation = request.headers.get("Expect")
    if expectation is None or request.version < HttpVersion11:
        return
    if expectation.lower() != "100-continue":
        raise InvalidRequest(f"Expect: {expectation[:40]!r} is not known; 100-continue is")
    await request.writer.write(_CONTINUE)
    # The response proper has not begun: aiohttp may still send an error in its place.
    request.writer.output_size = 0


async def chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it arrives, in pieces of the connection's choosing.

    Nothing is read ahead beyond the connection's buffer: a consumer that is slow slows the sender.

    Raises:
        TransferStalled: not a byte came for the idle time-out.
        TruncatedFrames: the body's transfer encoding is broken, or it ended early.
    """
    here = context(request)
    idle = here.settings.idle_timeout
    read_body(request)
    while True:
        try:
            async with asyncio.timeout(idle):
                chunk = await request.content.readany()
        except TimeoutError:
            raise TransferStalled(
                f"no byte of the body arrived for {idle:g} s; what had arrived was dropped"
            ) from None
        except web.RequestPayloadError as error:
            raise TruncatedFrames(f"the body is broken off or badly encoded: {error}") from error
        if not chunk:
            return
        count_in(request, len(chunk))
        yield chunk
        # Not to be kept while the next one is awaited, which may take long.
        del chunk


async def read_json(request: web.Request) -> Mapping[str, object]:
    """The JSON object that is the body; no body is an empty object.

    Raises:
        LimitExceeded: it is larger than the settings allow.
        InvalidRequest: it is no JSON object.
        TransferStalled: it does not arrive.
    """
    limit = context(request).settings.max_json_bytes
    too_large = LimitExceeded(f"the JSON body is larger than {limit} bytes")
    if (request.content_length or 0) > limit:
        raise too_large
    await accept(request)
    body = bytearray()
    async for chunk in chunks(request):
        body += chunk
        if len(body) > limit:
            raise too_large
    if not body:
        return {}
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is no valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(document).__name__}")
    return cast(Mapping[str, object], document)
