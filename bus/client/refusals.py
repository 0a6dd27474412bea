"""What a broker's refusal means to the caller: its problem document becomes the same exception again."""

from __future__ import annotations

import json
from typing import cast

import aiohttp

from tensorbus.errors import (
    PROBLEM_PREFIX,
    BrokerUnavailable,
    Conflict,
    InvalidRequest,
    LimitExceeded,
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
    412: Conflict,
    413: LimitExceeded,
    502: BrokerUnavailable,
    503: BrokerUnavailable,
    504: BrokerUnavailable,
}
"""For answers that are no problem documents: a proxy's, or another server's altogether."""


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
        slug = str(problem.get("type", "")).removeprefix(PROBLEM_PREFIX)
        detail = str(problem.get("detail") or problem.get("title") or response.reason)
        known = by_slug().get(slug)
        if known is not None:
            return known(detail)
    else:
        shown = f": {text[:200]}" if text else ""
        detail = f"{response.method} {response.url.path}: {response.status} {response.reason}{shown}"
    return _BY_STATUS.get(response.status, TensorbusError)(detail)
