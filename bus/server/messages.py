"""Listing, inspecting, downloading and deleting messages; listing topics."""

from __future__ import annotations

from typing import Literal, cast

from aiohttp import web

from tensorbus.bus.messages import State

from .context import context
from .download import follow, send_stored
from .queries import Query

routes = web.RouteTableDef()

MAX_PAGE = 1000


@routes.get("/v1/topics")
async def topics(request: web.Request) -> web.Response:
    """Topics that hold messages."""
    found = await context(request).broker.topics()
    return web.json_response({"topics": [topic.to_json() for topic in found]})


@routes.get("/v1/topics/{topic}/receipt")
async def receipt(request: web.Request) -> web.Response:
    """What became of the message that was published under an idempotency key."""
    key = Query(request, ("key",)).text("key", "")
    found = await context(request).broker.receipt(request.match_info["topic"], key)
    return web.json_response(found.to_json())


@routes.get("/v1/messages")
async def messages(request: web.Request) -> web.Response:
    """A page of messages."""
    query = Query(request, ("topic", "state", "after", "limit", "order"))
    page = await context(request).broker.messages(
        topic=query.text("topic", ">"),
        state=cast(State, query.choice("state", ("sealed", "open"), "sealed")),
        after=query.integer_or_none("after", 0, 2**63 - 1),
        limit=query.integer("limit", 1, MAX_PAGE, 100),
        order=cast(Literal["asc", "desc"], query.choice("order", ("asc", "desc"), "asc")),
    )
    return web.json_response(page.to_json())


@routes.get("/v1/messages/{id}")
async def message(request: web.Request) -> web.Response:
    """One message with its manifest."""
    broker = context(request).broker
    info = await broker.message(request.match_info["id"])
    manifest = await broker.manifest(info.id)
    return web.json_response(info.to_json() | {"manifest": manifest})


@routes.delete("/v1/messages/{id}")
async def delete(request: web.Request) -> web.Response:
    """Remove a message."""
    here = context(request)
    await here.finishing.run(here.broker.delete(request.match_info["id"]))
    return web.Response(status=204)


@routes.get("/v1/messages/{id}/frames")
async def frames(request: web.Request) -> web.StreamResponse:
    """The message's body, or a range of it; of an open message, all as it comes."""
    info = await context(request).broker.message(request.match_info["id"])
    if info.state == "open":
        return await follow(request, info)
    return await send_stored(request, info, 0, info.bytes)


@routes.get("/v1/messages/{id}/items/{name:.+}")
async def item(request: web.Request) -> web.StreamResponse:
    """The slice frames of one item, or a range of them."""
    broker = context(request).broker
    info = await broker.message(request.match_info["id"])
    start, end = await broker.item_range(info.id, request.match_info["name"])
    return await send_stored(request, info, start, end)
