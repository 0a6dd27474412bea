"""An aggregator in a process of its own, for tests: it prints its events, and can kill itself at one of them.

    python killable_aggregator.py URL SPEC_JSON [EVENT NTH]

At the NTH event of the name EVENT it sends itself SIGKILL, so nothing after that point happens: no finally
block, no closing of connections. Every event is printed before. ``before-open``, ``after-close`` and the like
are no events but the moments around the records that it publishes, and the word that a job was cancelled. The
last line is its memory, in bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from tensorbus.aggregator.events import Event
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client, Receipt


def memory(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


class Listener:
    """Prints events and keeps count of them."""

    def __init__(self, fatal: str | None, nth: int) -> None:
        self._fatal = fatal
        self._left = nth
        self.resting = 0

    def __call__(self, event: Event) -> None:
        print(json.dumps(event.to_json()), flush=True)
        if event.name == "round" and not self.resting:
            self.resting = memory("VmRSS")
        self.reached(event.name)

    def reached(self, point: str) -> None:
        """It is at this point."""
        if point == self._fatal:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


class KillableClient(Client):
    """Tells of records before and after they are published."""

    listener: Listener

    async def publish(self, topic: str, container: object, *args: Any, **settings: Any) -> Receipt:
        """As the real one."""
        headers: dict[str, object] = settings.get("headers") or {}
        kind = headers.get("kind")
        decisive = topic.endswith(".rounds") or kind == "cancelled"
        if decisive:
            self.listener.reached(f"before-{kind}")
        receipt = await super().publish(topic, container, *args, **settings)
        if decisive:
            self.listener.reached(f"after-{kind}")
        return receipt


async def main(url: str, spec: str, fatal: str | None = None, nth: str = "1") -> None:
    """Run the job; ``torch`` must not be needed for it."""
    sys.modules["torch"] = None  # type: ignore[assignment]  an import of it fails from here on
    listener = Listener(fatal, int(nth))
    async with KillableClient(url) as bus:
        bus.listener = listener
        await Aggregator(bus, JobSpec.from_json(spec), init=None, listener=listener).run()
    print(json.dumps({"resting": listener.resting, "peak": memory("VmHWM")}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
