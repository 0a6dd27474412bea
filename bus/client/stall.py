"""The one time-out of an upload: nothing moved for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from tensorbus.errors import TransferStalled

LOOKS = 4
"""How often within the limit the upload is looked at."""


@asynccontextmanager
async def stalls_after(limit: float, position: Callable[[], object]) -> AsyncGenerator[None]:
    """Run the block for as long as ``position()`` keeps changing.

    Raises:
        TransferStalled: it stayed the same for ``limit`` seconds.
    """
    loop = asyncio.get_running_loop()
    last = position()
    handle: asyncio.TimerHandle | None = None
    timer = asyncio.timeout(limit)

    def look() -> None:
        nonlocal last, handle
        if timer.expired():
            return
        now = position()
        if now != last:
            last = now
            timer.reschedule(loop.time() + limit)
        handle = loop.call_later(limit / LOOKS, look)

    try:
        async with timer:
            look()
            yield
    except TimeoutError:
        if not timer.expired():
            raise
        raise TransferStalled(f"the upload stalled: no byte moved for {limit:g} s") from None
    finally:
        if handle is not None:
            handle.cancel()
