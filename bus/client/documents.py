"""JSON objects that a broker answers with."""

from __future__ import annotations

import json
from typing import cast

import aiohttp

from tensorbus.errors import LimitExceeded, TensorbusError

JsonObject = dict[str, object]

MAX_JSON_BYTES = 64 << 20
"""Largest JSON answer that is read: the manifest of the largest message, generously."""


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
