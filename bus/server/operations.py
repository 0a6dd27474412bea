"""What whoever runs a broker asks it: health, figures, and the description of its API."""

from __future__ import annotations

from aiohttp import web

from tensorbus.errors import BrokerBusy

from .access import authorize_any
from .context import context
from .openapi import document

routes = web.RouteTableDef()


@routes.get("/openapi.json")
async def openapi(request: web.Request) -> web.Response:
    """The API of this server as an OpenAPI 3.1 document."""
    here = context(request)
    asks = here.tokens is not None and here.tokens.in_use
    return web.json_response(document(here.settings.max_wait, tokens=asks))


@routes.get("/healthz")
async def healthz(_request: web.Request) -> web.Response:
    """The process is alive."""
    return web.json_response({"status": "alive"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """The store answers and the server is not stopping; otherwise a problem with a status of 500 or more."""
    here = context(request)
    if here.draining:
        raise BrokerBusy("draining: the broker finishes what is under way, and then stops")
    here.broker.check_writable()
    await here.broker.stats()
    return web.json_response({"status": "ready"})


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    """Figures in Prometheus' text format, or in that of OpenMetrics for whoever asks for it."""
    authorize_any(request)
    text, content_type = await context(request).metrics.exposition(request.headers.get("Accept", ""))
    return web.Response(body=text, headers={"Content-Type": content_type})
