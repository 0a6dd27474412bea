"""Figures for Prometheus: what the broker and the server counted, as metric families.

What happens often is counted in plain integers and small histograms of our own (`bus.measures`), because a
look-up of labels for each message would cost more than the counting. Only when somebody asks are they turned
into prometheus_client's families: the broker is asked first, on the event loop, and the text is then written
in a worker thread. The only labels whose values come from outside are the names of consumers: of 1,000 at the
most, and not of those that come and go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tensorbus import __version__
from tensorbus.bus.broker import Broker
from tensorbus.bus.consumers import ConsumerInfo
from tensorbus.bus.measures import SLOW, Histogram
from tensorbus.bus.messages import BrokerStats
from tensorbus.bus.peers import Peers

from .counters import Counters

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_CONSUMERS = 1000
"""With figures of their own."""
_NO_ROUTE = "none"
"""Stands for every path that is not the API's."""


@dataclass(frozen=True)
class _Share:
    """A broker's part in a store that is shared; ``behind`` so many records of its log, if that is known."""

    leads: bool
    behind: int | None
    connected: bool


@dataclass(frozen=True)
class _Snapshot:
    """What the broker said when it was asked last."""

    stats: BrokerStats
    consumers: Sequence[ConsumerInfo]
    connections: int
    share: _Share | None


