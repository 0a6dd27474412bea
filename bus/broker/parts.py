"""What a broker consists of, and how its parts hang together."""

from __future__ import annotations

from functools import partial

from tensorbus.bus.clock import Clock
from tensorbus.bus.measures import Measures
from tensorbus.bus.stores.base import Store
from tensorbus.bus.stores.syncing import Sync

from .batches import Batches
from .borrowing import Borrowing
from .consumers import Consumers
from .damaged import Damaged
from .dead_letters import DeadLetters
from .deliveries import Deliveries
from .delivery_host import DeliveryHost
from .duplicates import Duplicates
from .open_messages import OpenMessages
from .quotas import Quotas
from .readers import ReaderHost
from .retention import Retention
from .scrub import Scrubber
from .settings import BrokerSettings
from .space import give_back
from .sweeping import Sweeping
from .workers import Workers

LARGEST_PAGE = 1000
"""Messages that a listing has at most."""


class Parts:
    """All of them. The chapters of `Broker` see these attributes and nothing of each other."""

    def __init__(
        self,
        store: Store,
        settings: BrokerSettings,
        clock: Clock,
    ) -> None:
        self.measures = Measures()
        self._clock = clock
        store.observe_syncs(self.measures.synced)
        self.settings = settings
        self._store = store
        self._sync: Sync = settings.sync
        self._workers = Workers(settings.io_threads)
        self._consumers = Consumers(store, settings.max_consumers, settings.max_owned_consumers, clock)
        self._retention = Retention(store, self._consumers, self._workers, clock, settings.max_policies)
        self._duplicates = Duplicates(store, self._retention, clock, settings.duplicate_window)
        quotas = Quotas(store, self._retention)
        self._open = OpenMessages(
            store, settings, self._workers, clock, self._consumers, quotas, self.measures
        )
        self._borrowing = Borrowing(store, settings, self._workers)
        self._batches = Batches(store, settings, self._workers, clock, self._consumers, quotas, self._open)
        self._damaged = Damaged(store, self._consumers, self._workers, clock, self.measures)
        self._reader_host = ReaderHost(self._workers, settings.chunk_bytes, self._damaged.found)
        self._scrubber = Scrubber(store, self._damaged, self._workers, clock)
        host = DeliveryHost(
            store,
            self._consumers,
            self._workers,
            clock,
            self.measures,
            stored=self._retention.stored,
            settled=self._retention.settled,
            damaged=self._damaged.found,
        )
        self._dead_letters = DeadLetters(host)
        self._deliveries = Deliveries(host, self._dead_letters, self._open.messages)
        # What is due once in a while; each part of the broker that has something registers it here.
        self._sweeping = Sweeping(
            settings.sweep_interval,
            [
                self._dead_letters.sweep,
                self._consumers.sweep,
                self._open.sweep,
                self._retention.sweep,
                self._duplicates.prune,
                partial(give_back, store),
            ],
        )
