"""HTTP/1.1 on a socket, with no more than these measurements need, so that it is not what limits them."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import BinaryIO, cast

from .load import MIB, Load, connect, connect_encrypted


class Http:
    """One connection; a request at a time."""

    def __init__(self, load: Load) -> None:
        self.connection = connect_encrypted(load) if load.certificate else connect(load)
        self._host = f"{load.address[0]}:{load.address[1]}"
        self._reader = cast("BinaryIO", self.connection.makefile("rb", MIB // 4))
        self.headers: dict[str, str] = {}

    def ask(
        self,
        method: str,
        path: str,
        length: int | None = None,
        kind: str = "application/json",
        accept: str = "*/*",
    ) -> None:
        """Send the head of a request whose body has ``length`` bytes."""
        body = "" if length is None else f"Content-Length: {length}\r\nContent-Type: {kind}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: {accept}\r\n{body}\r\n"
        self.connection.sendall(head.encode())

    def head(self) -> int:
        """Read the head of the answer; its status."""
        status = int(self._reader.readline().split()[1])
        self.headers = {}
        while (line := self._reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.lower()] = value.strip()
        return status

    def call(self, method: str, path: str, document: object = None) -> dict[str, object]:
        """A request with JSON both ways; raises RuntimeError for an answer that is a refusal."""
        self.send(method, path, document)
        return self.answer()

    def send(self, method: str, path: str, document: object = None) -> None:
        """Only the request; ``answer`` reads what comes."""
        body = b"" if document is None else json.dumps(document).encode()
        self.ask(method, path, len(body) if document is not None else None)
        if body:
            self.connection.sendall(body)

    def answer(self) -> dict[str, object]:
        """Read an answer with a JSON body; raises RuntimeError for a refusal."""
        status = self.head()
        text = self._reader.read(int(self.headers.get("content-length", "0")))
        if status >= 400:
            raise RuntimeError(f"{status}: {text[:300]!r}")
        return cast("dict[str, object]", json.loads(text)) if text else {}

    def chunks(self) -> Generator[bytes]:
        """The chunks of an answer that goes on for as long as somebody reads, each when it is asked for.

        All that the connection has is read at once: ask again only when there is more on it.
        """
        rest = b""
        while True:
            # What the reader of the head has taken already comes first.
            rest += cast("bytes", self._reader.read1(256 << 10))  # type: ignore[attr-defined]
            body = b""
            while (end := rest.find(b"\r\n")) >= 0:
                size = int(rest[:end], 16)
                if len(rest) < end + size + 4:
                    break
                body += rest[end + 2 : end + 2 + size]
                rest = rest[end + size + 4 :]
            yield body

    def drain(self, buffer: memoryview) -> int:
        """Read the body of an answer and forget it; the bytes that it had."""
        if "content-length" in self.headers:
            return self._skip(int(self.headers["content-length"]), buffer)
        total = 0
        while size := int(self._reader.readline(), 16):
            total += self._skip(size, buffer)
            self._reader.readline()
        self._reader.readline()
        return total

    def _skip(self, size: int, buffer: memoryview) -> int:
        left = size
        while left:
            count = cast("int", self._reader.readinto1(buffer[:left]))  # type: ignore[attr-defined]
            if not count:
                raise RuntimeError(f"the body ended {left} bytes early")
            left -= count
        return size
