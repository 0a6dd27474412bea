"""What a watcher is shown of a snapshot: the members of the status, each as JSON text.

As text, since a stream sends only members that have changed, and the same text serves all watchers who see
the same. Lists hold what the watcher may read and searched for; ``count`` says how many there are of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tensorbus import __version__
from tensorbus.bus.access import Token
from tensorbus.bus.messages import to_iso
from tensorbus.bus.savings import Savings

from .lists import Reads, brokers_shown, consumers_shown, jobs_shown, topics_shown, transfers_shown
from .snapshot import Snapshot
from .view import View

MAX_QUOTAS = 100


@dataclass(frozen=True)
class Setting:
    """What is the same for all watchers, or changes seldom."""

    started: float
    every: float
    connections: int
    writable: bool
    store: str
    shared: bool
    tokens: Sequence[Token]
    asks_for_tokens: bool
    received: Savings
    sent: Savings


@dataclass(frozen=True)
class Watcher:
    """Who looks: what they may read (a topic or filter), and the token that they have."""

    token: Token | None
    reads: Reads


def render(snapshot: Snapshot, view: View, watcher: Watcher, setting: Setting) -> dict[str, str]:
    """The members of the status by name, each as JSON."""
    key = (view, None if watcher.token is None else watcher.token.id, setting.asks_for_tokens)
    done = snapshot.rendered.get(key)
    if done is None:
        members = _members(snapshot, view, watcher, setting)
        done = {name: json.dumps(value, separators=(",", ":")) for name, value in members.items()}
        snapshot.rendered[key] = done
    return done


def to_object(members: dict[str, str]) -> str:
    """The JSON object with these members."""
    return "{" + ",".join(f'"{name}":{text}' for name, text in members.items()) + "}"


def _members(snapshot: Snapshot, view: View, watcher: Watcher, setting: Setting) -> dict[str, object]:
    reads = _everything if watcher.reads(">") else watcher.reads
    stats = snapshot.stats
    return {
        "at": _moment(snapshot.at),
        "every": round(setting.every, 1),
        "broker": {
            "version": __version__,
            "started": _moment(setting.started),
            "asks_for_tokens": setting.asks_for_tokens,
            "writable": setting.writable,
        },
        "you": _you(snapshot, watcher.token),
        "totals": {
            "messages": stats.messages,
            "bytes": stats.bytes,
            "topics": len(snapshot.topics),
            "consumers": stats.consumers,
            "ack_pending": stats.ack_pending,
            "open_messages": stats.open_messages,
            "parked_uploads": stats.parked_uploads,
            "connections": setting.connections,
            "damaged": stats.damaged,
            "dead_letters": sum(snapshot.letters.values()),
            "sealed": stats.sealed_total,
            "deliveries": stats.deliveries_total,
            "acks": stats.acks_total,
            "redeliveries": snapshot.redeliveries,
            "dead": snapshot.dead,
            "received_bytes": snapshot.bytes_in,
            "sent_bytes": snapshot.bytes_out,
        },
        "rates": {
            name: _rate(snapshot.rates.get(name)) for name in ("received", "sent", "messages", "deliveries")
        },
        "store": {"kind": setting.store, "shared": setting.shared},
        "brokers": brokers_shown(snapshot),
        "disk": {"free": stats.disk_free, "size": stats.disk_size},
        "quotas": _quotas(snapshot, watcher, setting.tokens),
        "codecs": _codecs(setting.received, setting.sent),
        "transfers": transfers_shown(snapshot, view, reads),
        "topics": topics_shown(snapshot, view, reads),
        "consumers": consumers_shown(snapshot, view, reads),
        "jobs": jobs_shown(snapshot, view, reads),
    }


def _everything(_: str) -> bool:
    return True


def _you(snapshot: Snapshot, token: Token | None) -> object:
    if token is None:
        return None
    plan = token.info.plan
    return {
        "id": token.id,
        "name": token.name,
        **plan.rights.to_json(),
        "expires": None if plan.expires is None else to_iso(plan.expires),
        "max_bytes": plan.quotas.max_bytes,
        "used_bytes": snapshot.used.get(token.id),
    }


def _quotas(snapshot: Snapshot, watcher: Watcher, tokens: Iterable[Token]) -> object:
    found: list[object] = [
        {
            "kind": "policy",
            "name": policy.name,
            "filter": policy.config.filter,
            "topics": policy.topics,
            "bytes": policy.bytes,
            "max_bytes": policy.config.max_bytes,
            "messages": policy.messages,
            "max_messages": policy.config.max_messages,
        }
        for policy in snapshot.policies
        if watcher.reads(policy.config.filter)
    ]
    owner = None if watcher.token is None else watcher.token.id
    runs = watcher.token is None or watcher.token.rights.allow("admin", ">")
    found += [
        {
            "kind": "token",
            "name": token.name,
            "filter": None,
            "topics": None,
            "bytes": snapshot.used[token.id],
            "max_bytes": token.quotas.max_bytes,
            "messages": None,
            "max_messages": None,
        }
        for token in tokens
        if token.id in snapshot.used and (runs or token.id == owner)
    ]
    return {"count": len(found), "shown": found[:MAX_QUOTAS]}


def _codecs(received: Savings, sent: Savings) -> list[object]:
    def figures(savings: Savings, name: str) -> object:
        saving = savings.by_codec.get(name)
        return None if saving is None else saving.to_json()

    names = sorted(received.by_codec.keys() | sent.by_codec.keys())
    return [
        {"codec": name, "received": figures(received, name), "sent": figures(sent, name)} for name in names
    ]


def _rate(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _moment(seconds: float) -> str:
    return to_iso(datetime.fromtimestamp(seconds, UTC))
