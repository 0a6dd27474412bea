"""The HTTP server: a Broker's operations as resources under /v1. Thin; the parts are beside it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from http import HTTPStatus
from typing import Self

from aiohttp import web
from multidict import CIMultiDict

from tensorbus.bus.access import TokenFile
from tensorbus.bus.broker import Broker
from tensorbus.bus.peers import Peers
from tensorbus.errors import PortInUse

from . import (
    batch,
    consumers,
    dead,
    docs_page,
    messages,
    operations,
    page,
    policies,
    publish,
    scrub,
    streams,
    tokens,
    tus,
)
from .access import access_middleware
from .audit import audit_middleware
from .bodies import expect_later
from .context import CONTEXT, Context
from .drain import drain, drain_middleware
from .expectations import expectation_middleware
from .forwarding import Forwarding
from .limits import LINGERING, MAX_FIELDS, MAX_LINE_BYTES, Gates, gate_middleware
from .listener import Listener
from .logs import REQUEST_ID, log_middleware, request_id_of
from .problems import problem_middleware
from .protocol import Protocol
from .settings import ServerSettings
from .status import handlers as status

log = logging.getLogger("tensorbus.server")

CUT_TIMEOUT = 0.5
"""Seconds that a request has to end by itself, and once more after it is cut, when the server closes."""


def build_app(
    broker: Broker,
    settings: ServerSettings,
    token_file: TokenFile | None = None,
    forwarding: Forwarding | None = None,
    peers: Peers | None = None,
) -> web.Application:
    """The aiohttp application that serves ``broker``; without a ``token_file`` nobody needs a token."""
    # Bodies of messages are streamed and have the broker's own limit; client_max_size would only concern
    # Request.read(), which no handler uses.
    app = web.Application(
        # The first is the outermost: what goes into the audit log is what the caller was answered.
        middlewares=[
            gate_middleware,
            *(() if forwarding is None else (forwarding.lending,)),
            log_middleware,
            *(() if forwarding is None else (forwarding.middleware,)),
            audit_middleware,
            problem_middleware,
            access_middleware,
            expectation_middleware,
            drain_middleware,
        ]
    )
    app[CONTEXT] = Context(broker, settings, token_file, peers=peers)
    published = (publish, batch, tus, messages, consumers, streams, dead)
    for part in (*published, policies, scrub, tokens, operations, status, page, docs_page):
        for route in part.routes:
            # Handlers answer `Expect: 100-continue` themselves, after their checks.
            if isinstance(route, web.RouteDef):
                route.kwargs.setdefault("expect_handler", expect_later)
        app.add_routes(part.routes)
    app.on_response_prepare.append(_add_headers)
    app.on_response_prepare.append(tus.mark)
    return app


class Server:
    """Serves a started Broker; use as an async context manager.

    The Broker stays the caller's: close it after the server.

    Args:
        token_file: who may do what; while it does not exist, or is None, nobody is asked for a token.
        forwarding: to another broker of the same store, if there may be others.
        peers: those others, for whoever watches.
    """

    def __init__(
        self,
        broker: Broker,
        settings: ServerSettings | None = None,
        token_file: TokenFile | None = None,
        forwarding: Forwarding | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._forwarding = forwarding
        self._peers = peers
        self._broker = broker
        self._settings = settings or ServerSettings()
        self._token_file = token_file
        self._runner: web.AppRunner | None = None
        self._listener: Listener | None = None
        self._watch: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    @property
    def url(self) -> str:
        """Where the server really listens, with the port that the system chose if it was 0."""
        if self._listener is None:
            raise RuntimeError("the server is not running")
        host, port = self._listener.address
        scheme = "http" if self._settings.tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def port(self) -> int:
        """The port that it really listens on."""
        if self._listener is None:
            raise RuntimeError("the server is not running")
        return self._listener.address[1]

    @property
    def asks_for_tokens(self) -> bool:
        """Whether nobody is served without a token now."""
        return self._token_file is not None and self._token_file.in_use

    async def start(self) -> None:
        """Listen.

        Raises:
            PortInUse: the address is taken, does not exist, needs privileges, or could be reached from other
                machines while there are no tokens, without ``allow_remote``.
            InvalidCertificate: TLS is asked for, and its files cannot be used.
            StorageError: the tokens cannot be read.
        """
        settings = self._settings
        if not settings.open_to_anyone and not self.asks_for_tokens:
            raise PortInUse(
                f"{settings.host} can be reached from other machines, and this broker has no tokens yet: it "
                "would serve everyone. Make one with `tensorbus token create NAME --admin '>' --data DIR`, "
                "or listen on 127.0.0.1, or say --allow-remote (TENSORBUS_ALLOW_REMOTE=1) in a network "
                "where you trust everyone"
            )
        if self._token_file is not None:
            self._token_file.tokens()
        tls = None if settings.tls is None else settings.tls.context()
        self._runner = web.AppRunner(
            build_app(self._broker, settings, self._token_file, self._forwarding, self._peers),
            # Cancels a handler when its client leaves: long polls, uploads and followers end at once.
            handler_cancellation=True,
            # aiohttp waits this long for handlers to end, and once more for their requests to break off.
            shutdown_timeout=CUT_TIMEOUT,
            access_log=None,
        )
        try:
            await self._runner.setup()
            gates = Gates(settings, self._connection)
            self._listener = Listener(settings, gates)
            await self._listener.listen(tls)
            self._watch = asyncio.create_task(gates.watch())
        except BaseException:
            await self.close()
            raise
        log.info("listening on %s", self.url)

    def _connection(self) -> Protocol:
        assert self._runner is not None
        assert self._runner.server is not None
        return Protocol(
            self._runner.app[CONTEXT].metrics,
            self._runner.server,
            loop=asyncio.get_running_loop(),
            access_log=None,
            keepalive_timeout=self._settings.keepalive_timeout,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_FIELDS,
            lingering_time=LINGERING,
            read_bufsize=self._settings.read_buffer_bytes,
            # A body is stored as it came; nothing may grow between the wire and the limit.
            auto_decompress=False,
        )

    async def reload(self) -> None:
        """Read the files of TLS again; connections that are open stay as they are.

        Raises:
            InvalidCertificate: they cannot be used; those in use stay so.
        """
        if self._settings.tls is not None and self._listener is not None:
            await self._listener.listen(self._settings.tls.context())
            log.info("new connections get the certificate that is in %s now", self._settings.tls.cert)

    async def close(self) -> None:
        """Stop listening, end long polls, give transfers ``shutdown_timeout`` to finish, then cut them."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        runner, self._runner = self._runner, None
        if runner is None:
            return
        here = runner.app[CONTEXT]
        await drain(here, self._hurry)
        # What is left waits for a store that answers, or for one that does not.
        self._broker.give_up_soon()
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await runner.cleanup()
        await here.finishing.wait()

    def hurry(self) -> None:
        """Let a `close` that waits for transfers, or one that is still to come, cut them at once."""
        self._hurry.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    headers: CIMultiDict[str] = response.headers
    if response.status == HTTPStatus.UNAUTHORIZED:
        headers.setdefault("WWW-Authenticate", 'Bearer realm="tensorbus"')
    elif response.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers.setdefault("Retry-After", "1")
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers[REQUEST_ID] = request_id_of(request)
    headers["Server"] = "tensorbus"
