"""The HTTP server: a Broker's operations as resources under /v1. Thin; the parts are beside it."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Self

from aiohttp import web
from multidict import CIMultiDict

from tensorbus.bus.broker import Broker
from tensorbus.errors import PortInUse

from . import consumers, messages, operations, publish
from .context import CONTEXT, Context
from .logs import log_middleware
from .problems import problem_middleware
from .settings import ServerSettings

log = logging.getLogger("tensorbus.server")

BACKLOG = 512
"""Connections that may wait to be accepted."""
KEEPALIVE = 75.0
"""Seconds that an idle connection is kept, and that the head of a request may take."""
LINGERING = 2.0
"""Seconds that the rest of a refused body is still read (and dropped), so that the sender sees the answer."""


def build_app(broker: Broker, settings: ServerSettings) -> web.Application:
    """The aiohttp application that serves ``broker``."""
    # Bodies of messages are streamed and have the broker's own limit; client_max_size would only concern
    # Request.read(), which no handler uses.
    app = web.Application(middlewares=[log_middleware, problem_middleware])
    app[CONTEXT] = Context(broker, settings)
    for part in (publish, messages, consumers, operations):
        app.add_routes(part.routes)
    app.on_response_prepare.append(_add_headers)
    app.on_shutdown.append(_end_waits)
    return app


class Server:
    """Serves a started Broker; use as an async context manager.

    The Broker stays the caller's: close it after the server.
    """

    def __init__(self, broker: Broker, settings: ServerSettings | None = None) -> None:
        self._broker = broker
        self._settings = settings or ServerSettings()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where the server really listens, with the port that the system chose if it was 0."""
        if self._runner is None or not self._runner.addresses:
            raise RuntimeError("the server is not running")
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            PortInUse: the address is taken, does not exist, needs privileges, or could be reached from other
                machines without ``allow_remote``.
        """
        settings = self._settings
        if not settings.is_loopback and not settings.allow_remote:
            raise PortInUse(
                f"{settings.host} can be reached from other machines, and this broker asks nobody for a "
                "password. Listen on 127.0.0.1, or say --allow-remote (TENSORBUS_ALLOW_REMOTE=1) in a "
                "network where you trust everyone"
            )
        self._runner = web.AppRunner(
            build_app(self._broker, settings),
            # Cancels a handler when its client leaves: long polls, uploads and followers end at once.
            handler_cancellation=True,
            # aiohttp waits this long for handlers to end, and once more for their requests to break off.
            shutdown_timeout=settings.shutdown_timeout / 2,
            access_log=None,
            keepalive_timeout=KEEPALIVE,
            lingering_time=LINGERING,
            read_bufsize=settings.read_buffer_bytes,
            # A body is stored as it came; nothing may grow between the wire and the limit.
            auto_decompress=False,
        )
        try:
            await self._runner.setup()
            await web.SockSite(self._runner, listening_socket(settings), backlog=BACKLOG).start()
        except BaseException:
            await self.close()
            raise
        log.info("listening on %s", self.url)

    async def close(self) -> None:
        """Stop listening, end long polls, give transfers ``shutdown_timeout`` to finish, then cut them."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        here = runner.app[CONTEXT]
        await runner.cleanup()
        await here.finishing.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def listening_socket(settings: ServerSettings) -> socket.socket:
    """A socket bound to the address of ``settings``; raises PortInUse."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if isinstance(error.errno, int) and error.errno > 0 else str(error)
        raise PortInUse(
            f"cannot listen on {settings.host} port {settings.port}: {reason}; "
            "choose another with --port (0 lets the system choose)"
        ) from error
    if sys.platform == "linux":
        # Inherited by every connection: the kernel ends it when the peer takes nothing for so long. The
        # sender of frames looks for itself; this is for the answers that aiohttp writes.
        milliseconds = int(settings.idle_timeout * 1000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listening


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    headers: CIMultiDict[str] = response.headers
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers["Server"] = "tensorbus"


async def _end_waits(app: web.Application) -> None:
    app[CONTEXT].waits.stop()
