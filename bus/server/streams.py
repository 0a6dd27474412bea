"""GET /v1/consumers/{name}/deliveries/stream: deliveries, each sent as soon as its message is stored.

Strategy. The broker's stream writes straight to the connection, in the step of the event loop in which it
hears that the hand-over is on the disk; the handler of the request only watches: for signs of life, for the
caller's rights, which may end, and for the end. The body is chunked, its chunks are made here, since each
would take two turns of the loop in the library.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import secrets
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from aiohttp import web
from aiohttp.http import HttpVersion11

from tensorbus.bus.broker.pushing import Push, Wish
from tensorbus.bus.consumers import MAX_ACK_PENDING, MAX_INLINE, DeliveryInfo
from tensorbus.bus.streams import HEARTBEAT, MEDIA_TYPE, delivery_record, problem_record
from tensorbus.errors import InvalidRequest, NotFound, TensorbusError, TransferStalled

from .access import authorize_consumer, identify_again
from .context import Context, context
from .problems import problem_document
from .queries import Query

routes = web.RouteTableDef()

MAX_HEARTBEAT = 60
"""Seconds between two signs of life."""
HEARTBEAT_SECONDS = 10
MAX_QUIET = 3600
"""Seconds without a delivery that a stream may be told to last."""

_FULL = 64 << 10
"""Bytes that wait in this process for a reader, beyond which nothing more is handed to it."""
_WATCH = 2.0
"""Seconds between two looks at the rights of the reader."""
_REST = 0.05
"""Seconds between two looks at whether there is anything to hand over at all."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a stream is written."""

    media_type: str
    delivery: Callable[[DeliveryInfo], bytes]
    problem: Callable[[Mapping[str, object]], bytes]
    heartbeat: bytes


def _line(document: Mapping[str, object]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _event(delivery: DeliveryInfo) -> bytes:
    return f"event: delivery\nid: {delivery.token}\ndata: {json.dumps(delivery.to_json())}\n\n".encode()


RECORDS = Format(MEDIA_TYPE, delivery_record, problem_record, HEARTBEAT)
LINES = Format(
    "application/jsonl",
    lambda delivery: _line({"delivery": delivery.to_json()}),
    lambda problem: _line({"problem": problem}),
    _line({"heartbeat": True}),
)
EVENTS = Format(
    "text/event-stream",
    _event,
    lambda problem: b"event: problem\ndata: " + _line(problem) + b"\n",
    b": heartbeat\n\n",
)


def chosen(accept: str) -> Format:
    """The format that an ``Accept`` field asks for first; lines of JSON for whoever does not care."""
    for asked in accept.split(","):
        media_type = asked.partition(";")[0].strip().lower()
        for known in (RECORDS, EVENTS, LINES):
            if media_type == known.media_type:
                return known
    return LINES


class ConnectionSink:
    """The connection of a request, as the sink of a stream."""

    def __init__(self, request: web.Request, form: Format, here: Context) -> None:
        self._request = request
        self._format = form
        self._idle_timeout = here.settings.idle_timeout
        self._counters = here.counters
        self._begun = False
        self.wrote = monotonic()
        self.handed = monotonic()

    @property
    def full(self) -> bool:
        """Whether the reader has to catch up first."""
        return self._transport().get_write_buffer_size() > _FULL

    def put(self, deliveries: Sequence[DeliveryInfo]) -> None:
        """Send deliveries."""
        self._write(b"".join([self._format.delivery(delivery) for delivery in deliveries]))
        self.handed = self.wrote

    def resting(self) -> None:
        """A first sign of life: the reader has all that there is."""
        if not self._begun:
            self.beat()

    def problem(self, error: TensorbusError) -> None:
        """Send why the stream ends."""
        self._write(self._format.problem(problem_document(error)))

    def beat(self) -> None:
        """Send a sign of life, unless there is more to come anyway."""
        if not self.full:
            self._write(self._format.heartbeat)

    async def room(self) -> None:
        """Until what waits is a little; see `Sink`."""
        draining = asyncio.ensure_future(self._request.writer.drain())
        try:
            waiting = self._waiting()
            while not (await asyncio.wait([draining], timeout=self._idle_timeout))[0]:
                before, waiting = waiting, self._waiting()
                if waiting >= before:
                    self._transport().abort()
                    raise TransferStalled(
                        f"the reader took no byte for {self._idle_timeout:g} s; the stream was ended"
                    )
            await draining
        finally:
            draining.cancel()

    def _write(self, data: bytes) -> None:
        self._transport().write(b"%x\r\n%s\r\n" % (len(data), data))
        self._begun = True
        self._counters.sent(len(data))
        self.wrote = monotonic()

    def _waiting(self) -> int:
        """Bytes that the reader's machine has not acknowledged."""
        transport = self._transport()
        waiting = transport.get_write_buffer_size()
        connection = transport.get_extra_info("socket")
        if connection is not None:
            try:
                answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
                waiting += struct.unpack("i", answer)[0]
            except OSError:
                pass  # not every system tells it of sockets
        return waiting

    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the reader closed the connection")
        return transport


@routes.get("/v1/consumers/{name}/deliveries/stream", allow_head=False)
async def stream(request: web.Request) -> web.StreamResponse:
    """Hand over deliveries as they come."""
    here = context(request)
    wanted = Query(request, ("max", "follow", "inline", "wait", "heartbeat"))
    wish = Wish(
        wanted.integer("max", 1, MAX_ACK_PENDING, default=64),
        wanted.choice("follow", ("false", "true"), default="false") == "true",
        wanted.integer("inline", 0, MAX_INLINE, default=0),
    )
    quiet = wanted.integer_or_none("wait", 0, MAX_QUIET)
    heartbeat = wanted.integer("heartbeat", 1, MAX_HEARTBEAT, default=HEARTBEAT_SECONDS)
    name = authorize_consumer(request)
    if request.version < HttpVersion11:
        raise InvalidRequest("a stream of deliveries needs HTTP/1.1")

    form = chosen(request.headers.get("Accept", ""))
    stream_id = secrets.token_hex(16)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Tensorbus-Stream": stream_id}
    response = web.StreamResponse(headers=headers)
    response.content_type = form.media_type
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"")  # sends the head
    sink = ConnectionSink(request, form, here)
    with here.counters.stream():
        try:
            push = here.broker.push(name, wish, sink)
        except TensorbusError as error:
            sink.problem(error)  # it was deleted just now
        else:
            here.streams[stream_id] = push
            try:
                await _watched(request, push, sink, heartbeat, quiet)
            finally:
                del here.streams[stream_id]
        await response.write_eof()
    return response


