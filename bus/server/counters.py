"""The figures that the server counts."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Counters:
    """Counted by the server itself; the broker counts messages and consumers.

    Attributes:
        open_uploads: requests that publish a message and are all lost if they are cut.
        open_downloads: requests that frames are sent to.
        open_streams: requests that deliveries are sent to as they come.
        open_resumable: requests that add to a resumable upload; if they are cut, what came is kept.
    """

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    open_uploads: int = 0
    open_downloads: int = 0
    open_resumable: int = 0
    open_streams: int = 0
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def sent(self, count: int) -> None:
        """``count`` bytes of frames went out."""
        self.bytes_out += count

    @contextmanager
    def upload(self) -> Generator[None]:
        """An upload that cannot be resumed, for as long as it is open."""
        self.open_uploads += 1
        try:
            yield
        finally:
            self.open_uploads -= 1
            self._ended.set()

    @contextmanager
    def download(self) -> Generator[None]:
        """A download, for as long as it is open."""
        self.open_downloads += 1
        try:
            yield
        finally:
            self.open_downloads -= 1
            self._ended.set()

    @contextmanager
    def stream(self) -> Generator[None]:
        """A stream of deliveries, for as long as it is open."""
        self.open_streams += 1
        try:
            yield
        finally:
            self.open_streams -= 1
            self._ended.set()

    @contextmanager
    def resumable(self) -> Generator[None]:
        """A part of a resumable upload, for as long as it is coming."""
        self.open_resumable += 1
        try:
            yield
        finally:
            self.open_resumable -= 1

    async def idle(self) -> None:
        """Until no upload, download or stream is open; resumable ones do not count: they go on elsewhere."""
        while self.open_uploads or self.open_downloads or self.open_streams:
            self._ended.clear()
            await self._ended.wait()
