"""Requests whose body another broker of the store takes from the publisher and stores; see `loans`.

Everything else is as with any request: the same handlers find out who asks, what they may, and what becomes
of the message. Where the body would be moved, `Borrower.carry` hears how far the other one is.
"""

from __future__ import annotations

import asyncio
import hmac
from contextlib import suppress
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from tensorbus.bus.broker.uploads import Upload
from tensorbus.errors import BrokerUnavailable, TensorbusError

from . import loans
from .limits import read_body
from .problems import Handler, problem_middleware

_SILENCE = 10.0
"""Seconds without a word after which the other broker is taken for dead."""
_LAST_WORD = 2.0
"""Seconds that it has to say how far it is, when it is told to stop."""


class Lead(Protocol):
    """Whether this broker leads, and how the others of its store are known."""

    @property
    def leading(self) -> bool:
        """Whether it does."""
        ...

    @property
    def secret(self) -> str:
        """What the brokers of the store know, and nobody else."""
        ...


def lending_middleware(lead: Lead) -> Middleware:
    """To stand before what writes a request's line into the log, which is about the publisher's answer."""

    @web.middleware
    async def lend(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(loans.WRITER)
        if given is None:
            return await handler(request)
        known = hmac.compare_digest(given.encode(errors="replace"), lead.secret.encode())
        if not lead.leading or not known:
            return await problem_middleware(request, _refuse)
        borrower = request[_BORROWER] = Borrower(request)
        return await borrower.answered(await handler(request))

    return lend


async def _refuse(_request: web.Request) -> web.StreamResponse:
    raise BrokerUnavailable("this broker does not lead the store, or not any more; ask again")


class Borrower:
    """The broker that stores the body of a request.

    Attributes:
        length: bytes of the body, if they are known.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response: web.StreamResponse | None = None
        self._reading: asyncio.Task[loans.Said] | None = None
        self._over = False
        length = request.headers.get(loans.LENGTH, "")
        self.length = int(length) if length.isdigit() and length.isascii() else None

    async def carry(self, upload: Upload) -> None:
        """Until the other broker has stored the whole body. Raises as `Upload.write`, and what the other
        one has raised, or BrokerUnavailable."""
        read_body(self._request)
        await self._say(loans.of_loan(await upload.lend()))
        try:
            while not self._over:
                await self._hear(upload, await self._next(upload, _SILENCE))
        except (asyncio.CancelledError, TensorbusError):
            await self._recall(upload)
            raise
        finally:
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.gather(self._reading, return_exceptions=True)

    async def answered(self, answer: web.StreamResponse) -> web.StreamResponse:
        """Hand the answer over: as a message, if there have been messages."""
        if self._response is None or not isinstance(answer, web.Response):
            return answer
        with suppress(ConnectionError):
            await self._say(loans.of_answer(answer))
            await self._response.write_eof()
        return self._response

    async def _hear(self, upload: Upload, said: loans.Said) -> None:
        """Take one message. Raises as ``carry``."""
        if "size" not in said:
            upload.check_alive()
            return
        progress, problem = loans.progress_in(said), loans.failure_in(said)
        self._over = progress.done or problem is not None
        await upload.hear(progress)
        if problem is not None:
            raise problem

    async def _next(self, upload: Upload, patience: float) -> loans.Said:
        """The next message. Raises BrokerUnavailable, and why the upload was given up meanwhile."""
        if self._reading is None:
            self._reading = asyncio.create_task(loans.read(self._request.content))
        ending = asyncio.create_task(upload.message.end())
        try:
            await asyncio.wait([self._reading, ending], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
        if not self._reading.done():
            upload.check_alive()
            raise BrokerUnavailable(f"the broker that stores upload {upload.id} says nothing any more")
        reading, self._reading = self._reading, None
        return reading.result()

    async def _recall(self, upload: Upload) -> None:
        """Have it write no more, and hear how far it has come, if it still answers."""
        if self._over:
            return  # it has said that by itself
        with suppress(ConnectionError, TimeoutError, TensorbusError):
            await self._say(loans.STOP)
            async with asyncio.timeout(_LAST_WORD):
                while not self._over:
                    if self._reading is None:
                        self._reading = asyncio.create_task(loans.read(self._request.content))
                    reading = self._reading
                    said = await asyncio.shield(reading)
                    self._reading = None
                    with suppress(TensorbusError):
                        await self._hear(upload, said)

    async def _say(self, said: loans.Said) -> None:
        if self._response is None:
            self._response = web.StreamResponse(headers={"Content-Type": loans.MEDIA_TYPE})
            self._response.enable_chunked_encoding()
            await self._response.prepare(self._request)
        await self._response.write(loans.packed(said))


_BORROWER = web.RequestKey("borrower", Borrower)


def borrower_of(request: web.Request) -> Borrower | None:
    """The broker that stores the body of ``request``; None if it comes here."""
    return request.get(_BORROWER)


def announced(request: web.Request) -> int | None:
    """Bytes of the body that the publisher sends, wherever it comes in; None if they are not known."""
    borrower = borrower_of(request)
    return request.content_length if borrower is None else borrower.length
