"""What every command that talks to a broker has in common: where it is, and how to run the talk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from tensorbus.bus.client import Client

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8080"
PATIENCE = 5.0
"""Seconds without progress after which a command gives up: a person is waiting."""


def broker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--url`` and ``--token``, which arrive as ``url`` and ``token``."""
    command = click.option(
        "--token",
        envvar="TENSORBUS_TOKEN",
        show_envvar=True,
        help="Access token, if the broker asks for one.",
    )(command)
    return click.option(
        "--url",
        envvar="TENSORBUS_URL",
        show_envvar=True,
        default=DEFAULT_URL,
        show_default=True,
        help="Address of the broker.",
    )(command)


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

    async def talk() -> T:
        settings = ClientSettings(retry_for=PATIENCE)
        async with Client(url, token=token, settings=settings, bases=bases) as bus:
            return await work(bus)

    return run(talk())
