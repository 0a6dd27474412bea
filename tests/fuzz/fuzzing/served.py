"""A whole broker on a loopback port, in the process of the fuzzer; tells what no caller may bring about.

Requests are sent on connections of their own, bytes as they are. What the broker says is judged here: a
status below 500, or one of the few that say "later" or "full"; errors as problem documents; nothing in the
log of an unexpected failure.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import TensorbusError

KIB = 1 << 10
PATIENCE = 15.0
"""Seconds without an answer that count as a hang."""
BETWEEN = 400
"""Inputs after which the broker is made anew, so that what they leave there does not pile up."""
LATER = (503, 507)
_BROKER = BrokerSettings(
    max_message_bytes=512 * KIB,
    max_open_messages=16,
    max_consumers=16,
    max_uploads=16,
    inline_bytes=8 * KIB,
    io_threads=2,
    sync="never",
    sweep_interval=0,
)
_SERVER = ServerSettings(port=0, max_wait=0.01, idle_timeout=1.0, head_timeout=1.0, shutdown_timeout=0.1)


class Finding(AssertionError):
    """The broker did what no caller may bring about."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, header fields in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Failures(logging.Handler):
    """Remembers what the broker logs as unexpected."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Part of logging's interface."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not (isinstance(error, TensorbusError) and error.status in LATER):
            self.found.append(self.format(record))


class Served:
    """The broker and the loop that it runs on; ``connect`` gives a connection to it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(self._unhandled)
        self._failures = Failures()
        logger = logging.getLogger("tensorbus")
        logger.handlers[:] = [self._failures]
        logger.propagate = False
        logging.getLogger("aiohttp").handlers[:] = [self._failures]
        self._folder: Path | None = None
        self._inputs = 0

    def run(self, work: Any) -> None:
        """One input: ``work`` is a coroutine; raises what it raises, and Finding."""
        if self._inputs % BETWEEN == 0:
            self.loop.run_until_complete(self._renew())
        self._inputs += 1
        try:
            self.loop.run_until_complete(work)
        except Finding as finding:
            raise Finding("\n".join([str(finding), *self._failures.found])) from None
        if self._failures.found:
            raise Finding("\n".join(self._failures.found))

    async def send(self, request: bytes, *, answered: bool = True) -> Answer | None:
        """Send bytes on a new connection and read what comes until it ends; of a stream, what comes first.

        Returns None when the connection ended without an answer; that is a finding if it had to be
        ``answered``. Otherwise only what comes at once is waited for.
        """
        host, port = self._server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            async with asyncio.timeout(PATIENCE if answered else 0.02):
                text = await _answer(reader)
        except TimeoutError:
            if answered:
                raise Finding(f"no answer within {PATIENCE:g} s to {request[:300]!r}") from None
            return None
        except ConnectionError:
            return None
        finally:
            writer.transport.abort()
        return judged(text, request)

    async def _renew(self) -> None:
        if self._folder is not None:
            await self._server.close()
            await self._broker.close()
            shutil.rmtree(self._folder)
        self._folder = Path(tempfile.mkdtemp(prefix="tensorbus-fuzz-"))
        self._broker = Broker(FileStore(self._folder, reserve_bytes=0), _BROKER)
        await self._broker.start()
        self._server = Server(self._broker, _SERVER)
        await self._server.start()

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failures.found.append(f"{context}")


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """All of it, but for a stream of events, which has no end."""
    text = b""
    while more := await reader.read(1 << 20):
        text += more
        head, _, body = text.partition(b"\r\n\r\n")
        if b"text/event-stream" in head and b"\n\n" in body:
            break
    return text


def judged(text: bytes, request: bytes) -> Answer | None:
    """The first answer in ``text``, None if it is cut; raises Finding when it is none to give."""
    head, separator, body = text.partition(b"\r\n\r\n")
    if not separator:
        return None
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if status == 100:
        return judged(body, request)
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    answer = Answer(status, headers, body)
    what = f"{request[:1500]!r} was answered {status} {body[:600]!r}"
    if status >= 500 and status not in LATER:
        raise Finding(what)
    if status >= 400 and not request.startswith(b"HEAD "):
        if headers.get("content-type") != "application/problem+json":
            raise Finding(f"no problem document: {what}")
        length = headers.get("content-length")
        if length is not None and len(body) >= int(length):
            document: Any = answer.json
            if not isinstance(document, dict) or document["status"] != status:
                raise Finding(f"a malformed problem document: {what}")
    return answer


def _unchunked(body: bytes) -> bytes:
    out = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        out += rest[:count]
        body = rest[count + 2 :]
    return bytes(out)
