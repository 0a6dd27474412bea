"""Resumable publishing in the open standard tus 1.0: an upload outlives its connections and the broker.

The body is a message's frames. `POST …/uploads` creates the upload, `PATCH` adds to it, `HEAD` says how far
it is. The `PATCH` that completes it is answered when the message is acknowledged, and names the message; a
client that did not hear the answer asks with `HEAD`, as after any other cut. Each of these requests takes the
turn of one before that the broker may still believe to be alive.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Protocol

from aiohttp import web
from multidict import CIMultiDict

from tensorbus.bus import log_context
from tensorbus.bus.broker.inflow import Digest
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.topics import check_message_id, check_topic
from tensorbus.bus.uploads import UploadInfo
from tensorbus.errors import (
    Conflict,
    FrameSequenceError,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    QuotaExceeded,
    StorageFull,
)

from . import tus_headers as tus
from .access import Identity, authorize_any, hide, is_owner, may, new_upload, owner_of
from .bodies import accept, chunks
from .context import context
from .lending import announced, borrower_of
from .problems import Handler
from .receiver import Taker, can_receive, receive

log = logging.getLogger("tensorbus.server")
routes = web.RouteTableDef()

_NEW = "/v1/topics/{topic}/uploads"
_ONE = "/v1/uploads/{id}"
_NO_STORE = {"Cache-Control": "no-store"}


async def mark(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer of these routes, errors too: the version of the protocol."""
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical in (_NEW, _ONE):
        headers: CIMultiDict[str] = response.headers
        headers["Tus-Resumable"] = tus.VERSION
        if request.method == "OPTIONS" or response.status == web.HTTPPreconditionFailed.status_code:
            headers["Tus-Version"] = tus.VERSION


@routes.options(_NEW)
@routes.options(_ONE)
async def options(request: web.Request) -> web.Response:
    """What this server can do of tus."""
    authorize_any(request)
    if (topic := request.match_info.get("topic")) is not None:
        check_topic(topic)
    else:
        check_message_id(request.match_info["id"])
    limit = context(request).broker.settings.max_message_bytes
    return web.Response(
        status=204,
        headers={
            "Tus-Extension": tus.EXTENSIONS,
            "Tus-Max-Size": str(limit),
            "Tus-Checksum-Algorithm": tus.ALGORITHMS,
        },
    )


@routes.post(_NEW)
async def create(request: web.Request) -> web.Response:
    """Create an upload, or find the one that the same publisher began from the same source."""
    here = context(request)
    topic = check_topic(request.match_info["topic"])
    _check_version(request)
    length, metadata = tus.length_of_new(request), tus.metadata(request)
    with_body = request.can_read_body
    if with_body:
        _check_type(request)
    key = request.headers.get("Idempotency-Key")
    with new_upload(request, topic) as identity:
        upload = await here.finishing.run(_create(request, identity, topic, key, length, metadata))
    log_context.message_id.set(upload.id)
    if isinstance(upload, Receipt):
        return _created(request, upload.id, _finished(upload))
    if not with_body:
        return _created(request, upload.id, _progress(upload))
    async with _turn(upload):
        if upload.offset:
            raise Conflict(f"upload {upload.id} has begun before; go on with PATCH from its Upload-Offset")
        receipt = await _bring(request, upload)
        return _created(request, upload.id, _progress(upload) if receipt is None else _finished(receipt))


async def _create(
    request: web.Request,
    identity: Identity,
    topic: str,
    key: str | None,
    length: int | None,
    metadata: dict[str, str],
) -> Upload | Receipt:
    return await context(request).broker.create_upload(
        topic, key, length, metadata, identity.id, identity.quotas.max_bytes
    )


