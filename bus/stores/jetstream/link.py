"""The connection to NATS: a thread of its own, so that threads that move frames can wait for it.

Strategy. What is sent is answered, or sent again: a server may die, a cluster may be choosing another leader,
a network may be cut. Everything that is sent can be sent twice: the servers know it by its id, and where they
have forgotten it, by the version that it replaces. The client library reconnects by itself, to any server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tensorbus.errors import StorageError, StorageFull, StoreUnavailable

from .connecting import Connecting
from .settings import JetStreamSettings

T = TypeVar("T")

_log = logging.getLogger("tensorbus.store")

_CONNECT = 10.0
_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_GONE = 5.0
"""Seconds without a connection after which nothing new is begun."""
_ENDING = 3.0
"""Seconds of silence after which a broker that stops gives up what the servers have not answered."""
_HEADROOM = 8 << 10
"""Bytes of a message beside its payload: subject and headers."""

WRONG_VERSION = (10071, 10164)
NOT_FOUND = (10037, 10059)
_FULL = (10023, 10047, 10077)
_IN_USE = 10058
_IN_PROCESS = 10158


@dataclass(frozen=True, slots=True)
class ApiProblem(Exception):
    """A server's refusal."""

    status: int
    code: int
    text: str


class Link:
    """One connection. ``call`` may be used from any thread; what it runs belongs to the link's own loop."""

    def __init__(self, settings: JetStreamSettings) -> None:
        self.settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._client: Client | None = None
        self._connecting: Connecting | None = None
        self._gone_since: float | None = None
        self._ending: float | None = None
        self._heard = 0.0
        self._said = False
        self.closed = False

    @property
    def client(self) -> Client:
        """The connection. Raises StorageError."""
        if self._client is None or self.closed:
            raise StorageError(f"{self.settings} is closed")
        return self._client

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._gone_since is None and not self.closed

    async def open(self, largest: int) -> None:
        """Connect; messages of ``largest`` bytes must be allowed. Raises StorageError."""
        self._thread = threading.Thread(target=self._run, name="tensorbus-nats", daemon=True)
        self._thread.start()
        await asyncio.wrap_future(self.call(self._open(largest)))

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._thread is not None:
            await asyncio.wrap_future(self.call(self._close()))
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join)
            self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` on the link's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def give_up_soon(self) -> None:
        """The broker stops: from now on, what is not answered fails after a few seconds of silence."""
        if self._ending is None:
            self._ending = time.monotonic()

    def heard(self) -> None:
        """A server has said something."""
        self._heard = time.monotonic()

    @property
    def silent(self) -> bool:
        """Whether the broker stops and no server has said anything for a while."""
        if self._ending is None:
            return False
        return time.monotonic() > max(self._ending, self._heard) + _ENDING

    @property
    def refused(self) -> bool:
        """Whether the client library has given up the connection; it does not come back."""
        return self._client is not None and self._client.is_closed

    def check(self) -> None:
        """Raise StoreUnavailable if there has been no connection for a while."""
        since = self._gone_since
        if since is not None and time.monotonic() - since > _GONE:
            raise StoreUnavailable(
                f"{self.settings} cannot be reached since {time.monotonic() - since:.0f} s; what is stored "
                "can be read as far as it is here, and nothing be changed"
            )

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _open(self, largest: int) -> None:
        settings = self.settings
        connecting = Connecting(settings, self._lost, self._found, self._given_up)
        self._client = await connecting.connect()
        self._connecting = connecting
        allowed = self.client.max_payload
        if allowed < largest + _HEADROOM:
            raise StorageError(
                f"{settings} takes messages of up to {allowed} bytes, {largest + _HEADROOM} are needed: "
                "raise max_payload in the servers' configuration"
            )
        try:
            await self.api("INFO", patience=_CONNECT)
        except (ApiProblem, StorageError) as problem:
            raise StorageError(f"{settings} has no JetStream for this account: {problem}") from problem

    async def _close(self) -> None:
        if self._client is not None:
            with suppress(nats.errors.Error, OSError):  # the connection may be broken
                await self._client.close()
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _lost(self) -> None:
        if self._gone_since is None and not self.closed:
            self._gone_since = time.monotonic()
            _log.warning("%s: the connection is lost", self.settings)

    async def _found(self) -> None:
        try:
            assert self._connecting is not None
            self._connecting.check_encrypted()
        except StorageError as problem:
            _log.error("%s", problem)
            await self.client.close()
            return
        self._gone_since = None
        _log.info("%s: connected again", self.settings)

    async def _given_up(self) -> None:
        if self._client is not None and not self.closed:
            _log.error("%s: the servers refuse this broker now", self.settings)

    # --- on the link's loop --------------------------------------------------------------------------

    async def ask(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, patience: float = 0.0
    ) -> Msg:
        """The answer to a request, which is made again for ``patience`` seconds while there is none.

        Raises StorageError.
        """
        ends = time.monotonic() + patience
        pause = _PAUSE
        while True:
            try:
                if self.silent:
                    raise TimeoutError
                answer = await self.client.request(
                    subject, payload, timeout=self.settings.api_timeout, headers=headers
                )
                self.heard()
                return answer
            except (nats.errors.Error, OSError, TimeoutError) as problem:
                if self.closed:
                    raise StorageError(f"{self.settings} is closed") from problem
                if self.silent:
                    self._say_given_up()
                if self.silent or time.monotonic() + pause > ends:
                    raise StoreUnavailable(
                        f"{self.settings} does not answer: {type(problem).__name__}; what was sent may be "
                        "sent again"
                    ) from problem
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _say_given_up(self) -> None:
        if not self._said:
            self._said = True
            _log.warning(
                "%s does not answer, and this broker stops: what it has not acknowledged yet is given up; "
                "it may be stored or not, and the same request tells when it is back",
                self.settings,
            )

    async def api(
        self, operation: str, request: dict[str, object] | None = None, patience: float = 0.0
    ) -> dict[str, Any]:
        """The answer to a request of JetStream's API. Raises ApiProblem, StorageError."""
        ends = time.monotonic() + patience
        payload = b"" if request is None else json.dumps(request).encode()
        while True:
            left = max(0.0, ends - time.monotonic())
            message = await self.ask(f"$JS.API.{operation}", payload, patience=left)
            answer = _answer(message)
            if (problem := _refusal(answer)) is None:
                return answer
            if problem.status != 503 or time.monotonic() > ends:
                raise problem
            await asyncio.sleep(_PAUSE)

    async def publish(self, subject: str, data: bytes, headers: dict[str, str], patience: float) -> int:
        """Store a message; its place in its stream. It is sent again for ``patience`` seconds.

        Raises ApiProblem (of which `WRONG_VERSION` may mean that it was stored before), StorageFull,
        StorageError.
        """
        ends = time.monotonic() + patience
        while True:
            left = max(0.0, ends - time.monotonic())
            answer = _answer(await self.ask(subject, data, headers, left))
            problem = _refusal(answer)
            if problem is None:
                return int(answer["seq"])
            if (problem.code in _FULL and "maximum" in problem.text) or problem.code == _FULL[1]:
                raise StorageFull(f"{self.settings}: {problem.text}; delete messages, or give it more room")
            # What was sent before, with the same id, may still be on its way to the other replicas.
            passing = problem.status == 503 or problem.code == _IN_PROCESS or "in process" in problem.text
            if not passing or time.monotonic() > ends:
                raise problem
            await asyncio.sleep(_PAUSE)

    async def make_stream(self, config: dict[str, object]) -> dict[str, Any]:
        """Make a stream if it is not there; what there is to know of it. Raises StorageError."""
        name = config["name"]
        try:
            try:
                return await self.api(f"STREAM.CREATE.{name}", config, _CONNECT)
            except ApiProblem as problem:
                if problem.code != _IN_USE:
                    raise
                return await self.api(f"STREAM.INFO.{name}", patience=_CONNECT)
        except ApiProblem as problem:
            raise StorageError(f"{self.settings}: stream {name}: {problem.text}") from problem


def _answer(message: Msg) -> dict[str, Any]:
    try:
        answer = json.loads(message.data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise StorageError(f"no JetStream answers at {message.subject}: {bytes(message.data[:80])!r}")
    return cast("dict[str, Any]", answer)


def _refusal(answer: dict[str, Any]) -> ApiProblem | None:
    error = answer.get("error")
    if not isinstance(error, dict):
        return None
    said = cast("dict[str, Any]", error)
    return ApiProblem(
        int(said.get("code", 500)), int(said.get("err_code", 0)), str(said.get("description", "refused"))
    )
