"""GET /: what is going on at this broker, as a page for people; everything that it needs comes from here.

The files lie beside this one, as they are sent: no step builds them, and none of them is from elsewhere.
They hold nothing of the broker's; what they show they ask for at `/v1/status`, with a token where one is
needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from aiohttp import web

from tensorbus.bus.server.context import context

routes = web.RouteTableDef()

MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

_CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


@dataclass(frozen=True, slots=True)
class File:
    """One of the files, in memory: together they are some ten kilobytes."""

    body: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, File]:
    """The files by name."""
    folder = files(__name__)
    found: dict[str, File] = {}
    for path in folder.iterdir():
        media_type = MEDIA_TYPES.get(path.name.rpartition(".")[2])
        if media_type is not None:
            found[path.name] = _file(path.read_bytes(), media_type)
    return found


@routes.get("/")
async def page(request: web.Request) -> web.Response:
    """The page; it says whether a token is needed, so that none is refused just to find out."""
    here = context(request)
    asks = here.tokens is not None and here.tokens.in_use
    return _answer(request, _asking(page_files()["index.html"]) if asks else page_files()["index.html"])


@routes.get("/page/{file}")
async def file(request: web.Request) -> web.Response:
    """One of the files that the page is made of."""
    found = page_files().get(request.match_info["file"])
    if found is None:
        raise web.HTTPNotFound
    return _answer(request, found)


def _asking(index: File) -> File:
    return _file(index.body.replace(b'data-token="unneeded"', b'data-token="needed"'), index.media_type)


def _file(body: bytes, media_type: str) -> File:
    return File(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _answer(request: web.Request, found: File) -> web.Response:
    headers = {
        "ETag": found.etag,
        # Always asked for again, mostly answered with 304: after an update no two versions are mixed.
        "Cache-Control": "no-cache",
        "Content-Security-Policy": _CSP,
        "Referrer-Policy": "no-referrer",
    }
    if found.etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    return web.Response(body=found.body, content_type=found.media_type, charset="utf-8", headers=headers)
