"""What every command that talks to a broker has in common: where it is, and how to run the talk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from tensorbus.bus.client import Client, TlsSettings

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8080"
PATIENCE = 5.0
"""Seconds without progress after which a command gives up: a person is waiting."""


def broker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--url`` and ``--token``, which arrive as ``url`` and ``token``, and those of `tls_settings`.

    What ``--token-file`` holds arrives as ``token``, too.
    """
    for name, text in reversed(_TLS):
        command = click.option(
            f"--tls-{name}",
            envvar=f"TENSORBUS_TLS_{name.upper()}",
            show_envvar=True,
            expose_value=False,
            callback=_remember,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help=text,
        )(command)
    command = click.option(
        "--token-file",
        envvar="TENSORBUS_TOKEN_FILE",
        show_envvar=True,
        expose_value=False,
        is_eager=True,
        callback=_remember,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="File that holds the access token, such as a mounted secret.",
    )(command)
    command = click.option(
        "--token",
        envvar="TENSORBUS_TOKEN",
        show_envvar=True,
        callback=_given_or_read,
        help="Access token, if the broker asks for one; better in the environment or a file than here.",
    )(command)
    return click.option(
        "--url",
        envvar="TENSORBUS_URL",
        show_envvar=True,
        default=DEFAULT_URL,
        show_default=True,
        help="Address of the broker; of several of one store, with commas between them.",
    )(command)


_TLS = (
    ("ca", "Authorities (PEM) that an https broker's certificate is checked by.  [default: the system's]"),
    ("cert", "The client's own certificate (PEM), for a broker that asks for one."),
    ("key", "Its private key (PEM), if it is not in the same file."),
)


def _remember(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    context.meta[f"tensorbus.{parameter.name}"] = value


def _given_or_read(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """``--token``, or else what ``--token-file`` holds. Raises UsageError for both, InvalidRequest."""
    path: Path | None = context.meta.get("tensorbus.token_file")
    if path is None:
        return value
    if value is not None:
        raise click.UsageError("give --token or --token-file, not both")
    from tensorbus.bus.access import read_credential

    return read_credential(path)


def tls_settings() -> TlsSettings | None:
    """What ``--tls-ca``, ``--tls-cert`` and ``--tls-key`` of the running command say; None for nothing."""
    from tensorbus.bus.client import TlsSettings

    meta = click.get_current_context().meta
    ca, cert, key = (meta.get(f"tensorbus.tls_{name}") for name, _ in _TLS)
    return TlsSettings(ca, cert, key) if ca or cert or key else None


def base_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--base`` for reading, which arrives as ``bases``."""
    return click.option(
        "--base",
        "bases",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="A .safetensors file that messages may be changes from. Repeatable.",
    )(command)


def with_client(
    url: str, token: str | None, work: Callable[[Client], Awaitable[T]], bases: Iterable[Path] = ()
) -> T:
    """Open a client that has ``bases``, do ``work`` with it, and close it."""
    from tensorbus.bus.client import Client, ClientSettings

    from .allocator import keep_large_buffers
    from .loops import run

    keep_large_buffers()
    tls = tls_settings()

    async def talk() -> T:
        settings = ClientSettings(retry_for=PATIENCE)
        async with Client(url, token=token, settings=settings, bases=bases, tls=tls) as bus:
            return await work(bus)

    return run(talk())