class Metrics(Collector):
    """One server's figures, in a registry of their own.

    Attributes:
        registry: to which a program that embeds a server may add collectors of its own.
        connections: how many there are; the protocol counts them.
    """

    def __init__(self, broker: Broker, counters: Counters, peers: Peers | None = None) -> None:
        self.registry = CollectorRegistry()
        self.connections = 0
        self._broker = broker
        self._counters = counters
        self._peers = peers
        self._requests: dict[tuple[str, str, int], int] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}
        self._snapshot: _Snapshot | None = None
        self._turn = asyncio.Lock()
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def answered(self, request: web.Request, status: int, seconds: float) -> None:
        """A request is over, after so many seconds."""
        resource = request.match_info.route.resource
        method = request.method if request.method in _METHODS else "other"
        route = _NO_ROUTE if resource is None else resource.canonical
        counted = (method, route, status)
        self._requests[counted] = self._requests.get(counted, 0) + 1
        durations = self._durations.get((method, route))
        if durations is None:
            durations = self._durations[(method, route)] = Histogram(SLOW)
        durations.observe(seconds)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text, in the format that ``accept`` (a request's field) prefers, and its content type."""
        encode, content_type = choose_encoder(accept)
        async with self._turn:
            stats = await self._broker.stats()
            consumers = await self._broker.lasting_consumers(MAX_CONSUMERS)
            share = None
            if self._peers is not None:
                share = _Share(self._broker.leading, await self._peers.behind(), self._peers.connected)
            self._snapshot = _Snapshot(stats, consumers, self.connections, share)
            return await asyncio.to_thread(encode, self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        """The families, for the registry; nothing before the first `exposition`."""
        snapshot = self._snapshot
        if snapshot is None:
            return
        yield from _states(snapshot, self._counters)
        share = snapshot.share
        if share is not None:
            yield from _share(share)
        if share is None or share.leads:
            yield from _of_store(snapshot.stats)
            yield from _by_consumer(snapshot.consumers)
        yield from _totals(snapshot.stats, self._counters)
        yield from self._broker_totals()
        yield from self._histograms()
        yield from self._by_route()

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not know the names beforehand."""
        return ()

    def _broker_totals(self) -> Iterator[Metric]:
        counted = self._broker.measures
        yield _counter("received_frames", "Frames of acknowledged messages.", counted.frames_in)
        yield _counter(
            "duplicate_messages", "Publishes answered with an earlier receipt.", counted.duplicates
        )
        yield _counter("redeliveries", "Deliveries that were not the first.", counted.redelivered)
        yield _counter("dead_letters", "Messages that became dead letters.", counted.dead)

    def _histograms(self) -> Iterator[Metric]:
        timed = self._broker.measures
        flushes = HistogramMetricFamily(
            "tensorbus_fsync_duration_seconds", "Flushes to stable storage.", labels=("kind",)
        )
        for kind, histogram in timed.fsync.items():
            buckets, total = _buckets(histogram)
            flushes.add_metric((kind,), buckets, total)
        yield flushes
        yield _histogram("publish_duration_seconds", "From a message's begin to its receipt.", timed.seal)
        yield _histogram(
            "handover_delay_seconds", "From a message's receipt to its first hand-over.", timed.handover
        )

    def _by_route(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "tensorbus_http_requests", "HTTP requests that are over.", labels=("method", "route", "status")
        )
        for (method, route, status), count in list(self._requests.items()):
            requests.add_metric((method, route, str(status)), count)
        yield requests
        durations = HistogramMetricFamily(
            "tensorbus_http_request_duration_seconds",
            "From the head of a request to the end of its answer, waiting included.",
            labels=("method", "route"),
        )
        for labels, histogram in list(self._durations.items()):
            buckets, total = _buckets(histogram)
            durations.add_metric(labels, buckets, total)
        yield durations


def _states(snapshot: _Snapshot, counters: Counters) -> Iterator[Metric]:
    stats = snapshot.stats
    build = GaugeMetricFamily("tensorbus_build_info", "1; its label is the version.", labels=("version",))
    build.add_metric((__version__,), 1)
    yield build
    for name, text, value in (
        ("open_uploads", "Requests that publish and cannot be resumed.", counters.open_uploads),
        ("open_resumable_uploads", "Requests that add to a resumable upload.", counters.open_resumable),
        ("open_downloads", "Requests that are downloading.", counters.open_downloads),
        (
            "streaming_connections",
            "Connections that deliveries are sent on as they come.",
            counters.open_streams,
        ),
        ("connections", "Open connections.", snapshot.connections),
        ("disk_free_bytes", "Free on the file system of the data directory.", stats.disk_free),
        ("disk_size_bytes", "Size of the file system of the data directory.", stats.disk_size),
    ):
        yield GaugeMetricFamily(f"tensorbus_{name}", text, value)


def _of_store(stats: BrokerStats) -> Iterator[Metric]:
    """What there is once, however many brokers share the store: told by the one that leads."""
    for name, text, value in (
        ("messages", "Sealed messages in the store.", stats.messages),
        ("stored_bytes", "Bytes of sealed messages.", stats.bytes),
        ("damaged_messages", "Messages whose frames are lost or damaged.", stats.damaged),
        ("open_messages", "Messages that are being published.", stats.open_messages),
        ("parked_uploads", "Resumable uploads to which nobody is sending.", stats.parked_uploads),
        ("consumers", "Durable consumers.", stats.consumers),
        ("ack_pending", "Deliveries that are not settled.", stats.ack_pending),
    ):
        yield GaugeMetricFamily(f"tensorbus_{name}", text, value)


def _share(share: _Share) -> Iterator[Metric]:
    yield GaugeMetricFamily("tensorbus_leads", "1 at the broker that leads, 0 at the others.", share.leads)
    yield GaugeMetricFamily(
        "tensorbus_store_connected", "1 while the store's servers can be reached.", share.connected
    )
    if share.behind is not None:
        yield GaugeMetricFamily(
            "tensorbus_log_behind_records", "Records of the log that are not applied here.", share.behind
        )


def _totals(stats: BrokerStats, counters: Counters) -> Iterator[Metric]:
    for name, text, value in (
        ("sealed_messages", "Messages acknowledged.", stats.sealed_total),
        ("aborted_messages", "Messages given up.", stats.aborted_total),
        ("deliveries", "Deliveries handed over.", stats.deliveries_total),
        ("acks", "Deliveries acknowledged.", stats.acks_total),
        ("received_bytes", "Bytes of request bodies.", counters.bytes_in),
        ("sent_bytes", "Bytes of frames sent.", counters.bytes_out),
    ):
        yield _counter(name, text, value)


def _by_consumer(consumers: Sequence[ConsumerInfo]) -> Iterator[Metric]:
    backlog = GaugeMetricFamily(
        "tensorbus_consumer_backlog", "Matching messages that were never handed over.", labels=("consumer",)
    )
    pending = GaugeMetricFamily(
        "tensorbus_consumer_ack_pending", "Its deliveries that are not settled.", labels=("consumer",)
    )
    for consumer in consumers:
        backlog.add_metric((consumer.name,), consumer.backlog)
        pending.add_metric((consumer.name,), consumer.ack_pending)
    yield backlog
    yield pending


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(f"tensorbus_{name}", text, value)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    buckets, total = _buckets(histogram)
    return HistogramMetricFamily(f"tensorbus_{name}", text, buckets, total)


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative, as Prometheus has them, and the sum."""
    counts, total = histogram.snapshot()
    bounds = [*map(str, histogram.bounds), "+Inf"]
    running = 0
    found: list[tuple[str, float]] = []
    for bound, count in zip(bounds, counts, strict=True):
        running += count
        found.append((bound, running))
    return found, total
