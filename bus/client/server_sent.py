"""ServerSentEvents: the parser of `text/event-stream`, without I/O (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

from dataclasses import dataclass

from tensorbus.errors import LimitExceeded

MAX_EVENT_BYTES = 16 << 20
"""Bytes of one event that are taken before it is refused."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its name, ``message`` where the sender gave none, and its data."""

    name: str
    data: str


class ServerSentEvents:
    """Give it bytes as they come; comments, ids and advice on retries are passed over."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that are complete with ``chunk``.

        Raises:
            LimitExceeded: an event is longer than `MAX_EVENT_BYTES`.
        """
        self._rest += chunk
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        events = [
            event for line in lines if (event := self._take(bytes(line.removesuffix(b"\r")))) is not None
        ]
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise LimitExceeded(f"the broker sent an event of more than {MAX_EVENT_BYTES} bytes")
        return events

    def _take(self, line: bytes) -> ServerSentEvent | None:
        if not line:
            event = ServerSentEvent(self._name or "message", "\n".join(self._data)) if self._data else None
            self._name, self._data, self._size = "", [], 0
            return event
        field, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if field == b"event":
            self._name = text
        elif field == b"data":
            self._data.append(text)
            self._size += len(line)
        return None
