"""Token: who may do what until when, and the credential that proves it. Pure but for chance and one file.

A credential reads ``tb_<id>_<secret>``: 12 and 64 hex digits. The id is no secret, and names the token in
lists and logs. The secret is 256 bits of chance; only its SHA-256 is kept. That a password needs a slow hash
is because it can be guessed; 256 bits cannot, so a fast one gives nothing away.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from tensorbus.bus.fields import Fields
from tensorbus.bus.messages import to_iso
from tensorbus.errors import InvalidName, InvalidRequest

from .rights import NO_RIGHTS, RIGHTS, Rights

_CREDENTIAL = re.compile(r"tb_([0-9a-f]{12})_([0-9a-f]{64})", re.ASCII)
_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}", re.ASCII)
_NOBODY = hashlib.sha256(b"nobody").hexdigest()

MAX_CREDENTIAL = 8192
"""Bytes of a file that holds one."""

_QUOTAS = ("max_bytes", "max_uploads", "max_connections")
PLAN_FIELDS = ("name", *RIGHTS, "expires", *_QUOTAS)
"""What whoever creates a token says about it."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a token may use at a time; None is no limit.

    Attributes:
        max_bytes: of messages that it published and that are still stored.
        max_uploads: messages that it is publishing.
        max_connections: to the broker.
    """

    max_bytes: int | None = None
    max_uploads: int | None = None
    max_connections: int | None = None

    def to_json(self) -> dict[str, object]:
        """The three numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Quotas:
        """The numbers among the fields of ``document``. Raises InvalidRequest."""
        got = Fields(document, "token")
        return cls(*(got.integer_or_none(name) for name in _QUOTAS))


NO_QUOTAS = Quotas()


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """What is wanted of a new token.

    Raises:
        InvalidName: ``name`` is not 1 to 64 characters of ``A-Z a-z 0-9 _ . @ -``.
    """

    name: str
    rights: Rights = NO_RIGHTS
    expires: datetime | None = None
    quotas: Quotas = NO_QUOTAS

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidName(
                f"token name {self.name[:40]!r} must be 1 to 64 characters of A-Z a-z 0-9 _ . @ -"
            )

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        expires = None if self.expires is None else to_iso(self.expires)
        return {"name": self.name, **self.rights.to_json(), "expires": expires, **self.quotas.to_json()}

    @classmethod
    def from_json(cls, document: object) -> TokenPlan:
        """The value of a JSON object. Raises as the value does, and InvalidRequest."""
        got = Fields(document, "token", allowed=PLAN_FIELDS)
        return cls(
            name=got.text("name"),
            rights=Rights.from_json(got.document),
            expires=got.moment_or_none("expires"),
            quotas=Quotas.from_json(got.document),
        )


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What may be told of a token.

    Attributes:
        id: 12 hex digits.
        created: when.
    """

    id: str
    plan: TokenPlan
    created: datetime

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {"id": self.id, **self.plan.to_json(), "created": to_iso(self.created)}

    @classmethod
    def from_json(cls, document: object) -> TokenInfo:
        """The value of a JSON object. Raises InvalidRequest, InvalidName, LimitExceeded."""
        got = Fields(document, "token")
        plan = TokenPlan.from_json({name: got.document.get(name) for name in PLAN_FIELDS})
        return cls(check_token_id(got.text("id")), plan, got.moment("created"))


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept: everything but its secret; ``hash`` is the SHA-256 of that, in hex."""

    info: TokenInfo
    hash: str = field(repr=False)

    @property
    def id(self) -> str:
        """12 hex digits."""
        return self.info.id

    @property
    def name(self) -> str:
        """What people call it; need not be unique."""
        return self.info.plan.name

    @property
    def rights(self) -> Rights:
        """Where it may do what."""
        return self.info.plan.rights

    @property
    def quotas(self) -> Quotas:
        """How much it may use."""
        return self.info.plan.quotas

    def expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        expires = self.info.plan.expires
        return expires is not None and now >= expires

    def to_json(self) -> dict[str, object]:
        """What is kept."""
        return self.info.to_json() | {"hash": self.hash}

    @classmethod
    def from_json(cls, document: object) -> Token:
        """What was kept. Raises InvalidRequest, InvalidName, LimitExceeded."""
        token = cls(TokenInfo.from_json(document), Fields(document, "token").text("hash"))
        if not _HASH.fullmatch(token.hash):
            raise InvalidRequest(f"token {token.id}: its hash is not 64 hex digits")
        return token


@dataclass(frozen=True, slots=True)
class Credential:
    """What a client shows. ``str()`` gives it away, ``repr()`` does not."""

    id: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        return f"tb_{self.id}_{self.secret}"

    @classmethod
    def parse(cls, text: str) -> Credential | None:
        """The credential that ``text`` is; None if it is none."""
        found = _CREDENTIAL.fullmatch(text)
        return None if found is None else cls(found[1], found[2])

    def proves(self, token: Token | None) -> bool:
        """Whether this is ``token``'s secret; takes as long, and says no, where there is no such token."""
        expected = _NOBODY if token is None else token.hash
        same = hmac.compare_digest(hash_of(self.secret), expected)
        return same and token is not None


def new_token(plan: TokenPlan, created: datetime) -> tuple[Token, Credential]:
    """A token and its credential, which nobody can make again from it."""
    credential = Credential(secrets.token_hex(6), secrets.token_hex(32))
    return Token(TokenInfo(credential.id, plan, created), hash_of(credential.secret)), credential


def hash_of(secret: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def check_token_id(token_id: str) -> str:
    """Return ``token_id`` if it is 12 hex digits, else raise InvalidName."""
    if not _ID.fullmatch(token_id):
        raise InvalidName(f"token id {token_id[:40]!r} must be 12 lower-case hex digits")
    return token_id


def read_credential(path: Path) -> str:
    """The token in a file such as a secret that is mounted: its one word, whatever white space is around it.

    Raises:
        InvalidRequest: the file cannot be read, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CREDENTIAL + 1)
    except OSError as error:
        raise InvalidRequest(f"no token can be read from {path}: {error.strerror}") from error
    words = text.split()
    if len(text) > MAX_CREDENTIAL or len(words) != 1 or not words[0].isascii():
        raise InvalidRequest(f"{path} does not hold one token and nothing else")
    return words[0].decode()
