"""What `tensorbus serve` is told about who may come in: TLS, limits, the audit log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TypeVar

import click

from tensorbus.bus.server import ServerSettings
from tensorbus.bus.server.tls import TlsFiles

T = TypeVar("T")

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Access:
    """The options together."""

    allow_remote: bool
    tls: TlsFiles | None
    audit_log: Path | None
    max_connections: int


def access_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds the options; they arrive as one argument ``access``."""

    @wraps(command)
    def gather(
        *args: object,
        allow_remote: bool,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_client_ca: Path | None,
        audit_log: Path | None,
        max_connections: int,
        **others: object,
    ) -> T:
        if tls_cert is None and (tls_key or tls_client_ca):
            raise click.UsageError("--tls-key and --tls-client-ca need --tls-cert")
        tls = None if tls_cert is None else TlsFiles(tls_cert, tls_key, tls_client_ca)
        return command(*args, access=Access(allow_remote, tls, audit_log, max_connections), **others)

    for option in reversed(_OPTIONS):
        option(gather)
    return gather


_OPTIONS = (
    click.option(
        "--allow-remote",
        is_flag=True,
        envvar="TENSORBUS_ALLOW_REMOTE",
        help="Serve other machines even while there are no tokens, and so everybody may do everything. "
        "Also: TENSORBUS_ALLOW_REMOTE=1.",
    ),
    click.option(
        "--tls-cert",
        type=_FILE,
        metavar="FILE",
        help="Speak HTTPS with this certificate (PEM, with the chain). Read again on SIGHUP.",
    ),
    click.option(
        "--tls-key", type=_FILE, metavar="FILE", help="Its private key (PEM), if it is not in the same file."
    ),
    click.option(
        "--tls-client-ca",
        type=_FILE,
        metavar="FILE",
        help="Refuse clients without a certificate of these authorities (PEM): mutual TLS.",
    ),
    click.option(
        "--audit-log",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Append who did what to this file, one JSON object a line. Opened anew on SIGHUP.  "
        "[default: with the log]",
    ),
    click.option(
        "--max-connections",
        default=ServerSettings().max_connections,
        show_default=True,
        type=click.IntRange(min=1),
        help="Connections at a time.",
    ),
)
