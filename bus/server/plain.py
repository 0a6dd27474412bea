"""A plain request body, as ``curl --data`` sends it, becomes a message of one item called ``body``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from tensorbus.bus.tracing import TRACEPARENT, TRACESTATE, trace_id_of
from tensorbus.errors import InvalidRequest
from tensorbus.streaming.frames import FRAME_BYTES
from tensorbus.streaming.raw import RawEncoder

_PREFIX = "tensorbus-header-"
_FILL = FRAME_BYTES - 1024
"""Bytes gathered for one frame; the rest is room for the frame's own head. Without gathering, a sender of
single bytes would make the store write a hundred for each."""


async def wrap_plain(
    request: web.Request, body: AsyncIterator[bytes]
) -> AsyncIterator[bytes | bytearray | memoryview]:
    """The frames around ``body``, each piece valid until the next is asked for.

    Fields of the request's head named ``Tensorbus-Header-<name>`` become headers of the message, as text,
    with their names in lower case. The media type goes into the metadata.

    Raises:
        HTTPLengthRequired: the request does not say how long its body is, which the manifest tells.
        InvalidRequest, LimitExceeded: the headers are not legal.
    """
    size = request.content_length
    if size is None:
        if request.can_read_body:
            raise web.HTTPLengthRequired(
                text="a body that is not made of frames needs Content-Length: its manifest comes first"
            )
        size = 0
    encoder = RawEncoder(message_headers(request), request.headers.get("Content-Type", ""), size)
    yield encoder.open()
    gathered = bytearray()
    async for chunk in body:
        gathered += chunk
        if len(gathered) >= _FILL:
            for head, payload in encoder.slices(gathered):
                yield head
                yield payload
            gathered = bytearray()
    for head, payload in encoder.slices(gathered):
        yield head
        yield payload
    yield encoder.close()


def message_headers(request: web.Request) -> dict[str, str]:
    """Headers of the message among the fields of the request's head; InvalidRequest for repeated ones.

    The trace that the caller is part of goes with the message as well.
    """
    found: dict[str, str] = {}
    if trace_id_of(request.headers.get(TRACEPARENT)) is not None:
        found = {name: request.headers[name] for name in (TRACEPARENT, TRACESTATE) if name in request.headers}
    for field, value in request.headers.items():
        if not field.lower().startswith(_PREFIX):
            continue
        name = field.lower().removeprefix(_PREFIX)
        if name in found and name not in (TRACEPARENT, TRACESTATE):
            raise InvalidRequest(f"the header {name[:40]!r} is given twice")
        found[name] = value
    return found
