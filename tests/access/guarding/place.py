"""A broker with tokens, and requests to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from tensorbus.bus.access import Quotas, Rights, TokenFile, TokenPlan


@dataclass
class Place:
    """A broker with tokens, and a session that sends none by itself."""

    url: str
    http: aiohttp.ClientSession
    tokens: TokenFile

    def make(self, *, quotas: Quotas | None = None, **rights: tuple[str, ...]) -> str:
        """A token's text."""
        plan = TokenPlan("somebody", Rights(**rights), quotas=quotas or Quotas())
        return str(self.tokens.create(plan)[1])

    async def ask(
        self, token: str | None, method: str, path: str, **more: Any
    ) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Status, JSON (or bytes) and the response of one request."""
        shown = {} if token is None else {"Authorization": f"Bearer {token}"}
        more["headers"] = more.get("headers", {}) | shown
        async with self.http.request(method, path, **more) as answer:
            if answer.content_type == "text/event-stream":  # it does not end: the first event of it
                body = await answer.content.readuntil(b"\n\n")
            else:
                body = await answer.read()
            document = json.loads(body) if "json" in answer.content_type and body else body
            return answer.status, document, answer

    async def publish(self, token: str, topic: str, data: bytes = b"x", **headers: str) -> str:
        """The id of a new message."""
        path = f"/v1/topics/{topic}/messages"
        status, receipt, _ = await self.ask(token, "POST", path, data=data, headers=headers)
        assert status == 201, receipt
        return receipt["id"]
