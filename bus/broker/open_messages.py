"""All messages that are being published."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from tensorbus.bus.clock import Clock
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.base import Store
from tensorbus.errors import BrokerBusy, LimitExceeded, MessageAborted

from .consumers import Consumers
from .open_message import OpenMessage, Phase
from .settings import BrokerSettings
from .uploads import Upload, UploadHost
from .workers import Workers


class OpenMessages:
    """Uploads by message id, at most one for each topic and idempotency key.

    Attributes:
        messages: what the uploads have verified so far, in the order in which they began.
        sealed, aborted: totals since the start.
    """

    def __init__(
        self,
        store: Store,
        settings: BrokerSettings,
        workers: Workers,
        clock: Clock,
        consumers: Consumers,
    ) -> None:
        self._store = store
        self._settings = settings
        self._workers = workers
        self._clock = clock
        self._consumers = consumers
        self._host = UploadHost(store, settings, workers, clock, self._changed, consumers.followers)
        self._uploads: dict[str, Upload] = {}
        self._closing = False
        self._received = 0
        self.messages: dict[str, OpenMessage] = {}
        self.sealed = 0
        self.aborted = 0

    @property
    def received(self) -> int:
        """Bytes that came in since the start."""
        return self._received + sum(upload.received for upload in self._uploads.values())

    def get(self, message_id: str) -> Upload | None:
        """The upload of a message, if there is one."""
        return self._uploads.get(message_id)

    async def begin(self, topic: str, key: str | None, size: int | None) -> Upload | Receipt:
        """See ``Broker.begin``; the names have been checked."""
        limit = self._settings.max_message_bytes
        if size is not None and size > limit:
            raise LimitExceeded(f"a body of {size} bytes is over the {limit} that this broker accepts")
        await self._workers.run(self._store.check_room, size or 0)
        if key is not None and (stored := await self._clear(topic, key)) is not None:
            return stored
        # From here on no await: two uploads that begin at once must not both find their key free.
        if self._closing:
            raise MessageAborted("the broker shuts down; try again later")
        if len(self._uploads) >= self._settings.max_open_messages:
            raise BrokerBusy(f"{len(self._uploads)} messages are being published, the limit; try later")
        message = OpenMessage(uuid4().hex, topic, key, datetime.fromtimestamp(self._clock.wall(), UTC))
        upload = Upload(message, self._host)
        self.messages[message.id] = message
        self._uploads[message.id] = upload
        return upload

    async def receipt(self, topic: str, key: str) -> Receipt | None:
        """The receipt of a key; an upload of this key that is under way is waited for, whatever its end."""
        while (upload := self._with_key(topic, key)) is not None:
            await upload.message.end()
        return await self._store.receipt(topic, key)

    async def close(self) -> None:
        """Abort all."""
        self._closing = True
        for upload in list(self._uploads.values()):
            await upload.abort("the broker shuts down")

    async def _clear(self, topic: str, key: str) -> Receipt | None:
        """The receipt of a key that is stored; else no upload has this key when this returns."""
        while True:
            stored = await self._store.receipt(topic, key)
            upload = self._with_key(topic, key)
            if stored is not None or upload is None:
                return stored
            if upload.message.phase is Phase.SEALING:
                await upload.message.end()
            else:
                await upload.abort("a second upload of its idempotency key took its place")

    def _with_key(self, topic: str, key: str) -> Upload | None:
        for upload in self._uploads.values():
            if upload.key == key and upload.topic == topic:
                return upload
        return None

    def _changed(self, message: OpenMessage) -> None:
        """An upload tells that its envelope is known, or its end."""
        if not message.ended:
            self._consumers.opened(message)
            return
        del self.messages[message.id]
        self._received += self._uploads.pop(message.id).received
        if message.phase is Phase.ABORTED:
            self.aborted += 1
            self._consumers.dropped(message.id)
        else:
            self.sealed += 1
            self._consumers.sealed(message, message.info.seq or 0)
