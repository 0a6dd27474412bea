"""Durable consumers, and the deliveries that they are handed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from aiohttp import web

from tensorbus.bus.broker import Broker
from tensorbus.bus.consumers import MAX_INLINE, ConsumerConfig, DeliveryInfo, dead_letter_topic
from tensorbus.bus.fields import Fields
from tensorbus.bus.topics import check_consumer_name
from tensorbus.errors import Conflict, InvalidRequest, NotFound, TensorbusError

from .access import Identity, authorize, authorize_consumer, is_owner, may, owner_of, seen
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
    readable = seen(request, found, lambda consumer: consumer.config.filter)
    return web.json_response({"consumers": [consumer.to_json() for consumer in readable]})


@routes.put("/v1/consumers/{name}", expect_handler=expect_later)
async def ensure(request: web.Request) -> web.Response:
    """Create a consumer, or find it there as it is wanted."""
    config = ConsumerConfig.from_json(await read_json(request))
    identity = _authorize_config(request, config)
    here = context(request)
    making = here.broker.ensure_consumer(
        request.match_info["name"], config, identity.id, lambda there: may(request, "subscribe", there)
    )
    info, created = await here.finishing.run(making)
    return web.json_response(info.to_json(), status=201 if created else 200)


@routes.get("/v1/consumers/{name}")
async def consumer(request: web.Request) -> web.Response:
    """One consumer."""
    info = await context(request).broker.consumer(authorize_consumer(request))
    return web.json_response(info.to_json())


@routes.delete("/v1/consumers/{name}")
async def delete(request: web.Request) -> web.Response:
    """Forget a consumer."""
    here = context(request)
    name = authorize_consumer(request)
    if not is_owner(request, here.broker.consumer_owner(name)):
        authorize(request, "admin", here.broker.consumer_filter(name))
    await here.finishing.run(here.broker.delete_consumer(name))
    return web.Response(status=204)


@routes.post("/v1/consumers/{name}/deliveries", expect_handler=expect_later)
async def pull(request: web.Request) -> web.Response:
    """Hand over deliveries; waits for the first one (long poll)."""
    here = context(request)
    wanted = Fields(await read_json(request), "pull", allowed=("max", "wait", "follow", "inline"))
    limit = wanted.integer("max", 1, MAX_PULL, default=1)
    wait = wanted.number("wait", 0, here.settings.max_wait, default=min(30.0, here.settings.max_wait))

    follow = wanted.flag("follow")
    inline = wanted.integer("inline", 0, MAX_INLINE, default=0)
    name = authorize_consumer(request)

    def give_back(deliveries: list[DeliveryInfo]) -> None:
        here.finishing.start(_give_back(here.broker, name, deliveries))

    found = await here.waits.run(here.broker.pull(name, limit, wait, follow, inline), give_back) or []
    transport = request.transport
    if transport is None or transport.is_closing():
        give_back(found)
    return web.json_response({"deliveries": [delivery.to_json() for delivery in found]})


async def _give_back(broker: Broker, name: str, deliveries: list[DeliveryInfo]) -> None:
    """The worker left while it waited: others need not wait until ``ack_wait`` is over."""
    if deliveries:
        with suppress(TensorbusError):
            await broker.nak_all(name, [delivery.token for delivery in deliveries], unread=True)


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
    wanted = Fields(await read_json(request), "nak", allowed=("delay", "unread"))
    name = authorize_consumer(request)
    delay = wanted.number("delay", 0, MAX_NAK_DELAY, default=0.0)
    giving = here.broker.nak(name, request.match_info["token"], delay, wanted.flag("unread"))
    await here.finishing.run(giving)
    return web.Response(status=204)


@routes.post("/v1/consumers/{name}/deliveries/{token}/term", expect_handler=expect_later)
async def term(request: web.Request) -> web.Response:
    """Refuse a delivery for good."""
    here = context(request)
    reason = Fields(await read_json(request), "term", allowed=("reason",)).text_or_none("reason") or ""
    name = authorize_consumer(request)
    _authorize_letter(request, name)
    await here.finishing.run(here.broker.term(name, request.match_info["token"], reason))
    return web.Response(status=204)


@routes.post("/v1/consumers/{name}/deliveries/{token}/in_progress", expect_handler=expect_later)
async def in_progress(request: web.Request) -> web.Response:
    """Start the delivery's ``ack_wait`` anew."""
    here, name, token = await _settling(request)
    await here.finishing.run(here.broker.in_progress(name, token))
    return web.Response(status=204)


