"""Connection: one client's HTTP session with a broker, or with any of several, and the thread pool that its
transfers compute in."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from tensorbus.bus import tracing
from tensorbus.bus.pacing import unpaced_socket
from tensorbus.errors import (
    BrokerUnavailable,
    ClientClosed,
    InvalidRequest,
    TensorbusError,
    TooManyRequests,
    TransferStalled,
    UntrustedPeer,
)

from .addresses import Addresses, Urls
from .credentials import authorization
from .documents import JsonObject, json_object
from .raw_download import Answer, get
from .refusals import reason, refusal
from .retry import TRANSIENT, Retry
from .settings import ClientSettings
from .stall import stalls_after
from .tls import TlsSettings, is_shut_out, mistrust
from .workers import Workers

T = TypeVar("T")

FRAMES = "application/vnd.tensorbus.frames"
"""Content type of a message body."""

READ_BUFFER = 1 << 20
"""Bytes of a body that may wait in memory while the frames before them are decoded (twice that at most)."""

_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""There was no connection, so the broker cannot have heard of the request."""


class Connection:
    """Sends requests and turns what goes wrong into TensorbusErrors; opened when first used.

    Raises:
        InvalidRequest: ``url`` is no http or https URL, and no list of such; or ``token`` cannot be one.
    """

    def __init__(
        self, url: Urls, token: str | None, settings: ClientSettings, tls: TlsSettings | None = None
    ) -> None:
        self.addresses = Addresses(url, shuffle=settings.shuffle)
        encrypted = self.addresses.encrypted
        if tls is not None and not encrypted:
            raise InvalidRequest(
                f"TLS settings are of no use with {url!r}; the URL has to begin with https://"
            )
        self.settings = settings
        self._tls = (tls or TlsSettings()).context() if encrypted else True
        self._headers = {"Accept-Encoding": "identity"}
        if token is not None:
            self._headers |= authorization(token, self.addresses)
        self._session: aiohttp.ClientSession | None = None
        self._workers = Workers()
        self._answers: set[Answer] = set()
        self._closed = False
        self._answered: set[str] = set()

    @property
    def url(self) -> str:
        """Where the broker is that is asked now."""
        return self.addresses.current

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    def check_open(self) -> None:
        """Refuse to work after `aclose`.

        Raises:
            ClientClosed: it was called.
        """
        if self._closed:
            raise ClientClosed(
                f"the client of {self.url} is closed; open a new one with `async with Client(…)`"
            )

    async def aclose(self) -> None:
        """Close every connection; calls in progress fail. May be called twice."""
        self._closed = True
        for answer in self._answers:
            answer.cut()
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        self._workers.close()

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run ``function`` in a worker thread. A cancelled caller still waits for the thread to come back.

        So the buffers that a worker uses are free again when this returns, however it returns.
        """
        self.check_open()
        return await self._workers.run(function)

    # --- requests ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        data: aiohttp.Payload | None = None,
        document: JsonObject | None = None,
        read_timeout: float | None = None,
        read_buffer: int = READ_BUFFER,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """One request, one attempt; the response has a status below 400.

        Args:
            read_timeout: seconds without a byte of the response; None for no limit.
            read_buffer: bytes of the response that may wait in memory (twice that at most).

        Raises:
            BrokerUnavailable: no connection, or it broke.
            TransferStalled: the response made no progress.
            TensorbusError: what the broker refused, as its own class.
        """
        self.check_open()
        base = self.url
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.settings.connect_timeout, sock_read=read_timeout
        )
        try:
            async with self._open().request(
                method,
                URL(base + path, encoded=True),
                headers=tracing.current() | dict(headers or {}),
                params=params,
                data=data,
                json=document,
                timeout=timeout,
                allow_redirects=False,
                read_bufsize=read_buffer,
            ) as response:
                self._answered.add(base)
                if response.status >= 300 and response.status != 304:
                    problem = await refusal(response)
                    if isinstance(problem, BrokerUnavailable) and not isinstance(problem, TooManyRequests):
                        self.addresses.failed(base, str(problem))
                    raise problem
                self.addresses.answered(base)
                yield response
        except TensorbusError:
            raise  # some are ConnectionErrors too
        except aiohttp.ConnectionTimeoutError as error:
            self.check_open()
            why = f"no connection within {self.settings.connect_timeout:g} s"
            raise self._away(base, why) from error
        except aiohttp.ServerTimeoutError as error:
            self.check_open()
            why = f"it sent nothing for {read_timeout} s"
            self.addresses.failed(base, why)
            raise TransferStalled(f"the broker at {base} sent nothing for {read_timeout} s") from error
        except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
            self.check_open()
            why = mistrust(error) or await self._shut_out(base)
            if why is not None:
                raise UntrustedPeer(f"{base} and this client do not trust each other: {why}") from error
            raise self._away(base, reason(error)) from error

    def _away(self, base: str, why: str) -> BrokerUnavailable:
        self.addresses.failed(base, why)
        return BrokerUnavailable(f"no answer from the broker at {base}: {why}")

    @asynccontextmanager
    async def sending(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        data: aiohttp.Payload,
        position: Callable[[], object],
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """As `request`, of a body that takes as long as it takes.

        Args:
            position: changes for as long as the body gets further.

        Raises:
            TransferStalled: it did not change for ``settings.idle_timeout``. And as `request`.
        """
        base = self.url
        try:
            async with (
                stalls_after(self.settings.idle_timeout, position),
                self.request(method, path, headers=headers, data=data) as response,
            ):
                yield response
        except TransferStalled as error:
            self.addresses.failed(base, str(error))
            raise

    @asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str]) -> AsyncGenerator[Answer | None]:
        """A large answer past the HTTP library, one attempt; None where `request` has to be used.

        Raises:
            BrokerUnavailable: no connection, or it broke. TransferStalled: no answer came.
        """
        self.check_open()
        base = self.url
        url = URL(base + path, encoded=True)
        if url.scheme != "http" or url.host is None or url.port is None:
            yield None
            return
        fields = {"Host": url.raw_authority, "Connection": "close"} | self._headers | tracing.current()
        settings = self.settings
        try:
            async with get(
                url.host,
                url.port,
                url.raw_path_qs,
                fields | dict(headers),
                connect_timeout=settings.connect_timeout,
                idle_timeout=settings.idle_timeout,
            ) as answer:
                if answer is None:
                    yield None
                    return
                self._answers.add(answer)
                try:
                    yield answer
                finally:
                    self._answers.discard(answer)
        except TRANSIENT as error:
            self.addresses.failed(base, str(error))
            raise

    def attempts(self, what: str, *, again: bool = True) -> Retry:
        """For a call that is made until it succeeds, or gets no further; or once, if not ``again``."""
        return Retry(self.settings.retry_for if again else 0.0, what, self.addresses)

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        document: JsonObject | None = None,
        wait: float = 0.0,
        patience: float | None = None,
        retry: bool = True,
    ) -> JsonObject:
        """A request with a JSON answer, repeated while the broker is away; ``{}`` where it has no body.

        Only for requests that may be repeated.

        Args:
            wait: seconds for which the broker was asked to hold the request.
            patience: seconds without a byte beyond that; None is the idle time-out, which it is at the most.
            retry: False makes it one attempt: it reaches one broker at the most.
        """
        attempts = self.attempts(f"{method} {path}", again=retry)
        others = len(self.addresses) - 1
        idle = self.settings.idle_timeout
        while True:
            try:
                async with self.request(
                    method,
                    path,
                    params=params,
                    document=document,
                    read_timeout=wait + (idle if patience is None else min(idle, patience)),
                ) as response:
                    return await json_object(response)
            except TRANSIENT as error:
                if not retry and others and isinstance(error.__cause__, _NEVER_SENT):
                    others -= 1
                    continue
                await attempts.after(error)

    async def _shut_out(self, base: str) -> str | None:
        """Why a connection broke, if it is that the broker wants another certificate of this client."""
        url = URL(base)
        if base in self._answered or not isinstance(self._tls, ssl.SSLContext) or url.host is None:
            return None
        if not await is_shut_out(url.host, url.port or 443, self._tls):
            return None
        return "the broker refuses the client's certificate, or that it shows none"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._tls, socket_factory=unpaced_socket),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


def segment(name: str) -> str:
    """``name`` as one segment of a path."""
    return quote(name, safe="")
