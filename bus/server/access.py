"""Who sends a request, and whether they may do what it asks for.

The middleware finds the identity; each handler then says what it needs, with one of the functions here, as
soon as it knows the topic. A handler that forgets is found out: a request that went well without having asked
is answered as a fault of the program.

What a token may not see does not exist for it: a message on a foreign topic is answered as one that never
was. Only where the caller named the topic is the refusal a plain 403.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

from tensorbus.bus.access import NO_QUOTAS, NO_RIGHTS, OWNER_RIGHTS, Quotas, Right, Rights, Token
from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import Forbidden, NotFound, StoreDamaged, TooManyRequests, Unauthorized

from .context import context
from .limits import gate_of
from .problems import Handler

T = TypeVar("T")

PUBLIC = frozenset({"/", "/page/{file}", "/healthz", "/readyz", "/openapi.json", "/docs", "/docs/{file}"})
"""Routes that need no token: whether the broker lives, what its API is, and the page, which asks for one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sends a request.

    Attributes:
        token: None for whoever came without one, where that is allowed.
        rights: where they may do what.
    """

    token: Token | None
    rights: Rights

    @property
    def id(self) -> str | None:
        """The token's id; None without one."""
        return None if self.token is None else self.token.id

    @property
    def quotas(self) -> Quotas:
        """What it may use."""
        return NO_QUOTAS if self.token is None else self.token.quotas

    def __str__(self) -> str:
        return "whoever has no token" if self.token is None else f"token {self.token.id} ({self.token.name})"


_IDENTITY = web.RequestKey("identity", Identity)
_ASKED = web.RequestKey("asked", bool)
_HIDDEN = web.RequestKey("hidden", bool)

NOBODY = Identity(None, NO_RIGHTS)
ANYONE = Identity(None, OWNER_RIGHTS)
"""Every caller of a broker without tokens."""


