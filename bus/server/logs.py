"""Log lines: one for each request, for people or (as JSON) for programs."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime

from aiohttp import web
from aiohttp.http import HttpProcessingError

from .context import context
from .problems import Handler

log = logging.getLogger("tensorbus.access")

_QUIET = {"/healthz", "/readyz", "/metrics"}
"""Asked every few seconds by machines; logged only with --verbose."""


@web.middleware
async def log_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Write one line when a request is over, also when its client left before that."""
    context(request).counters.requests += 1
    began = time.perf_counter()
    status = 499  # nginx's number for "the client closed the connection"
    message = request.match_info.get("id")
    try:
        response = await handler(request)
        status = response.status
        # A message that was just published is named by its address.
        message = response.headers.get("Location", message or "").rpartition("/")[2] or None
        return response
    finally:
        level = logging.DEBUG if request.path in _QUIET else logging.INFO
        path = request.raw_path[:500]
        took = round((time.perf_counter() - began) * 1000, 1)
        fields = {"method": request.method, "path": path, "status": status, "ms": took}
        fields |= {"message": message, "peer": request.remote}
        named = f" message {message}" if message and message not in path else ""
        line = "%s %s %s %s ms%s"
        log.log(level, line, request.method, path, status, took, named, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, text, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class ShortRefusals(logging.Filter):
    """A request that is no HTTP is the sender's fault: one line of the log, without a traceback of ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.msg, record.args = "not HTTP, refused: %.200s", (error.message,)
            record.exc_info = None
        return True


def configure_logs(*, as_json: bool, verbose: bool) -> None:
    """Send the process's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    # asyncio and aiohttp tell much at DEBUG that says nothing about this program.
    for name in ("asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("aiohttp.server").addFilter(ShortRefusals())
