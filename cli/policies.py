"""`tensorbus policies`: how long messages are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from .broker_options import broker_options, with_client
from .output import print_json, size

if TYPE_CHECKING:
    from tensorbus.bus.client import Client
    from tensorbus.bus.policies import PolicyInfo

EPILOG = """\b
Keep the last hundred models, at most 20 GiB of them:
  tensorbus policies set models 'models.>' --max-messages 100 --max-bytes 21474836480
Remove updates once the aggregator has taken them:
  tensorbus policies set updates 'fl.*.updates' --retention workqueue
"""


@click.group("policies", epilog=EPILOG)
def command() -> None:
    """Say how long messages are kept: by number, size and age, until they are acknowledged, or for ever.

    Without a policy a message is kept until somebody deletes it.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per policy and line.")
@broker_options
def list_policies(as_json: bool, url: str, token: str | None) -> None:
    """List the policies, and what the topics under them hold."""

    async def work(bus: Client) -> list[PolicyInfo]:
        return await bus.policies()

    found = with_client(url, token, work)
    if as_json:
        for policy in found:
            print_json(policy.to_json())
        return
    table = Table("policy", "topics", "kept", box=None)
    for column in ("messages", "stored"):
        table.add_column(column, justify="right")
    for policy in found:
        table.add_row(
            policy.name, policy.config.filter, _in_words(policy), str(policy.messages), size(policy.bytes)
        )
    Console().print(table)


@command.command("set")
@click.argument("name")
@click.argument("filter_", metavar="FILTER")
@click.option(
    "--retention",
    type=click.Choice(["limits", "interest", "workqueue"]),
    default="limits",
    show_default=True,
    help="interest: until every consumer has acknowledged it; workqueue: until the one consumer has.",
)
@click.option("--max-messages", type=click.IntRange(min=1), help="Messages that a topic holds.")
@click.option("--max-bytes", type=click.IntRange(min=1), help="Bytes that a topic holds.")
@click.option("--max-age", type=click.FloatRange(min=0.001), help="Seconds after which a message is removed.")
@click.option(
    "--discard",
    type=click.Choice(["old", "new"]),
    default="old",
    show_default=True,
    help="At a limit: old removes the oldest messages, new refuses the new one.",
)
@click.option(
    "--duplicate-window",
    type=click.FloatRange(min=0),
    help="Seconds for which an idempotency key is remembered though its message is gone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the policy as a JSON object.")
@broker_options
def set_policy(
    name: str,
    filter_: str,
    retention: str,
    max_messages: int | None,
    max_bytes: int | None,
    max_age: float | None,
    discard: str,
    duplicate_window: float | None,
    as_json: bool,
    url: str,
    token: str | None,
) -> None:
    """Create the policy NAME for the topics of FILTER, or change it; it holds at once.

    What the topics hold beyond it is removed. The limits hold for each topic by itself.
    """
    from tensorbus.bus.policies import PolicyConfig

    config = PolicyConfig.from_json(
        {
            "filter": filter_,
            "retention": retention,
            "max_messages": max_messages,
            "max_bytes": max_bytes,
            "max_age": max_age,
            "discard": discard,
            "duplicate_window": duplicate_window,
        }
    )

    async def work(bus: Client) -> PolicyInfo:
        return await bus.set_policy(name, config)

    policy = with_client(url, token, work)
    if as_json:
        print_json(policy.to_json())
    else:
        click.echo(f"{policy.name}: {policy.config.filter}: {_in_words(policy)}")


@command.command("delete")
@click.argument("name")
@broker_options
def delete_policy(name: str, url: str, token: str | None) -> None:
    """Forget the policy NAME; what its topics hold stays."""

    async def work(bus: Client) -> None:
        await bus.delete_policy(name)

    with_client(url, token, work)


def _in_words(policy: PolicyInfo) -> str:
    config = policy.config
    words: list[str] = []
    if config.retention == "interest":
        words.append("until all consumers have it")
    if config.retention == "workqueue":
        words.append("until its consumer has it")
    if config.max_messages is not None:
        words.append(f"{config.max_messages} messages")
    if config.max_bytes is not None:
        words.append(size(config.max_bytes))
    if config.max_age is not None:
        words.append(f"{config.max_age:g} s")
    if config.discard == "new":
        words.append("then refused")
    return ", ".join(words) or "for ever"
