"""Delivery: a message in a consumer's hands, to be settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tensorbus.bus.consumers import DeliveryInfo
from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import AlreadySettled
from tensorbus.streaming.entries import Entry

from .bases import Bases
from .connection import TRANSIENT, Connection, JsonObject, segment
from .message import Message
from .retry import Retry

Settlement = Literal["ack", "nak", "term"]


class Delivery(Message):
    """One hand-over of a message to a consumer.

    It stays yours while you hold it: the subscription tells the broker that work is in progress. Settle it
    once, by `ack`, `nak` or `term`, within the subscription's block; a delivery that was let go unsettled is
    handed to a worker again, `attempt` counting up.

    Attributes:
        attempt: how many times the message has been handed over, this time included.
        settled: how it was settled, or None.
    """

    def __init__(
        self,
        connection: Connection,
        bases: Bases,
        given: DeliveryInfo,
        info: MessageInfo,
        entries: tuple[Entry, ...],
        on_settled: Callable[[str], None],
    ) -> None:
        super().__init__(connection, bases, info, entries)
        self.attempt = given.attempt
        self.settled: Settlement | None = None
        self._given = given
        self._on_settled = on_settled

    @property
    def consumer(self) -> str:
        """Name of the consumer it was handed to."""
        return self._given.consumer

    @property
    def token(self) -> str:
        """What names this hand-over at the broker."""
        return self._given.token

    def __repr__(self) -> str:
        return f"<Delivery {self.id} of {self.topic} to {self.consumer}, attempt {self.attempt}>"

    async def ack(self) -> None:
        """The message has been dealt with: it is not handed over again.

        Raises:
            AlreadySettled: it was settled before, or had been handed to another worker meanwhile.
            NotFound: the delivery is not this consumer's, or the consumer is gone.
            BrokerUnavailable: the broker did not come back in time.
        """
        await self._settle("ack", {})

    async def nak(self, delay: float = 0.0) -> None:
        """Hand the message over again, after ``delay`` seconds. Raises as `ack`."""
        await self._settle("nak", {"delay": delay})

    async def term(self) -> None:
        """The message can never be dealt with: do not hand it over again. Raises as `ack`."""
        await self._settle("term", {})

    async def in_progress(self) -> None:
        """Ask for another full ``ack_wait``; done by itself while the delivery is held. Raises as `ack`."""
        self._check_unsettled()
        await self._connection.call("POST", self._path("in_progress"), document={}, retry=False)

    async def give_back(self) -> None:
        """`nak` without insisting: one attempt, for a subscription that is being left."""
        await self._connection.call("POST", self._path("nak"), document={"delay": 0.0}, retry=False)

    def _path(self, verb: str) -> str:
        return f"/v1/consumers/{segment(self.consumer)}/deliveries/{segment(self.token)}/{verb}"

    def _check_unsettled(self) -> None:
        if self.settled is not None:
            raise AlreadySettled(
                f"delivery of message {self.id} to {self.consumer} was settled before: {self.settled}"
            )

    async def _settle(self, how: Settlement, document: JsonObject) -> None:
        self._check_unsettled()
        attempts = Retry(self._connection.settings.retry_for, f"{how} of message {self.id}")
        answer_lost = False
        while True:
            try:
                await self._connection.call("POST", self._path(how), document=document, retry=False)
                break
            except TRANSIENT as error:
                answer_lost = True
                await attempts.after(error)
            except AlreadySettled:
                # The first request may have arrived though its answer did not.
                if not answer_lost:
                    raise
                break
        self.settled = how
        self._on_settled(self.token)
