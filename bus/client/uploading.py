"""Uploading: a large message by tus 1.0, which goes on at the byte where it was cut.

Strategy. Each attempt asks how far the upload is, has the broker tell the heads of the frames that are there,
compares them with what would be sent, and encodes only what is missing. Where they do not fit, or the upload
is gone, it begins anew: never is a message put together of two halves that do not belong together.

An upload can also be found again by another process, after this one was killed: if the caller gave the key,
and the bytes would be the same. That is what its fingerprint tells, which the broker keeps with the upload.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace

import aiohttp

from tensorbus.bus import messages
from tensorbus.errors import (
    BrokerUnavailable,
    Conflict,
    FrameError,
    MessageAborted,
    MessageReplaced,
    NotFound,
    TensorbusError,
)
from tensorbus.streaming.encoder import Encoder
from tensorbus.streaming.resumption import Resumption

from .body import Body
from .connection import Connection, segment
from .encoding import Encoding
from .outgoing import Outgoing
from .progress import ProgressReporter
from .retry import TRANSIENT

log = logging.getLogger("tensorbus.client")

LARGE = 8 << 20
"""Bytes of values or of a body from which a message goes this way: one request more costs next to nothing."""

_TUS = {"Tus-Resumable": "1.0.0"}
_PART = _TUS | {"Content-Type": "application/offset+octet-stream", "Expect": "100-continue"}
_LAST_WORD = 2.0
"""Seconds that the broker gets to hear that an upload was given up."""


class Uploading:
    """One message on its way.

    Args:
        lasting: whether another process may go on with it, since its bytes depend on nothing but what is
            published; the key is the caller's own.

    Attributes:
        furthest: the most bytes of the body that the broker has, or was sent in an attempt.
        resumed: bytes that were there already when attempts began, in all.
    """

    def __init__(
        self,
        connection: Connection,
        outgoing: Outgoing,
        encoder: Encoder,
        reporter: ProgressReporter,
        *,
        lasting: bool,
    ) -> None:
        self._connection = connection
        self._outgoing = outgoing
        self._encoder = encoder
        self._reporter = reporter
        self._lasting = lasting
        self._fingerprint: str | None = None
        self._path: str | None = None
        self._begun_anew = False
        self.furthest = 0
        self.resumed = 0

    async def attempt(self) -> messages.Receipt:
        """Send what is missing.

        Raises:
            BrokerUnavailable, TransferStalled: it was cut; another attempt goes on.
            MessageReplaced: another upload of the key took its place.
            and as `Client.publish`.
        """
        found = await (self._create() if self._path is None else self._ask(self._path))
        if isinstance(found, messages.Receipt):
            return found
        try:
            there = await self._there(found)
            if there is not None:
                return await self._send(there, found)
        except Conflict as error:
            raise BrokerUnavailable(f"the upload went on elsewhere: {error}") from error
        except NotFound as error:
            # Nobody was sending when it was replaced, so that nobody was told.
            raise MessageReplaced(f"another upload of its key may have taken its place: {error}") from error
        except FrameError:
            # The part of a frame that was there may have been made by another kind of machine.
            if not found or self._begun_anew:
                raise
        await self._begin_anew()
        return await self.attempt()

    async def give_up(self, error: BaseException) -> None:
        """The call ends without the message: nobody will go on, unless another process or call can."""
        broken_off = isinstance(error, TRANSIENT) or not isinstance(error, Exception)
        if broken_off and self._lasting and self._fingerprint is not None:
            return
        with suppress(TensorbusError, TimeoutError):
            async with asyncio.timeout(_LAST_WORD):
                await self._terminate()

    # --- where it is -------------------------------------------------------------------------------

    async def _create(self) -> int | messages.Receipt:
        """A new upload, or the one that an earlier process has begun: how much of it has come."""
        encoder, outgoing = self._encoder, self._outgoing
        if self._lasting and self._fingerprint is None:
            self._fingerprint = await self._connection.in_thread(encoder.fingerprint)
        size = encoder.wire_bytes
        headers = {"Idempotency-Key": outgoing.key} | _TUS
        headers |= {"Upload-Defer-Length": "1"} if size is None else {"Upload-Length": str(size)}
        if self._fingerprint is not None:
            source = base64.b64encode(self._fingerprint.encode()).decode()
            headers["Upload-Metadata"] = f"source {source}"
        async with self._request("POST", f"/v1/topics/{segment(outgoing.topic)}/uploads", headers) as answer:
            if (receipt := _receipt(answer)) is not None:
                return receipt
            self._path = f"/v1/uploads/{_field(answer, 'Location').rsplit('/', 1)[-1]}"
            return _offset(answer)

    async def _ask(self, path: str) -> int | messages.Receipt:
        """How much of the upload has come; one that is gone begins anew."""
        try:
            async with self._request("HEAD", path, _TUS) as answer:
                offset, complete = _offset(answer), "Tensorbus-Message" in answer.headers
        except (NotFound, MessageAborted):
            # It may have become a message that was taken away since; then the key is known.
            self._path = None
            return await self._create()
        except Conflict as error:
            raise BrokerUnavailable(f"the upload goes on elsewhere: {error}") from error
        return await self._stored() if complete else offset

    async def _stored(self) -> messages.Receipt:
        """The receipt whose answer was lost."""
        outgoing = self._outgoing
        path = f"/v1/topics/{segment(outgoing.topic)}/receipt"
        document = await self._connection.call("GET", path, params={"key": outgoing.key})
        receipt = messages.Receipt.from_json(document)
        # Stored by this upload: what the broker calls a duplicate is only its second answer.
        own = self._path is not None and self._path.endswith(receipt.id)
        return replace(receipt, duplicate=receipt.duplicate and not own)

    async def _there(self, offset: int) -> Resumption | None:
        """What the broker has, compared with what would be sent; None if it is something else."""
        there = self._encoder.resumption()
        if not offset:
            return there
        assert self._path is not None
        try:
            async with self._request("GET", f"{self._path}/heads", {}) as answer:
                boundary = int(_field(answer, "Tensorbus-Boundary"))
                async for data in answer.content.iter_any():
                    await self._connection.in_thread(lambda data=data: there.feed(data))
                there.finish(boundary)
        except FrameError as error:
            log.warning("upload %s is of another message, beginning anew: %s", self._path, error)
            return None
        if boundary > offset:
            raise BrokerUnavailable("the upload went on while it was asked for")
        return there

    async def _begin_anew(self) -> None:
        if self._begun_anew:
            raise TensorbusError(
                f"the broker's upload of {self._outgoing.topic} does not fit, even a new one"
            )
        self._begun_anew = True
        await self._terminate()

    async def _terminate(self) -> None:
        path, self._path = self._path, None
        if path is not None:
            with suppress(NotFound, MessageAborted, Conflict):
                async with self._request("DELETE", path, _TUS):
                    pass

    # --- the bytes ---------------------------------------------------------------------------------

    async def _send(self, there: Resumption, offset: int) -> messages.Receipt:
        settings = self._connection.settings
        encoding = Encoding(self._encoder, settings.threads, there, offset - there.bytes)
        body = Body(self._connection, encoding, self._reporter)
        if offset:
            log.info("publish to %s goes on at byte %d", self._outgoing.topic, offset)
        self.resumed += offset
        assert self._path is not None
        try:
            headers = _PART | {"Upload-Offset": str(offset)}
            async with self._connection.sending("PATCH", self._path, headers, body, body.position) as answer:
                if (receipt := _receipt(answer)) is None:
                    raise BrokerUnavailable("the broker has not got all of the message")
                return receipt
        except TensorbusError:
            # What went wrong on this side comes first: the connection broke because of it.
            if body.failure is not None:
                raise body.failure from None
            raise
        finally:
            self.furthest = max(self.furthest, offset + body.sent)
            await body.settle()

    def _request(
        self, method: str, path: str, headers: dict[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._connection.request(
            method, path, headers=headers, read_timeout=self._connection.settings.idle_timeout
        )


def _field(answer: aiohttp.ClientResponse, name: str) -> str:
    value = answer.headers.get(name)
    if value is None:
        raise TensorbusError(f"the broker's answer to {answer.method} {answer.url.path} lacks {name}")
    return value


def _offset(answer: aiohttp.ClientResponse) -> int:
    text = _field(answer, "Upload-Offset")
    if not text.isdecimal():
        raise TensorbusError(f"the broker says that the offset is {text[:40]!r}")
    return int(text)


def _receipt(answer: aiohttp.ClientResponse) -> messages.Receipt | None:
    text = answer.headers.get("Tensorbus-Receipt")
    return None if text is None else messages.Receipt.from_json(json.loads(text))
