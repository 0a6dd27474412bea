"""How a server stops: it finishes what is under way, and begins nothing new.

New connections are no longer accepted, `/readyz` says so, long polls come back empty, streams of
deliveries end behind what was handed over. Downloads, and uploads that would be lost, get
``shutdown_timeout`` seconds to end; resumable uploads are cut at once, because they are kept and go on after
the restart. Workers may still settle what they hold.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from tensorbus.errors import BrokerBusy

from .context import Context, context
from .problems import Handler

log = logging.getLogger("tensorbus.server")

_SETTLEMENTS = ("/ack", "/nak", "/term", "/in_progress", "/acks", "/naks")


@web.middleware
async def drain_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """While the server stops, refuse what would begin something."""
    here = context(request)
    if not here.draining:
        return await handler(request)
    path = request.path
    if path.startswith("/v1/") and not path.endswith(_SETTLEMENTS):
        raise BrokerBusy("the broker is stopping; the same request succeeds when it is back")
    response = await handler(request)
    response.force_close()
    return response


async def drain(here: Context, hurry: asyncio.Event) -> None:
    """Wait for what is under way: at most ``shutdown_timeout`` seconds, or until ``hurry`` is set."""
    here.draining = True
    here.waits.stop()
    for stream in here.streams.values():
        stream.end()
    counted = here.counters
    if not counted.open_uploads and not counted.open_downloads and not counted.open_streams:
        return
    log.info(
        "waiting up to %g s for %d uploads and %d downloads, and for %d streams of deliveries to end",
        here.settings.shutdown_timeout,
        counted.open_uploads,
        counted.open_downloads,
        counted.open_streams,
    )
    done = asyncio.create_task(counted.idle())
    hurried = asyncio.create_task(hurry.wait())
    try:
        await asyncio.wait(
            [done, hurried], timeout=here.settings.shutdown_timeout, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        done.cancel()
        hurried.cancel()
    if counted.open_uploads or counted.open_downloads:
        log.warning("cutting %d uploads and %d downloads", counted.open_uploads, counted.open_downloads)
