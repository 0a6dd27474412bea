"""Transfers of this server as watchers are shown them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from tensorbus.bus.activity import Moving, Transfer
from tensorbus.bus.messages import to_iso
from tensorbus.bus.server.downloads import Download

from .loose import read_count, read_name


def of_upload(transfer: Transfer) -> Moving:
    """A message that is being published."""
    info = transfer.info
    return Moving(
        id=info.id,
        direction="upload",
        message=info.id,
        topic=info.topic,
        bytes=transfer.received,
        total=transfer.total,
        began=to_iso(info.created),
        resumable=transfer.resumable,
        idle=transfer.idle,
        job=read_name(info.headers.get("job")),
        round=read_count(info.headers.get("round")),
        site=read_name(info.headers.get("site")),
    )


def of_download(download: Download, broker: str = "") -> Moving:
    """A message, or a part of it, on its way out; ``broker`` makes its name one of all brokers."""
    info = download.reader.info
    return Moving(
        id=f"{broker[:8]}-{download.id}" if broker else download.id,
        direction="download",
        message=info.id,
        topic=info.topic,
        bytes=download.sent,
        total=download.total,
        began=to_iso(datetime.fromtimestamp(download.began, UTC)),
        resumable=True,
        idle=False,
        job=read_name(info.headers.get("job")),
        round=read_count(info.headers.get("round")),
        site=read_name(info.headers.get("site")),
    )


def together(own: Iterable[Moving], others: Iterable[Moving]) -> list[Moving]:
    """Those of all brokers. What one takes and another has decided on is one: it is told by who has more."""
    found: dict[str, Moving] = {}
    for each in (*own, *others):
        known = found.get(each.id)
        if known is None or (each.bytes or 0) > (known.bytes or 0):
            found[each.id] = each
    return list(found.values())
