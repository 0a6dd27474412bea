"""How a federated job stands, as far as the headers of its messages tell. Pure; opens no payload.

The broker knows nothing of federations: what is read here are headers, as `docs/federation.md` lists them,
and anybody may have published anything under these names. So nothing is believed to have a type, and what
makes no sense is passed over.

The models say which round it is and what was agreed; the records when it began and whether it is paused;
the updates who is in. Of a closed round only the number of updates is in a header, not whose they are; but
what is sealed behind the record of a round's end belongs to the rounds after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from tensorbus.bus.activity import Transfer
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.savings import codec_text

from .loose import read_count, read_history, read_map, read_number, read_quorum, read_text, to_moment
from .sites import STATES, Site, sites_of

State = Literal["waiting", "open", "closing", "paused", "cancelled", "done"]

MAX_SITES = 200
"""That are shown of one job."""


@dataclass(frozen=True, slots=True)
class JobMessages:
    """What lies on a job's topics, each newest first, and what is on its way there.

    Attributes:
        known: sites that have a consumer on the job's models.
    """

    job: str
    models: Sequence[MessageInfo] = ()
    records: Sequence[MessageInfo] = ()
    updates: Sequence[MessageInfo] = ()
    coming: Sequence[Transfer] = ()
    known: Sequence[str] = ()


def job_status(found: JobMessages, now: float) -> dict[str, object]:
    """The job as a JSON object; ``now`` in seconds since the epoch."""
    model = next((info for info in found.models if info.headers.get("kind") == "model"), None)
    headers: Mapping[str, object] = {} if model is None else model.headers
    spec = read_map(headers.get("spec"))
    number, rounds = read_count(headers.get("round")), read_count(spec.get("rounds"))
    full = read_count(spec.get("buffer")) or read_count(spec.get("sites")) or 0
    opened, deadline = _opened(found.records, number), read_number(spec.get("deadline"))
    state = _state(found, headers, number)
    due = None
    if opened is not None and deadline is not None and state == "open":
        due = opened + deadline + _paused(found.records, opened)
    overdue = due is not None and now > due
    sites: list[Site] = []
    if number is not None and state not in ("done", "cancelled"):
        before = _closed(found.records, number - 1) or 0
        late = overdue and read_number(spec.get("select")) in (None, 1.0)
        sites = sites_of(found.updates, found.coming, found.known, number, before, overdue=late)
    return {
        "job": found.job,
        "state": state,
        "round": None if number is None else min(number, rounds or number),
        "rounds": rounds,
        "mode": read_text(spec.get("mode")) or "sync",
        "full": full,
        "enough": read_quorum(spec.get("quorum"), full),
        "deadline": deadline,
        "opened": None if opened is None else to_moment(opened),
        "due": None if due is None else to_moment(due),
        "overdue": overdue,
        "up": _codec(spec.get("up")),
        "down": _codec(spec.get("down")),
        "model_bytes": None if model is None else model.bytes,
        "model_original_bytes": None if model is None else model.original_bytes,
        "publishing": _publishing(found.coming, number or 0),
        "counts": {name: sum(site.state == name for site in sites) for name in STATES},
        "sites": [site.to_json() for site in sites[:MAX_SITES]],
        "history": read_history(headers.get("history")),
    }


def _state(found: JobMessages, headers: Mapping[str, object], number: int | None) -> State:
    if any(info.headers.get("kind") == "cancelled" for info in found.models):
        return "cancelled"
    ordered = next((r.headers.get("action") for r in found.records if r.headers.get("kind") == "order"), None)
    if ordered == "cancel":
        return "cancelled"
    if number is None:
        return "waiting"
    if headers.get("final") is True:
        return "done"
    if ordered == "pause":
        return "paused"
    return "open" if _closed(found.records, number) is None else "closing"


def _opened(records: Iterable[MessageInfo], number: int | None) -> float | None:
    """When a round began."""
    for record in records:
        if record.headers.get("kind") == "open" and record.headers.get("round") == number:
            return read_number(record.headers.get("at"))
    return None


def _closed(records: Iterable[MessageInfo], number: int) -> int | None:
    """The seq of the record that a round was closed with."""
    for record in records:
        if record.headers.get("kind") == "close" and record.headers.get("round") == number:
            return record.seq
    return None


def _paused(records: Sequence[MessageInfo], opened: float) -> float:
    """Seconds for which a round was paused, and went on again."""
    total, since = 0.0, None
    for record in reversed(records):
        at = read_number(record.headers.get("at"))
        if record.headers.get("kind") != "order" or at is None:
            continue
        action = record.headers.get("action")
        if action == "pause" and since is None:
            since = max(at, opened)
        elif action == "resume" and since is not None:
            total, since = total + max(0.0, at - since), None
    return total


def _publishing(coming: Iterable[Transfer], number: int) -> dict[str, object] | None:
    """How far the next model is."""
    for transfer in coming:
        headers = transfer.info.headers
        if headers.get("kind") == "model" and (read_count(headers.get("round")) or 0) > number:
            return {"bytes": transfer.received or 0, "total": transfer.total}
    return None


def _codec(value: object) -> str:
    return codec_text(cast("Mapping[str, object]", value) if isinstance(value, dict) else {})
