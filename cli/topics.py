"""`tensorbus topics`: what is stored, by topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from .broker_options import broker_options, with_client
from .output import print_json, size

if TYPE_CHECKING:
    from tensorbus.bus.client import Client
    from tensorbus.bus.messages import TopicInfo


@click.command("topics")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per topic and line.")
@broker_options
def command(as_json: bool, url: str, token: str | None) -> None:
    """List the topics that hold messages, with their number and size."""

    async def work(bus: Client) -> list[TopicInfo]:
        return await bus.topics()

    topics = with_client(url, token, work)
    if as_json:
        for topic in topics:
            print_json(topic.to_json())
        return
    table = Table("topic", box=None)
    for column in ("messages", "stored", "seq"):
        table.add_column(column, justify="right")
    for topic in topics:
        table.add_row(
            topic.topic, str(topic.messages), size(topic.bytes), f"{topic.first_seq}–{topic.last_seq}"
        )
    Console().print(table)