@routes.head(_ONE)
async def head(request: web.Request) -> web.Response:
    """How far the upload is; whoever asks is about to go on with it."""
    found = await _find(request)
    _check_version(request)
    if isinstance(found, Upload):
        async with _turn(found):
            # Read inside: nobody else moves it on before the answer. That all is there is only said of what
            # is acknowledged: a crash may have come between the two.
            row = found.kept
            assert row is not None
            receipt: Receipt | None = None
            if not found.message.ended:
                # Where there is no room for the last step, the offset is before it; a writer will hear why.
                with suppress(StorageFull, QuotaExceeded):
                    receipt = await _completed(found, row.length)
            if not found.message.ended and receipt is None:
                return web.Response(headers=_described(found) | _NO_STORE)
        found = await _find(request)
        assert isinstance(found, MessageInfo)
    size = str(found.bytes)
    there = {"Upload-Offset": size, "Upload-Length": size} | _names_message(found.id)
    return web.Response(headers=there | _NO_STORE)


@routes.patch(_ONE)
async def patch(request: web.Request) -> web.Response:
    """Add to the upload; the answer to what completes it is the message's acknowledgement."""
    found = await _find(request)
    _check_version(request)
    _check_type(request)
    offset = tus.number(request, "Upload-Offset")
    if offset is None:
        raise InvalidRequest("Upload-Offset is missing: it says where in the body these bytes belong")
    if not isinstance(found, Upload):
        return _again(request, found, offset)
    async with _turn(found):
        if found.message.ended:
            sealed = await _find(request)
            assert isinstance(sealed, MessageInfo)
            return _again(request, sealed, offset)
        if offset != found.offset:
            raise Conflict(f"upload {found.id} goes on at byte {found.offset}, not {offset}")
        receipt = await _bring(request, found)
    headers = _progress(found) if receipt is None else _finished(receipt)
    return _closing(request, web.Response(status=204, headers=headers))


@routes.delete(_ONE)
async def terminate(request: web.Request) -> web.Response:
    """Give the upload up, and its space back."""
    found = await _find(request)
    _check_version(request)
    if isinstance(found, Upload):
        await context(request).finishing.run(found.abort("its publisher gave it up"))
        if found.aborted:
            return web.Response(status=204)
        await found.message.decided()
    raise Conflict(
        f"upload {found.id} is complete: it is a message now, delete it at /v1/messages/{found.id}"
    )


@routes.post(_ONE)
async def override(request: web.Request) -> web.StreamResponse:
    """For clients whose surroundings know no PATCH: the method is in a field of its own."""
    method = request.headers.get(tus.METHOD_OVERRIDE, "").upper()
    handlers: dict[str, Handler] = {"PATCH": patch, "DELETE": terminate, "HEAD": head}
    if method not in handlers:
        authorize_any(request)
        raise web.HTTPMethodNotAllowed("POST", ["GET", "HEAD", "PATCH", "DELETE", "OPTIONS"])
    return await handlers[method](request)


@routes.get(_ONE, allow_head=False)
async def describe(request: web.Request) -> web.Response:
    """How far the upload is, as JSON; unlike HEAD, this does not disturb whoever writes to it."""
    found = await _find(request)
    if isinstance(found, Upload):
        await found.touch()
        return web.json_response(_info(found).to_json(), headers=_NO_STORE)
    sealed = UploadInfo(
        found.id,
        found.topic,
        found.key,
        "sealed",
        found.bytes,
        found.bytes,
        found.bytes,
        {},
        found.created,
        None,
    )
    return web.json_response(sealed.to_json(), headers=_NO_STORE | _names_message(found.id))


@routes.get(_ONE + "/heads", allow_head=False)
async def heads(request: web.Request) -> web.StreamResponse:
    """Preludes and headers of all whole frames that have come, one behind the other: what a publisher needs
    to go on without encoding them again."""
    found = await _find(request)
    if not isinstance(found, Upload):
        raise Conflict(f"upload {found.id} is complete: nothing is left to go on with")
    await found.touch()
    at, end = 0, found.boundary
    response = web.StreamResponse(
        headers={"Content-Type": "application/octet-stream", "Tensorbus-Boundary": str(end)} | _NO_STORE
    )
    await response.prepare(request)
    while at < end:
        part, at = await context(request).broker.upload_heads(found.id, at, end)
        await response.write(part)
    await response.write_eof()
    return response


