"""GET /docs: the API's description as a page, Swagger UI, without a byte from any other host."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path

from aiohttp import web

from tensorbus import __version__

routes = web.RouteTableDef()

_CHUNK = 64 * 1024
_CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tensorbus: HTTP API</title>
<link rel="icon" href="docs/favicon-32x32.png" type="image/png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<noscript>The same as JSON: <a href="openapi.json">openapi.json</a>.</noscript>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """window.onload = () => SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  deepLinking: true,
  docExpansion: "list",
  validatorUrl: null,
});
"""
FILES = {
    "favicon-32x32.png": "image/png",
    "start.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
"""What the page is made of, and the media types."""


@routes.get("/docs")
async def page(_request: web.Request) -> web.Response:
    """The page, for browsers."""
    headers = {"Content-Security-Policy": _CSP, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return web.Response(text=_PAGE, content_type="text/html", charset="utf-8", headers=headers)


@routes.get("/docs/{file}")
async def file(request: web.Request) -> web.StreamResponse:
    """One of the files that the page is made of."""
    name = request.match_info["file"]
    if name not in FILES:
        raise web.HTTPNotFound
    etag = f'"{__version__}-{name}"'
    headers = {"ETag": etag, "Cache-Control": "max-age=86400"}
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers=headers)
    if name == "start.js":
        return web.Response(text=_START, content_type=FILES[name], charset="utf-8", headers=headers)
    return await _send(request, _directory() / name, FILES[name], headers)


async def _send(
    request: web.Request, path: Path, media_type: str, headers: dict[str, str]
) -> web.StreamResponse:
    """The file piece by piece, so that slow browsers hold no memory."""
    response = web.StreamResponse(headers=headers)
    response.content_type = media_type
    if media_type.startswith("text/"):
        response.charset = "utf-8"
    with await asyncio.to_thread(path.open, "rb") as source:
        response.content_length = (await asyncio.to_thread(path.stat)).st_size
        await response.prepare(request)
        while request.method != "HEAD" and (piece := await asyncio.to_thread(source.read, _CHUNK)):
            await response.write(piece)
    await response.write_eof()
    return response


@cache
def _directory() -> Path:
    """Where the package keeps Swagger UI."""
    from openapi_ui_bundles import swagger_ui

    return Path(swagger_ui.static_path)