@routes.delete("/v1/consumers/{name}/deliveries/stream/{stream}")
async def end(request: web.Request) -> web.Response:
    """End a stream behind what was handed over."""
    name = authorize_consumer(request)
    push = context(request).streams.get(request.match_info["stream"])
    if push is None or push.consumer != name:
        raise NotFound(f"consumer {name} has no such stream")
    push.end()
    return web.Response(status=204)


async def _watched(
    request: web.Request, push: Push, sink: ConnectionSink, heartbeat: float, quiet: float | None
) -> None:
    """Until the stream is over, for whatever reason; the reader is told of a problem."""
    try:
        problem = await _end(request, push, sink, heartbeat, quiet)
        push.end()
        await asyncio.wait([push.over])
        if problem is None:
            push.over.result()
    except TransferStalled:
        raise ConnectionResetError("the reader takes nothing") from None
    except TensorbusError as error:
        problem = error
    except BaseException:
        push.leave()
        # Nothing else may end up in the midst of the body.
        if request.transport is not None:
            request.transport.abort()
        raise
    if problem is not None:
        sink.problem(problem)


async def _end(
    request: web.Request, push: Push, sink: ConnectionSink, heartbeat: float, quiet: float | None
) -> TensorbusError | None:
    """When the stream should end, or has; a problem that is the reason, if the stream does not know it."""
    here = context(request)
    last = monotonic() + here.settings.max_stream
    watched = monotonic()
    while not here.draining:
        now = monotonic()
        left = min(sink.wrote + heartbeat, watched + _WATCH, last) - now
        if quiet is not None:
            left = min(left, max(sink.handed + quiet - now, _REST))
        if (await asyncio.wait([push.over], timeout=max(0.0, left)))[0]:
            return None
        now = monotonic()
        if now >= last or (quiet is not None and push.resting and now >= sink.handed + quiet):
            return None
        if now >= watched + _WATCH:
            watched = now
            try:
                identify_again(request)
                authorize_consumer(request)
            except TensorbusError as error:
                return error
        if now >= sink.wrote + heartbeat:
            sink.beat()
            sink.wrote = now
    return None
