"""Requests that are nearly right, made of the bytes of an input."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportAttributeAccessIssue=false
# pyright: reportUnknownArgumentType=false
# (atheris has no annotations.)

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

import atheris

METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "get", "X")
WORDS = (
    "", "a", "t", "demo.greetings", ">", "*", "a.>", "..", ".", "%2e%2e", "/", "a/b", "\x00", "é", "1", "0",
    "-1", "1e999", "NaN", "null", "true", "9223372036854775807", "9223372036854775808", "0" * 32, "f" * 32,
    "bytes=0-", "bytes=-1", "bytes=5-2", "bytes=0-0,3-4", "bytes=0-99999999999999999999", "*", '""',
    "W/\"x\"",
    "application/json", "application/vnd.tensorbus.frames", "application/offset+octet-stream", "1.0.0",
    "sha1 AAAA", "crc32c AAAAAA==", "filename d29ybGQ=", "source YQ==,x", "100-continue", "gzip", "identity",
    "chunked", "Bearer x", "all", "new", "desc", "limits", "workqueue", "interest", "old",
)  # fmt: skip
FIELDS = (
    "Idempotency-Key", "Content-Type", "Content-Encoding", "Range", "If-Match", "If-None-Match", "If-Range",
    "Expect", "Authorization", "Accept", "Tus-Resumable", "Upload-Offset", "Upload-Length",
    "Upload-Defer-Length", "Upload-Metadata", "Upload-Checksum", "X-HTTP-Method-Override", "traceparent",
    "Tensorbus-Header-A", "Tensorbus-Header-\x80", "Host", "X-Request-Id",
)  # fmt: skip
NAMES = (
    "filter", "start", "start_seq", "start_time", "ack_wait", "max_ack_pending", "max_deliver", "dead_letter",
    "backoff", "inactive_threshold", "max", "wait", "follow", "inline", "delay", "reason", "tokens",
    "retention",
    "max_messages", "max_bytes", "max_age", "discard", "duplicate_window", "everyone", "name", "publish",
    "subscribe", "admin", "expires", "rate", "topic", "state", "after", "limit", "order", "key",
)  # fmt: skip


class Maker:
    """Chooses words, numbers, documents and whole requests with the bytes of one input.

    Attributes:
        known: words from answers so far: ids, tokens, names.
    """

    def __init__(self, data: bytes) -> None:
        self._data = atheris.FuzzedDataProvider(data)
        self.known: list[str] = []

    @property
    def more(self) -> bool:
        """Whether bytes are left."""
        return self._data.remaining_bytes() > 0

    def number(self, largest: int) -> int:
        """From 0 to ``largest``."""
        return self._data.ConsumeIntInRange(0, largest)

    def one_of(self, choices: Sequence[str]) -> str:
        """One of some."""
        return choices[self.number(len(choices) - 1)]

    def text(self) -> str:
        """A word: one that means something, one seen before, or any."""
        match self.number(7):
            case 0 | 1 | 2:
                return self.one_of(WORDS)
            case 3 | 4 | 5 if self.known:
                return self.one_of(self.known[-16:])
            case 6:
                return str(self._data.ConsumeInt(8))
            case _:
                return self._data.ConsumeUnicodeNoSurrogates(self.number(40))

    def raw(self, most: int) -> bytes:
        """Bytes as they come."""
        return self._data.ConsumeBytes(self.number(most))

    def value(self, depth: int = 0) -> object:
        """A JSON value."""
        match self.number(9 if depth < 3 else 6):
            case 0 | 1:
                return self.text()
            case 2:
                return self.number(300)
            case 3:
                return self._data.ConsumeInt(9)
            case 4:
                return self._data.ConsumeFloat()
            case 5:
                return None
            case 6:
                return self.number(1) == 1
            case 7:
                return [self.value(depth + 1) for _ in range(self.number(4))]
            case _:
                return self.document(depth + 1)

    def document(self, depth: int = 0) -> dict[str, object]:
        """A JSON object whose names mean something."""
        return {self.one_of(NAMES): self.value(depth) for _ in range(self.number(4))}

    def address(self, template: str) -> str:
        """A path of the API with words in its places, and a query."""
        parts = template.split("/")
        path = "/".join(self._segment() if part.startswith("{") else part for part in parts)
        if self.number(3) == 0:
            count = self.number(3)
            path += "?" + "&".join(f"{self.one_of(NAMES)}={quote(self.text())}" for _ in range(count))
        return path

    def _segment(self) -> str:
        return quote(self.text(), safe="" if self.number(7) else "/%")

    def request(
        self, method: str, address: str, fields: Sequence[tuple[str, str]], body: bytes | None
    ) -> bytes:
        """A request with these fields, and up to three more."""
        lines = [f"{method} {address} HTTP/1.1", "Host: x", "Connection: close"]
        lines += [f"{name}: {_line(value)}" for name, value in fields]
        lines += [f"{self.one_of(FIELDS)}: {_line(self.text())}" for _ in range(self.number(3))]
        if body is None:
            return "\r\n".join([*lines, "", ""]).encode()
        if self.number(5) == 0:
            lines.append("Transfer-Encoding: chunked")
            step = 1 + self.number(2000)
            pieces = [body[at : at + step] for at in range(0, len(body), step)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))
        else:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode() + body

    def json_body(self) -> bytes:
        """A document, in JSON that is mostly right."""
        text = json.dumps(self.document()).encode()
        return text if self.number(7) else text[: self.number(len(text))] + self.raw(20)


def _line(value: str) -> str:
    """What may stand in one line; other bytes are for the raw mode."""
    return value.replace("\r", "").replace("\n", "").replace("\x00", "")
