"""Which event loop the long-running commands use."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SWITCH = 0.001
"""Seconds after which a thread that computes makes way for one that wants to go on. While the event loop is
busy, a commit waits for so long at each of its statements; Python's own 5 ms add up to more than the disk."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, on uvloop where the platform has it."""
    sys.setswitchinterval(SWITCH)
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def spare_collections() -> None:
    """What is there when a server is ready stays there: no garbage collection has to look at it again, which
    would hold up all that is under way for some milliseconds."""
    gc.collect()
    gc.freeze()
