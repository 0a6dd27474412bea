"""POST /v1/topics/{topic}/batch: many small messages in one request, one flush of the disk and one answer.

The body holds records, one behind the other: length of the key and length of the frames, each a little-endian
u32, then the key (none has length 0), then the frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from aiohttp import web

from tensorbus.bus.broker.batches import MAX_BYTES, MAX_RECORDS, Outcome, Record
from tensorbus.bus.messages import Receipt
from tensorbus.bus.topics import check_topic
from tensorbus.errors import BrokerBusy, FrameError, InvalidRequest, LimitExceeded

from .access import new_upload
from .audit import note
from .bodies import accept, chunks, expect_later
from .context import context
from .problems import problem_document

routes = web.RouteTableDef()

LENGTHS = Struct("<II")
_HELD = 32 << 20
"""Bytes of all batches that may be in memory at a time."""


@routes.post("/v1/topics/{topic}/batch", expect_handler=expect_later)
async def publish(request: web.Request) -> web.Response:
    """Publish the records; each has an outcome of its own."""
    here = context(request)
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidRequest("the body must not be compressed (Content-Encoding)")
    topic = check_topic(request.match_info["topic"])
    with here.counters.upload(), new_upload(request, topic) as identity:
        records = list(_records(await _body(request)))
        outcomes = await here.broker.publish_batch(topic, records, identity.id, identity.quotas.max_bytes)
    if identity.token is not None:
        # Without tokens nobody can be told from anybody, and the entry has no reader.
        ids = [outcome.id for outcome in outcomes if isinstance(outcome, Receipt)]
        note(request, messages=ids, refused=len(outcomes) - len(ids))
    return web.json_response({"results": [_result(outcome) for outcome in outcomes]})


def _result(outcome: Outcome) -> dict[str, object]:
    return outcome.to_json() if isinstance(outcome, Receipt) else problem_document(outcome)


async def _body(request: web.Request) -> bytes:
    """All of it.

    Raises:
        LimitExceeded: it is larger than a batch may be.
        BrokerBusy: too many batches are coming in.
        TransferStalled, TruncatedFrames: it does not arrive.
    """
    here = context(request)
    too_large = LimitExceeded(f"a batch takes up to {MAX_BYTES} bytes; send several")
    if (request.content_length or 0) > MAX_BYTES:
        raise too_large
    await accept(request)
    body = bytearray()
    try:
        async for chunk in chunks(request):
            body += chunk
            here.batched += len(chunk)
            if len(body) > MAX_BYTES:
                raise too_large
            if here.batched > _HELD:
                raise BrokerBusy(f"batches of {_HELD} bytes in all are coming in, the limit; try later")
        return bytes(body)
    finally:
        here.batched -= len(body)


def _records(body: bytes) -> Iterator[Record]:
    """The records of a body.

    Raises:
        FrameError: the lengths do not fit the bytes, or there are none.
        LimitExceeded: there are too many records.
    """
    at, count = 0, 0
    if not body:
        raise FrameError("the batch is empty; it holds 1 record or more")
    while at < len(body):
        count += 1
        if count > MAX_RECORDS:
            raise LimitExceeded(f"a batch holds up to {MAX_RECORDS} messages; send several")
        start = at + LENGTHS.size
        if start > len(body):
            raise FrameError(f"record {count} at byte {at}: the bytes end within its lengths")
        key_len, body_len = LENGTHS.unpack_from(body, at)
        middle = start + key_len
        at, begin = middle + body_len, at
        if at > len(body):
            raise FrameError(
                f"record {count} at byte {begin}: a key of {key_len} and frames of {body_len} bytes, but "
                f"{len(body) - start} follow"
            )
        # A key that is no ASCII is refused with its record, as any other that is not legal.
        key = body[start:middle].decode("ascii", "replace") if key_len else None
        yield Record(key, body[middle:at])
