"""What a broker is doing, once and as it changes: `GET /v1/status` and its stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import cast

from tensorbus.errors import TensorbusError

from .connection import Connection
from .documents import JsonObject
from .refusals import error_of
from .server_sent import ServerSentEvents

PATH = "/v1/status"
SILENCE = 30.0
"""Seconds without a byte after which a stream counts as broken; the broker sends a sign of life every 10."""


async def status(connection: Connection, view: Mapping[str, str | int]) -> JsonObject:
    """The status now; see `Client.status`."""
    return await connection.call("GET", PATH, params=view)


async def statuses(connection: Connection, view: Mapping[str, str | int]) -> AsyncGenerator[JsonObject]:
    """The status whenever it changed; see `Client.statuses`."""
    now: JsonObject = {}
    parser = ServerSentEvents()
    headers = {"Accept": "text/event-stream"}
    async with connection.request(
        "GET", f"{PATH}/stream", headers=headers, params=view, read_timeout=SILENCE
    ) as response:
        async for chunk in response.content.iter_any():
            changed = False
            for event in parser.feed(chunk):
                document = _object(event.data)
                if event.name == "problem":
                    detail = str(document.get("detail") or document.get("title"))
                    raise error_of(str(document.get("type", "")), detail)
                if event.name == "status":
                    now, changed = now | document, True
            if changed:
                yield now


def _object(text: str) -> JsonObject:
    try:
        document: object = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise TensorbusError(f"the broker sent an event that is no JSON object: {text[:200]}")
    return cast(JsonObject, document)
