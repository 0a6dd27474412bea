"""`tensorbus inspect`: a message and what is in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .broker_options import broker_options, with_client
from .output import print_json, share, size

if TYPE_CHECKING:
    from tensorbus.bus.client import Client, Message
    from tensorbus.codecs.item import ItemSpec


@click.command("inspect")
@click.argument("message_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as one JSON object.")
@broker_options
def command(message_id: str, as_json: bool, url: str, token: str | None) -> None:
    """Show message ID: its headers, sizes and codec, and a table of its items."""

    async def work(bus: Client) -> Message:
        return await bus.fetch(message_id)

    message = with_client(url, token, work)
    if as_json:
        print_json({**message.info.to_json(), "manifest": [_entry(item) for item in message.manifest]})
        return
    console = Console()
    _print_facts(console, message)
    _print_items(console, message.manifest)


def _print_facts(console: Console, message: Message) -> None:
    info = message.info
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("message", info.id),
        ("topic", info.topic),
        ("state", info.state if info.seq is None else f"{info.state}, seq {info.seq}"),
        ("key", info.key or "–"),
        ("published", f"{info.created:%Y-%m-%d %H:%M:%S} UTC"),
        ("container", info.container),
        ("codec", json.dumps(dict(info.pipeline)) if info.pipeline else "–"),
        (
            "size",
            f"{size(info.bytes)} on the wire, {size(info.original_bytes)} original "
            f"{share(info.bytes, info.original_bytes)}",
        ),
        ("frames", str(info.frames)),
        ("digest", info.digest or "–"),
        *((f"header {name}", str(value)) for name, value in info.headers.items()),
    ):
        facts.add_row(escape(name), escape(value))
    console.print(facts, highlight=False)


def _print_items(console: Console, items: tuple[ItemSpec, ...]) -> None:
    table = Table("item", "dtype", "shape", "codec", box=None)
    table.add_column("bytes", justify="right")
    table.add_column("on the wire", justify="right")
    for item in items:
        on_wire = payload_bytes(item)
        table.add_row(
            escape(item.name),
            item.dtype.name if item.kind == "tensor" else item.kind,
            escape(str(list(item.shape))),
            escape(f"view of {item.view.of}" if item.view else str(item.codec.get("name"))),
            str(item.nbytes),
            "?" if on_wire is None else str(on_wire),
        )
    console.print(table, highlight=False)


def payload_bytes(item: ItemSpec) -> int | None:
    """Bytes of the item's payloads; None where its codec is not installed or decides as it goes."""
    from tensorbus.codecs.registry import quantizer
    from tensorbus.errors import TensorbusError

    if item.view is not None:
        return 0
    try:
        codec = quantizer(item.codec)
    except TensorbusError:
        return None
    return codec.encoded_size(item.count, item.dtype) if codec.fixed_size else None


def _entry(item: ItemSpec) -> dict[str, object]:
    view = item.view
    return {
        "name": item.name,
        "dtype": item.dtype.name,
        "shape": list(item.shape),
        "kind": item.kind,
        "codec": item.codec,
        "view": None
        if view is None
        else {"of": view.of, "offset": view.offset, "strides": list(view.strides)},
        "bytes": item.nbytes,
        "wire_bytes": payload_bytes(item),
    }
