"""Durable consumers, and the deliveries that they are handed."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from tensorbus.bus.broker import Broker
from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.fields import Fields
from tensorbus.errors import TensorbusError

from .bodies import expect_later, read_json
from .context import Context, context

routes = web.RouteTableDef()

MAX_PULL = 256
"""Deliveries in one answer."""
MAX_NAK_DELAY = 24 * 3600.0


@routes.get("/v1/consumers")
async def consumers(request: web.Request) -> web.Response:
    """All consumers."""
    found = await context(request).broker.consumers()
    return web.json_response({"consumers": [consumer.to_json() for consumer in found]})


@routes.put("/v1/consumers/{name}", expect_handler=expect_later)
async def ensure(request: web.Request) -> web.Response:
    """Create a consumer, or find it there as it is wanted."""
    config = ConsumerConfig.from_json(await read_json(request))
    here = context(request)
    info, created = await here.finishing.run(here.broker.ensure_consumer(request.match_info["name"], config))
    return web.json_response(info.to_json(), status=201 if created else 200)


@routes.get("/v1/consumers/{name}")
async def consumer(request: web.Request) -> web.Response:
    """One consumer."""
    info = await context(request).broker.consumer(request.match_info["name"])
    return web.json_response(info.to_json())


@routes.delete("/v1/consumers/{name}")
async def delete(request: web.Request) -> web.Response:
    """Forget a consumer."""
    here = context(request)
    await here.finishing.run(here.broker.delete_consumer(request.match_info["name"]))
    return web.Response(status=204)


@routes.post("/v1/consumers/{name}/deliveries", expect_handler=expect_later)
async def pull(request: web.Request) -> web.Response:
    """Hand over deliveries; waits for the first one (long poll)."""
    here = context(request)
    name = request.match_info["name"]
    wanted = Fields(await read_json(request), "pull", allowed=("max", "wait", "follow"))
    limit = wanted.integer("max", 1, MAX_PULL, default=1)
    wait = wanted.number("wait", 0, here.settings.max_wait, default=min(30.0, here.settings.max_wait))

    def give_back(deliveries: list[DeliveryInfo]) -> None:
        here.finishing.start(_give_back(here.broker, name, deliveries))

    found = await here.waits.run(here.broker.pull(name, limit, wait, wanted.flag("follow")), give_back) or []
    transport = request.transport
    if transport is None or transport.is_closing():
        give_back(found)
    return web.json_response({"deliveries": [delivery.to_json() for delivery in found]})


async def _give_back(broker: Broker, name: str, deliveries: list[DeliveryInfo]) -> None:
    """The worker left while it waited: others need not wait until ``ack_wait`` is over."""
    for delivery in deliveries:
        with suppress(TensorbusError):
            await broker.nak(name, delivery.token)


@routes.post("/v1/consumers/{name}/deliveries/{token}/ack", expect_handler=expect_later)
async def ack(request: web.Request) -> web.Response:
    """Settle a delivery for good."""
    here, name, token = await _settling(request)
    await here.finishing.run(here.broker.ack(name, token))
    return web.Response(status=204)


@routes.post("/v1/consumers/{name}/deliveries/{token}/nak", expect_handler=expect_later)
async def nak(request: web.Request) -> web.Response:
    """Give a delivery back."""
    here = context(request)
    wanted = Fields(await read_json(request), "nak", allowed=("delay",))
    delay = wanted.number("delay", 0, MAX_NAK_DELAY, default=0.0)
    await here.finishing.run(here.broker.nak(request.match_info["name"], request.match_info["token"], delay))
    return web.Response(status=204)


@routes.post("/v1/consumers/{name}/deliveries/{token}/term", expect_handler=expect_later)
async def term(request: web.Request) -> web.Response:
    """Refuse a delivery for good."""
    here, name, token = await _settling(request)
    await here.finishing.run(here.broker.term(name, token))
    return web.Response(status=204)


@routes.post("/v1/consumers/{name}/deliveries/{token}/in_progress", expect_handler=expect_later)
async def in_progress(request: web.Request) -> web.Response:
    """Start the delivery's ``ack_wait`` anew."""
    here, name, token = await _settling(request)
    await here.finishing.run(here.broker.in_progress(name, token))
    return web.Response(status=204)


async def _settling(request: web.Request) -> tuple[Context, str, str]:
    Fields(await read_json(request), "settlement", allowed=())
    return context(request), request.match_info["name"], request.match_info["token"]
