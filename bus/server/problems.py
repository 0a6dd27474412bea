"""Every error leaves the server as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from aiohttp import web

from tensorbus.bus import log_context
from tensorbus.errors import PROBLEM_PREFIX, TensorbusError

log = logging.getLogger("tensorbus.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MEDIA_TYPE = "application/problem+json"
MAX_DETAIL = 2000
"""Characters; a hostile name does not come back at full length."""

_TITLES = {
    400: "Bad request",
    404: "Not found",
    405: "Method not allowed",
    411: "Length required",
    412: "Precondition failed",
    413: "Content too large",
    414: "URI too long",
    415: "Unsupported media type",
    417: "Expectation failed",
    431: "Request header fields too large",
}
"""As in RFC 9110, and not as the Python at hand has them: the types of problems are made of them."""


def problem_response(request: web.BaseRequest, error: TensorbusError) -> web.Response:
    """The answer for an error that Tensorbus raised on purpose."""
    title = (type(error).__doc__ or error.slug).strip().splitlines()[0]
    return _problem(request, error.problem_type(), title, error.status, str(error))


def problem_document(error: TensorbusError) -> dict[str, object]:
    """What is said of one thing among others in an answer, if that went wrong."""
    title = (type(error).__doc__ or error.slug).strip().splitlines()[0].rstrip(".")
    detail = str(error)[:MAX_DETAIL]
    return {"type": error.problem_type(), "title": title, "status": error.status, "detail": detail}


def plain_problem(
    request: web.BaseRequest, status: int, title: str, detail: str, headers: Mapping[str, str]
) -> web.Response:
    """The answer for a status of HTTP itself; its type is named after the title."""
    response = _problem(request, _slug(title), title, status, detail)
    response.headers.update(headers)
    return response


def http_problem(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """The answer for an error that aiohttp raised."""
    title = _TITLES.get(error.status, error.reason)
    answer = _problem(request, _slug(title), title, error.status, _explain(request, error))
    # 405 has to say what is allowed (RFC 9110, 15.5.6).
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer


def unexpected_problem(request: web.BaseRequest) -> web.Response:
    """The answer for a fault of the program: nothing of it leaves the house."""
    detail = "The broker failed to handle this request. Its log has the details, under this request's id."
    return _problem(request, PROBLEM_PREFIX + "internal", "Internal error", 500, detail)


def unreadable_problem(status: int, detail: str) -> web.Response:
    """The answer to bytes that are no HTTP request; the connection cannot go on."""
    title = _TITLES[status]
    return _answer(_slug(title), title, status, f"the request cannot be read: {detail}", None)


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into a problem document; internals go to the log only."""
    try:
        return await handler(request)
    except TensorbusError as error:
        if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            # Only what nobody foresaw needs a traceback; a full disk and a busy broker speak for themselves.
            trace = error if error.status == HTTPStatus.INTERNAL_SERVER_ERROR else None
            log.error("%s %s failed: %s", request.method, request.path, error, exc_info=trace)
        return problem_response(request, error)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return http_problem(request, error)
    except ConnectionError:
        # The peer is gone: there is nobody to answer, and aiohttp ends the connection quietly.
        raise
    except Exception:
        log.exception("%s %s failed unexpectedly", request.method, request.path)
        return unexpected_problem(request)


def _problem(request: web.BaseRequest, type_: str, title: str, status: int, detail: str) -> web.Response:
    response = _answer(type_, title, status, detail, request.path)
    if not request.content.at_eof() or status in (408, 413):
        # A body is still on its way, or one of absurd length is announced. The connection is closed after the
        # answer; aiohttp goes on reading for its lingering time, so that the peer sees the answer rather than
        # a reset.
        response.force_close()
    return response


def _answer(type_: str, title: str, status: int, detail: str, instance: str | None) -> web.Response:
    document: dict[str, object] = {
        "type": type_,
        "title": title.rstrip("."),
        "status": status,
        "detail": detail[:MAX_DETAIL],
    }
    if instance is not None:
        document["instance"] = instance[:MAX_DETAIL]
    if (request_id := log_context.request_id.get()) is not None:
        document["request_id"] = request_id
    return web.Response(status=status, body=json.dumps(document).encode(), content_type=MEDIA_TYPE)


def _slug(title: str) -> str:
    return PROBLEM_PREFIX + title.lower().replace(" ", "-")


def _explain(request: web.BaseRequest, error: web.HTTPException) -> str:
    if error.status == HTTPStatus.NOT_FOUND:
        here = f"There is nothing at {request.path!r}"
        if not request.path.startswith("/v1/"):
            return f"{here}: resources are below /v1/. See /docs, or GET /openapi.json."
        return f"{here}. See /docs, or GET /openapi.json, for what there is."
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return f"{request.method} is not allowed here; allowed: {allowed}."
    if error.status == HTTPStatus.EXPECTATION_FAILED:
        expected = request.headers.get("Expect", "")
        return f"Expect: {expected[:40]!r} cannot be met; 100-continue can."
    return error.text or error.reason
