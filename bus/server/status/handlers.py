"""GET /v1/status and GET /v1/status/stream."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from time import monotonic

from aiohttp import web
from aiohttp.http import HttpVersion11

from tensorbus.bus.server.access import authorize_any, identify_again, identity_of
from tensorbus.bus.server.context import Context, context
from tensorbus.bus.server.problems import problem_document
from tensorbus.bus.server.transport_sender import TransportSender
from tensorbus.errors import InvalidRequest, StoreReadOnly, TensorbusError

from .rendering import Setting, Watcher, render, to_object
from .snapshot import Snapshot
from .view import View

routes = web.RouteTableDef()

_HEARTBEAT = 10.0
"""Seconds without an event after which a sign of life is sent."""
_RIGHTS = 2.0
"""Seconds between two looks at the rights of a watcher."""
_QUIETLY = {"at", "every"}
"""Members that nobody need hear of by themselves."""
_RETRY = b"retry: 1000\n\n"
_BEAT = b": heartbeat\n\n"


class _Uncounted:
    """Watching must not look like traffic: each event would be the reason for the next."""

    def sent(self, count: int) -> None:
        """Nothing."""


@routes.get("/v1/status")
async def status(request: web.Request) -> web.Response:
    """What is going on now."""
    view = View.of(request)
    authorize_any(request)
    here = context(request)
    members = _members(request, await here.board.look(), view)
    return web.json_response(text=to_object(members), headers={"Cache-Control": "no-store"})


@routes.get("/v1/status/stream", allow_head=False)
async def stream(request: web.Request) -> web.StreamResponse:
    """What is going on, again and again: whole at first, then what has changed."""
    view = View.of(request)
    authorize_any(request)
    if request.version < HttpVersion11:
        raise InvalidRequest("a stream of events needs HTTP/1.1")
    here = context(request)
    snapshot = await here.board.look()
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    response.enable_chunked_encoding()
    await response.prepare(request)
    sender = TransportSender(request, response, here.settings.idle_timeout, _Uncounted())
    with here.counters.stream(), here.board.watching():
        try:
            async with sender:
                await sender.send(_RETRY)
                await _tell(request, here, view, sender, snapshot)
                await response.write_eof()
        except (TensorbusError, OSError):
            sender.cut()  # whoever is to be told takes nothing
        except BaseException:
            sender.cut()
            raise
    return response


async def _tell(
    request: web.Request, here: Context, view: View, sender: TransportSender, snapshot: Snapshot
) -> None:
    """Send what changes, until the server stops, the watcher's rights end, or it was long enough."""
    told: dict[str, str] = {}
    last = monotonic() + here.settings.max_stream
    looked = wrote = monotonic()
    while True:
        members = _members(request, snapshot, view)
        changed = {name: text for name, text in members.items() if told.get(name) != text}
        if changed.keys() - _QUIETLY:
            await sender.send(f"event: status\ndata: {to_object(changed)}\n\n".encode())
            told, wrote = members, monotonic()
        following = None
        while following is None:
            now = monotonic()
            if here.draining or now >= last:
                return
            if now >= looked + _RIGHTS:
                looked = now
                try:
                    identify_again(request)
                    authorize_any(request)
                except TensorbusError as error:
                    problem = json.dumps(problem_document(error))
                    await sender.send(f"event: problem\ndata: {problem}\n\n".encode())
                    return
            if now >= wrote + _HEARTBEAT:
                await sender.send(_BEAT)
                wrote = now
            waiting = asyncio.wait_for(here.board.after(snapshot.version), min(_RIGHTS, max(0.0, last - now)))
            with suppress(TimeoutError):
                following = await here.waits.run(waiting, lambda _: None)
        snapshot = following


def _members(request: web.Request, snapshot: Snapshot, view: View) -> dict[str, str]:
    here, identity = context(request), identity_of(request)
    watcher = Watcher(identity.token, lambda pattern: identity.rights.allow("subscribe", pattern))
    asks = here.tokens is not None and here.tokens.in_use
    try:
        here.broker.check_writable()
        writable = True
    except StoreReadOnly:
        writable = False
    return render(
        snapshot,
        view,
        watcher,
        Setting(
            started=here.started,
            every=here.board.every,
            connections=here.metrics.connections,
            writable=writable,
            store=here.broker.store_kind,
            shared=here.peers is not None,
            tokens=here.tokens.tokens() if here.tokens is not None and asks else (),
            asks_for_tokens=asks,
            received=here.broker.measures.savings,
            sent=here.downloads.savings,
        ),
    )
