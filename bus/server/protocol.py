"""One connection: aiohttp's protocol, with this API's answers where aiohttp would answer by itself.

Requests that its parser refuses never come to the application, and so not to its middlewares; nor do errors
raised before them (an expectation that cannot be met). Both are turned into problem documents here.
"""

from __future__ import annotations

import asyncio
import logging
import re
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_exceptions import HTTPException

from tensorbus.bus.pacing import unpace_connected

from .limits import read_body
from .logs import REQUEST_ID, enter_unreadable, request_id_of
from .metrics import Metrics
from .problems import http_problem, unexpected_problem, unreadable_problem

log = logging.getLogger("tensorbus.server")

_PATH = re.compile(r"""(bytearray\()?b["'](?:[A-Z]+ )?/""")


class Protocol(web.RequestHandler):
    """One for each connection; `Server` has the asyncio server make them."""

    __slots__ = ("_metrics",)

    def __init__(self, metrics: Metrics, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metrics = metrics

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it."""
        self._metrics.connections += 1
        connection = transport.get_extra_info("socket")
        if connection is not None:
            unpace_connected(connection)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is over."""
        self._metrics.connections -= 1
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, which is the sender's fault, or to a fault of ours.

        Raises ConnectionError, which ends the connection, if an answer has begun already.
        """
        read_body(request)  # so that a connection is not reset before the answer has arrived
        if isinstance(exc, HttpProcessingError):
            enter_unreadable(request)
            status, detail = _refusal(exc)
            log.warning("not HTTP, refused: %.200s", detail, extra={"fields": {"peer": request.remote}})
            response = unreadable_problem(status, detail)
            # The application, which adds this to its answers, never hears of this request.
            response.headers[REQUEST_ID] = request_id_of(request)
        else:
            log.error("a request failed unexpectedly", exc_info=exc)
            response = unexpected_problem(request)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; an error cannot take its place")
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer; one of aiohttp's own errors becomes a problem document."""
        if isinstance(resp, HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            resp = http_problem(request, resp)
        return await super().finish_response(request, resp, start_time)


def _refusal(error: HttpProcessingError) -> tuple[int, str]:
    """The status for what the parser says, and its first line: the others quote the bytes."""
    text = (error.message or "it cannot be read").strip().partition("\n")[0].rstrip(":")
    if "Too many headers" in text:
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "its head has too many fields"
    if not isinstance(error, LineTooLong):
        return HTTPStatus.BAD_REQUEST, text
    # The parser tells what was too long only by quoting how it begins.
    if _PATH.match(str(error.args[0])):
        return HTTPStatus.REQUEST_URI_TOO_LONG, "its address is longer than 8190 bytes"
    return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "a field of its head is longer than 8190 bytes"
