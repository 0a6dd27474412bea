"""The broker's chapter on consumers: what they are handed, what they settle, what becomes a dead letter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tensorbus.bus.consumers import ConsumerConfig, ConsumerInfo, DeliveryInfo
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.topics import check_filter, check_message_id
from tensorbus.errors import (
    TensorbusError,
)

from .parts import Parts
from .pushing import Push, Sink, Wish
from .retention import Sees, everything


class Delivering(Parts):
    """Durable consumers and their deliveries."""

    async def ensure_consumer(
        self, name: str, config: ConsumerConfig, owner: str | None = None, sees: Sees = everything
    ) -> tuple[ConsumerInfo, bool]:
        """Create a durable consumer, or find it there with the same configuration; the bool is "created".

        ``owner`` is the id of its maker's token; ``sees`` as in ``put_policy``.

        Raises:
            InvalidName, InvalidRequest: what is wanted makes no sense.
            LimitExceeded: there are too many. TooManyRequests: the owner has too many.
            Conflict: it is there with another configuration, or a work queue has another already.
        """
        check = partial(self._retention.check_consumer, sees=sees)
        return await self._consumers.ensure(name, config, check, owner)

    async def consumer(self, name: str) -> ConsumerInfo:
        """One consumer. Raises NotFound."""
        return await self._consumers.info(self._consumers.get(name))

    def consumer_filter(self, name: str) -> str:
        """The filter of a consumer. Raises NotFound."""
        return self._consumers.get(name).config.filter

    def consumer_dead_letter(self, name: str) -> str:
        """The topic of a consumer's dead letters. Raises NotFound."""
        return self._consumers.get(name).dead_letter

    def consumer_owner(self, name: str) -> str | None:
        """The id of the token that made a consumer, None if it was made without one. Raises NotFound."""
        return self._consumers.get(name).owner

    async def consumers(self) -> list[ConsumerInfo]:
        """All consumers, by name."""
        return await self._consumers.all()

    async def lasting_consumers(self, limit: int) -> list[ConsumerInfo]:
        """Those that do not delete themselves, by name, at most ``limit``."""
        return await self._consumers.lasting(limit)

    async def delete_consumer(self, name: str) -> None:
        """Forget a consumer and its deliveries. Raises NotFound."""
        await self._consumers.delete(name)

    async def pull(
        self, name: str, limit: int = 1, wait: float = 0.0, follow: bool = False, inline: int = 0
    ) -> list[DeliveryInfo]:
        """Hand over the next deliveries, 1 to ``limit``, waiting up to ``wait`` seconds for the first.

        What is due again (nak, ack_wait) comes first, then new messages in seq order, then, with ``follow``,
        open ones. Empty if nothing came. Frames of bodies up to ``inline`` bytes come along, as far as they
        are kept with their rows and are half a mebibyte together; the rest is to be read.
        Raises NotFound; also when the consumer is deleted meanwhile.
        """
        return await self._deliveries.pull(name, limit, wait, follow, inline)

    def push(self, name: str, wish: Wish, sink: Sink) -> Push:
        """Hand deliveries over as they come, for as long as the stream that this returns is not ended.

        They go to ``sink``, in the order of ``pull``; which ones, and how many, ``wish`` says. What it gets
        has been noted as handed over, as with ``pull``.

        Raises:
            NotFound: no such consumer. InvalidRequest: ``wish`` is out of its bounds.
        """
        return self._deliveries.push(name, wish, sink)

    async def ack(self, name: str, token: str) -> None:
        """Settle a delivery for good; durable when this returns.

        Raises:
            NotFound: no such consumer, or the token is not one of its.
            AlreadySettled: settled before, or handed to another worker.
            Conflict: the message is still open.
        """
        _raise_first(await self._deliveries.ack(name, [token]))

    async def ack_all(self, name: str, tokens: Sequence[str]) -> list[TensorbusError | None]:
        """As ``ack``, of up to 256 deliveries in one transaction; what is wrong with each, if anything.

        Raises NotFound (no such consumer), InvalidRequest (too many), StorageError (none is settled).
        """
        return await self._deliveries.ack(name, tokens)

    async def nak(self, name: str, token: str, delay: float = 0.0, unread: bool = False) -> None:
        """Give a delivery back, to be handed over again after ``delay`` seconds. Raises as ``ack``.

        If its attempts are used up it becomes a dead letter at once. ``unread`` says that nobody looked at
        the message: the attempt does not count then.
        """
        _raise_first(await self._deliveries.nak(name, [token], delay, unread))

    async def nak_all(
        self, name: str, tokens: Sequence[str], delay: float = 0.0, unread: bool = False
    ) -> list[TensorbusError | None]:
        """As ``nak``, of many deliveries; returns and raises as ``ack_all``."""
        return await self._deliveries.nak(name, tokens, delay, unread)

    async def term(self, name: str, token: str, reason: str = "") -> None:
        """Refuse a delivery for good: its message becomes a dead letter, in one transaction with that.

        Raises as ``ack``; but an open message may be refused, and leaves no letter.
        """
        await self._deliveries.term(name, token, reason)

    async def in_progress(self, name: str, token: str) -> None:
        """Start the wait for a delivery's settlement anew. Raises NotFound, AlreadySettled."""
        _raise_first(await self._deliveries.in_progress(name, [token]))

    async def in_progress_all(self, name: str, tokens: Sequence[str]) -> list[TensorbusError | None]:
        """As ``in_progress``, of many deliveries; returns and raises as ``ack_all``."""
        return await self._deliveries.in_progress(name, tokens)

    async def replay(self, message_id: str, everyone: bool = False) -> MessageInfo:
        """Make a dead letter a message of its original topic again; the letter goes, in one transaction.

        The message is a new one, with the old one's frames, headers and key. Unless ``everyone`` should have
        it again, only the consumer that could not deal with it gets it.

        Raises:
            NotFound: there is no such message; or that consumer is gone, or takes other topics now.
            Conflict: it is no dead letter.
        """
        return await self._dead_letters.replay(check_message_id(message_id), everyone)

    async def purge_dead_letters(self, topic: str) -> int:
        """Remove all dead letters whose topic matches the filter; how many. Raises InvalidName."""
        return await self._dead_letters.purge(check_filter(topic))


def _raise_first(outcomes: Sequence[TensorbusError | None]) -> None:
    """Raise what is wrong with the only one."""
    if outcomes[0] is not None:
        raise outcomes[0]