@web.middleware
async def access_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out who asks; nobody gets further without having shown a valid token where there are tokens.

    Raises:
        Unauthorized: no token, or not a valid one.
        Forbidden: a web page of another site asks a broker that asks for no token.
        TooManyRequests: the token has as many connections as it may have.
    """
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical in PUBLIC:
        return await handler(request)
    identity = _identify(request)
    request[_IDENTITY] = identity
    if identity.token is not None and (gate := gate_of(request)) is not None:
        gate.claim(identity.token)
    response = await handler(request)
    if resource is not None and response.status < 400 and not request.get(_ASKED, False):
        raise RuntimeError(f"{request.method} {resource.canonical} was answered without asking for a right")
    return response


def identity_of(request: web.Request) -> Identity:
    """Who sends ``request``; nobody with any right on public routes, and before that is known."""
    return request.get(_IDENTITY, NOBODY)


def identify_again(request: web.Request) -> None:
    """Find out once more who asks, in a request that lasts: tokens are revoked, and expire.

    Raises Unauthorized.
    """
    request[_IDENTITY] = _identify(request)


def _identify(request: web.Request) -> Identity:
    here = context(request)
    if here.tokens is None or not here.tokens.in_use:
        if not here.settings.open_to_anyone:
            raise Unauthorized(
                "this broker has no tokens yet, and lets nobody in over the network before it has: run "
                "`tensorbus token create` with its --data directory"
            )
        _check_origin(request)
        return ANYONE
    given = request.headers.getall("Authorization", [])
    if not given:
        raise Unauthorized("this broker asks for a token: send `Authorization: Bearer tb_…`")
    scheme, _, credential = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer":
        raise Unauthorized("send one `Authorization` header, of the scheme Bearer: `Bearer tb_…`")
    token = here.tokens.verify(credential.strip())
    return Identity(token, token.rights)


def _check_origin(request: web.Request) -> None:
    """A page in this machine's browser may send requests here; without tokens they would all be obeyed.

    Its browser says so, unless the page's own name leads to this machine: whoever owns a name can make it.
    A name without a dot is nobody's in the Internet.
    """
    origin, host = request.headers.get("Origin"), request.headers.get("Host")
    if origin is not None and _place(origin) != _place(f"//{host}"):
        raise Forbidden(
            "a web page of another site asks for this; this broker has no tokens and trusts only programs "
            "and its own pages"
        )
    settings = context(request).settings
    if host is None or settings.allow_remote:
        return
    name = _place(f"//{host}").hostname or ""
    if name == settings.host.lower() or name.endswith(".localhost"):
        return
    if "." in name.rstrip(".") and not _is_address(name):
        raise Forbidden(
            f"this broker has no tokens and listens for this machine only, where nobody calls it "
            f"{name[:80]!r}: use localhost or 127.0.0.1, make tokens, or say --allow-remote"
        )


def _place(address: str) -> SplitResult:
    try:
        return urlsplit(address)._replace(scheme="", path="", query="", fragment="")
    except ValueError:
        return SplitResult("", "invalid.invalid", "", "", "")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# --- what handlers ask -------------------------------------------------------------------------------


def authorize(request: web.Request, right: Right, pattern: str) -> Identity:
    """Let only those pass who have ``right`` on every topic of the topic or valid filter ``pattern``.

    Call it with checked names. Returns who it is.

    Raises:
        Forbidden: they have it not.
    """
    identity = _asked(request)
    if not identity.rights.allow(right, pattern):
        raise Forbidden(f"{identity} has no right to {_WORDS[right]} {pattern[:80]!r}")
    return identity


_WORDS = {"publish": "publish on", "subscribe": "read", "admin": "administrate"}


@contextmanager
def new_upload(request: web.Request, topic: str) -> Generator[Identity]:
    """As `authorize` for one more message on ``topic``, which is to be begun within the context.

    Raises:
        TooManyRequests: the token is publishing as many as it may.
    """
    identity = authorize(request, "publish", topic)
    limit = identity.quotas.max_uploads
    if identity.id is None or limit is None:
        yield identity
        return
    here = context(request)
    if here.broker.uploads_of(identity.id) + here.beginning[identity.id] >= limit:
        raise TooManyRequests(
            f"{identity} has {limit} uploads open, which is what it may have; end some first"
        )
    # To begin takes a while, in which others must not begin as well.
    here.beginning[identity.id] += 1
    try:
        yield identity
    finally:
        here.beginning[identity.id] -= 1


def authorize_any(request: web.Request) -> Identity:
    """Let everybody pass who has a valid token, whatever its rights."""
    return _asked(request)


async def message_for(request: web.Request) -> MessageInfo:
    """The message that the address names, if the caller may read it.

    Raises:
        NotFound: it is not there; who may not read it is told the same.
        InvalidName, StoreDamaged: as `Broker.message`.
    """
    broker = context(request).broker
    message_id = request.match_info["id"]
    try:
        info = await broker.message(message_id)
    except StoreDamaged:
        _authorize_message(request, message_id, await broker.topic_of(message_id))
        raise
    _authorize_message(request, info.id, info.topic)
    return info


async def authorize_admin_of(request: web.Request, message_id: str) -> str:
    """The topic of a message, whole or damaged, if the caller is admin there.

    Raises:
        NotFound: it is not there, or they may not even read it.
        Forbidden: they may read it, but are no admin.
    """
    topic = await context(request).broker.topic_of(message_id)
    _authorize_message(request, message_id, topic)
    authorize(request, "admin", topic)
    return topic


def _authorize_message(request: web.Request, message_id: str, topic: str) -> None:
    if not may(request, "subscribe", topic):
        hide(request)
        raise NotFound(f"there is no message {message_id}")  # the broker's words


def authorize_consumer(request: web.Request) -> str:
    """The name of the consumer that the address names, if the caller may read all that it is handed.

    Raises:
        NotFound: it is not there; others are told the same.
    """
    name = request.match_info["name"]
    _asked(request)
    if not may(request, "subscribe", context(request).broker.consumer_filter(name)):
        hide(request)
        raise NotFound(f"there is no consumer {name[:64]!r}; create it first")  # the broker's words
    return name


def hide(request: web.Request) -> None:
    """The answer will be that there is nothing; the audit log shall say that there is."""
    request[_HIDDEN] = True


def was_hidden(request: web.Request) -> bool:
    """Whether ``hide`` was called."""
    return bool(request.get(_HIDDEN, False))


def may(request: web.Request, right: Right, pattern: str) -> bool:
    """Whether the caller has ``right`` on every topic of ``pattern``."""
    return _asked(request).rights.allow(right, pattern)


def seen(request: web.Request, found: Iterable[T], pattern: Callable[[T], str]) -> list[T]:
    """Those of ``found`` that the caller may read; ``pattern`` gives the topic or filter of one."""
    rights = _asked(request).rights
    return [one for one in found if rights.allow("subscribe", pattern(one))]


def visible(request: web.Request, pattern: str) -> list[str]:
    """Filters of those topics of ``pattern`` that the caller may read; none covers another."""
    return _asked(request).rights.within("subscribe", pattern)


def is_owner(request: web.Request, owner: str | None) -> bool:
    """Whether the caller made the thing whose ``owner`` is kept; None is nobody: there were no tokens."""
    identity = _asked(request)
    return identity.token is None or identity.id == owner


def owner_of(request: web.Request, owner: str | None) -> Token | None:
    """The token that made the thing whose ``owner`` is kept; None if there was none, or it was revoked."""
    tokens = context(request).tokens
    if owner is None or tokens is None:
        return None
    try:
        return tokens.token(owner)
    except NotFound:
        return None


def _asked(request: web.Request) -> Identity:
    request[_ASKED] = True
    return identity_of(request)
