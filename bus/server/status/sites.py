"""Who is in a round of a job, who is late, who declined or left: by the headers of their messages. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tensorbus.bus.activity import Transfer
from tensorbus.bus.messages import MessageInfo, to_iso

from .loose import Metrics, read_count, read_metrics, read_name, read_number, read_text

SiteState = Literal["sending", "late", "waited", "in", "declined", "left"]

STATES: tuple[SiteState, ...] = ("sending", "late", "waited", "in", "declined", "left")
"""In the order in which sites are shown: first those that something is still to come of."""
MAX_REASON = 500


@dataclass(slots=True)
class Site:
    """One site in the open round.

    Attributes:
        state: ``in``: its update is sealed; ``sending``: on its way; ``late``: not here at the deadline, or
            here, but for an earlier round; ``waited``: for; ``declined`` this round; ``left`` the job.
        bytes, total: of its update, so far and in all.
        at: when that was sealed.
    """

    name: str
    state: SiteState
    num_examples: float | None = None
    metrics: Metrics = field(default_factory=lambda: {})
    bytes: int | None = None
    total: int | None = None
    at: str | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {
            "site": self.name,
            "state": self.state,
            "num_examples": self.num_examples,
            "metrics": self.metrics,
            "bytes": self.bytes,
            "total": self.total,
            "at": self.at,
            "reason": self.reason,
        }


def sites_of(
    updates: Sequence[MessageInfo],
    coming: Iterable[Transfer],
    known: Iterable[str],
    number: int,
    before: int,
    *,
    overdue: bool,
) -> list[Site]:
    """Every site that was heard of, once; those that are to come first, then by name.

    Args:
        updates: on the job's topic, newest first; ``coming``: on their way.
        known: names of further sites.
        number: of the open round; ``before``: the seq behind which nothing belongs to the round before.
        overdue: its deadline is over.
    """
    sites: dict[str, Site] = {}
    for info in reversed(updates):
        name = read_name(info.headers.get("site"))
        if name is None:
            continue
        if info.headers.get("kind") == "decline":
            _declined(sites, name, info, number)
        elif info.headers.get("kind") == "update":
            _answered(sites, name, info, number, before)
    for transfer in coming:
        headers = transfer.info.headers
        name = read_name(headers.get("site"))
        if name is None or headers.get("kind") != "update" or headers.get("round") != number:
            continue
        if name not in sites or sites[name].state != "in":
            sites[name] = _site(name, "sending", transfer.info)
            sites[name].bytes, sites[name].total = transfer.received, transfer.total
    for name in known:
        sites.setdefault(name, Site(name, "waited"))
    for site in sites.values():
        if overdue and site.state == "waited":
            site.state = "late"
    return sorted(sites.values(), key=lambda site: (STATES.index(site.state), site.name))


def _declined(sites: dict[str, Site], name: str, info: MessageInfo, number: int) -> None:
    leaves = info.headers.get("leaves") is True
    if leaves or info.headers.get("round") == number:
        reason = (read_text(info.headers.get("reason")) or "")[:MAX_REASON]
        sites[name] = Site(name, "left" if leaves else "declined", at=_sealed(info), reason=reason)


def _answered(sites: dict[str, Site], name: str, info: MessageInfo, number: int, before: int) -> None:
    version = read_count(info.headers.get("round"))
    there = sites.get(name)
    if version == number:
        sites[name] = _site(name, "in", info)
    elif there is None or there.state in ("waited", "late"):
        # An update to an earlier round: of one that is over, or behind its end, and so not counted yet.
        counted = (info.seq or 0) <= before
        sites[name] = Site(name, "waited") if counted else _site(name, "late", info)


def _site(name: str, state: SiteState, info: MessageInfo) -> Site:
    return Site(
        name,
        state,
        read_number(info.headers.get("num_examples")),
        read_metrics(info.headers.get("metrics")),
        info.bytes,
        info.wire_bytes,
        _sealed(info),
    )


def _sealed(info: MessageInfo) -> str | None:
    return None if info.sealed is None else to_iso(info.sealed)
