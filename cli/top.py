"""`tensorbus top`: what a broker is doing, live."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live

from .broker_options import broker_options, with_client
from .output import print_json
from .top_board import Board
from .top_keys import Keys
from .top_reading import Part

if TYPE_CHECKING:
    from tensorbus.bus.client import Client

TICK = 1.0
"""Seconds after which the picture is drawn again though nothing was heard: its clock goes on."""
LONGEST_LOOK = 2.0
"""Seconds that are waited for rates."""
PAUSE = 1.0
"""Seconds between two attempts to reach a broker that went away."""
TOPIC_ORDERS = ("recent", "name", "messages", "bytes")
CONSUMER_ORDERS = ("lag", "name", "pending", "redelivering", "dead")

View = dict[str, str | int]


@click.command("top")
@click.option("--once", is_flag=True, help="Print how things stand, once, and end.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the status as one JSON object per line, whenever it changes.",
)
@click.option(
    "--search", metavar="TEXT", help="Only jobs, topics, consumers and transfers with this in their names."
)
@click.option(
    "--topics-by", type=click.Choice(TOPIC_ORDERS), default="recent", show_default=True, help="Their order."
)
@click.option(
    "--consumers-by",
    type=click.Choice(CONSUMER_ORDERS),
    default="lag",
    show_default=True,
    help="Their order.",
)
@broker_options
def command(
    once: bool,
    as_json: bool,
    search: str | None,
    topics_by: str,
    consumers_by: str,
    url: str,
    token: str | None,
) -> None:
    """Show what the broker is doing, live: jobs and rounds, transfers, consumers, topics, codecs, disk.

    It needs any valid token, and shows what that may read. While the broker is away it says so, and goes on
    when it is back. Press q or Ctrl-C to end it. Where standard output is no terminal it prints one snapshot,
    as with --once.

    \b
    Examples:
      tensorbus top
      tensorbus top --once --json
      tensorbus top --search sft --consumers-by dead
    """
    view: View = {"topics_by": topics_by, "consumers_by": consumers_by}
    if search is not None:
        view["search"] = search
    console = Console(highlight=False)
    live = console.is_terminal and not console.is_dumb_terminal

    async def work(bus: Client) -> None:
        status = await _first(bus, view)
        if as_json and once:
            print_json(status)
        elif as_json:
            await _print(bus, view)
        elif once or not live:
            console.print(Board(bus.url, status, fit=False))
        else:
            await _watch(bus, view, Board(bus.url, status, fit=True), console)

    with_client(url, token, work)


async def _first(bus: Client, view: View) -> dict[str, object]:
    """The status now, with rates, for which the broker has to look twice if nobody else does so.

    Raises as `Client.status`, and for a broker that has none.
    """
    from tensorbus.errors import NotFound

    try:
        status = Part(await bus.status(**view))
        await asyncio.sleep(min(status.number("every") or 0.0, LONGEST_LOOK))
        return await bus.status(**view)
    except NotFound:
        raise NotFound(
            f"the broker at {bus.url} is of an older release: it does not tell what it is doing"
        ) from None


async def _print(bus: Client, view: View) -> None:
    """The status as JSON lines, over all restarts of the broker."""

    def lost(reason: str) -> None:
        click.echo(f"tensorbus: connection lost, trying again: {reason}", err=True)

    await _follow(bus, view, print_json, lost)


async def _watch(bus: Client, view: View, board: Board, console: Console) -> None:
    """The picture, until somebody has seen enough."""
    loop = asyncio.get_running_loop()
    seen, news = asyncio.Event(), asyncio.Event()

    def show(status: dict[str, object]) -> None:
        board.show(status, bus.url)
        news.set()

    def lost(reason: str) -> None:
        board.lose(reason)
        news.set()

    def pressed(key: str) -> None:
        if key in "qQ\x03\x04":
            seen.set()
        elif key == "\x0c":  # Ctrl-L
            news.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, seen.set)
    loop.add_signal_handler(signal.SIGWINCH, news.set)
    following = asyncio.create_task(_follow(bus, view, show, lost))
    following.add_done_callback(lambda _: seen.set())
    with (
        Keys(pressed),
        Live(board, console=console, screen=True, auto_refresh=False, redirect_stderr=False) as picture,
    ):
        ending = asyncio.create_task(seen.wait())
        while not ending.done():
            picture.refresh()
            waiting = asyncio.create_task(news.wait())
            await asyncio.wait((waiting, ending), timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            news.clear()
    if following.done():
        following.result()  # what ended it: a token that was revoked
    following.cancel()
    await asyncio.wait((following,))


async def _follow(
    bus: Client, view: View, show: Callable[[dict[str, object]], None], lost: Callable[[str], None]
) -> None:
    """Tell of every status, and of every time that the connection is lost; for ever.

    Raises:
        TensorbusError: the broker refuses, so that trying again is of no use.
    """
    from tensorbus.errors import BrokerUnavailable, TransferStalled

    while True:
        try:
            async with aclosing(bus.statuses(**view)) as statuses:
                async for status in statuses:
                    show(status)
        except (BrokerUnavailable, TransferStalled) as error:
            lost(str(error))
        await asyncio.sleep(PAUSE)
