"""A request whose body this broker stores, though another one decides on it; see `loans`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
from aiohttp import web
from yarl import URL

from tensorbus.bus.broker.borrowing import Borrowed
from tensorbus.bus.broker.lent import Loan, Progress
from tensorbus.errors import StoreUnavailable, TensorbusError, TruncatedFrames

from . import loans, publish, tus, tus_headers
from .bodies import HANDED_ON, accept
from .context import context
from .hops import unreachable, without_hops
from .media import FRAMES

log = logging.getLogger("tensorbus.server")

MUCH = 1 << 20
"""Bytes of a body from which on it is stored here."""
_TELL = 0.1
"""Seconds between two looks whether there is something to tell."""
_ALIVE = 10
"""Looks without a new frame after which what has come of one is stored and told, or that nothing has."""
_LAST_WORD = 2.0
"""Seconds for which the leader may answer a publisher that has left."""
_TO_MESSAGES = ("POST", "/v1/topics/{topic}/messages")
_TO_UPLOADS = {
    ("POST", "/v1/topics/{topic}/uploads"),
    ("PATCH", "/v1/uploads/{id}"),
    ("POST", "/v1/uploads/{id}"),
}


def brings_much(request: web.Request) -> bool:
    """Whether ``request`` publishes so much, or who knows how much, that its bytes should be moved once only.

    What is small is handed on with its bytes, which cost less than to talk about them.
    """
    route = _route(request)
    if not request.can_read_body or (route != _TO_MESSAGES and route not in _TO_UPLOADS):
        return False
    if request.content_length is not None:
        return request.content_length >= MUCH
    # Other bodies have to say how long they are: the refusal is the leader's.
    return request.content_type == (FRAMES if route == _TO_MESSAGES else tus_headers.CONTENT_TYPE)


def _route(request: web.Request) -> tuple[str, str]:
    resource = request.match_info.route.resource
    return request.method, "" if resource is None else resource.canonical


class Writing:
    """One request. Made for one ``fetch``."""

    def __init__(self, request: web.Request, secret: str) -> None:
        self._request = request
        self._secret = secret
        self._words: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._heard: asyncio.Task[loans.Said] | None = None

    def broken(self) -> None:
        """Nothing of an answer has gone out before there is a whole one."""

    async def fetch(self, session: aiohttp.ClientSession, leader: str) -> web.StreamResponse:
        """Store the body, if ``leader`` wants it; its answer. Raises BrokerUnavailable."""
        request = self._request
        headers = without_hops(request.headers)
        headers.popall("Content-Length", None)
        headers[HANDED_ON] = "1"
        headers[loans.WRITER] = self._secret
        if request.content_length is not None:
            headers[loans.LENGTH] = str(request.content_length)
        self._say(loans.ALIVE)  # aiohttp sends the head together with the first part of the body
        try:
            async with session.request(
                request.method,
                URL(leader.rstrip("/") + request.raw_path, encoded=True),
                headers=headers,
                data=self._said(),
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
            ) as answer:
                try:
                    response = await self._answer(answer)
                finally:
                    self._words.put_nowait(None)
                    if self._heard is not None:
                        self._heard.cancel()
        except (aiohttp.ClientError, OSError, TimeoutError) as problem:
            if isinstance(problem, TensorbusError):
                raise
            raise unreachable(leader, problem) from problem
        if not request.content.at_eof():
            response.force_close()
        return response

    async def _said(self) -> AsyncIterator[bytes]:
        while (word := await self._words.get()) is not None:
            yield word

    def _say(self, said: loans.Said) -> None:
        self._words.put_nowait(loans.packed(said))

    async def _answer(self, answer: aiohttp.ClientResponse) -> web.Response:
        if answer.content_type != loans.MEDIA_TYPE:
            headers = without_hops(answer.headers)
            headers.popall("Content-Length", None)
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)
        said = await loans.read(answer.content)
        if "epoch" in said:
            await self._store(loans.loan_in(said), answer.content)
        while "status" not in said:
            said = await self._next(answer.content)
        return loans.answer_in(said)

    def _next(self, words: aiohttp.StreamReader) -> asyncio.Task[loans.Said]:
        """The leader's next word, which stays the next one while it has not come."""
        if self._heard is None or self._heard.done():
            self._heard = asyncio.create_task(loans.read(words))
        return self._heard

    async def _store(self, loan: Loan, words: aiohttp.StreamReader) -> None:
        """The body, until it is here, cannot be taken, or is not wanted any more."""
        here = context(self._request)
        upload = await here.broker.borrow(loan)
        work = asyncio.create_task(self._move(upload, loan))
        telling = asyncio.create_task(self._tell(upload))
        try:
            await asyncio.wait([work, telling, self._next(words)], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            left = TruncatedFrames("the publisher left before the end of the message")
            await here.finishing.run(self._end(upload, [work, telling], left))
            with suppress(TensorbusError, TimeoutError):
                async with asyncio.timeout(_LAST_WORD):
                    await self._next(words)
            raise
        failed = [problem for task in (telling, work) if task.done() and (problem := task.exception())]
        await here.finishing.run(self._end(upload, [work, telling], failed[-1] if failed else None))

    async def _end(
        self, upload: Borrowed, tasks: list[asyncio.Task[None]], failed: BaseException | None
    ) -> None:
        """Write no more, and say how far it is, and why it ends if it has not come to its end."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        problem = None if failed is None else _told(upload, failed)
        if problem is not None:
            log.info("upload %s stops at byte %s: %s", upload.id, upload.offset, problem)
        progress = await context(self._request).broker.give_back(upload)
        if problem is None and not progress.done:
            problem = StoreUnavailable(f"not all that came of upload {upload.id} could be stored; try again")
        self._say(loans.of_progress(progress, problem))

    async def _move(self, upload: Borrowed, loan: Loan) -> None:
        request, counters = self._request, context(self._request).counters
        await accept(request)
        if _route(request) == _TO_MESSAGES:
            with counters.upload():
                await publish.move(request, upload)
            await upload.flush()
            return
        with counters.resumable():
            await tus.bring(request, upload, loan.length, tus_headers.checksum_of(request))

    async def _tell(self, upload: Borrowed) -> None:
        """Now and then how far it is, and that this broker lives, though its store may be slow."""
        storing: asyncio.Task[Progress | None] | None = None
        silent = 0
        try:
            while True:
                await asyncio.sleep(_TELL)
                silent += 1
                if storing is None:
                    storing = asyncio.create_task(upload.progress(partial=silent >= _ALIVE))
                await asyncio.wait([storing], timeout=_TELL)
                if storing.done():
                    progress, storing = storing.result(), None
                    if progress is not None:
                        self._say(loans.of_progress(progress))
                        silent = 0
                if silent >= _ALIVE:
                    self._say(loans.ALIVE)
                    silent = 0
        finally:
            if storing is not None:
                with suppress(TensorbusError):
                    await storing


def _told(upload: Borrowed, failed: BaseException) -> TensorbusError:
    """What the leader answers for what went wrong here."""
    if isinstance(failed, TensorbusError):
        return failed
    if isinstance(failed, ConnectionError):
        return TruncatedFrames("the publisher left before the end of the message")
    log.error("upload %s failed unexpectedly", upload.id, exc_info=failed)
    return TensorbusError("the broker that stores this upload has failed; its log has the details")
