"""Collecting: one round's updates, from their deliveries into the reducer.

An update is folded as soon as it is sealed, while others are still being uploaded; one at a time and in the
order in which they were sealed, so that folding them again gives the same bits. Every accepted delivery is
kept, unacknowledged, until the next model is sealed: a killed aggregator leaves nothing behind but updates
that will be delivered again, and the record of what it had decided.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from tensorbus.bus.client import Client, Delivery, Message
from tensorbus.bus.consumers import MAX_ACK_PENDING
from tensorbus.errors import (
    CodecError,
    FrameError,
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    MissingBase,
    NotFound,
    RoundClosed,
    StoreDamaged,
    TensorbusError,
)

from .bus_update import BusUpdate
from .deleting import delete_all
from .events import Emitter
from .headers import DeclineHeaders, UpdateHeaders, parse_answer
from .inbox import Inbox
from .models import GlobalModel, last_models
from .records import Roster
from .reducers.base import Reducer
from .rounds import Accepted, Round, Verdict
from .settling import acknowledge, put_off, shown_site
from .switch import Switch
from .updates import Contribution, FoldingInterrupted, NotEnoughUpdates, UpdateRefused

log = logging.getLogger("tensorbus.aggregator")

REFUSED = (CodecError, FrameError, InvalidName, InvalidRequest, LimitExceeded, RoundClosed, StoreDamaged)
"""What is wrong with an update itself; anything else is a fault of the bus, no reason to drop an update."""

MAX_PUT_OFF = MAX_ACK_PENDING // 2
"""Updates of sites that were not drawn, in a round: the broker counts them among what is being worked on."""


@dataclass(slots=True)
class Collector:
    """Takes the answers of one round.

    Attributes:
        models: what updates of this round may come from, by their round.
        now: the clock of ``round``, in seconds.
    """

    bus: Client
    round: Round
    models: Mapping[int, GlobalModel]
    reducer: Reducer
    emit: Emitter
    switch: Switch
    now: Callable[[], float]
    _held: dict[str, Delivery] = field(default_factory=lambda: {})
    _waiting: dict[tuple[str, int], str] = field(default_factory=lambda: {})

    async def collect(self, inbox: Inbox) -> tuple[Accepted, ...]:
        """Fold updates until the round closes; those that it consists of.

        Raises:
            JobError: another aggregator has taken the job over. JobCancelled: somebody cancelled it.
            FoldingInterrupted: the round has to be taken up again.
            BrokerUnavailable, TransferStalled: the client lost its patience.
        """
        due = 1
        while True:
            self.switch.check()
            self._turn(now := self.now())
            if self.round.closes(now):
                return self.round.close(now)
            if (passed := self.round.deadlines(now)) >= due:
                due = 2 * passed
                self._tell_overdue(passed)
            delivery = await inbox.next(self.switch.changed, self.round.patience(now))
            if delivery is not None:
                await self._take(delivery, inbox)

    async def replay(self, roster: Roster) -> None:
        """Fold what the round was closed with before a restart; it is closed again, if all of it is there."""
        self.emit("refolding", round=self.round.number, sites=[entry.site for entry in roster.entries])
        for entry in roster.entries:
            try:
                message = await self.bus.fetch(entry.message)
                update = UpdateHeaders.parse(self.round.spec.job, message.headers)
                await self._fold(message, update, entry.weight)
            except (*REFUSED, NotFound) as error:
                await self._refuse(entry.message, entry.site, error)
                if self.reducer.dirty:
                    await self.refold()
            else:
                self._accepted(self.round.accept(entry.message, update, entry.weight))
        if len(self.round.accepted) == len(roster.entries):
            self.round.close_as(entry.message for entry in roster.entries)

    def wait_for_more(self, error: NotEnoughUpdates) -> None:
        """The reducer needs more updates than the round was closed with; since a restart, say."""
        log.warning("round %d is open again: %s", self.round.number, error)
        self.round.need_more()
        self.emit("reopened", round=self.round.number, sites=self._sites)

    async def reopen(self, error: TensorbusError, make: Callable[[], Awaitable[object]]) -> None:
        """The reducer cannot make a model of these updates: drop those that are to blame.

        Args:
            make: what was tried; it is tried again with one update at a time, if nothing else tells.

        Raises:
            What was the matter, if it is none of them.
        """
        before = len(self.round.accepted)
        if isinstance(error, UpdateRefused):
            entry = next(e for e in self.round.accepted.values() if e.message == error.message)
            await self._refuse(entry.message, entry.headers.site, error)
        await self.refold()
        if len(self.round.accepted) == before:
            await self._try_each(make)
            await self.refold()
        if len(self.round.accepted) == before:
            raise error
        self.emit("reopened", round=self.round.number, sites=self._sites)

    async def _try_each(self, make: Callable[[], Awaitable[object]]) -> None:
        """Refuse the updates that no model can be made of, such as changes that leave its range."""
        for entry in list(self.round.accepted.values()):
            await self.reducer.reset()
            try:
                await self._fold(await self.bus.fetch(entry.message), entry.headers, entry.weight)
                await make()
            except NotEnoughUpdates:
                continue
            except (*REFUSED, NotFound) as error:
                await self._refuse(entry.message, entry.headers.site, error)

    async def refold(self) -> None:
        """Make the sums again, of all that were accepted; what cannot be read any more is refused."""
        folded: set[str] = set()
        while todo := [e for e in self.round.accepted.values() if e.message not in folded]:
            if not folded:
                self.emit("refolding", round=self.round.number, sites=[entry.headers.site for entry in todo])
                await self.reducer.reset()
            entry = todo[0]
            try:
                await self._fold(await self.bus.fetch(entry.message), entry.headers, entry.weight)
                folded.add(entry.message)
            except (*REFUSED, NotFound) as error:
                await self._refuse(entry.message, entry.headers.site, error)
                if self.reducer.dirty:
                    folded.clear()
        if not folded:
            await self.reducer.reset()

    async def settle(self) -> int:
        """Acknowledge what was heard, now that the next model is sealed; how many updates are in it."""
        await asyncio.gather(*(acknowledge(delivery) for delivery in self._held.values()))
        self._held.clear()
        return len(self.round.accepted)

    @property
    def _sites(self) -> list[str]:
        return list(dict.fromkeys(site for site, _ in self.round.accepted))

    def _tell_overdue(self, deadlines: int) -> None:
        self.emit(
            "overdue",
            round=self.round.number,
            deadlines=deadlines,
            sites=self._sites,
            quorum=self.round.enough,
            expected=self.round.expected,
            declined=sorted(self.round.declined),
            left=sorted(self.round.left),
            reason=self.round.lacking(),
        )

    def _turn(self, now: float) -> None:
        if self.switch.paused and not self.round.paused:
            self.round.pause(now)
            self.emit("paused", round=self.round.number)
        elif self.round.paused and not self.switch.paused:
            self.round.resume(now)
            self.emit("continued", round=self.round.number)

    # --- one answer ----------------------------------------------------------------------------------

    async def _take(self, delivery: Delivery, inbox: Inbox) -> None:
        try:
            answer = parse_answer(self.round.spec.job, delivery.headers)
            if delivery.topic != self.round.spec.answers_topic(answer.site):
                raise InvalidRequest(f"{delivery.topic} is not the topic of site {answer.site!r}")
            if isinstance(answer, DeclineHeaders):
                await self._decline(delivery, answer)
                return
            now = self.now()
            verdict = self.round.judge(delivery.id, answer, now)
            if verdict is Verdict.EARLY:
                await self._make_sure(inbox)
                raise RoundClosed(f"round {answer.number} has not begun; round {self.round.number} is open")
            if verdict is Verdict.FOLD:
                await self._fold(delivery, answer, self.round.weight_of(answer))
                self._held[delivery.id] = delivery
                self._accepted(self.round.accept(delivery.id, answer, now=now))
        except REFUSED as error:
            await self._refuse(delivery.id, shown_site(delivery), error, delivery)
            if self.reducer.dirty:
                await self.refold()
            return
        if verdict is Verdict.REPEATED:
            self.round.heard_again(answer.site)
            self._held[delivery.id] = delivery  # the token of the earlier hand-over is worth nothing now
        elif verdict is Verdict.UNDRAWN and self._may_wait(answer, delivery.id):
            await put_off(delivery, self.round.drawn_in(answer.site, now))
        elif verdict is not Verdict.FOLD:
            if verdict is not Verdict.COUNTED:
                about = {"message": delivery.id, "site": answer.site, "round": answer.number}
                self.emit("ignored", why=verdict.value, **about)
            await acknowledge(delivery)

    def _may_wait(self, answer: UpdateHeaders, message: str) -> bool:
        """Whether it is put off: one update of each site, so that none takes the room of all others."""
        first = self._waiting.setdefault((answer.site, answer.number), message)
        return first == message and len(self._waiting) <= MAX_PUT_OFF

    async def _make_sure(self, inbox: Inbox) -> None:
        """Before an update of a later round is refused: or is it this aggregator that is behind?

        Raises:
            JobError: another aggregator has taken the job over, and gets the update.
            FoldingInterrupted: another one had it meanwhile, and went on; the job is taken up where it is.
        """
        await inbox.check()
        newest = max(await last_models(self.bus, self.round.spec.job, 1), default=0)
        if newest > self.round.number:
            raise FoldingInterrupted(f"round {self.round.number} was closed by another aggregator")

    async def _decline(self, delivery: Delivery, word: DeclineHeaders) -> None:
        if self.round.decline(word):
            about = {"site": word.site, "leaves": word.leaves, "reason": word.reason}
            self.emit("declined", round=self.round.number, expected=self.round.expected, **about)
            if len(self.round.declined | self.round.left) <= self.round.spec.full:
                self._held[delivery.id] = delivery  # a restart has to hear of it again
                return
        await acknowledge(delivery)

    async def _fold(self, message: Message, update: UpdateHeaders, weight: float) -> None:
        def told(folded: int) -> None:
            self.emit(
                "folding",
                message=message.id,
                site=update.site,
                round=self.round.number,
                bytes=folded,
                total_bytes=message.info.bytes,
            )

        model = self.models.get(update.number)
        if model is None:
            raise MissingBase(f"it comes from the model of round {update.number}, which is gone")
        if update.partial and not self.reducer.takes_partials:
            raise InvalidRequest(
                "it holds the sums of a region, which only the mean of a deterministic job takes, "
                "and not where each update is clipped"
            )
        if message.info.frames > (most := self.reducer.layout.most_frames):
            raise LimitExceeded(
                f"it comes in {message.info.frames} frames; of this model at most {most} are taken"
            )
        told(0)
        current = update.number == self.round.number
        contribution = Contribution(
            message.id, update.site, update.number, weight, model.base, current, partial=update.partial
        )
        await self.reducer.add(BusUpdate(message), contribution, told)

    def _accepted(self, entry: Accepted) -> None:
        update = entry.headers
        self.emit(
            "folded",
            message=entry.message,
            site=update.site,
            round=self.round.number,
            behind=self.round.number - update.number,
            num_examples=update.num_examples,
            weight=entry.weight,
            metrics=update.metrics,
            updates=len(self.round.accepted),
            expected=self.round.expected,
        )

    async def _refuse(
        self, message: str, site: str, error: TensorbusError, delivery: Delivery | None = None
    ) -> None:
        """Refuse an update for good. Its message is deleted: that tells its site that it was not counted.

        It becomes no dead letter: that would keep it on the disk, and takes a right on another topic.
        """
        reason = f"{error.slug}: {error}"
        log.warning("update %s refused: %s", message, reason)
        delivery = self._held.pop(message, delivery)
        self.round.drop(message)
        await delete_all(self.bus, [message])
        if delivery is not None:
            await acknowledge(delivery)
        self.emit("refused", message=message, site=site, round=self.round.number, reason=reason)
