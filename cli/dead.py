"""`tensorbus dead`: messages that consumers could not deal with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from .broker_options import broker_options, with_client
from .output import print_json, size

if TYPE_CHECKING:
    from tensorbus.bus.client import Client
    from tensorbus.bus.messages import MessageInfo

EPILOG = """\b
Examples:
  tensorbus dead list
  tensorbus dead replay 5f0c…
  tensorbus dead replay --all 'dead.aggregator'
  tensorbus dead purge 'dead.>'
"""


@click.group("dead", epilog=EPILOG)
def command() -> None:
    """List, replay and remove dead letters.

    A message becomes one when a worker refuses it, or when it was handed over as often as its consumer
    allows. It then lies on the topic dead.NAME, unless the consumer NAME has another one.
    """


@command.command("list")
@click.argument("filter_", metavar="[FILTER]", default=">")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per message and line.")
@broker_options
def list_dead(filter_: str, as_json: bool, url: str, token: str | None) -> None:
    """List dead letters, oldest first; those on topics that match FILTER."""

    async def work(bus: Client) -> None:
        async for info in bus.dead_letters(filter_):
            if as_json:
                print_json(info.to_json())
            else:
                _add(table, info)

    table = Table("letter", "consumer", "topic", "stored", "attempts", "reason", box=None)
    with_client(url, token, work)
    if not as_json:
        Console().print(table)


def _add(table: Table, info: MessageInfo) -> None:
    if (dead := info.dead) is not None:
        table.add_row(info.id, dead.consumer, dead.topic, size(info.bytes), str(dead.attempts), dead.reason)


@command.command("replay")
@click.argument("message_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "filter_", metavar="FILTER", help="All dead letters on topics that match FILTER.")
@click.option(
    "--everyone", is_flag=True, help="Hand them to all consumers again, not only to the one that failed."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per new message and line.")
@broker_options
def replay(
    message_ids: tuple[str, ...],
    filter_: str | None,
    everyone: bool,
    as_json: bool,
    url: str,
    token: str | None,
) -> None:
    """Make dead letters messages of their original topics again."""
    if bool(message_ids) == (filter_ is not None):
        raise click.UsageError("give either the IDs of dead letters, or --all FILTER")

    async def work(bus: Client) -> None:
        ids = message_ids
        if filter_ is not None:
            # Known beforehand: what dies again meanwhile is not replayed again.
            ids = tuple([info.id async for info in bus.dead_letters(filter_)])
        for message_id in ids:
            info = await bus.replay(message_id, everyone=everyone)
            if as_json:
                print_json(info.to_json())
            else:
                click.echo(f"{message_id}  →  {info.id}  {info.topic}")

    with_client(url, token, work)


@command.command("purge")
@click.argument("filter_", metavar="FILTER")
@click.option("--json", "as_json", is_flag=True, help="Print the number as JSON.")
@broker_options
def purge(filter_: str, as_json: bool, url: str, token: str | None) -> None:
    """Remove all dead letters on topics that match FILTER; other messages there stay."""

    async def work(bus: Client) -> int:
        return await bus.purge_dead_letters(filter_)

    count = with_client(url, token, work)
    if as_json:
        print_json({"removed": count})
    else:
        click.echo(f"{count} removed")
