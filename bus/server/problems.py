"""Every error leaves the server as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from aiohttp import web

from tensorbus.errors import PROBLEM_PREFIX, TensorbusError

log = logging.getLogger("tensorbus.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MEDIA_TYPE = "application/problem+json"
MAX_DETAIL = 2000
"""Characters; a hostile name does not come back at full length."""


def problem_response(request: web.Request, error: TensorbusError) -> web.Response:
    """The answer for an error that Tensorbus raised on purpose."""
    title = (type(error).__doc__ or error.slug).strip().splitlines()[0]
    return _problem(request, error.problem_type(), title, error.status, str(error))


def plain_problem(
    request: web.Request, status: int, title: str, detail: str, headers: Mapping[str, str]
) -> web.Response:
    """The answer for a status of HTTP itself; its type is named after the title."""
    response = _problem(request, _slug(title), title, status, detail)
    response.headers.update(headers)
    return response


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into a problem document; internals go to the log only."""
    try:
        return await handler(request)
    except TensorbusError as error:
        if error.status >= 500:
            log.error("%s %s failed: %s", request.method, request.path, error, exc_info=error)
        return problem_response(request, error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = _problem(request, _slug(error.reason), error.reason, error.status, _explain(request, error))
        # 405 has to say what is allowed (RFC 9110, 15.5.6).
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except ConnectionError:
        # The peer is gone: there is nobody to answer, and aiohttp ends the connection quietly.
        raise
    except Exception:
        log.exception("%s %s failed unexpectedly", request.method, request.path)
        detail = "The broker failed to handle this request. Its log has the details."
        return _problem(request, PROBLEM_PREFIX + "internal", "Internal error", 500, detail)


def _problem(request: web.Request, type_: str, title: str, status: int, detail: str) -> web.Response:
    document = {
        "type": type_,
        "title": title.rstrip("."),
        "status": status,
        "detail": detail[:MAX_DETAIL],
        "instance": request.path[:MAX_DETAIL],
    }
    body = json.dumps(document).encode()
    response = web.Response(status=status, body=body, content_type=MEDIA_TYPE)
    if not request.content.at_eof() or status in (408, 413):
        # A body is still on its way, or one of absurd length is announced. The connection is closed after the
        # answer; aiohttp goes on reading for its lingering time, so that the peer sees the answer rather than
        # a reset.
        response.force_close()
    return response


def _slug(reason: str) -> str:
    return PROBLEM_PREFIX + reason.lower().replace(" ", "-")


def _explain(request: web.Request, error: web.HTTPException) -> str:
    if error.status == HTTPStatus.NOT_FOUND:
        return f"There is nothing at {request.path!r}. GET /openapi.json lists what there is."
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return f"{request.method} is not allowed here; allowed: {allowed}."
    return error.text or error.reason
