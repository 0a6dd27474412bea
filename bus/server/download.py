"""A message, or a part of it, goes out."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http import HttpVersion11

from tensorbus.bus.broker.readers import Reader
from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import Conflict, TensorbusError, TransferStalled

from .body_socket import can_borrow
from .context import context
from .media import FRAMES
from .problems import plain_problem
from .ranges import NotModified, Partial, PreconditionFailed, Unsatisfiable, select
from .sender import SocketSender
from .transport_sender import TransportSender

log = logging.getLogger("tensorbus.server")


async def send_stored(request: web.Request, info: MessageInfo, start: int, end: int) -> web.StreamResponse:
    """Answer with body bytes ``start`` to ``end``, which are there, or with the range of them asked for.

    The entity tag is the digest of the whole message; the parts of one message have addresses of their own,
    so it need not tell them apart.
    """
    if info.digest is None:
        # A complete item of a message that is still open: as good as stored, but without a tag.
        return await _send(request, web.StreamResponse(), info.id, start, end)
    etag = f'"{info.digest}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    size = end - start
    match select(request.headers, size, etag):
        case NotModified():
            return web.Response(status=304, headers=headers)
        case PreconditionFailed():
            return plain_problem(
                request, 412, "Precondition failed", f"the message's entity tag is {etag}", headers
            )
        case Unsatisfiable():
            detail = f"the range lies outside the {size} bytes that there are"
            unsatisfied = headers | {"Content-Range": f"bytes */{size}"}
            return plain_problem(request, 416, "Range not satisfiable", detail, unsatisfied)
        case Partial(first, last):
            headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
            response = web.StreamResponse(status=206, headers=headers)
            start, end = start + first, start + last
        case _:
            response = web.StreamResponse(headers=headers)
    return await _send(request, response, info.id, start, end)


async def _send(
    request: web.Request, response: web.StreamResponse, message_id: str, start: int, end: int
) -> web.StreamResponse:
    response.content_type = FRAMES
    response.content_length = end - start
    if request.method == "HEAD" or start == end:
        await response.prepare(request)
        await response.write_eof()
        return response
    async with await _open(request, message_id, start, end) as reader:
        await _transmit(request, response, reader)
    return response


async def follow(request: web.Request, info: MessageInfo) -> web.StreamResponse:
    """Answer with the frames of a message that is still being published, each as soon as it is verified.

    The body ends when the message is sealed. If its publisher gives up, the connection breaks, so that nobody
    takes the part for the whole.
    """
    if request.version < HttpVersion11:
        raise Conflict("the message is still open; follow it with HTTP/1.1, or come back when it is sealed")
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type = FRAMES
    response.enable_chunked_encoding()
    if request.method == "HEAD":
        await response.prepare(request)
        await response.write_eof()
        return response
    async with await _open(request, info.id) as reader:
        await _transmit(request, response, reader)
    return response


async def _open(request: web.Request, message_id: str, start: int = 0, end: int | None = None) -> Reader:
    """A reader, which is closed even if the client leaves just while it is being opened."""
    here = context(request)
    opening = here.broker.open_reader(message_id, start, end)
    return await here.finishing.run(opening, lambda reader: here.finishing.start(reader.aclose()))


async def _transmit(request: web.Request, response: web.StreamResponse, reader: Reader) -> None:
    here = context(request)
    await response.prepare(request)
    # aiohttp holds the head back until there is a body; a large one does not pass through it.
    await response.write(b"")
    with here.counters.download(), here.downloads.show(reader):
        async with _sender(request, response) as sender:
            try:
                await sender.send_frames(reader, chunked=response.chunked)
            except (TensorbusError, OSError) as error:
                # The head has gone out: there is no way to answer but to break off.
                log.warning("download of %s broken off: %s", reader.info.id, error)
                sender.cut(at_once=isinstance(error, TransferStalled))
            except BaseException:
                # Nor may the answer to an unexpected fault end up in the midst of the body.
                sender.cut()
                raise


def _sender(request: web.Request, response: web.StreamResponse) -> SocketSender | TransportSender:
    here = context(request)
    if can_borrow(request):
        return SocketSender(request, here.settings.idle_timeout, here.counters)
    return TransportSender(request, response, here.settings.idle_timeout, here.counters)
