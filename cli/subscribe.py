"""`tensorbus subscribe`: messages as they arrive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .broker_options import base_option, broker_options, with_client
from .consumer_options import ConsumerOptions, consumer_options
from .output import print_json, size
from .transfer_bar import TransferBar

if TYPE_CHECKING:
    from tensorbus.bus.client import Client, Delivery
    from tensorbus.bus.messages import MessageInfo


@click.command("subscribe")
@click.argument("filter_", metavar="FILTER")
@click.option(
    "--consumer", metavar="NAME", help="A durable position under this name, which other workers may share."
)
@consumer_options
@click.option("--follow", is_flag=True, help="Take messages while they are still being published.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option(
    "--save-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write each message to a file in this folder.",
)
@base_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per message and line.")
@broker_options
def command(
    filter_: str,
    consumer: str | None,
    options: ConsumerOptions,
    follow: bool,
    count: int | None,
    save_dir: Path | None,
    bases: tuple[Path, ...],
    as_json: bool,
    url: str,
    token: str | None,
) -> None:
    """Print the messages whose topics match FILTER, and go on as new ones arrive.

    In FILTER, * stands for one token and a last > for all the rest. Each message is acknowledged once it is
    printed and, with --save-dir, safely written.

    \b
    Examples:
      tensorbus subscribe 'fl.*.updates'
      tensorbus subscribe '>' --consumer archive --save-dir ./archive
    """

    async def work(bus: Client) -> None:
        taken = 0
        async with bus.subscribe(
            filter_,
            consumer=consumer,
            follow=follow,
            start=options.start,
            ack_wait=options.ack_wait,
            backoff=options.backoff,
            max_deliver=options.max_deliver,
            dead_letter=options.dead_letter,
        ) as deliveries:
            async for delivery in deliveries:
                path = await _take(delivery, save_dir)
                # Of a message that was still open when it came, only now everything is known.
                sealed = delivery.info.state == "sealed"
                info = delivery.info if sealed else await bus.message(delivery.id)
                _show(delivery, info, path, as_json)
                await delivery.ack()
                taken += 1
                if taken == count:
                    return

    if save_dir is not None:
        save_dir.mkdir(parents=True, exist_ok=True)
    with_client(url, token, work, bases)


async def _take(delivery: Delivery, save_dir: Path | None) -> Path | None:
    """Write the message to a file; one that is still open is at least read to its end."""
    with TransferBar(f"receiving {delivery.id[:8]}") as bar:
        if save_dir is not None:
            suffix = ".bin" if delivery.info.container == "bytes" else ".safetensors"
            path = save_dir / f"{delivery.topic}-{delivery.id}{suffix}"
            await delivery.save(path, progress=bar)
            return path
        if delivery.info.state == "open":
            async for _ in delivery.slices(progress=bar):
                pass
        return None


def _show(delivery: Delivery, info: MessageInfo, path: Path | None, as_json: bool) -> None:
    if as_json:
        where = None if path is None else str(path)
        print_json({**info.to_json(), "attempt": delivery.attempt, "path": where})
        return
    headers = json.dumps(dict(info.headers), ensure_ascii=False)
    where = "" if path is None else f"  → {path}"
    click.echo(f"{info.id}  {info.topic}  {size(info.bytes)}  {headers}{where}")
