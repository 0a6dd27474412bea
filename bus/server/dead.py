"""Dead letters: listed, replayed, removed."""

from __future__ import annotations

from aiohttp import web

from tensorbus.bus.fields import Fields
from tensorbus.bus.messages import MessagePage
from tensorbus.bus.topics import check_filter

from .access import authorize, authorize_admin_of, message_for, seen, visible
from .bodies import expect_later, read_json
from .context import context
from .queries import Query

routes = web.RouteTableDef()

MAX_PAGE = 1000


@routes.get("/v1/dead-letters")
async def dead_letters(request: web.Request) -> web.Response:
    """A page of dead letters."""
    query = Query(request, ("topic", "after", "limit"))
    wanted = visible(request, check_filter(query.text("topic", ">")))
    page = await context(request).broker.dead_letters(
        topic=wanted[0] if len(wanted) == 1 else query.text("topic", ">"),
        after=query.integer_or_none("after", 0, 2**63 - 1),
        limit=query.integer("limit", 1, MAX_PAGE, 100),
    )
    # As in the list of messages: a page may be thinned out.
    readable = seen(request, page.messages, lambda info: info.topic)
    return web.json_response(MessagePage(tuple(readable), page.next if wanted else None).to_json())


@routes.delete("/v1/dead-letters")
async def purge(request: web.Request) -> web.Response:
    """Remove all dead letters of some topics."""
    here = context(request)
    # No default: it is to be said what goes.
    pattern = check_filter(Query(request, ("topic",)).text("topic", ""))
    authorize(request, "admin", pattern)
    count = await here.finishing.run(here.broker.purge_dead_letters(pattern))
    return web.json_response({"removed": count})


@routes.post("/v1/messages/{id}/replay", expect_handler=expect_later)
async def replay(request: web.Request) -> web.Response:
    """Make a dead letter a message of its original topic again."""
    here = context(request)
    everyone = Fields(await read_json(request), "replay", allowed=("everyone",)).flag("everyone")
    message_id = request.match_info["id"]
    await authorize_admin_of(request, message_id)
    letter = await message_for(request)
    if letter.dead is not None:
        authorize(request, "publish", letter.dead.topic)
    info = await here.finishing.run(here.broker.replay(message_id, everyone))
    return web.json_response(info.to_json(), status=201, headers={"Location": f"/v1/messages/{info.id}"})
