"""Damaged messages, and the scrub that looks for them."""

from __future__ import annotations

from aiohttp import web

from tensorbus.bus.damage import DamagePage
from tensorbus.bus.fields import Fields

from .access import authorize, authorize_any, may
from .bodies import read_json
from .context import context
from .queries import Query

routes = web.RouteTableDef()

MAX_PAGE = 1000
DEFAULT_RATE = 64 << 20
"""Bytes per second of a scrub that does not say how fast it may be: others shall not notice."""
MAX_RATE = 1 << 40


@routes.get("/v1/damaged")
async def damaged(request: web.Request) -> web.Response:
    """A page of messages that are not delivered, of those topics that the caller may read."""
    query = Query(request, ("after", "limit"))
    authorize_any(request)
    page = await context(request).broker.damaged(
        after=query.integer("after", 0, 2**63 - 1, 0), limit=query.integer("limit", 1, MAX_PAGE, 100)
    )
    seen = tuple(
        found
        for found in page.damaged
        if may(request, "subscribe", found.topic) or may(request, "admin", found.topic)
    )
    return web.json_response(DamagePage(seen, page.next).to_json())


@routes.post("/v1/scrub")
async def begin(request: web.Request) -> web.Response:
    """Begin to verify everything that is stored."""
    authorize(request, "admin", ">")
    got = Fields(await read_json(request), "scrub", ("rate",))
    rate = got.integer("rate", at_least=1, at_most=MAX_RATE, default=DEFAULT_RATE)
    report = context(request).broker.scrub(rate)
    return web.json_response(report.to_json(), status=202, headers={"Location": "/v1/scrub"})


@routes.get("/v1/scrub")
async def progress(request: web.Request) -> web.Response:
    """How far it is, and what it has found."""
    authorize(request, "admin", ">")
    return web.json_response(context(request).broker.scrubbed.to_json())


@routes.delete("/v1/scrub")
async def stop(request: web.Request) -> web.Response:
    """End it."""
    authorize(request, "admin", ">")
    here = context(request)
    report = await here.finishing.run(here.broker.stop_scrub())
    return web.json_response(report.to_json())
