"""A large download past the HTTP library: from the socket into the frame parser, in a worker thread.

Strategy. aiohttp brings every piece of a body to the event loop as a new object; from there it goes to a
thread, and in the parser it is copied once more because it never is just a frame. Here a thread receives
frame by frame into the parser's own room, verifies and decodes it where it lies, and goes on for as long as
bytes flow. When none come, the loop waits, and no thread does.

Only for plain HTTP: what is encrypted has to pass through the library.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from tensorbus.errors import BrokerUnavailable, TransferStalled
from tensorbus.streaming.frames import FrameParser

from .raw_body import RawBody

BUFFER = 1 << 20
"""Bytes received at a time, at most, of payloads that nobody keeps."""
SMALL = 64 << 10
"""Bytes; so much is received where frames are small, many at a time. Larger ones are received one by one."""
PATIENCE = 20
"""Milliseconds for which a thread waits for bytes before it leaves that to the event loop."""
STAY = 0.5
"""Seconds that a thread goes on before it lets the event loop report and think again."""
_LONGEST_HEAD = 64 << 10

_NOTHING = memoryview(b"")

Take = Callable[[memoryview], bool]
"""Takes bytes; says whether it has to be called again, with none, before it takes more."""


class Answer:
    """The head of an answer that is worth reading this way, and its body.

    Attributes:
        status: 200 or 206.
        to_skip: bytes of the body that are not wanted.
        held: what the last ``take`` of ``move`` said.
    """

    def __init__(self, connection: socket.socket, status: int, body: RawBody, idle_timeout: float) -> None:
        self.status = status
        self.to_skip = 0
        self.held = False
        self._connection = connection
        self._body = body
        self._idle_timeout = idle_timeout
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._buffer = memoryview(bytearray(SMALL))
        self._stopped = False
        self._failure: ConnectionError | None = None

    @property
    def ended(self) -> bool:
        """Whether all of the body has been taken."""
        return self._body.ended

    def stop(self) -> None:
        """A thread that is at work returns soon."""
        self._stopped = True

    def cut(self) -> None:
        """End the connection, under whoever uses it."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def move(self, parser: FrameParser, take: Take, enough: int) -> bool:
        """In a worker thread: give ``take`` what comes, at least ``enough`` bytes, unless nothing comes.

        Comes back at once when ``take`` has to be called again, which the next call of this does. Returns
        whether to wait for more on the event loop. Raises ConnectionError, and what ``take`` raises.
        """
        self.held = self.held and take(_NOTHING)
        if self.held:
            return False
        if self._failure is not None:
            raise self._failure
        until = time.monotonic() + STAY
        moved = 0
        while not self._stopped and moved < enough and time.monotonic() < until:
            view = self._room(parser)
            try:
                count = self._fill(view)
            except ConnectionError as failure:
                # What came before counts: it is heard of first.
                self._failure = failure
                return False
            if count and self.to_skip:
                self.to_skip -= count
            elif count:
                self.held = take(view[:count])
                if self.held:
                    return False
                moved += count
            elif self._body.ended:
                return False
            elif not self._poll.poll(0 if self._stopped else PATIENCE):
                return True
        return False

    async def readable(self) -> None:
        """Wait until there are bytes. Raises TransferStalled."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._connection, ready.set)
        try:
            async with asyncio.timeout(self._idle_timeout):
                await ready.wait()
        except TimeoutError:
            raise TransferStalled(f"the broker sent nothing for {self._idle_timeout:g} s") from None
        finally:
            loop.remove_reader(self._connection)

    def _room(self, parser: FrameParser) -> memoryview:
        """For what comes next: a large frame's payload, or its head; or some small frames at a time."""
        if self.to_skip:
            return self._buffer[: self.to_skip]
        if (place := parser.place()) is not None:
            return place
        wanted = parser.missing if parser.large else max(parser.missing, SMALL)
        if wanted > len(self._buffer):
            self._buffer = memoryview(bytearray(min(wanted, BUFFER)))
        return self._buffer[:wanted]

    def _fill(self, view: memoryview) -> int:
        count = 0
        while count < len(view):
            try:
                more = self._body.receive_into(view[count:])
            except BlockingIOError:
                # The rest of a large payload is waited for, so that it is taken as a whole.
                if not count or len(view) <= SMALL or not self._poll.poll(PATIENCE):
                    break
                continue
            if not more:
                break
            count += more
        return count


@asynccontextmanager
async def get(
    host: str,
    port: int,
    target: str,
    headers: Mapping[str, str],
    *,
    connect_timeout: float,
    idle_timeout: float,
) -> AsyncGenerator[Answer | None]:
    """Ask for ``target``; None if the answer is one that the HTTP library should be asked for instead.

    Raises:
        BrokerUnavailable: no connection, or it broke.
        TransferStalled: no answer came.
    """
    try:
        async with asyncio.timeout(connect_timeout):
            connection = await _connect(host, port)
    except (OSError, TimeoutError) as error:
        raise BrokerUnavailable(f"no answer from the broker at {host}:{port}: {error}") from error
    try:
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(idle_timeout):
                await loop.sock_sendall(connection, "\r\n".join(lines).encode("latin-1"))
                head, early = await _head(connection)
        except TimeoutError:
            raise TransferStalled(f"the broker sent nothing for {idle_timeout:g} s") from None
        yield _answer(connection, head, early, idle_timeout)
    except ConnectionError as error:
        raise BrokerUnavailable(f"no answer from the broker at {host}:{port}: {error}") from error
    finally:
        connection.close()


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, address)
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure or OSError(f"{host} has no address")


async def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head of the answer, and what came along with it of the body."""
    loop = asyncio.get_running_loop()
    received = b""
    while b"\r\n\r\n" not in received:
        more = await loop.sock_recv(connection, _LONGEST_HEAD)
        received += more
        if not more or len(received) > 2 * _LONGEST_HEAD:
            raise ConnectionResetError("the broker closed the connection")
    head, _, early = received.partition(b"\r\n\r\n")
    return head, early


def _answer(connection: socket.socket, head: bytes, early: bytes, idle_timeout: float) -> Answer | None:
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or words[0] != "HTTP/1.1" or words[1] not in ("200", "206"):
        return None
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    length = fields.get("content-length", "")
    if fields.get("transfer-encoding", "").lower() == "chunked":
        body = RawBody(connection, early, None)
    elif length.isdecimal() and "transfer-encoding" not in fields:
        body = RawBody(connection, early, int(length))
    else:
        return None
    return Answer(connection, int(words[1]), body, idle_timeout)