# --- the body ----------------------------------------------------------------------------------------


async def _bring(request: web.Request, upload: Upload) -> Receipt | None:
    """The body into the upload, whose turn this is; the receipt if that was the last of it."""
    expected = tus.checksum_of(request)
    row = upload.kept
    assert row is not None
    announced = tus.number(request, "Upload-Length")
    if announced is not None and request.method != "POST":
        if row.length is not None and row.length != announced:
            raise Conflict(
                f"Upload-Length of {upload.id} is {row.length} bytes, and cannot become {announced}"
            )
        _check_limit(request, announced)
        await upload.set_length(announced)
    length = row.length if announced is None else announced
    _check_fits(request, upload, length)
    try:
        with context(request).counters.resumable():
            if (borrower := borrower_of(request)) is None:
                await upload.come_home()
                await accept(request)
                await bring(request, upload, length, expected)
            else:
                await borrower.carry(upload)
        return await _completed(upload, length)
    except BaseException as problem:
        log.info("upload %s stops at byte %s: %s", upload.id, upload.offset, problem or "the publisher left")
        raise


def _check_fits(request: web.Request, upload: Upload, length: int | None) -> None:
    limit = context(request).broker.settings.max_message_bytes if length is None else length
    end = (upload.offset or 0) + (announced(request) or 0)
    if end > limit:
        raise LimitExceeded(f"upload {upload.id} would grow to {end} bytes; it may have {limit}")


def _check_limit(request: web.Request, length: int) -> None:
    limit = context(request).broker.settings.max_message_bytes
    if length > limit:
        raise LimitExceeded(f"a body of {length} bytes is over the {limit} that this broker accepts")


class _Taker(Taker, Protocol):
    """What the body of a `PATCH` goes to."""

    @property
    def id(self) -> str: ...

    @property
    def offset(self) -> int | None: ...

    def hold(self, digest: Digest) -> None: ...

    async def verify(self, expected: bytes) -> None: ...


async def bring(
    request: web.Request, upload: _Taker, length: int | None, expected: tuple[Digest, bytes] | None
) -> None:
    """The body into an upload of ``length`` bytes; ``expected`` is its checksum, if it has one."""
    if expected is not None:
        upload.hold(expected[0])
    await _move(request, upload, length)
    if expected is not None:
        await upload.verify(expected[1])
    await upload.flush()


async def _move(request: web.Request, upload: _Taker, length: int | None) -> None:
    if can_receive(request):
        await receive(request, upload, request.content_length or 0)
        return
    room = None if length is None else length - (upload.offset or 0)
    async for chunk in chunks(request):
        if room is not None:
            room -= len(chunk)
            if room < 0:
                raise LimitExceeded(f"upload {upload.id} has {length} bytes, and more were sent")
        await upload.write(chunk)
        # Not to be kept while the next one is awaited, which may take long.
        del chunk


async def _completed(upload: Upload, length: int | None) -> Receipt | None:
    if upload.complete and length is not None and upload.offset != length:
        problem = f"its last frame ends at byte {upload.offset}, and Upload-Length is {length}"
        await upload.abort(problem)
        raise FrameSequenceError(f"upload {upload.id} was dropped: {problem}")
    if not upload.complete and upload.offset != length:
        return None
    return await upload.seal()


# --- the upload --------------------------------------------------------------------------------------


async def _find(request: web.Request) -> Upload | MessageInfo:
    """The upload that the address names, or the message that it has become.

    Raises:
        NotFound: there is neither, or it is another publisher's.
    """
    broker = context(request).broker
    upload_id = request.match_info["id"]
    authorize_any(request)
    found = broker.upload(upload_id)
    try:
        topic = (await broker.message(upload_id)).topic if found is None else found.topic
        info = await broker.message(upload_id) if found is None else None
    except NotFound:
        raise _unknown(upload_id) from None
    foreign = found is not None and not is_owner(request, found.message.owner)
    if not may(request, "admin" if foreign else "publish", topic):
        hide(request)
        raise _unknown(upload_id)
    if found is not None:
        # Another process than this one may have begun the upload, and the token's limits are in no row.
        if (owner := owner_of(request, found.message.owner)) is not None:
            found.message.quota = owner.quotas.max_bytes
        return found
    assert info is not None
    if info.state == "open":
        raise _unknown(upload_id)  # it comes in one request, and cannot be resumed
    return info


