"""The downloads that are under way: what whoever watches the broker is shown of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tensorbus.bus.broker.readers import Reader
from tensorbus.bus.savings import Savings


@dataclass(frozen=True, slots=True)
class Download:
    """One of them; ``began`` in seconds since the epoch."""

    id: str
    reader: Reader
    began: float

    @property
    def sent(self) -> int:
        """Bytes that went out."""
        return self.reader.position - self.reader.start

    @property
    def total(self) -> int | None:
        """Bytes that are wanted; None of an open message that did not declare its size."""
        reader = self.reader
        end = reader.info.wire_bytes if reader.end is None else reader.end
        return None if end is None else max(0, end - reader.start)


@dataclass
class Downloads:
    """Those of one server.

    Attributes:
        current: in the order in which they began.
        savings: of those that are over, by codec; a part of a message counts as that part of its values.
    """

    current: dict[str, Download] = field(default_factory=dict[str, Download])
    savings: Savings = field(default_factory=Savings)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @contextmanager
    def show(self, reader: Reader) -> Generator[None]:
        """Show a download for as long as it is open, and count what went out of it."""
        name = f"download-{next(self._numbers)}"
        download = self.current[name] = Download(name, reader, time.time())
        try:
            yield
        finally:
            del self.current[name]
            self._count(download)

    def _count(self, download: Download) -> None:
        info, sent = download.reader.info, download.sent
        # A message that is still open declares its size, or is of unknown size until its end.
        size = info.bytes if info.digest is not None else info.wire_bytes or download.reader.end
        if info.original_bytes is not None and size and sent:
            self.savings.count(info.pipeline, round(info.original_bytes * min(1.0, sent / size)), sent)
