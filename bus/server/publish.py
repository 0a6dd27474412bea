"""POST /v1/topics/{topic}/messages: a message comes in."""

from __future__ import annotations

import logging

from aiohttp import web

from tensorbus.bus import log_context
from tensorbus.bus.broker.batches import Record
from tensorbus.bus.messages import Receipt
from tensorbus.bus.topics import check_topic
from tensorbus.errors import InvalidRequest

from .access import new_upload
from .bodies import accept, chunks, count_in, expect_later
from .context import context
from .lending import announced, borrower_of
from .limits import read_body
from .media import FRAMES
from .plain import wrap_plain
from .receiver import Taker, can_receive, receive

log = logging.getLogger("tensorbus.server")
routes = web.RouteTableDef()


@routes.post("/v1/topics/{topic}/messages", expect_handler=expect_later)
async def publish(request: web.Request) -> web.Response:
    """Check what the head of the request tells, then move the body into an upload, then seal it."""
    here = context(request)
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidRequest("the body must not be compressed (Content-Encoding)")
    topic = check_topic(request.match_info["topic"])
    if _is_here(request):
        with here.counters.upload():
            return _answer(request, await _publish_whole(request, topic))
    with new_upload(request, topic) as identity:
        started = await here.broker.begin(
            topic,
            request.headers.get("Idempotency-Key"),
            announced(request),
            identity.id,
            identity.quotas.max_bytes,
        )
    if isinstance(started, Receipt):
        return _answer(request, started)
    with here.counters.upload():
        try:
            if (borrower := borrower_of(request)) is None:
                await accept(request)
                await move(request, started)
            else:
                await borrower.carry(started)
        except BaseException as error:
            # A cancellation too (the publisher left): the upload's file and memory are given back at once.
            reason = str(error) or "the publisher left before the end of the message"
            log.info("upload %s given up: %s", started.id, reason)
            await started.abort(reason)
            raise
        # All is here; sealing is carried through even if this request is cancelled. If the publisher lost its
        # connection meanwhile, it will be told "duplicate" when it comes again with its key.
        receipt = await started.seal()
    return _answer(request, receipt)


def _is_here(request: web.Request) -> bool:
    """Whether a small body came along with its head: then nobody has to wait for it, or could follow it."""
    size = request.content_length
    if size is None or request.content_type != FRAMES or not request.content.is_eof():
        return False
    return 0 < size <= context(request).broker.settings.inline_bytes


async def _publish_whole(request: web.Request, topic: str) -> Receipt:
    """What takes the way of a batch of one has no need of an upload."""
    here = context(request)
    with new_upload(request, topic) as identity:
        read_body(request)
        record = Record(request.headers.get("Idempotency-Key"), request.content.read_nowait())
        count_in(request, len(record.body))
        quota = identity.quotas.max_bytes
        (outcome,) = await here.broker.publish_batch(topic, (record,), identity.id, quota)
    if not isinstance(outcome, Receipt):
        raise outcome
    log_context.message_id.set(outcome.id)
    return outcome


async def move(request: web.Request, upload: Taker) -> None:
    """The body into an upload, as frames if it is none."""
    if request.content_type != FRAMES:
        async for piece in wrap_plain(request, chunks(request)):
            await upload.write(piece)
    elif can_receive(request):
        await receive(request, upload, request.content_length or 0)
    else:
        async for chunk in chunks(request):
            await upload.write(chunk)
            # Not to be kept while the next one is awaited, which may take long.
            del chunk


def _answer(request: web.Request, receipt: Receipt) -> web.Response:
    status = 200 if receipt.duplicate else 201
    response = web.json_response(
        receipt.to_json(), status=status, headers={"Location": f"/v1/messages/{receipt.id}"}
    )
    if not request.content.at_eof():
        response.force_close()
    return response
