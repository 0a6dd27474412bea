"""Snapshot: all that is going on at one moment, of which each watcher is shown a part."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tensorbus.bus.access import TokenFile
from tensorbus.bus.activity import Transfer, Trouble
from tensorbus.bus.broker import Broker
from tensorbus.bus.consumers import ConsumerInfo
from tensorbus.bus.messages import BrokerStats, TopicInfo
from tensorbus.bus.policies import PolicyInfo
from tensorbus.bus.server.counters import Counters
from tensorbus.bus.server.downloads import Download, Downloads

from .job import JobMessages
from .job_reader import JobName, JobReader
from .rates import Rates

MAX_TOKENS = 100
"""Tokens with a quota of bytes whose use is looked up."""


@dataclass(frozen=True)
class Snapshot:
    """What was found at ``at`` (seconds since the epoch).

    Attributes:
        version: counts up from look to look.
        took: seconds that it took to find it.
        job_names: all jobs, the most recent one first; ``jobs``: what there is of the first of them.
        downloads: each with the bytes that went out and those that are wanted.
        letters: messages on topics of dead letters, by topic.
        used: bytes stored by the holders of tokens, by the token's id.
        rates: per second, by name: of totals, and of transfers by id.
        rendered: what was made of it for watchers, so that it is made once for all of a kind.
    """

    version: int
    at: float
    took: float
    stats: BrokerStats
    topics: Sequence[TopicInfo]
    consumers: Sequence[ConsumerInfo]
    troubles: Mapping[str, Trouble]
    policies: Sequence[PolicyInfo]
    uploads: Sequence[Transfer]
    downloads: Sequence[tuple[Download, int, int | None]]
    job_names: Sequence[JobName]
    jobs: Sequence[JobMessages]
    letters: Mapping[str, int]
    used: Mapping[str, int]
    bytes_in: int
    bytes_out: int
    redeliveries: int
    dead: int
    rates: Mapping[str, float | None]
    rendered: dict[object, dict[str, str]] = field(default_factory=dict[object, dict[str, str]])


class Looker:
    """Takes snapshots of one server; one at a time."""

    def __init__(
        self, broker: Broker, counters: Counters, downloads: Downloads, tokens: TokenFile | None
    ) -> None:
        self._broker = broker
        self._counters = counters
        self._downloads = downloads
        self._tokens = tokens
        self._rates = Rates()
        self._jobs = JobReader(broker)
        self._version = 0

    @property
    def activity(self) -> tuple[int, ...]:
        """Other numbers than before if anything has moved; costs next to nothing."""
        counted = self._counters
        return (*self._broker.activity, counted.bytes_in, counted.bytes_out, len(self._downloads.current))

    def forget(self) -> None:
        """Nobody looks any more: give back what was kept for the next look."""
        self._jobs.forget()

    async def look(self) -> Snapshot:
        """What is going on now. Raises StorageError and the like."""
        began = time.monotonic()
        broker = self._broker
        stats = await broker.stats()
        topics = await broker.topics()
        consumers = await broker.consumers()
        policies = await broker.policies()
        used = await self._used()
        uploads = broker.transfers()
        filters = {consumer.name: consumer.config.filter for consumer in consumers}
        names, jobs = await self._jobs.read(topics, uploads, filters)
        troubles = broker.troubles()
        letters = {trouble.dead_letter: 0 for trouble in troubles.values()}
        letters |= {topic.topic: topic.messages for topic in topics if topic.topic in letters}
        downloads = [(each, each.sent, each.total) for each in self._downloads.current.values()]
        counts = {
            "received": self._counters.bytes_in,
            "sent": self._counters.bytes_out,
            "messages": stats.sealed_total,
            "deliveries": stats.deliveries_total,
        }
        counts |= {each.info.id: each.received or 0 for each in uploads}
        counts |= {download.id: sent for download, sent, _ in downloads}
        ended = time.monotonic()
        self._version += 1
        return Snapshot(
            version=self._version,
            at=time.time(),
            took=ended - began,
            stats=stats,
            topics=topics,
            consumers=consumers,
            troubles=troubles,
            policies=policies,
            uploads=uploads,
            downloads=downloads,
            job_names=names,
            jobs=jobs,
            letters=letters,
            used=used,
            bytes_in=counts["received"],
            bytes_out=counts["sent"],
            redeliveries=broker.measures.redelivered,
            dead=broker.measures.dead,
            rates=self._rates.look(ended, counts),
        )

    async def _used(self) -> dict[str, int]:
        if self._tokens is None or not self._tokens.in_use:
            return {}
        limited = [token.id for token in self._tokens.tokens() if token.quotas.max_bytes is not None]
        return {token_id: await self._broker.stored_by(token_id) for token_id in limited[:MAX_TOKENS]}
