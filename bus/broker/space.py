"""What is free inside the file of rows goes back to the disk."""

from __future__ import annotations

from tensorbus.bus.stores.base import Store

_KEPT = 1024 * 1024
"""Bytes that may stay free for the rows to come: to give them back and to take them again costs more."""
_STEP = 8 * 1024 * 1024
"""Bytes given back in one transaction, so that no publish waits long behind it."""


async def give_back(store: Store) -> None:
    """Shrink the file of rows, but for a tenth of what is used, and the log, if it is quiet."""
    before: int | None = None
    while True:
        space = await store.space()
        spare = space.free - max(_KEPT, space.used // 10)
        if spare <= 0 or (before is not None and space.free >= before):
            break
        before = space.free
        await store.give_back(min(spare, _STEP))
    await store.tidy()
