"""What two brokers say to each other while one stores a body that the other decides on.

The one that has the publisher's connection sends the publisher's request on, with `WRITER` in its head and,
in the place of the body, messages about what it has stored; it sends one every second at least. The one that
leads answers with a refusal, as to any request; or, as soon as the body is wanted, with `MEDIA_TYPE`:
messages of its own, the first a loan, the last the answer that the publisher is to get. Each message is its
length in four bytes, big-endian, and a msgpack map::

    loan        id, epoch, after, offset, fresh, length, limit
    stop        write no more, and tell how far it is
    answer      status, headers, body

    alive       nothing new
    progress    size, boundary, visible, frames, envelope, totals, done, failed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import cast

import aiohttp
from aiohttp import web

from tensorbus.bus.broker.intake import Reached
from tensorbus.bus.broker.lent import Loan, Progress
from tensorbus.errors import BrokerUnavailable, TensorbusError, by_slug
from tensorbus.streaming import fields
from tensorbus.streaming.headers import Envelope, Totals
from tensorbus.streaming.packing import pack, unpack

MEDIA_TYPE = "application/vnd.tensorbus.loan"
WRITER = "Tensorbus-Writer"
"""Field of a request whose body another broker stores: the secret that the brokers of a store share."""
LENGTH = "Tensorbus-Length"
"""Field of such a request: bytes of the publisher's body, if they are known."""

ALIVE: Mapping[str, object] = {"alive": True}
STOP: Mapping[str, object] = {"stop": True}

_PREFIX = 4
_LARGEST = 1 << 20
"""Bytes of one message."""
_DETAIL = 2000
"""Characters of what went wrong."""

Said = Mapping[str, object]


def packed(said: Said) -> bytes:
    """A message with its length."""
    data = pack(said)
    return len(data).to_bytes(_PREFIX, "big") + data


async def read(source: aiohttp.StreamReader) -> Said:
    """The next message. Raises BrokerUnavailable: there is none any more."""
    try:
        size = int.from_bytes(await source.readexactly(_PREFIX), "big")
        if size > _LARGEST:
            raise BrokerUnavailable(f"another broker of this store sends a message of {size} bytes")
        return unpack(await source.readexactly(size))
    except (EOFError, OSError, aiohttp.ClientError, web.RequestPayloadError) as problem:
        raise BrokerUnavailable("the connection to another broker of this store is broken") from problem


# --- values ------------------------------------------------------------------------------------------


def of_loan(loan: Loan) -> Said:
    """A loan as a message."""
    return asdict(loan)


def loan_in(said: Said) -> Loan:
    """The loan in a message."""
    return Loan(
        id=fields.text(said, "id"),
        epoch=fields.integer(said, "epoch"),
        after=fields.integer(said, "after"),
        offset=fields.integer(said, "offset"),
        fresh=said.get("fresh") is True,
        length=fields.optional_integer(said, "length"),
        limit=fields.integer(said, "limit"),
    )


def of_progress(progress: Progress, failed: TensorbusError | None = None) -> Said:
    """Progress as a message, and what has ended it before its time."""
    reached, totals = progress.reached, progress.totals
    said: dict[str, object] = {
        "size": progress.size,
        "boundary": reached.boundary,
        "visible": reached.visible,
        "frames": reached.frames,
        "done": progress.done,
    }
    if progress.envelope is not None:
        said["envelope"] = progress.envelope.to_map()
    if totals is not None:
        said["totals"] = totals.pack()
    if failed is not None:
        said["failed"] = {"slug": failed.slug, "text": str(failed)[:_DETAIL]}
    return said


def progress_in(said: Said) -> Progress:
    """The progress in a message. Raises FrameError and its kinds: it says nothing sensible."""
    reached = Reached(
        fields.integer(said, "boundary"), fields.integer(said, "visible"), fields.integer(said, "frames")
    )
    totals = said.get("totals")
    return Progress(
        size=fields.integer(said, "size"),
        reached=reached,
        envelope=Envelope.parse(fields.mapping(said, "envelope")) if "envelope" in said else None,
        totals=Totals.parse(unpack(totals)) if isinstance(totals, bytes) else None,
        done=said.get("done") is True,
    )


def failure_in(said: Said) -> TensorbusError | None:
    """What has ended the writing."""
    if "failed" not in said:
        return None
    failed = fields.mapping(said, "failed")
    return by_slug().get(fields.text(failed, "slug"), TensorbusError)(fields.text(failed, "text"))


def of_answer(answer: web.Response) -> Said:
    """An answer that the publisher is to get."""
    body = answer.body
    return {
        "status": answer.status,
        "headers": [f"{name}: {value}" for name, value in answer.headers.items()],
        "body": body if isinstance(body, bytes) else b"",
    }


def answer_in(said: Said) -> web.Response:
    """The answer in a message."""
    response = web.Response(status=fields.integer(said, "status"), body=cast(bytes, said.get("body", b"")))
    for line in cast("list[str]", said.get("headers", [])):
        name, _, value = line.partition(": ")
        if name.lower() not in ("content-length", "transfer-encoding", "connection"):
            response.headers[name] = value
    return response
