"""Delivery: a message in a consumer's hands, to be settled."""

from __future__ import annotations

from typing import Literal

from tensorbus.bus.consumers import DeliveryInfo
from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import AlreadySettled, DeliveryExpired
from tensorbus.streaming.entries import Entry

from .connection import segment
from .delivery_host import DeliveryHost
from .documents import JsonObject
from .message import Message
from .retry import TRANSIENT

Settlement = Literal["ack", "nak", "term"]


class Delivery(Message):
    """One hand-over of a message to a consumer.

    It stays yours while you hold it: the subscription tells the broker that work is in progress. Settle it
    once, by `ack`, `nak` or `term`, within the subscription's block; a delivery that was let go unsettled is
    handed to a worker again, `attempt` counting up.

    Attributes:
        attempt: how many times the message has been handed over, this time included, but for those when it
            was given back before anybody looked at it.
        settled: how it was settled, or None.
        settling: whether that is on its way.
    """

    def __init__(
        self, host: DeliveryHost, given: DeliveryInfo, info: MessageInfo, entries: tuple[Entry, ...] | None
    ) -> None:
        super().__init__(host.connection, host.bases, info, entries, given.frames)
        self.attempt = given.attempt
        self.settled: Settlement | None = None
        self.settling = False
        self._given = given
        self._host = host

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
        """The message has been dealt with: it is not handed over again. Durable when this returns.

        Several that are asked for at the same time go to the broker in one request.

        Raises:
            AlreadySettled: it was settled before.
            DeliveryExpired: an AlreadySettled; it had been given back meanwhile, and is handed over again.
            NotFound: the delivery is not this consumer's, or the consumer is gone.
            BrokerUnavailable: the broker did not come back in time.
        """
        self._check_unsettled()
        self.settling = True
        try:
            await self._host.acks.ack(self.token)
        finally:
            self.settling = False
        self._is_settled("ack")

    async def nak(self, delay: float = 0.0) -> None:
        """Hand the message over again, after ``delay`` seconds. Raises as `ack`.

        If its attempts are used up, it becomes a dead letter instead.
        """
        await self._settle("nak", {"delay": delay})

    async def term(self, reason: str = "") -> None:
        """The message can never be dealt with: do not hand it over again, but keep it as a dead letter.

        ``reason``, up to 1,000 characters, is kept with it. Raises as `ack`.
        """
        await self._settle("term", {"reason": reason})

    async def in_progress(self) -> None:
        """Ask for another full ``ack_wait``; done by itself while the delivery is held. Raises as `ack`."""
        self._check_unsettled()
        await self._connection.call("POST", self._path("in_progress"), document={}, retry=False)

    def _path(self, verb: str) -> str:
        return f"/v1/consumers/{segment(self.consumer)}/deliveries/{segment(self.token)}/{verb}"

    def _check_unsettled(self) -> None:
        if self.settled is not None:
            raise AlreadySettled(
                f"delivery of message {self.id} to {self.consumer} was settled before: {self.settled}"
            )

    def _is_settled(self, how: Settlement) -> None:
        self.settled = how
        self._host.settled(self.token)

    async def _settle(self, how: Settlement, document: JsonObject) -> None:
        self._check_unsettled()
        attempts = self._connection.attempts(f"{how} of message {self.id}")
        answer_lost = False
        while True:
            try:
                await self._connection.call("POST", self._path(how), document=document, retry=False)
                break
            except TRANSIENT as error:
                answer_lost = True
                await attempts.after(error)
            except AlreadySettled as error:
                # The first request may have arrived though its answer did not. But if the message is to be
                # handed over again, it was not settled; which is all that a nak wants.
                if not answer_lost or (isinstance(error, DeliveryExpired) and how != "nak"):
                    raise
                break
        self._is_settled(how)
