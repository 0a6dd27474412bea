"""Snapshot: all that is going on at one moment, of which each watcher is shown a part."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tensorbus.bus.access import TokenFile
from tensorbus.bus.activity import Moving, Transfer, Trouble
from tensorbus.bus.broker import Broker
from tensorbus.bus.consumers import ConsumerInfo
from tensorbus.bus.messages import BrokerStats, TopicInfo
from tensorbus.bus.peers import Peer, Peers
from tensorbus.bus.policies import PolicyInfo
from tensorbus.bus.server.counters import Counters
from tensorbus.bus.server.downloads import Downloads

from .job import JobMessages
from .job_reader import JobName, JobReader
from .moving import of_download, of_upload, together
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
        moving: uploads and downloads of all brokers of the store.
        brokers: all of them, this one first; none where the store is not shared.
        letters: messages on topics of dead letters, by topic.
        used: bytes stored by the holders of tokens, by the token's id.
        bytes_in, bytes_out: of all brokers.
        rates: per second, by name: of totals, of transfers by id, of brokers by ``in`` or ``out`` and the id.
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
    moving: Sequence[Moving]
    brokers: Sequence[Peer]
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
        self,
        broker: Broker,
        counters: Counters,
        downloads: Downloads,
        tokens: TokenFile | None,
        peers: Peers | None,
    ) -> None:
        self._broker = broker
        self._counters = counters
        self._downloads = downloads
        self._tokens = tokens
        self._peers = peers
        self._rates = Rates()
        self._jobs = JobReader(broker)
        self._version = 0

    @property
    def activity(self) -> tuple[int, ...]:
        """Other numbers than before if anything has moved; costs next to nothing."""
        counted = self._counters
        here = (counted.bytes_in, counted.bytes_out, len(self._downloads.current))
        return (*self._broker.activity, *here, 0 if self._peers is None else self._peers.activity)

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
        others = [] if self._peers is None else self._peers.others()
        own = None if self._peers is None else self._peers.own
        moving = together(
            [*map(of_upload, uploads), *map(of_download, self._downloads.current.values())],
            [each for peer in others for each in peer.doing.moving],
        )
        counts = {
            "received": self._counters.bytes_in + sum(peer.doing.received for peer in others),
            "sent": self._counters.bytes_out + sum(peer.doing.sent for peer in others),
            "messages": stats.sealed_total,
            "deliveries": stats.deliveries_total,
        }
        counts |= {each.id: each.bytes or 0 for each in moving}
        brokers = others if own is None else [own, *others]
        for peer in brokers:
            counts |= {f"in {peer.id}": peer.doing.received, f"out {peer.id}": peer.doing.sent}
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
            moving=moving,
            brokers=brokers,
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