# --- many at a time ------------------------------------------------------------------------------


@routes.post("/v1/consumers/{name}/acks", expect_handler=expect_later)
async def acks(request: web.Request) -> web.Response:
    """Settle deliveries for good."""
    here = context(request)
    wanted = Fields(await read_json(request), "acks", allowed=("tokens",))
    name = authorize_consumer(request)
    tokens = _tokens(wanted)
    return _outcomes(tokens, await here.finishing.run(here.broker.ack_all(name, tokens)))


@routes.post("/v1/consumers/{name}/naks", expect_handler=expect_later)
async def naks(request: web.Request) -> web.Response:
    """Give deliveries back."""
    here = context(request)
    wanted = Fields(await read_json(request), "naks", allowed=("tokens", "delay", "unread"))
    name = authorize_consumer(request)
    tokens = _tokens(wanted)
    delay = wanted.number("delay", 0, MAX_NAK_DELAY, default=0.0)
    giving = here.broker.nak_all(name, tokens, delay, wanted.flag("unread"))
    return _outcomes(tokens, await here.finishing.run(giving))


@routes.post("/v1/consumers/{name}/in_progress", expect_handler=expect_later)
async def all_in_progress(request: web.Request) -> web.Response:
    """Start the wait for deliveries anew."""
    here = context(request)
    wanted = Fields(await read_json(request), "in_progress", allowed=("tokens",))
    name = authorize_consumer(request)
    tokens = _tokens(wanted)
    return _outcomes(tokens, await here.finishing.run(here.broker.in_progress_all(name, tokens)))


def _tokens(wanted: Fields) -> list[str]:
    tokens = wanted.array("tokens")
    if not 1 <= len(tokens) <= MAX_PULL:
        raise InvalidRequest(f"{wanted.what}: 1 to {MAX_PULL} tokens, not {len(tokens)}")
    return [Fields({"tokens": token}, wanted.what).text("tokens") for token in tokens]


def _outcomes(tokens: Sequence[str], outcomes: Sequence[TensorbusError | None]) -> web.Response:
    """What is not listed as failed is done, and durably."""
    failed = [
        {"token": token, "type": error.problem_type(), "status": error.status, "detail": str(error)}
        for token, error in zip(tokens, outcomes, strict=True)
        if error is not None
    ]
    return web.json_response({"failed": failed})


def _authorize_config(request: web.Request, config: ConsumerConfig) -> Identity:
    """Its maker has to be allowed to read what it is handed, and to publish where it sends dead letters.

    One without ``max_deliver`` sends none by itself, and so needs the right for those that it asks for only.
    """
    identity = authorize(request, "subscribe", config.filter)
    topic = config.dead_letter
    if topic is None and config.max_deliver is not None:
        topic = dead_letter_topic(check_consumer_name(request.match_info["name"]))
    if topic is not None:
        authorize(request, "publish", topic)
    with suppress(NotFound):
        if not may(request, "subscribe", context(request).broker.consumer_filter(request.match_info["name"])):
            raise Conflict("another consumer has this name; choose one of your own")
    return identity


def _authorize_letter(request: web.Request, name: str) -> None:
    """To refuse a message puts it on the topic of dead letters: who does so, or else who made the consumer,
    has to be allowed to publish there."""
    broker = context(request).broker
    topic, owner = broker.consumer_dead_letter(name), broker.consumer_owner(name)
    maker = owner_of(request, owner)
    if owner is not None and (maker is None or not maker.rights.allow("publish", topic)):
        authorize(request, "publish", topic)


async def _settling(request: web.Request) -> tuple[Context, str, str]:
    Fields(await read_json(request), "settlement", allowed=())
    name = authorize_consumer(request)
    return context(request), name, request.match_info["token"]
