"""`tensorbus fetch`: a message, or one item of it, becomes a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .broker_options import base_option, broker_options, with_client
from .output import print_json, size
from .transfer_bar import TransferBar

if TYPE_CHECKING:
    from tensorbus.bus.client import Client, Message


@click.command("fetch")
@click.argument("message_id", metavar="ID")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(writable=True),
    help="The file to write. It appears when it is complete, and replaces what is there. For a PEFT adapter, "
    "a folder.",
)
@base_option
@click.option("--item", metavar="NAME", help="Fetch this item only.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@broker_options
def command(
    message_id: str,
    output: str,
    bases: tuple[Path, ...],
    item: str | None,
    as_json: bool,
    url: str,
    token: str | None,
) -> None:
    """Fetch message ID into a file.

    Tensors are decoded into a .safetensors file of their original precision, written in place; bytes are
    written as they are; a PEFT adapter becomes a folder again, unless FILE ends in .safetensors. None is ever
    loaded into memory. A message that is a change from a file which both ends have (its codec begins with
    delta or same) needs that file: --base.

    \b
    Examples:
      tensorbus fetch 5f0c… -o model.safetensors
      tensorbus fetch 5f0c… -o head.safetensors --item lm_head.weight
      tensorbus fetch 5f0c… -o tuned.safetensors --base pretrained.safetensors
      tensorbus fetch 5f0c… -o adapter/
    """

    async def work(bus: Client) -> Message:
        message = await bus.fetch(message_id)
        with TransferBar(f"fetching {Path(output).name}") as bar:
            await message.save(output, item=item, progress=bar)
        return message

    message = with_client(url, token, work, bases)
    written = _size(Path(output))
    if as_json:
        print_json({"id": message.id, "path": output, "bytes": written, "item": item})
    else:
        click.echo(f"{output}  {size(written)}")


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
