"""The lists of a status: what a watcher searched for and may read, in the order that was asked for. Pure.

Each has ``count``, of all that match, and ``shown``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import cast

from tensorbus.bus.activity import Moving, Redelivery
from tensorbus.bus.consumers import ConsumerInfo
from tensorbus.bus.messages import TopicInfo, to_iso
from tensorbus.bus.peers import AWAY, Peer

from .job import job_status
from .snapshot import Snapshot
from .view import View

Reads = Callable[[str], bool]
"""Whether the watcher may read all topics of a topic or filter."""

MAX_SITES = 500
"""Sites of all jobs together."""


def transfers_shown(snapshot: Snapshot, view: View, reads: Reads) -> object:
    """Uploads, and then downloads."""
    found = [each for each in snapshot.moving if _wanted(each.topic, view, reads)]
    # Those that move first, the oldest at their head.
    found.sort(key=lambda each: (each.direction == "download", each.idle))
    return {"count": len(found), "shown": [_transfer(each, snapshot) for each in found[: view.transfers]]}


def _transfer(each: Moving, snapshot: Snapshot) -> dict[str, object]:
    return each.to_json() | {"rate": 0.0 if each.idle else _rate(snapshot.rates.get(each.id))}


def brokers_shown(snapshot: Snapshot) -> object:
    """The brokers of a store that is shared, the one that tells this first."""
    return {"count": len(snapshot.brokers), "shown": [_broker(each, snapshot) for each in snapshot.brokers]}


def _broker(each: Peer, snapshot: Snapshot) -> dict[str, object]:
    silent = monotonic() - each.heard
    away = silent >= AWAY
    return {
        "url": each.url,
        "leads": each.leads and not away,
        "version": each.doing.version,
        "started": to_iso(datetime.fromtimestamp(each.doing.started, UTC)),
        "behind": None if away else each.behind,
        "uploads": 0 if away else each.doing.uploads,
        "downloads": 0 if away else each.doing.downloads,
        "received": 0.0 if away else _rate(snapshot.rates.get(f"in {each.id}")),
        "sent": 0.0 if away else _rate(snapshot.rates.get(f"out {each.id}")),
        "away": to_iso(datetime.fromtimestamp(round(snapshot.at - silent), UTC)) if away else None,
    }


# --- lists -------------------------------------------------------------------------------------------


def topics_shown(snapshot: Snapshot, view: View, reads: Reads) -> object:
    """Topics with messages."""
    orders: dict[str, Callable[[TopicInfo], int]] = {
        "messages": lambda topic: -topic.messages,
        "bytes": lambda topic: -topic.bytes,
        "recent": lambda topic: -topic.last_seq,
    }
    found = [topic for topic in snapshot.topics if _wanted(topic.topic, view, reads)]
    if (order := orders.get(view.topics_by)) is not None:
        found.sort(key=order)  # those that are equal stay in the order of names
    page = found[view.topics_from : view.topics_from + view.topics]
    return {"count": len(found), "from": view.topics_from, "shown": [topic.to_json() for topic in page]}


def consumers_shown(snapshot: Snapshot, view: View, reads: Reads) -> object:
    """Consumers, each with what it has difficulties with."""

    def dead(consumer: ConsumerInfo) -> int:
        trouble = snapshot.troubles.get(consumer.name)
        return 0 if trouble is None else snapshot.letters.get(trouble.dead_letter, 0)

    def again(consumer: ConsumerInfo) -> int:
        trouble = snapshot.troubles.get(consumer.name)
        return 0 if trouble is None else trouble.redelivering

    orders: dict[str, Callable[[ConsumerInfo], int]] = {
        "lag": lambda consumer: -consumer.backlog,
        "pending": lambda consumer: -consumer.ack_pending,
        "redelivering": lambda consumer: -again(consumer),
        "dead": lambda consumer: -dead(consumer),
    }
    found = [
        consumer
        for consumer in snapshot.consumers
        if reads(consumer.config.filter) and (view.wants(consumer.name) or view.wants(consumer.config.filter))
    ]
    if (order := orders.get(view.consumers_by)) is not None:
        found.sort(key=order)
    page = found[view.consumers_from : view.consumers_from + view.consumers]
    shown: list[dict[str, object]] = []
    for consumer in page:
        trouble = snapshot.troubles.get(consumer.name)
        shown.append(
            consumer.to_json()
            | {
                "redelivering": again(consumer),
                "dead_letter": None if trouble is None else trouble.dead_letter,
                "dead": dead(consumer),
                "redelivered": [_redelivery(each) for each in (() if trouble is None else trouble.examples)],
            }
        )
    return {"count": len(found), "from": view.consumers_from, "shown": shown}


def jobs_shown(snapshot: Snapshot, view: View, reads: Reads) -> object:
    """Jobs all of whose topics may be read, the most recent one first."""

    wanted = {job.name for job in snapshot.job_names if view.wants(job.name) and all(map(reads, job.topics))}
    shown: list[dict[str, object]] = []
    left = MAX_SITES
    for job in [each for each in snapshot.jobs if each.job in wanted][: view.jobs]:
        status = job_status(job, snapshot.at)
        sites = cast("list[object]", status["sites"])[:left]
        status["sites"] = sites
        left -= len(sites)
        shown.append(status)
    return {"count": len(wanted), "shown": shown}


def _wanted(topic: str, view: View, reads: Reads) -> bool:
    return view.wants(topic) and reads(topic)


def _redelivery(each: Redelivery) -> dict[str, object]:
    return {
        "message": each.message,
        "attempt": each.attempt,
        "due": round(each.due, 1),
        "held": each.held,
    }


def _rate(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
