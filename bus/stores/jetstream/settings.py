"""Where a JetStream is and what of it is used, as one address says it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from tensorbus.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_FORM = "nats://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][?name=…&replicas=…&credentials=FILE&ca=FILE]"
_SCHEMES = ("nats", "tls")


@dataclass(frozen=True, slots=True)
class JetStreamSettings:
    """Times are seconds.

    Attributes:
        servers: addresses of NATS servers, of which any will do.
        encrypted: whether only servers that speak TLS will do; others may, too.
        user: who this is to them, or the token that stands for it if there is no password; None for nobody.
        password: of the user.
        name: of this store; the streams are called after it, and it stands before every subject.
        replicas: how many servers keep each message, 1 to 5; counts when the streams are made.
        credentials: a file of NATS credentials; None for none.
        ca: a file with the certificates to trust, for ``tls://`` addresses; None for the system's.
        connect_timeout: after which a broker that starts gives up.
        api_timeout: after which a request to a server is made once more.
        patience: after which frames that no server takes are given up; the client can resume.
        duplicate_window: for which the servers know what was sent to them already.
    """

    servers: tuple[str, ...]
    encrypted: bool = False
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    name: str = "tensorbus"
    replicas: int = 1
    credentials: str | None = None
    ca: str | None = None
    connect_timeout: float = 10.0
    api_timeout: float = 5.0
    patience: float = 60.0
    duplicate_window: float = 120.0

    @classmethod
    def parse(cls, address: str) -> JetStreamSettings:
        """The settings of an address. Raises InvalidRequest."""
        scheme, mark, rest = address.partition("://")
        if scheme not in _SCHEMES or not mark:
            raise InvalidRequest(f"{_without_login(address)!r} is no address of a store: {_FORM}")
        hosts, _, query = rest.partition("?")
        hosts = hosts.rstrip("/")
        login, at, hosts = hosts.rpartition("@")
        user, colon, password = login.partition(":")
        servers = tuple(f"{scheme}://{host.strip()}" for host in hosts.split(",") if host.strip())
        given = dict(parse_qsl(query, keep_blank_values=True))
        replicas = given.pop("replicas", "1")
        name = given.pop("name", "tensorbus")
        credentials, ca = given.pop("credentials", None), given.pop("ca", None)
        if not servers or given:
            wrong = f"what is {next(iter(given))!r}?" if given else "it names no server"
            raise InvalidRequest(f"the address of the store: {wrong} The form is {_FORM}")
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"name {name[:40]!r} of the store must be 1 to 32 of A-Z a-z 0-9 _ -")
        if replicas not in ("1", "2", "3", "4", "5"):
            raise InvalidRequest(f"replicas of the store must be 1 to 5, not {replicas[:10]!r}")
        return cls(
            servers,
            scheme == "tls",
            unquote(user) if at else None,
            unquote(password) if colon else None,
            name,
            int(replicas),
            credentials,
            ca,
        )

    def __str__(self) -> str:
        hosts = ",".join(server.rpartition("://")[2] for server in self.servers)
        return f"JetStream {self.name} at {hosts}"


def _without_login(address: str) -> str:
    """What of an address may be shown."""
    return address.rpartition("@")[2][:80]
