"""Requests that another broker of the same store has to answer are handed on to it, and its answers back.

What is sealed is the same for all brokers, so each reads it by itself. What has to be decided, one decides:
it leads, and the others are its gateways. A caller need not know which one it talks to. The bytes of a large
publish do not go that way: who gets them stores them (`writing`, `lending`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol, Self

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Middleware
from yarl import URL

from tensorbus.errors import BrokerUnavailable, InvalidName, TensorbusError

from .access import PUBLIC
from .bodies import HANDED_ON, accept, chunks
from .context import context
from .hops import unreachable, without_hops
from .lending import lending_middleware
from .problems import Handler, problem_middleware
from .writing import Writing, brings_much

_SMALL = 64 << 10
"""Bytes of a body that is sent without asking."""
_OWN = PUBLIC | {"/metrics"}
"""Answered by each broker about itself."""
_LISTS = frozenset({"/v1/topics", "/v1/messages"})
_SEALED = frozenset({"/v1/messages/{id}", "/v1/messages/{id}/frames", "/v1/messages/{id}/items/{name}"})


class Leader(Protocol):
    """Who leads."""

    @property
    def leading(self) -> bool:
        """Whether it is this broker."""
        ...

    @property
    def url(self) -> str | None:
        """The address of the one that does, if it is known."""
        ...

    @property
    def secret(self) -> str:
        """What the brokers of the store know, and nobody else; another one whenever the lead moves."""
        ...

    async def gone(self, url: str) -> None:
        """Until the one at ``url`` does not lead any more."""
        ...


class Forwarding:
    """Hands requests on; use as an async context manager.

    Args:
        leader: who leads now.
        ssl: how to trust it, if it speaks TLS.
    """

    def __init__(self, leader: Leader, ssl: object = True) -> None:
        self._leader = leader
        self._ssl = ssl
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl),  # pyright: ignore[reportArgumentType]
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def lending(self) -> Middleware:
        """To stand before what writes requests into the log; see `lending`."""
        return lending_middleware(self._leader)

    @property
    def middleware(self) -> Middleware:
        """To stand before those that ask for rights: who answers does that."""

        @web.middleware
        async def forward(request: web.Request, handler: Handler) -> web.StreamResponse:
            if self._leader.leading or await self._answers_itself(request):
                return await handler(request)
            return await problem_middleware(request, self._forward)

        return forward

    async def _answers_itself(self, request: web.Request) -> bool:
        resource = request.match_info.route.resource
        route = "" if resource is None else resource.canonical
        if resource is None or route in _OWN:
            return True
        if request.method not in ("GET", "HEAD"):
            return False
        if route in _LISTS:
            return request.query.get("state", "sealed") == "sealed"
        return route in _SEALED and await self._is_sealed(request)

    async def _is_sealed(self, request: web.Request) -> bool:
        """Only who leads knows what is being published."""
        try:
            return await context(request).broker.is_sealed(request.match_info["id"])
        except InvalidName:
            return True

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        """Hand on, while the same broker leads: one that is gone may not even break its connections."""
        leader, session = self._leader.url, self._session
        if leader is None or session is None or HANDED_ON in request.headers:
            raise BrokerUnavailable("no broker of this store is in the lead at this moment; ask again")
        answer = Writing(request, self._leader.secret) if brings_much(request) else _Answer(request)
        handing = asyncio.ensure_future(answer.fetch(session, leader))
        gone = asyncio.ensure_future(self._leader.gone(leader))
        try:
            await asyncio.wait([handing, gone], return_when=asyncio.FIRST_COMPLETED)
            if not handing.done():
                handing.cancel()
                await asyncio.wait([handing])
                answer.broken()
                raise BrokerUnavailable("another broker of this store takes the lead; ask again")
            return handing.result()
        finally:
            gone.cancel()
            if not handing.done():  # the caller is gone
                handing.cancel()
                await asyncio.wait([handing])


class _Answer:
    """Of another broker to one request."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response: web.StreamResponse | None = None

    def broken(self) -> None:
        """If part of it has gone out, nobody shall take it for the whole."""
        if self._response is not None and self._request.transport is not None:
            self._request.transport.abort()

    async def fetch(self, session: aiohttp.ClientSession, leader: str) -> web.StreamResponse:
        """Get it and hand it back. Raises BrokerUnavailable."""
        request = self._request
        headers = without_hops(request.headers)
        headers[HANDED_ON] = "1"
        try:
            async with session.request(
                request.method,
                URL(leader.rstrip("/") + request.raw_path, encoded=True),
                headers=headers,
                data=_body(request) if request.can_read_body else None,
                # What is refused need not be sent first.
                expect100=_is_large(request),
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
            ) as answer:
                response = self._response = web.StreamResponse(
                    status=answer.status, reason=answer.reason, headers=without_hops(answer.headers)
                )
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, OSError, TimeoutError) as problem:
            self.broken()
            if isinstance(problem, TensorbusError):
                raise
            raise unreachable(leader, problem) from problem


def _is_large(request: web.Request) -> bool:
    size = request.content_length
    return request.can_read_body and (size is None or size > _SMALL)


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    await accept(request)
    async for chunk in chunks(request):
        yield chunk
