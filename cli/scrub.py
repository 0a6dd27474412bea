"""`tensorbus scrub`: verify everything that is stored."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .broker_options import broker_options, with_client
from .output import print_json, size

if TYPE_CHECKING:
    from tensorbus.bus.client import Client
    from tensorbus.bus.damage import ScrubReport

MIB = 1 << 20
POLL = 0.5
"""Seconds between two looks at a scrub that runs in a broker."""

EPILOG = """\b
In a running broker, at 100 MiB/s at the most:
  tensorbus scrub --rate 100
Of the directory of a broker that does not run:
  tensorbus scrub --data ./bus-data

\b
Exit codes: 0 everything is whole, 1 damage was found, or the scrub could not be made.
"""


@click.command("scrub", epilog=EPILOG)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The data directory of a broker that does not run; otherwise the broker at --url is asked.",
)
@click.option(
    "--rate",
    type=click.IntRange(min=1),
    help="MiB per second that are read at the most.  [default: 64 in a running broker, no limit with --data]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as a JSON object.")
@broker_options
def command(data: Path | None, rate: int | None, as_json: bool, url: str, token: str | None) -> None:
    """Read everything that is stored and verify it: every frame, digest and size, and the rows.

    A message whose frames are damaged is not delivered any more, and its file put into DIR/quarantine. One
    that was damaged and is whole again, since its file was restored, is delivered again.
    """
    rate = None if rate is None else rate * MIB
    if data is None:
        report = with_client(url, token, lambda bus: _watch(bus, rate, quiet=as_json))
    else:
        from .loops import run

        report = run(_offline(data, rate, quiet=as_json))
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if not report.clean:
        sys.exit(1)


async def _watch(bus: Client, rate: int | None, *, quiet: bool) -> ScrubReport:
    """The scrub of a broker, begun by this or by somebody else, to its end."""
    from tensorbus.errors import Conflict

    try:
        await bus.scrub(rate)
    except Conflict:
        click.echo("a scrub is under way already; this is how it goes", err=True)
    return await _follow(bus.scrub_report, quiet=quiet)


async def _offline(data: Path, rate: int | None, *, quiet: bool) -> ScrubReport:
    from tensorbus.bus.broker import Broker, BrokerSettings
    from tensorbus.bus.stores.file import FileStore

    async with Broker(FileStore(data), BrokerSettings(sweep_interval=0.0)) as broker:
        broker.scrub(rate)

        async def report() -> ScrubReport:
            return broker.scrubbed

        return await _follow(report, quiet=quiet)


async def _follow(look: Callable[[], Awaitable[ScrubReport]], *, quiet: bool) -> ScrubReport:
    while True:
        report = await look()
        if report.state != "running":
            return report
        if not quiet:
            done = f"{report.messages} of {report.of_messages} messages, {size(report.bytes)}"
            click.echo(f"\r{done} of {size(report.of_bytes)}   ", nl=False, err=True)
        await asyncio.sleep(POLL)


def _print(report: ScrubReport) -> None:
    click.echo(f"\r{report.messages} messages, {size(report.bytes)}: ", nl=False)
    if report.clean:
        click.echo("everything is whole")
    else:
        click.echo(f"{len(report.damaged) + report.still_damaged} damaged, state {report.state}")
    for message_id, reason in report.damaged:
        click.echo(f"damaged   {message_id}  {reason}")
    if report.still_damaged:
        click.echo(f"damaged   {report.still_damaged} more, known before (GET /v1/damaged lists them)")
    for message_id in report.restored:
        click.echo(f"restored  {message_id}")
    for name in report.orphans:
        click.echo(f"orphan    {name}")
    for problem in report.rows:
        click.echo(f"database  {problem}")
    if report.problem is not None:
        click.echo(f"failed    {report.problem}", err=True)
