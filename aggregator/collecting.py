"""Collecting: one round's updates, from their deliveries into the reducer.

An update is folded as soon as it is sealed, while others are still being uploaded; one at a time and in the
order in which they were sealed, so that folding them again gives the same bits. Every accepted delivery is
kept, unacknowledged, until the next model is sealed: a killed aggregator leaves nothing behind but updates
that will be delivered again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from tensorbus.bus.client import Client, Delivery, Message, Subscription
from tensorbus.errors import (
    AlreadySettled,
    CodecError,
    FrameError,
    InvalidName,
    InvalidRequest,
    JobError,
    LimitExceeded,
    NotFound,
    RoundClosed,
    StoreDamaged,
    TensorbusError,
)

from .events import Emitter
from .folding import Folder, FoldingInterrupted
from .headers import UpdateHeaders
from .rounds import Round, Verdict

log = logging.getLogger("tensorbus.aggregator")

REFUSED = (CodecError, FrameError, InvalidName, InvalidRequest, LimitExceeded, RoundClosed, StoreDamaged)
"""What is wrong with an update itself; anything else is a fault of the bus, no reason to drop an update."""


@dataclass(slots=True)
class Collector:
    """Takes the deliveries of one round.

    Attributes:
        base: id of the round's model, from which an update may be a change.
        now: the clock of ``round``, in seconds.
    """

    bus: Client
    round: Round
    base: str
    folder: Folder
    emit: Emitter
    now: Callable[[], float]
    _held: dict[str, Delivery] = field(default_factory=lambda: {})

    async def collect(self, deliveries: Subscription) -> None:
        """Fold updates until the round closes.

        Raises:
            JobError: another aggregator has taken the job over.
            FoldingInterrupted: the round has to be taken up again.
            BrokerUnavailable, TransferStalled: the client lost its patience.
        """
        overdue = False
        while not self.round.closes(now := self.now()):
            if self.round.overdue(now) and not overdue:
                overdue = True
                self.emit("overdue", sites=list(self.round.accepted), quorum=self.round.spec.quorum)
            try:
                delivery = await deliveries.receive(timeout=self.round.patience(now))
            except NotFound:
                raise JobError(f"another aggregator has taken over job {self.round.spec.job!r}") from None
            except StoreDamaged as error:
                log.error("an update cannot even be looked at: %s", error)
                continue
            if delivery is not None:
                await self._take(delivery)

    async def settle(self) -> int:
        """Acknowledge what went into the model that is now sealed; how many that were."""
        for delivery in self._held.values():
            await _acknowledge(delivery)
        return len(self._held)

    async def _take(self, delivery: Delivery) -> None:
        try:
            update = UpdateHeaders.parse(self.round.spec.job, delivery.headers)
            verdict = self.round.judge(delivery.id, update)
            if verdict is Verdict.EARLY:
                raise RoundClosed(f"round {update.number} has not begun; round {self.round.number} is open")
            if verdict is Verdict.FOLD:
                await self._fold(delivery, update)
                self._accept(delivery, update)
        except REFUSED as error:
            await self._refuse(delivery, error)
            return
        if verdict is Verdict.REPEATED:
            self._held[delivery.id] = delivery  # the token of the earlier hand-over is worth nothing now
        elif verdict is not Verdict.FOLD:
            about = {"message": delivery.id, "site": update.site, "round": update.number}
            self.emit("ignored", why=verdict.value, **about)
            await _acknowledge(delivery)

    async def _fold(self, message: Message, update: UpdateHeaders) -> None:
        def told(folded: int) -> None:
            self.emit(
                "folding",
                message=message.id,
                site=update.site,
                round=update.number,
                bytes=folded,
                total_bytes=message.info.bytes,
            )

        told(0)
        await self.folder.fold(message, update.num_examples, told, self.base)

    def _accept(self, delivery: Delivery, update: UpdateHeaders) -> None:
        self.round.accept(delivery.id, update)
        self._held[delivery.id] = delivery
        self.emit(
            "folded",
            message=delivery.id,
            site=update.site,
            round=update.number,
            num_examples=update.num_examples,
            metrics=update.metrics,
            updates=len(self.round.accepted),
            expected=self.round.spec.sites,
        )

    async def _refuse(self, delivery: Delivery, error: TensorbusError) -> None:
        """Refuse an update for good, and take what it left behind out of the sums.

        Its message is deleted: that tells its site, if it should try again, that it was not counted.
        """
        reason = f"{error.slug}: {error}"
        log.warning("update %s refused: %s", delivery.id, reason)
        try:
            await delivery.term()
            await self.bus.delete(delivery.id)
        except (AlreadySettled, NotFound) as gone:
            log.info("refused update %s: %s", delivery.id, gone)
        site = str(delivery.headers.get("site"))[:64]
        self.emit("refused", message=delivery.id, site=site, round=self.round.number, reason=reason)
        if self.folder.dirty:
            await self._refold()

    async def _refold(self) -> None:
        accepted = list(self.round.accepted.values())
        self.emit("refolding", round=self.round.number, sites=[entry.headers.site for entry in accepted])
        await self.folder.reset()
        for entry in accepted:
            try:
                await self._fold(await self.bus.fetch(entry.message), entry.headers)
            except (*REFUSED, NotFound) as error:
                raise FoldingInterrupted(f"update {entry.message} cannot be read again: {error}") from error


async def _acknowledge(delivery: Delivery) -> None:
    """Ack; a delivery that slipped away will come again, late, and be ignored then."""
    try:
        await delivery.ack()
    except (AlreadySettled, NotFound) as error:
        log.info("update %s: %s", delivery.id, error)
