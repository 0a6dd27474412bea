"""TokenFile: the tokens of a broker, in ``tokens.json`` of its data directory.

The broker and ``tensorbus token`` may change it at the same time. Writers take turns by a lock on a file
beside it, and replace the file as a whole; readers need no lock, and read again when its stat has changed.
So a token that is revoked is refused from the next request on, without a word to the broker.

The file is what turns access control on: while there is none, nobody needs a token. It stays when its last
token is revoked: a broker does not open itself by that.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from tensorbus.bus.clock import Clock, SystemClock
from tensorbus.bus.fields import Fields
from tensorbus.errors import LimitExceeded, NotFound, StorageError, TensorbusError, Unauthorized

from . import audit
from .token import Credential, Token, TokenPlan, check_token_id, new_token

T = TypeVar("T")

MAX_TOKENS = 10_000
_VERSION = 1
_REFUSED = "the token is not known to this broker: it is wrong, or was revoked"

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Content:
    """What was read, and the stat that says whether it is still so."""

    stamp: Stamp | None = None
    tokens: dict[str, Token] = field(default_factory=dict[str, Token])


class TokenFile:
    """Reads, checks and changes the tokens of one data directory. Its calls block, for a moment.

    Args:
        folder: the data directory; it is made when the first token is created.
        clock: what expiry is judged by.
    """

    def __init__(self, folder: str | os.PathLike[str], clock: Clock | None = None) -> None:
        self.path = Path(folder).absolute() / "tokens.json"
        self._clock = clock or SystemClock()
        self._content = _Content()

    # --- reading -------------------------------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether there is a file, and so nobody comes in without a token."""
        return self._stamp() is not None

    def tokens(self) -> list[Token]:
        """All tokens, by when they were created; also those whose time is over.

        Raises:
            StorageError: the file cannot be read.
        """
        return sorted(self._current().values(), key=lambda token: (token.info.created, token.id))

    def token(self, token_id: str) -> Token:
        """One of them. Raises NotFound, InvalidName, StorageError."""
        found = self._current().get(check_token_id(token_id))
        if found is None:
            raise NotFound(f"there is no token {token_id}")
        return found

    def verify(self, text: str) -> Token:
        """The token that a client's credential ``text`` proves.

        Takes the same steps whether or not the id is known.

        Raises:
            Unauthorized: it is malformed, unknown, wrong, revoked or expired.
            StorageError: the file cannot be read; nobody comes in then.
        """
        credential = Credential.parse(text)
        if credential is None:
            raise Unauthorized("that is no token; one reads tb_<12 hex digits>_<64 hex digits>")
        token = self._current().get(credential.id)
        if not credential.proves(token) or token is None:
            raise Unauthorized(_REFUSED)
        if token.expired(self._now()):
            # Only who has the secret gets here, so this may say more.
            raise Unauthorized(f"the token {token.id} ({token.name}) has expired; ask for a new one")
        return token

    def _current(self) -> dict[str, Token]:
        stamp = self._stamp()
        if stamp != self._content.stamp:
            before, self._content = self._content, self._read()
            if before.stamp is not None:
                # Whoever did it has access to the files; that it happened belongs into the log of the broker.
                now = self._content.tokens.keys()
                added, removed = now - before.tokens.keys(), before.tokens.keys() - now
                audit.record("tokens.changed", "done", added=sorted(added), removed=sorted(removed))
        return self._content.tokens

    def _stamp(self) -> Stamp | None:
        try:
            found = os.stat(self.path)  # noqa: PTH116 - half the price of Path.stat, and it is for each request
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(error) from error
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def _read(self) -> _Content:
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                document: object = json.load(file)
            got = Fields(document, "tokens", allowed=("version", "tokens"))
            if (version := got.integer("version")) > _VERSION:
                raise StorageError(f"{self.path} was written by a newer release (format {version})")
            tokens = [Token.from_json(entry) for entry in got.array("tokens")]
        except FileNotFoundError:
            return _Content()
        except StorageError:
            raise
        except (OSError, ValueError, RecursionError, TensorbusError) as error:
            raise self._unreadable(error) from error
        stamp = found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
        return _Content(stamp, {token.id: token for token in tokens})

    def _unreadable(self, error: Exception) -> StorageError:
        return StorageError(
            f"{self.path} cannot be read ({error}); nobody is let in before it is repaired, or removed and "
            "all tokens made anew"
        )

    # --- changing ------------------------------------------------------------------------------------

    def create(self, plan: TokenPlan) -> tuple[Token, Credential]:
        """A new token, on stable storage when this returns. The credential is not kept anywhere.

        Raises:
            LimitExceeded: there are 10,000.
            StorageError: the file cannot be read or written.
        """

        def add(tokens: dict[str, Token]) -> tuple[Token, Credential]:
            if len(tokens) >= MAX_TOKENS:
                raise LimitExceeded(f"there are {MAX_TOKENS} tokens; revoke some first")
            while True:
                token, credential = new_token(plan, self._now())
                if token.id not in tokens:
                    tokens[token.id] = token
                    return token, credential

        return self._change(add)

    def revoke(self, token_id: str) -> Token:
        """Forget a token; it is refused from now on. Raises NotFound, InvalidName, StorageError."""
        check_token_id(token_id)

        def remove(tokens: dict[str, Token]) -> Token:
            found = tokens.pop(token_id, None)
            if found is None:
                raise NotFound(f"there is no token {token_id}")
            return found

        return self._change(remove)

    def _change(self, change: Callable[[dict[str, Token]], T]) -> T:
        try:
            with self._locked():
                tokens = dict(self._read().tokens)
                result = change(tokens)
                self._write(tokens.values())
                self._content = self._read()
                return result
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.path} cannot be changed: {error}") from error

    @contextmanager
    def _locked(self) -> Generator[None]:
        """One writer at a time, of all processes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self._open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, tokens: Iterable[Token]) -> None:
        document = {"version": _VERSION, "tokens": [token.to_json() for token in tokens]}
        new = self.path.with_suffix(".new")
        file = self._open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with os.fdopen(file, "w", encoding="utf-8") as writer:
                json.dump(document, writer, indent=1)
                writer.write("\n")
                writer.flush()
                os.fsync(writer.fileno())
            os.replace(new, self.path)  # noqa: PTH105 - said as the system calls it: atomic
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _open(self, path: Path, flags: int) -> int:
        """A file that only the owner of the data directory can read, also if root makes it for them."""
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            if os.geteuid() == 0:
                folder = path.parent.stat()
                os.fchown(descriptor, folder.st_uid, folder.st_gid)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC)
