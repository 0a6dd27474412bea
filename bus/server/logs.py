"""Log lines, for people or (as JSON) for programs. Each names the request and the message it is about."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from datetime import UTC, datetime
from typing import cast

from aiohttp import web

from tensorbus.bus import log_context
from tensorbus.bus.tracing import trace_id_of

from .context import context
from .problems import Handler

log = logging.getLogger("tensorbus.access")

REQUEST_ID = "X-Request-Id"
_REQUEST = web.RequestKey("request_id", str)
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)
_MESSAGE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_TOKEN_MESSAGE = slice(8, 40)
"""Where a delivery's token names the message."""
_QUIET = {"/healthz", "/readyz", "/metrics"}
"""Asked every few seconds by machines; logged only with --verbose."""
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


@web.middleware
async def log_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Write one line when a request is over, also when its client left before that; and time it."""
    here = context(request)
    here.counters.requests += 1
    began = time.perf_counter()
    status = 499  # nginx's number for "the client closed the connection"
    _enter(request)
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        took = time.perf_counter() - began
        here.metrics.answered(request, status, took)
        level = logging.DEBUG if request.path in _QUIET else logging.INFO
        if log.isEnabledFor(level):
            path = request.raw_path[:500]
            ms = round(took * 1000, 1)
            fields: dict[str, object] = {"method": request.method, "path": path, "status": status, "ms": ms}
            fields |= {"peer": request.remote or ""} | log_context.fields()
            log.log(level, "%s %s %s %s ms", request.method, path, status, ms, extra={"fields": fields})


def _enter(request: web.Request) -> None:
    """From here on, log lines name this request, its trace, and the message that its address names."""
    given = request.headers.get(REQUEST_ID, "")
    request_id = given if _SANE_ID.fullmatch(given) else secrets.token_hex(8)
    request[_REQUEST] = request_id
    log_context.request_id.set(request_id)
    named = request.match_info.get("id") or request.match_info.get("token", "")[_TOKEN_MESSAGE]
    # aiohttp's task is this request's alone, so nothing has to be put back.
    log_context.message_id.set(named if _MESSAGE_ID.fullmatch(named) else None)
    log_context.trace_id.set(trace_id_of(request.headers.get("traceparent")))


def enter_unreadable(request: web.BaseRequest) -> None:
    """As for every request, for one that could not be read."""
    request[_REQUEST] = secrets.token_hex(8)
    log_context.request_id.set(request[_REQUEST])


def request_id_of(request: web.BaseRequest) -> str:
    """The id that answers carry as ``X-Request-Id``: the caller's own if it is sane, else a new one."""
    return cast(str, request.get(_REQUEST) or secrets.token_hex(8))


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, text, what it is about, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        line |= log_context.fields()
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextLines(logging.Formatter):
    """For people: time, level, text, and in brackets what the line is about.

    Control characters of the text are escaped, so that nobody can forge a line with a name.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        record.message = _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", record.message)
        about = " ".join(f"{name}={value}" for name, value in log_context.fields().items())
        line = super().formatMessage(record)
        return f"{line} [{about}]" if about else line


def configure_logs(*, as_json: bool, verbose: bool) -> None:
    """Send the process's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    # asyncio and aiohttp tell much at DEBUG that says nothing about this program.
    for name in ("asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.INFO)
