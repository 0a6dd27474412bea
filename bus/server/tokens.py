"""Tokens over HTTP: for whoever is admin of everything."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tensorbus.bus.access import TokenFile, TokenPlan
from tensorbus.bus.access.rights import EVERYTHING
from tensorbus.errors import Conflict

from .access import authorize
from .audit import note
from .bodies import read_json
from .context import context

routes = web.RouteTableDef()


@routes.get("/v1/tokens")
async def tokens(request: web.Request) -> web.Response:
    """All tokens, without what would prove them."""
    authorize(request, "admin", EVERYTHING)
    found = await asyncio.to_thread(_file(request).tokens)
    return web.json_response({"tokens": [token.info.to_json() for token in found]})


@routes.post("/v1/tokens")
async def create(request: web.Request) -> web.Response:
    """A new token; the answer is the only place where its credential is ever shown."""
    authorize(request, "admin", EVERYTHING)
    here = context(request)
    plan = TokenPlan.from_json(await read_json(request))
    token, credential = await here.finishing.run(asyncio.to_thread(_file(request).create, plan))
    note(request, created=token.id, rights=plan.rights.to_json())
    return web.json_response(
        token.info.to_json() | {"token": str(credential)}, status=201, headers={"Cache-Control": "no-store"}
    )


@routes.delete("/v1/tokens/{id}")
async def revoke(request: web.Request) -> web.Response:
    """Refuse a token from now on."""
    authorize(request, "admin", EVERYTHING)
    here = context(request)
    gone = await here.finishing.run(asyncio.to_thread(_file(request).revoke, request.match_info["id"]))
    note(request, revoked=gone.name)
    return web.Response(status=204)


def _file(request: web.Request) -> TokenFile:
    found = context(request).tokens
    if found is None:
        raise Conflict("this server was started without a place to keep tokens in")
    return found
