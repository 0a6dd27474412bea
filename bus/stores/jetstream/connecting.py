"""How a connection to NATS comes about, and why it does not.

The client library tries all servers again and again. What no other attempt can change, a wrong password or a
certificate that is not trusted, ends that here, with what is wrong and where.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import nats.errors
from nats.aio.client import Client

from tensorbus.errors import StorageError

from .settings import JetStreamSettings

_log = logging.getLogger("tensorbus.store")

Callback = Callable[[], Awaitable[None]]

_CUTS = 3
"""Connections that a server that asks who comes has cut, after which that is its answer."""
_LARGEST_CREDENTIALS = 64 << 10
_JWT, _SEED = "-----BEGIN NATS USER JWT-----", "-----BEGIN USER NKEY SEED-----"


class _NotEncrypted(nats.errors.Error):
    def __str__(self) -> str:
        return "the server does not speak TLS, and tls:// asks for it"


class Connecting:
    """Makes the connection of a link.

    Args:
        lost, found, closed: called when the connection breaks, is there again, and is given up.
    """

    def __init__(
        self, settings: JetStreamSettings, lost: Callback, found: Callback, closed: Callback
    ) -> None:
        self._settings = settings
        self._client = Client()
        self._lost, self._found, self._closed = lost, found, closed
        self._problem: Exception | None = None
        self._cuts = 0
        self._connected = False
        self._said = ""
        self._hopeless: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def connect(self) -> Client:
        """The connection. Raises StorageError."""
        settings = self._settings
        options = {**self._trust(), **self._login()}
        connecting = asyncio.ensure_future(
            self._client.connect(  # pyright: ignore[reportUnknownMemberType]
                list(settings.servers),
                name=f"tensorbus {settings.name}",
                error_cb=self._failed,
                disconnected_cb=self._lost,
                reconnected_cb=self._found,
                closed_cb=self._closed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                connect_timeout=3,
                ping_interval=5,
                max_outstanding_pings=2,
                **options,
            )
        )
        ends = [connecting, self._hopeless]
        await asyncio.wait(ends, timeout=settings.connect_timeout, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
            if not self._in_clear():
                self._connected = True
                return self._client
            self._problem = _NotEncrypted()
        if connecting.done() and isinstance(problem := connecting.exception(), Exception):
            self._problem = problem
        connecting.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await connecting
        with suppress(Exception):  # of whatever is half open
            await self._client.close()
        raise StorageError(f"{settings} cannot be reached: {self._reason()}") from self._problem

    def check_encrypted(self) -> None:
        """Raise StorageError if the connection is in clear and should not be."""
        if self._in_clear():
            raise StorageError(f"{self._settings} cannot be reached: {_NotEncrypted()}")

    def _in_clear(self) -> bool:
        return self._settings.encrypted and not self._told.get("tls_required", False)

    @property
    def _told(self) -> dict[str, object]:
        """What the server said of itself; the library has no public name for it."""
        return cast("dict[str, object]", getattr(self._client, "_server_info", {}))

    # --- whom to trust, and who we are ---------------------------------------------------------------

    def _trust(self) -> dict[str, Any]:
        ca = self._settings.ca
        if ca is None:
            return {}
        try:
            return {"tls": ssl.create_default_context(cafile=ca)}
        except (OSError, ValueError) as problem:
            raise StorageError(
                f"{self._settings}: ca={ca} holds no certificates that can be read: {problem}"
            ) from problem

    def _login(self) -> dict[str, Any]:
        settings = self._settings
        if settings.credentials is not None:
            self._check_credentials(Path(settings.credentials))
            return {"user_credentials": settings.credentials}
        if settings.user is None:
            return {}
        if settings.password is None:
            return {"token": lambda: self._secret(settings.user)}
        return {"user": settings.user, "password": lambda: self._secret(settings.password)}

    def _secret(self, secret: str | None) -> str:
        """It is asked for when it is about to be sent: not in clear, where TLS was asked for."""
        if self._in_clear():
            raise _NotEncrypted
        return secret or ""

    def _check_credentials(self, path: Path) -> None:
        """The library would look for what is missing for ever. Raises StorageError."""
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST_CREDENTIALS).decode("ascii", "replace")
        except OSError as problem:
            raise StorageError(
                f"{self._settings}: credentials={path} cannot be read: {problem.strerror}"
            ) from problem
        lines = content.splitlines()
        for mark in (_JWT, _SEED):
            if mark not in lines or not "".join(lines[lines.index(mark) + 1 :][:1]).strip():
                raise StorageError(
                    f"{self._settings}: credentials={path} is no file of NATS credentials: it has no line "
                    f"{mark!r} with another behind it"
                )

    # --- what goes wrong -----------------------------------------------------------------------------

    async def _failed(self, problem: Exception) -> None:
        if self._connected:
            self._say(problem)
            return
        if self._hopeless.done():
            return
        self._problem = problem
        self._cuts += _is_cut(problem)
        hopeless = isinstance(problem, ssl.SSLCertVerificationError | _NotEncrypted)
        if hopeless or self._is_refusal(problem):
            self._hopeless.set_result(None)

    def _say(self, problem: Exception) -> None:
        """Why a connection that was lost does not come back, once until the reason is another."""
        self._problem = problem
        reason = self._reason()
        if reason != self._said:
            self._said = reason
            _log.warning("%s cannot be reached: %s", self._settings, reason)

    def _is_refusal(self, problem: Exception | None) -> bool:
        """Whether we are not let in. Over TLS, all that is seen of that may be a connection that breaks."""
        if isinstance(problem, nats.errors.Error) and "auth" in str(problem).lower():
            return True
        asked = self._told.get("auth_required", False) or "nonce" in self._told
        return bool(asked) and _is_cut(problem) and self._cuts >= _CUTS

    def _reason(self) -> str:
        problem, settings = self._problem, self._settings
        if isinstance(problem, ssl.SSLCertVerificationError):
            whom = "the system's authorities" if settings.ca is None else f"those in ca={settings.ca}"
            return (
                f"the server's certificate is not trusted ({problem.verify_message}) by {whom}; name the "
                "file of its authority with ca=FILE in the address of the store"
            )
        if self._is_refusal(problem):
            return f"the server refuses {self._who()}"
        if settings.credentials is not None and not isinstance(problem, nats.errors.Error | OSError | None):
            return f"what is in credentials={settings.credentials} cannot be used: {type(problem).__name__}"
        return str(problem or "") or "no answer"

    def _who(self) -> str:
        settings = self._settings
        if settings.credentials is not None:
            return f"what is in credentials={settings.credentials}"
        if settings.user is None:
            return (
                "who gives no name: write USER:PASSWORD@ before the host, or credentials=FILE behind it, "
                "into the address of the store"
            )
        if settings.password is None:
            return "the token in the address of the store"
        return f"user {settings.user!r} with the password in the address of the store"


def _is_cut(problem: Exception | None) -> bool:
    return isinstance(problem, ConnectionResetError | BrokenPipeError | nats.errors.UnexpectedEOF)
