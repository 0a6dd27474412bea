"""Listing, inspecting, downloading and deleting messages; listing topics."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Literal, cast

from aiohttp import web
from aiohttp.http import HttpVersion11

from tensorbus.bus.messages import MessageInfo, MessagePage, State
from tensorbus.bus.topics import check_filter, check_topic
from tensorbus.errors import NotFound, StoreDamaged, TensorbusError

from .access import authorize, authorize_admin_of, message_for, seen, visible
from .context import context
from .download import follow, send_stored
from .queries import Query
from .transport_sender import TransportSender

log = logging.getLogger("tensorbus.server")
routes = web.RouteTableDef()

MAX_PAGE = 1000


@routes.get("/v1/topics")
async def topics(request: web.Request) -> web.Response:
    """Topics that hold messages."""
    found = await context(request).broker.topics()
    readable = seen(request, found, lambda topic: topic.topic)
    return web.json_response({"topics": [topic.to_json() for topic in readable]})


@routes.get("/v1/topics/{topic}/receipt")
async def receipt(request: web.Request) -> web.Response:
    """What became of the message that was published under an idempotency key."""
    topic = check_topic(request.match_info["topic"])
    authorize(request, "publish", topic)
    key = Query(request, ("key",)).text("key", "")
    broker = context(request).broker
    found = await broker.receipt(topic, key)
    # Who may publish a message need not be allowed to see it, and this is how he learns that it was deleted.
    try:
        await broker.message(found.id)
    except NotFound:
        found = replace(found, gone=True)
    except StoreDamaged:
        pass  # it is there
    return web.json_response(found.to_json())


@routes.get("/v1/messages")
async def messages(request: web.Request) -> web.Response:
    """A page of messages."""
    query = Query(request, ("topic", "state", "after", "limit", "order"))
    wanted = visible(request, check_filter(query.text("topic", ">")))
    page = await context(request).broker.messages(
        topic=wanted[0] if len(wanted) == 1 else query.text("topic", ">"),
        state=cast(State, query.choice("state", ("sealed", "open"), "sealed")),
        after=query.integer_or_none("after", 0, 2**63 - 1),
        limit=query.integer("limit", 1, MAX_PAGE, 100),
        order=cast(Literal["asc", "desc"], query.choice("order", ("asc", "desc"), "asc")),
    )
    # Where several filters of a token select from what was asked for, a page is thinned out: it may be short,
    # or empty, and yet not be the last one.
    readable = seen(request, page.messages, lambda info: info.topic)
    return web.json_response(MessagePage(tuple(readable), page.next if wanted else None).to_json())


@routes.get("/v1/messages/{id}")
async def message(request: web.Request) -> web.StreamResponse:
    """One message with its manifest."""
    info = await message_for(request)
    async with aclosing(context(request).broker.manifest_parts(info.id)) as parts:
        nothing: list[dict[str, object]] = []
        first = await anext(parts, nothing)
        second = await anext(parts, None)
        if second is None:
            return web.json_response(info.to_json() | {"manifest": first})
        return await _send_parts(request, info, [first, second], parts)


async def _send_parts(
    request: web.Request,
    info: MessageInfo,
    first: list[list[dict[str, object]]],
    others: AsyncIterator[list[dict[str, object]]],
) -> web.StreamResponse:
    """As the answer of `message`, bit by bit: a manifest may have a size that no request may hold."""
    response = web.StreamResponse()
    response.content_type = "application/json"
    response.charset = "utf-8"
    if request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    else:
        response.force_close()
    await response.prepare(request)
    if request.method == "HEAD":
        await response.write_eof()
        return response
    here = context(request)
    async with TransportSender(request, response, here.settings.idle_timeout, here.counters) as sender:
        try:
            text = json.dumps(info.to_json())[:-1] + ', "manifest": ['
            for part in first:
                text += json.dumps(part)[1:-1] + ", "
            await sender.send(text[:-2].encode())
            async for part in others:
                await sender.send(b", " + json.dumps(part)[1:-1].encode())
            await sender.send(b"]}")
        except (TensorbusError, OSError) as error:
            # The head has gone out: there is no way to answer but to break off.
            log.warning("the manifest of %s broken off: %s", info.id, error)
            sender.cut()
        except BaseException:
            sender.cut()
            raise
    return response


@routes.delete("/v1/messages/{id}")
async def delete(request: web.Request) -> web.Response:
    """Remove a message."""
    here = context(request)
    message_id = request.match_info["id"]
    await authorize_admin_of(request, message_id)
    await here.finishing.run(here.broker.delete(message_id))
    return web.Response(status=204)


@routes.get("/v1/messages/{id}/frames")
async def frames(request: web.Request) -> web.StreamResponse:
    """The message's body, or a range of it; of an open message, all as it comes."""
    info = await message_for(request)
    if info.state == "open":
        return await follow(request, info)
    return await send_stored(request, info, 0, info.bytes)


@routes.get("/v1/messages/{id}/items/{name:.+}")
async def item(request: web.Request) -> web.StreamResponse:
    """The slice frames of one item, or a range of them."""
    info = await message_for(request)
    start, end = await context(request).broker.item_range(info.id, request.match_info["name"])
    return await send_stored(request, info, start, end)
