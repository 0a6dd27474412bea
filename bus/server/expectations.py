"""`Expect`: what a client wants to know before it sends its body (RFC 9110, 10.1.1)."""

from __future__ import annotations

from aiohttp import web
from aiohttp.http import HttpVersion11

from .problems import Handler


@web.middleware
async def expectation_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what cannot be met; ``100-continue`` is answered by whoever reads the body, after its checks."""
    expected = request.headers.get("Expect", "100-continue")
    if expected.lower() != "100-continue" and request.version >= HttpVersion11:
        raise web.HTTPExpectationFailed
    return await handler(request)
