"""Policies: how long the messages of some topics are kept."""

from __future__ import annotations

from aiohttp import web

from tensorbus.bus.policies import PolicyConfig, PolicyInfo
from tensorbus.errors import Forbidden, NotFound

from .access import authorize, hide, may, seen
from .bodies import read_json
from .context import context

routes = web.RouteTableDef()


@routes.get("/v1/policies")
async def policies(request: web.Request) -> web.Response:
    """All policies, of those topics that the caller may read."""
    found = await context(request).broker.policies()
    readable = seen(request, found, lambda policy: policy.config.filter)
    return web.json_response({"policies": [policy.to_json() for policy in readable]})


@routes.put("/v1/policies/{name}")
async def put(request: web.Request) -> web.Response:
    """Create or change a policy, and enforce it at once."""
    config = PolicyConfig.from_json(await read_json(request))
    here = context(request)
    name = request.match_info["name"]
    authorize(request, "admin", config.filter)

    def check(there: PolicyConfig) -> None:
        """Called when nobody else can change it any more, so that it is what is overwritten."""
        if not may(request, "subscribe", there.filter):
            raise Forbidden("another policy has this name; choose one of your own")
        authorize(request, "admin", there.filter)

    putting = here.broker.put_policy(name, config, check, lambda there: may(request, "subscribe", there))
    info, created = await here.finishing.run(putting)
    return web.json_response(info.to_json(), status=201 if created else 200)


@routes.get("/v1/policies/{name}")
async def policy(request: web.Request) -> web.Response:
    """One policy."""
    return web.json_response((await _visible(request)).to_json())


@routes.delete("/v1/policies/{name}")
async def delete(request: web.Request) -> web.Response:
    """Forget a policy; what its topics hold stays."""
    here = context(request)
    authorize(request, "admin", (await _visible(request)).config.filter)
    await here.finishing.run(here.broker.delete_policy(request.match_info["name"]))
    return web.Response(status=204)


async def _visible(request: web.Request) -> PolicyInfo:
    """The policy that the address names; for who may not read its topics, it is not there."""
    name = request.match_info["name"]
    found = await context(request).broker.policy(name)
    if not may(request, "subscribe", found.config.filter):
        hide(request)
        raise NotFound(f"there is no policy {name[:64]!r}")  # the broker's words
    return found
