"""`tensorbus publish`: a file becomes a message."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .broker_options import broker_options, with_client
from .output import print_json, share, size
from .transfer_bar import TransferBar

if TYPE_CHECKING:
    from tensorbus.bus.client import Client, Receipt


@click.command("publish")
@click.argument("topic")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--codec",
    metavar="CODEC",
    help="What is done to tensors on the wire: a quantiser, none by default, such as nf4, int8 or "
    "nf4:blocksize=128; or stages and a quantiser, 'delta | nf4'.",
)
@click.option(
    "--base",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What the stages delta and same compare with, a .safetensors file that the receiver has too.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the stage feedback keeps what quantising left out, for the next message of this kind.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Send tensors of such names exactly, e.g. '*norm*'. Repeatable.",
)
@click.option(
    "--skip", multiple=True, metavar="PATTERN", help="Never send tensors of such names. Repeatable."
)
@click.option("--key", help="Idempotency key: the same key is stored once, however often it is published.")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME=VALUE", help="A message header. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
@broker_options
def command(
    topic: str,
    file: Path,
    codec: str | None,
    base: Path | None,
    state: Path | None,
    keep: tuple[str, ...],
    skip: tuple[str, ...],
    key: str | None,
    headers: tuple[str, ...],
    as_json: bool,
    url: str,
    token: str | None,
) -> None:
    """Publish FILE on TOPIC.

    A .safetensors file is sent as the tensors that it holds; any other file as one string of bytes; the
    folder of a PEFT adapter as its tensors and its configuration. None is ever loaded into memory. The
    command returns when the broker has all of it on stable storage.

    \b
    Examples:
      tensorbus publish models.demo model.safetensors --codec nf4 --keep '*norm*'
      tensorbus publish models.demo tuned.safetensors --codec 'delta | nf4' --base pretrained.safetensors
      tensorbus publish models.demo adapter/ --codec bf16
      tensorbus publish notes.demo README.md --header author=me
    """
    from tensorbus.codecs.pipeline import Pipeline
    from tensorbus.streaming.byte_files import BytesFileSource
    from tensorbus.streaming.residual_files import FileResiduals

    parsed = dict(_header(header) for header in headers)
    pipeline = Pipeline.parse(codec, keep, skip)
    if state is None and not all(stage.undone for stage in pipeline.stages):
        raise click.UsageError("feedback keeps what it leaves out for the next message: give --state DIR")

    as_tensors = file.suffix == ".safetensors" or file.is_dir()

    async def work(bus: Client) -> Receipt:
        container = file if as_tensors else BytesFileSource(file)
        try:
            with TransferBar(f"publishing {file.name}") as bar:
                return await bus.publish(
                    topic,
                    container,
                    codec=pipeline,
                    headers=parsed,
                    key=key,
                    progress=bar,
                    base=base,
                    residuals=None if state is None else FileResiduals(state),
                )
        finally:
            if isinstance(container, BytesFileSource):
                container.close()

    receipt = with_client(url, token, work)
    if as_json:
        print_json(asdict(receipt))
        return
    if receipt.duplicate:
        click.echo(f"{receipt.id}  stored before under key {receipt.key!r}; nothing was sent")
        return
    ratio = share(receipt.bytes_on_wire, receipt.bytes_original)
    click.echo(
        f"{receipt.id}  {size(receipt.bytes_original)} as {size(receipt.bytes_on_wire)} on the wire ({ratio})"
    )
    for name, count in receipt.clipped.items():
        click.echo(f"{name}: {count} values clipped to the codec's range", err=True)


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--header")
    return name, value