def _unknown(upload_id: str) -> NotFound:
    return NotFound(f"there is no upload {upload_id}; it may have expired, or been given up")


@asynccontextmanager
async def _turn(upload: Upload) -> AsyncGenerator[None]:
    """The turn to write, given way to a newer request. Raises Conflict when that comes."""
    loop = asyncio.get_running_loop()
    own = asyncio.timeout(None)

    def give_way() -> None:
        with suppress(RuntimeError):  # the block was left, or told so, before
            own.reschedule(loop.time())

    try:
        async with own, upload.turn(give_way):
            yield
    except TimeoutError:
        if not own.expired():
            raise
        upload.check_alive()
        raise Conflict(f"a newer request goes on with upload {upload.id}") from None


# --- answers -----------------------------------------------------------------------------------------


def _check_version(request: web.Request) -> None:
    if request.headers.get("Tus-Resumable") != tus.VERSION:
        raise web.HTTPPreconditionFailed(text=f"send Tus-Resumable: {tus.VERSION}, the version spoken here")


def _check_type(request: web.Request) -> None:
    if request.content_type != tus.CONTENT_TYPE:
        raise web.HTTPUnsupportedMediaType(text=f"the bytes of an upload are sent as {tus.CONTENT_TYPE}")


def _again(request: web.Request, sealed: MessageInfo, offset: int) -> web.Response:
    """For a PATCH of an upload that is complete: fine if it wants to add nothing."""
    if offset != sealed.bytes:
        raise Conflict(
            f"upload {sealed.id} is complete with {sealed.bytes} bytes; nothing goes on at {offset}"
        )
    if request.can_read_body:
        raise LimitExceeded(f"upload {sealed.id} is complete with its {sealed.bytes} bytes")
    return web.Response(status=204, headers={"Upload-Offset": str(offset)} | _names_message(sealed.id))


def _created(request: web.Request, upload_id: str, headers: dict[str, str]) -> web.Response:
    response = web.Response(status=201, headers={"Location": f"/v1/uploads/{upload_id}"} | headers)
    return _closing(request, response)


def _closing(request: web.Request, response: web.Response) -> web.Response:
    if not request.content.at_eof():
        response.force_close()
    return response


def _progress(upload: Upload) -> dict[str, str]:
    row = upload.kept
    assert row is not None
    return {"Upload-Offset": str(upload.offset or 0)} | tus.expires(row.expires)


def _described(upload: Upload) -> dict[str, str]:
    row = upload.kept
    assert row is not None
    length = {"Upload-Defer-Length": "1"} if row.length is None else {"Upload-Length": str(row.length)}
    metadata = {"Upload-Metadata": tus.metadata_text(row.metadata)} if row.metadata else {}
    return _progress(upload) | length | metadata


def _finished(receipt: Receipt) -> dict[str, str]:
    return {
        "Upload-Offset": str(receipt.bytes),
        "Tensorbus-Receipt": json.dumps(receipt.to_json()),
    } | _names_message(receipt.id)


def _names_message(message_id: str) -> dict[str, str]:
    return {"Tensorbus-Message": message_id, "Content-Location": f"/v1/messages/{message_id}"}


def _info(upload: Upload) -> UploadInfo:
    row = upload.kept
    assert row is not None
    return UploadInfo(
        id=row.id,
        topic=row.topic,
        key=row.key,
        state="open",
        offset=upload.offset or 0,
        boundary=upload.boundary,
        length=row.length,
        metadata=row.metadata,
        created=row.created,
        expires=datetime.fromtimestamp(row.expires, UTC),
    )
