"""What a broker's refusal means to the caller: its problem document becomes the same exception again."""

from __future__ import annotations

import json
import os
from typing import cast

import aiohttp

from tensorbus.errors import (
    PROBLEM_PREFIX,
    BrokerUnavailable,
    Conflict,
    InvalidRequest,
    LimitExceeded,
    MessageAborted,
    NotFound,
    TensorbusError,
    TransferStalled,
    Unauthorized,
    by_slug,
)

MAX_PROBLEM_BYTES = 64 * 1024
"""A problem document that is longer is cut; it then counts as text."""

_BY_STATUS: dict[int, type[TensorbusError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    408: TransferStalled,
    409: Conflict,
    410: MessageAborted,
    412: Conflict,
    413: LimitExceeded,
    502: BrokerUnavailable,
    503: BrokerUnavailable,
    504: BrokerUnavailable,
}
"""For answers that are no problem documents: a proxy's, or another server's altogether."""


def error_of(problem_type: str, detail: str) -> TensorbusError:
    """The exception for a problem by its type; a plain TensorbusError for one that is not known here."""
    return by_slug().get(_slug(problem_type), TensorbusError)(detail)


def _slug(problem_type: str) -> str:
    return problem_type.removeprefix(PROBLEM_PREFIX)


async def refusal(response: aiohttp.ClientResponse) -> TensorbusError:
    """The exception for an answer with a status of 400 or more; reads its body."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_PROBLEM_BYTES:
            break
    text = body[:MAX_PROBLEM_BYTES].decode("utf-8", "replace")
    try:
        document: object = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict):
        problem = cast("dict[str, object]", document)
        detail = str(problem.get("detail") or problem.get("title") or response.reason)
        known = by_slug().get(_slug(str(problem.get("type", ""))))
        if known is not None:
            return known(detail)
    else:
        shown = f": {text[:200]}" if text else ""
        detail = f"{response.method} {response.url.path}: {response.status} {response.reason}{shown}"
    return _BY_STATUS.get(response.status, TensorbusError)(detail)


def reason(error: Exception) -> str:
    """Why a connection failed or broke, in the system's words where it has any."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    number = cause.errno if isinstance(cause, OSError) else None
    if isinstance(error, aiohttp.ClientConnectorDNSError) or not number:
        return str(cause) or type(cause).__name__
    return os.strerror(number)
