"""Uplink: how a site's update gets to the aggregator, as the job's pipeline demands.

Strategy. A change needs the round's model as this site decoded it. It is written to the state folder while it
is decoded for the script, so that it is neither downloaded twice nor held in memory. Error feedback needs
what was left out of the last update; see `Deferred` for when that advances.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from tensorbus.bus.client import Client, Receipt
from tensorbus.bus.client.progress import ProgressCallback
from tensorbus.codecs.base import Sink
from tensorbus.codecs.bases import Base
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import Residuals
from tensorbus.errors import JobCancelled, MessageAborted
from tensorbus.streaming.base_files import open_base
from tensorbus.streaming.headers import Envelope

from .arriving import Arriving
from .deferred import Deferred
from .headers import DeclineHeaders, UpdateHeaders
from .job import decline_key, leave_key, update_key, update_round
from .model_copy import ModelCopy
from .models import GlobalModel, newest_model
from .state_folder import StateFolder

log = logging.getLogger("tensorbus.participant")


@dataclass(frozen=True, slots=True)
class Uplink:
    """Of one site, for one round."""

    arriving: Arriving
    site: str
    state: StateFolder

    @property
    def model(self) -> GlobalModel:
        """The round's, as it is known."""
        return self.arriving.model

    @property
    def bus(self) -> Client:
        """The model's client."""
        return self.model.bus

    @property
    def topic(self) -> str:
        """Where the site answers."""
        return self.model.spec.answers_topic(self.site)

    @property
    def pipeline(self) -> Pipeline:
        """Of the updates."""
        return Pipeline.parse(self.model.spec.up)

    async def decode(
        self, make_sink: Callable[[Envelope], Sink], progress: ProgressCallback | None
    ) -> object:
        """The model into a sink, and into the state folder if the update will be a change from it."""
        if not self._is_change or await asyncio.to_thread(self._has_model):
            return await self.arriving.decode(make_sink, progress)
        return await self._kept(make_sink, progress)

    async def decline(self, *, leaves: bool, reason: str) -> Receipt:
        """Say that the round goes on without this site, and all others too if it ``leaves``."""
        job, number = self.model.spec.job, self.model.round
        word = DeclineHeaders(self.site, number, leaves, reason)
        key = decline_key(job, number, self.site)
        if leaves:
            # A site may come back, and leave the same round again: each time is one that has to be heard of.
            key = leave_key(job, number, self.site, secrets.token_hex(8))
        return await self.bus.publish(self.topic, b"", headers=word.to_headers(job), key=key)

    async def answered(self) -> bool:
        """Whether this site's update to the model is stored, so that training again would be for nothing."""
        attempt = 1
        while (receipt := await self.bus.receipt(self.topic, self._key(attempt))) is not None:
            if not receipt.gone:
                return True
            attempt += 1  # that one was refused
        return False

    async def declined(self) -> bool:
        """Whether this site has said that the round goes on without it."""
        key = decline_key(self.model.spec.job, self.model.round, self.site)
        return await self.bus.receipt(self.topic, key) is not None

    async def send(
        self,
        container: object,
        headers: UpdateHeaders,
        progress: ProgressCallback | None,
        *,
        exactly: bool = False,
    ) -> Receipt | None:
        """The update's receipt; None if the round is over, for longer than updates may be late.

        Args:
            exactly: send it bit for bit, whatever the job's pipeline for updates is.
        """
        model = await self.arriving.sealed()
        job, number = model.spec.job, model.round
        if await self._is_over(job, number):
            log.warning("round %d of job %s is over; the update of %s is not sent", number, job, self.site)
            return None
        pipeline = Pipeline.parse(None) if exactly else self.pipeline
        base = await self._base() if self._is_change and not exactly else None
        residuals = await self._residuals() if self._has_feedback and not exactly else None
        attempt = 1
        while True:
            try:
                receipt = await self.bus.publish(
                    self.topic,
                    container,
                    codec=pipeline,
                    headers=headers.to_headers(job),
                    key=self._key(attempt),
                    progress=progress,
                    base=base,
                    residuals=None if residuals is None else Deferred(residuals),
                )
            except MessageAborted:
                if not await self._is_over(job, number):
                    raise
                log.warning("job %s was cancelled while the update of %s was sent", job, self.site)
                return None
            if not receipt.duplicate or await self._is_stored(self._key(attempt)):
                return receipt
            attempt += 1  # the aggregator refused that one, and deleted it

    def _key(self, attempt: int) -> str:
        return update_key(self.model.spec.job, self.model.round, self.site, attempt)

    async def _is_over(self, job: str, number: int) -> bool:
        try:
            newest = await newest_model(self.bus, job)
        except JobCancelled:
            return True
        return newest is not None and (
            newest.round > number if newest.final else newest.round - number > newest.spec.staleness
        )

    # --- what it is a change from --------------------------------------------------------------------

    @property
    def _is_change(self) -> bool:
        return any(stage.against_base for stage in self.pipeline.stages)

    @property
    def _digest(self) -> str:
        return str(self.model.info.digest)

    def _has_model(self) -> bool:
        return self.model.sealed and self.state.model(self._digest).exists()

    async def _kept(
        self, make_sink: Callable[[Envelope], Sink] | None, progress: ProgressCallback | None
    ) -> object:
        """Decode the model, and keep a copy; its digest is known when all of it is here."""
        path = await asyncio.to_thread(self.state.arriving)
        made = await self.arriving.decode(
            lambda envelope: ModelCopy(None if make_sink is None else make_sink(envelope), path), progress
        )
        await asyncio.to_thread(self.state.keep_model, self._digest)
        return made

    async def _base(self) -> Base:
        """The round's model, fetched now if the script never loaded it."""
        if not await asyncio.to_thread(self._has_model):
            await self._kept(None, None)
        path = await asyncio.to_thread(self.state.model, self._digest)
        return await asyncio.to_thread(open_base, path, self.model.base)

    # --- what the last update left out ---------------------------------------------------------------

    @property
    def _has_feedback(self) -> bool:
        return self.pipeline.keeps_errors

    async def _residuals(self) -> Residuals:
        """The residuals, which have advanced if the last update counted.

        It did unless the broker never stored it, or it is gone although updates of its round are still kept:
        then the aggregator has refused it.
        """
        residuals = await asyncio.to_thread(self.state.residuals)
        key = await asyncio.to_thread(residuals.unresolved)
        if key is not None:
            receipt = await self.bus.receipt(self.topic, key)
            if receipt is not None:
                kept = update_round(key) >= self.model.round - 1
                if not kept or not receipt.gone:
                    await asyncio.to_thread(residuals.commit)
        return residuals

    async def _is_stored(self, key: str) -> bool:
        """Whether the message is there; the broker knows keys of messages that were refused and deleted.

        It is asked for the receipt, which it shows to whoever may publish; a site need not be able to read.
        """
        receipt = await self.bus.receipt(self.topic, key)
        return receipt is not None and not receipt.gone
