"""The broker: topics, messages, durable consumers and their deliveries. Knows no HTTP, opens no payload.

In short::

    async with Broker(FileStore(path)) as broker:
        upload = await broker.begin("fl.sft.updates", key="round-1/site-a")
        if isinstance(upload, Upload):
            async with upload:                 # leaving it unsealed aborts it
                async for chunk in body:
                    await upload.write(chunk)
                receipt = await upload.seal()
        else:
            receipt = upload                   # stored before under this key; receipt.duplicate is True
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from tensorbus.bus.clock import Clock, SystemClock
from tensorbus.bus.stores.base import Store
from tensorbus.bus.stores.values import StoredConsumer

from .delivering import Delivering
from .publishing import Publishing
from .reading import Reading
from .settings import BrokerSettings
from .upkeep import Upkeep


class Broker(Publishing, Reading, Delivering, Upkeep):
    """Every method belongs to the event loop it was started on; blocking work goes to worker threads.

    Here is its life; what it can do is in four chapters: `Publishing`, `Reading`, `Delivering`, `Upkeep`.
    """

    def __init__(
        self,
        store: Store,
        settings: BrokerSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(store, settings or BrokerSettings(), clock or SystemClock())
        self._running = False
        self._leading = False

    async def start(self) -> None:
        """Open the store and take up consumers where they were.

        Raises:
            StoreInUse, StoreVersion, StorageError: the data directory cannot be used.
        """
        self._damaged.start()
        consumers = await self._store.start(self._sync)
        if self._store.leading:
            await self._take_up(consumers)
        self._running = True

    @property
    def store_kind(self) -> str:
        """What messages are kept in: ``files``, ``memory``, ``jetstream``."""
        return self._store.kind

    @property
    def leading(self) -> bool:
        """Whether it decides. Where brokers share a store one does, and the others only read."""
        return self._leading and self._store.leading

    async def lead(self) -> bool:
        """Decide from now on, in the place of another broker that is gone; False if a third was faster.

        Raises StorageError.
        """
        consumers = await self._store.lead()
        if consumers is None:
            return False
        await self._take_up(consumers)
        return True

    async def _take_up(self, consumers: Sequence[StoredConsumer]) -> None:
        """What an earlier process, or another broker, has left."""
        self._consumers.load(consumers)
        await self._retention.load()
        self._open.load(await self._store.uploads())
        await self._open.take_up()
        self._leading = True
        await self._sweeping.start()

    def give_up_soon(self) -> None:
        """It is about to be closed: what waits for a store that does not answer fails in a few seconds."""
        self._store.give_up_soon()

    async def close(self) -> None:
        """Abort what is open, end every reader and pull, and close the store. Idempotent."""
        if not self._running:
            return
        self._running = False
        self.give_up_soon()
        await self._sweeping.stop()
        await self._scrubber.stop()
        self._deliveries.close()
        await self._open.close()
        self._borrowing.close()
        await self._retention.close()
        await self._workers.close()
        await self._store.close()

    async def sweep(self) -> None:
        """Do now what is due by the clock: remove what has grown old, forget keys, give space back.

        It is done at the start and every ``BrokerSettings.sweep_interval`` seconds anyway; to do it again
        changes nothing more.
        """
        await self._sweeping.sweep()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
