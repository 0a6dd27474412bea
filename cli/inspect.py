"""`tensorbus inspect`: a message and what is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

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
    facts.add_column()
    facts.add_column(overflow="fold")  # an id is to be read whole, also in a narrow window
    for name, value in (
        ("message", info.id),
        ("topic", info.topic),
        ("state", info.state if info.seq is None else f"{info.state}, seq {info.seq}"),
        ("key", info.key or "–"),
        ("published", f"{info.created:%Y-%m-%d %H:%M:%S} UTC"),
        ("container", info.container),
        ("codec", json.dumps(dict(info.pipeline)) if info.pipeline else "–"),
        *(("base", base) for base in _bases(info.pipeline)),
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


def _bases(pipeline: Mapping[str, object]) -> list[str]:
    """The ids of what the message is a change from; its items name no other."""
    stages = pipeline.get("stages")
    listed = cast("list[object]", stages) if isinstance(stages, list) else []
    entries = [cast("dict[str, object]", stage) for stage in listed if isinstance(stage, dict)]
    return [str(entry["base"]) for entry in entries if "base" in entry]


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
            escape(f"view of {item.view.of}" if item.view else _codec_text(item)),
            str(item.nbytes),
            "?" if on_wire is None else str(on_wire),
        )
    console.print(table, highlight=False)


def _codec_text(item: ItemSpec) -> str:
    """The stages and the quantizer, by name, as a pipeline is written."""
    stages = item.codec.get("stages", [])
    listed = cast("list[dict[str, object]]", stages) if isinstance(stages, list) else []
    return " | ".join(str(config.get("name")) for config in (*listed, item.codec))


def payload_bytes(item: ItemSpec) -> int | None:
    """Bytes of the item's payloads; None where its codec is not installed or decides as it goes."""
    from tensorbus.codecs.chain import codec_of
    from tensorbus.errors import TensorbusError

    if item.view is not None:
        return 0
    try:
        codec = codec_of(item)
    except TensorbusError:
        return None
    return codec.encoded_size(item.count) if codec.fixed_size else None


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
