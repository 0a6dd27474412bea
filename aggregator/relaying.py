"""Relay: how a region passes a model from above on to its own sites, unopened, and while it arrives."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from tensorbus.bus.client import Message, Progress
from tensorbus.errors import (
    BrokerUnavailable,
    JobError,
    MessageAborted,
    NotFound,
    RoundClosed,
    StoreDamaged,
    TensorbusError,
    TransferCancelled,
    TransferStalled,
)
from tensorbus.streaming.arriving_relay import ArrivingRelay
from tensorbus.streaming.part_file import PART
from tensorbus.streaming.relay import RelaySource

from .arriving import Arriving
from .headers import ModelHeaders
from .models import GlobalModel, last_models
from .publishing import Publisher

log = logging.getLogger("tensorbus.aggregator")

INTERRUPTED = (BrokerUnavailable, TransferStalled)
"""What may be over soon: the message below then stays as far as it is, to be gone on with."""


@dataclass(frozen=True, slots=True)
class Relay:
    """Downloads the frames of a model into the state folder, and publishes them from there at the same time.

    So each goes at its own pace, and on where it was cut, the way down even after ``kill -9``; and memory is
    that of a frame. The model below is sealed only after the one above is: one that breaks off above breaks
    off below, and whoever follows it there waits for the next attempt, as he would above.

    Attributes:
        publisher: of the region's job.
    """

    publisher: Publisher

    async def pass_on(self, arriving: Arriving, history: str | None = None) -> GlobalModel:
        """A model above, sealed or not yet, as a sealed one of the region's job; published if need be.

        ``history`` tells of the region's rounds before; that of the job above stays there.

        Raises:
            RoundClosed: it was deleted meanwhile.
            JobError: the region's job is ahead of it.
        """
        while True:
            upper = arriving.model
            there = await self._there(upper)
            if there is not None:
                return there
            try:
                return await self._published(upper, arriving, history)
            except MessageAborted as error:
                if upper.sealed:
                    raise
                log.info("model %d above does not come to its end: %s", upper.round, error)
                await arriving.look()

    async def _there(self, upper: GlobalModel) -> GlobalModel | None:
        job = self.publisher.spec.job
        newest = await last_models(self.publisher.bus, job, 1)
        if max(newest, default=0) > upper.round:
            raise JobError(
                f"job {job!r} is in round {max(newest)}, and {upper.spec.job!r} in {upper.round}: is that "
                "its parent? A new job needs a new name"
            )
        return newest.get(upper.round)

    async def _published(self, upper: GlobalModel, arriving: Arriving, history: str | None) -> GlobalModel:
        publisher = self.publisher
        spec = replace(publisher.spec, rounds=upper.spec.rounds, down=upper.spec.down)
        headers = ModelHeaders(upper.round, upper.final, spec, history)
        path = await asyncio.to_thread(publisher.state.relay)
        source = await asyncio.to_thread(_kept, path, upper)
        try:
            if source is not None:
                model = await self._sent(headers, source)
            else:
                model = await self._sent_meanwhile(upper, arriving, headers, path)
        except StoreDamaged as error:
            log.warning("%s; the model is downloaded again", error)
            await asyncio.to_thread(path.unlink, missing_ok=True)
            model = await self._sent_meanwhile(upper, arriving, headers, path)
        await asyncio.to_thread(path.unlink, missing_ok=True)
        return model

    async def _sent(self, headers: ModelHeaders, source: RelaySource | ArrivingRelay) -> GlobalModel:
        try:
            return await self.publisher.relay(headers, source)
        finally:
            source.close()

    async def _sent_meanwhile(
        self, upper: GlobalModel, arriving: Arriving, headers: ModelHeaders, path: Path
    ) -> GlobalModel:
        """Receive and send at the same time.

        Raises:
            MessageAborted: it broke off above; what was sent of it is taken back.
        """
        relay = ArrivingRelay(upper.info.id)
        receiving = asyncio.create_task(self._receive(upper, arriving, relay, path), name="tensorbus-relay")
        sending = asyncio.create_task(self._send(headers, relay, receiving, path, upper))
        try:
            await asyncio.wait([receiving, sending], return_when=asyncio.FIRST_EXCEPTION)
            if not sending.done() and isinstance(receiving.exception(), INTERRUPTED):
                await _ended(sending, relay)  # a call that is cancelled leaves its upload to be gone on with
                receiving.result()
            return await sending
        finally:
            for task in (sending, receiving):
                await _ended(task, relay)
            relay.close()

    async def _send(
        self,
        headers: ModelHeaders,
        relay: ArrivingRelay,
        receiving: asyncio.Task[None],
        path: Path,
        upper: GlobalModel,
    ) -> GlobalModel:
        envelope = await asyncio.to_thread(relay.opened)
        if envelope.original_bytes is not None:
            return await self.publisher.relay(headers, relay)
        await receiving  # its publisher did not know how large it would be
        return await self._sent(headers, await asyncio.to_thread(RelaySource, path, upper.info.id))

    async def _receive(
        self, upper: GlobalModel, arriving: Arriving, relay: ArrivingRelay, path: Path
    ) -> None:
        """All of the model, into the file; and say what has become of it."""

        def told(progress: Progress) -> None:
            moved, total = progress.bytes_on_wire, upper.info.wire_bytes or progress.total_on_wire
            self.publisher.emit("relaying", round=upper.round, bytes=moved, total_bytes=total)

        try:
            try:
                message = await upper.bus.fetch(upper.info.id)
                await message.save_frames(path, told, relay)
                await self._confirm(message, arriving, relay, path)
            except NotFound as error:
                if upper.sealed:
                    raise RoundClosed(f"the model of round {upper.round} above was deleted") from error
                raise MessageAborted(f"the model of round {upper.round} above was given up") from error
        except Exception as error:
            relay.stop(error)
            raise

    async def _confirm(self, message: Message, arriving: Arriving, relay: ArrivingRelay, path: Path) -> None:
        """What was received is the round's model, stored above for good."""
        source = await asyncio.to_thread(RelaySource, path)
        source.close()
        model = await arriving.sealed()
        if (model.info.id, model.info.digest) != (message.id, source.digest):
            raise MessageAborted(f"the model of round {model.round} above was made again")
        relay.seal(source.totals)


async def _ended(task: asyncio.Task[None] | asyncio.Task[GlobalModel], relay: ArrivingRelay) -> None:
    """Cancel a task, and wait until none of its threads is at work on ``relay``."""
    if not task.done():
        relay.stop(TransferCancelled("the transfer was cancelled"))
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen: of two that belong together, one is raised


def _kept(path: Path, upper: GlobalModel) -> RelaySource | None:
    """All of the model in a file from before a restart; what is there of others goes."""
    for part in path.parent.glob(f"{path.name}.*{PART}"):
        part.unlink(missing_ok=True)
    try:
        source = RelaySource(path, upper.info.id)
    except TensorbusError:
        return None  # it is not there, or not whole
    if upper.sealed and source.digest == upper.info.digest:
        return source
    source.close()
    return None
