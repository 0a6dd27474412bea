"""Connection: one client's HTTP session with a broker, and the thread pool its transfers compute in."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar, cast
from urllib.parse import quote

import aiohttp
from yarl import URL

from tensorbus.bus import tracing
from tensorbus.bus.pacing import unpaced_socket
from tensorbus.errors import (
    BrokerUnavailable,
    ClientClosed,
    InvalidRequest,
    LimitExceeded,
    TensorbusError,
    TransferStalled,
    UntrustedPeer,
)
from tensorbus.streaming.ahead import check_threads, default_threads

from .raw_download import Answer, get
from .refusals import refusal
from .retry import Retry
from .tls import TlsSettings, is_shut_out, mistrust

log = logging.getLogger("tensorbus.client")
T = TypeVar("T")
JsonObject = dict[str, object]

FRAMES = "application/vnd.tensorbus.frames"
"""Content type of a message body."""

READ_BUFFER = 1 << 20
"""Bytes of a body that may wait in memory while the frames before them are decoded (twice that at most)."""

MAX_JSON_BYTES = 64 << 20
"""Largest JSON answer that is read: the manifest of the largest message, generously."""

_BEARER = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}", re.ASCII)
"""What a bearer token may look like (RFC 6750); the broker says whether it is one of its own."""

TRANSIENT = (BrokerUnavailable, TransferStalled)
"""What is worth another attempt."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Time-outs of a client, in seconds (there is none for a whole transfer), and its threads.

    Raises:
        InvalidRequest: ``threads``, or the environment variable TENSORBUS_THREADS, is no number from 1 to 64.
    """

    connect_timeout: float = 10.0
    """For one attempt to open a connection."""
    idle_timeout: float = 60.0
    """A transfer of which no byte moves for so long is cut and tried again."""
    retry_for: float = 60.0
    """A call that gets no further for so long, over all its attempts, fails with `BrokerUnavailable`."""
    poll_wait: float = 30.0
    """How long one request for deliveries waits at the broker."""
    threads: int = field(default_factory=default_threads)
    """That encode each message that is published: as many as there are processors, up to 4, unless
    TENSORBUS_THREADS says otherwise. 1 makes each slice when it is its turn, and none ahead."""

    def __post_init__(self) -> None:
        check_threads(self.threads)


class Connection:
    """Sends requests and turns what goes wrong into TensorbusErrors; opened when first used.

    Raises:
        InvalidRequest: ``url`` is no http or https URL.
    """

    def __init__(
        self, url: str, token: str | None, settings: ClientSettings, tls: TlsSettings | None = None
    ) -> None:
        try:
            base = URL(url)
        except (TypeError, ValueError):
            base = URL()
        if base.user is not None or base.password is not None:
            raise InvalidRequest("a broker's URL holds no user or password; give a token instead")
        if base.scheme not in ("http", "https") or not base.host:
            raise InvalidRequest(f"{url!r} is no broker URL; it should look like http://127.0.0.1:8080")
        if tls is not None and base.scheme != "https":
            raise InvalidRequest(
                f"TLS settings are of no use with {url!r}; the URL has to begin with https://"
            )
        self.settings = settings
        self._tls = (tls or TlsSettings()).context() if base.scheme == "https" else True
        self._base = str(base.with_query(None).with_fragment(None)).rstrip("/")
        self._headers = {"Accept-Encoding": "identity"}
        if token is not None:
            if not _BEARER.fullmatch(token):
                raise InvalidRequest("the token holds characters that no token has; one reads tb_…")
            self._headers["Authorization"] = f"Bearer {token}"
            if base.scheme == "http" and not _is_here(base.host):
                log.warning("the token goes to %s in the clear; use https", base.host)
        self._session: aiohttp.ClientSession | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._answers: set[Answer] = set()
        self._closed = False
        self._answered = False

    @property
    def url(self) -> str:
        """Where the broker is."""
        return self._base

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
                f"the client of {self._base} is closed; open a new one with `async with Client(…)`"
            )

    async def aclose(self) -> None:
        """Close every connection; calls in progress fail. May be called twice."""
        self._closed = True
        for answer in self._answers:
            answer.cut()
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run ``function`` in a worker thread. A cancelled caller still waits for the thread to come back.

        So the buffers that a worker uses are free again when this returns, however it returns.
        """
        self.check_open()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(thread_name_prefix="tensorbus-client")
        return await outlast(asyncio.get_running_loop().run_in_executor(self._threads, function))

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
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.settings.connect_timeout, sock_read=read_timeout
        )
        try:
            async with self._open().request(
                method,
                URL(self._base + path, encoded=True),
                headers=tracing.current() | dict(headers or {}),
                params=params,
                data=data,
                json=document,
                timeout=timeout,
                allow_redirects=False,
                read_bufsize=read_buffer,
            ) as response:
                self._answered = True
                if response.status >= 300 and response.status != 304:
                    raise await refusal(response)
                yield response
        except aiohttp.ServerTimeoutError as error:
            self.check_open()
            raise TransferStalled(f"the broker at {self._base} sent nothing for {read_timeout} s") from error
        except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
            self.check_open()
            why = mistrust(error) or await self._shut_out()
            if why is not None:
                raise UntrustedPeer(f"{self._base} and this client do not trust each other: {why}") from error
            raise BrokerUnavailable(f"no answer from the broker at {self._base}: {_reason(error)}") from error

    @asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str]) -> AsyncGenerator[Answer | None]:
        """A large answer past the HTTP library, one attempt; None where `request` has to be used.

        Raises:
            BrokerUnavailable: no connection, or it broke. TransferStalled: no answer came.
        """
        self.check_open()
        url = URL(self._base + path, encoded=True)
        if url.scheme != "http" or url.host is None or url.port is None:
            yield None
            return
        fields = {"Host": url.raw_authority, "Connection": "close"} | self._headers | tracing.current()
        settings = self.settings
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

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        document: JsonObject | None = None,
        wait: float = 0.0,
        retry: bool = True,
    ) -> JsonObject:
        """A request with a JSON answer, repeated while the broker is away; ``{}`` where it has no body.

        Only for requests that may be repeated.

        Args:
            wait: seconds for which the broker was asked to hold the request.
            retry: False makes it one attempt.
        """
        attempts = Retry(self.settings.retry_for if retry else 0.0, f"{method} {path}")
        while True:
            try:
                async with self.request(
                    method,
                    path,
                    params=params,
                    document=document,
                    read_timeout=wait + self.settings.idle_timeout,
                ) as response:
                    return await json_object(response)
            except TRANSIENT as error:
                await attempts.after(error)

    async def _shut_out(self) -> str | None:
        """Why a connection broke, if it is that the broker wants another certificate of this client."""
        base = URL(self._base)
        if self._answered or not isinstance(self._tls, ssl.SSLContext) or base.host is None:
            return None
        if not await is_shut_out(base.host, base.port or 443, self._tls):
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


async def outlast(future: asyncio.Future[T]) -> T:
    """What ``future`` results in. A caller that is cancelled still waits until it is done."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen: the cancellation is what the caller hears of
        raise


def segment(name: str) -> str:
    """``name`` as one segment of a path."""
    return quote(name, safe="")


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reason(error: Exception) -> str:
    """Why a connection failed or broke, in the system's words where it has any."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    number = cause.errno if isinstance(cause, OSError) else None
    if isinstance(error, aiohttp.ClientConnectorDNSError) or not number:
        return str(cause) or type(cause).__name__
    return os.strerror(number)


async def json_object(response: aiohttp.ClientResponse) -> JsonObject:
    """The JSON object in an answer; ``{}`` if it has no body."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_JSON_BYTES:
            raise LimitExceeded(f"{response.url.path}: the answer takes more than {MAX_JSON_BYTES} bytes")
    if not body:
        return {}
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise TensorbusError(f"the broker answered with no JSON object: {bytes(body[:200])!r}")
    return cast("JsonObject", document)
