"""`tensorbus token`: who may do what with a broker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from .broker_options import broker_options, with_client
from .output import print_json

if TYPE_CHECKING:
    from tensorbus.bus.access import TokenInfo
    from tensorbus.bus.client import Client

_UNITS = {"B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SPANS = {"m": 60, "h": 3600, "d": 86400}


def moment(text: str) -> datetime:
    """The time in UTC that ``30d``, ``12h``, ``45m`` (from now) or an ISO 8601 time says."""
    if found := re.fullmatch(r"(\d{1,6})([mhd])", text):
        return datetime.now(UTC) + timedelta(seconds=int(found[1]) * _SPANS[found[2]])
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither like 30d, 12h or 45m nor an ISO 8601 time") from None
    return (given if given.tzinfo else given.astimezone()).astimezone(UTC)


def size(text: str) -> int:
    """The bytes that ``500000``, ``64MiB`` or ``20GiB`` says."""
    found = re.fullmatch(r"(\d{1,15}) ?([KMGT]I)?B?", text.upper())
    if found is None:
        raise click.BadParameter(f"{text!r} is no size like 64MiB or 20GiB")
    return int(found[1]) * (_UNITS[found[2] + "B"] if found[2] else 1)


@click.group("token")
def command() -> None:
    """Make, list and revoke access tokens.

    With --data, in a broker's data directory, whether or not it runs: it needs no restart. Otherwise over
    HTTP, which takes a token that is admin of everything (--admin '>').

    The first token that is made closes the broker to everybody who has none.
    """


_data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The broker's data directory; then --url and --token are not used.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@command.command("create")
@click.argument("name")
@click.option("--publish", multiple=True, metavar="FILTER", help="Topics to publish on. Repeatable.")
@click.option("--subscribe", multiple=True, metavar="FILTER", help="Topics to read. Repeatable.")
@click.option(
    "--admin",
    multiple=True,
    metavar="FILTER",
    help="Topics to do everything on, also to delete and to set policies; '>' runs the broker. Repeatable.",
)
@click.option(
    "--expires", type=moment, metavar="WHEN", help="30d, 12h, 45m, or an ISO 8601 time.  [default: never]"
)
@click.option("--max-bytes", type=size, metavar="SIZE", help="It may have so much stored, such as 20GiB.")
@click.option("--max-uploads", type=click.IntRange(min=1), help="Messages it may be publishing at a time.")
@click.option("--max-connections", type=click.IntRange(min=1), help="Connections it may have at a time.")
@_data
@_json
@broker_options
def create(
    name: str,
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    admin: tuple[str, ...],
    expires: datetime | None,
    max_bytes: int | None,
    max_uploads: int | None,
    max_connections: int | None,
    data: Path | None,
    as_json: bool,
    url: str,
    token: str | None,
) -> None:
    """Make a token for NAME and print it. It is shown this once, and kept nowhere.

    \b
    Example:
      tensorbus token create site-a --data ./bus-data \\
        --publish fl.sft.updates --subscribe 'fl.sft.>' --expires 90d
    """
    from tensorbus.bus.access import Quotas, Rights, TokenFile, TokenPlan

    quotas = Quotas(max_bytes, max_uploads, max_connections)
    rights = Rights(_sorted(publish), _sorted(subscribe), _sorted(admin))
    if not (publish or subscribe or admin):
        raise click.UsageError("a token needs a right: --publish, --subscribe or --admin")
    plan = TokenPlan(name, rights, expires, quotas)
    if data is not None:
        made, credential = TokenFile(data).create(plan)
        info, text = made.info, str(credential)
    else:

        async def work(bus: Client) -> tuple[TokenInfo, str]:
            return await bus.create_token(plan)

        info, text = with_client(url, token, work)
    if as_json:
        print_json(info.to_json() | {"token": text})
    else:
        click.echo(text)
        click.echo(f"token {info.id} for {name}; it is not shown again", err=True)


@command.command("list")
@_data
@_json
@broker_options
def show(data: Path | None, as_json: bool, url: str, token: str | None) -> None:
    """List the tokens: id, name, rights, expiry. Never a secret: none is kept."""
    from tensorbus.bus.access import TokenFile

    async def work(bus: Client) -> list[TokenInfo]:
        return await bus.tokens()

    if data is not None:
        found: Sequence[TokenInfo] = [kept.info for kept in TokenFile(data).tokens()]
    else:
        found = with_client(url, token, work)
    if as_json:
        for info in found:
            print_json(info.to_json())
        return
    table = Table("id", "name", "publish", "subscribe", "admin", "expires", box=None)
    for info in found:
        rights, expires = info.plan.rights, info.plan.expires
        until = "never" if expires is None else f"{expires:%Y-%m-%d %H:%M}Z"
        lists = [" ".join(filters) for filters in (rights.publish, rights.subscribe, rights.admin)]
        table.add_row(info.id, info.plan.name, *lists, until)
    Console().print(table)


@command.command("revoke")
@click.argument("token_id", metavar="ID")
@_data
@broker_options
def revoke(token_id: str, data: Path | None, url: str, token: str | None) -> None:
    """Have the token ID refused from its next request on."""
    from tensorbus.bus.access import TokenFile

    if data is not None:
        TokenFile(data).revoke(token_id)
        return

    async def work(bus: Client) -> None:
        await bus.revoke_token(token_id)

    with_client(url, token, work)


def _sorted(filters: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(filters)))
