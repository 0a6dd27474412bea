"""Uplink: how a site's update gets to the aggregator, as the job's pipeline demands.

Strategy. A change needs the round's model as this site decoded it. It is written to the state folder while it
is decoded for the script, so that it is neither downloaded twice nor held in memory. Error feedback needs
what was left out of the last update; see `Deferred` for when that advances.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from tensorbus.bus.client import Client, Receipt
from tensorbus.bus.client.progress import ProgressCallback
from tensorbus.codecs.base import Sink
from tensorbus.codecs.bases import Base
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import Residuals
from tensorbus.errors import NotFound
from tensorbus.streaming.base_files import open_base
from tensorbus.streaming.headers import Envelope

from .deferred import Deferred
from .headers import UpdateHeaders
from .job import update_key, update_round, updates_topic
from .model_copy import ModelCopy
from .models import GlobalModel, newest_model
from .state_folder import StateFolder

log = logging.getLogger("tensorbus.participant")


@dataclass(frozen=True, slots=True)
class Uplink:
    """Of one site, for one round."""

    model: GlobalModel
    site: str
    state: StateFolder

    @property
    def bus(self) -> Client:
        """The model's client."""
        return self.model.bus

    @property
    def pipeline(self) -> Pipeline:
        """Of the updates."""
        return Pipeline.parse(self.model.spec.up)

    async def decode(
        self, make_sink: Callable[[Envelope], Sink], progress: ProgressCallback | None
    ) -> object:
        """The model into a sink, and into the state folder if the update will be a change from it."""
        if not self._is_change or await asyncio.to_thread(self._has_model):
            return await self.model.decode(make_sink, progress)
        path = await asyncio.to_thread(self.state.model, self._digest)
        made = await self.model.decode(lambda envelope: ModelCopy(make_sink(envelope), path), progress)
        await asyncio.to_thread(self.state.keep_model, self._digest)
        return made

    async def send(
        self, container: object, headers: UpdateHeaders, progress: ProgressCallback | None
    ) -> Receipt | None:
        """The update's receipt; None if the round is over."""
        job, number = self.model.spec.job, self.model.round
        newest = await newest_model(self.bus, job)
        if newest is not None and newest.round > number:
            log.warning("round %d of job %s is over; the update of %s is not sent", number, job, self.site)
            return None
        base = await self._base() if self._is_change else None
        residuals = await self._residuals() if self._has_feedback else None
        attempt = 1
        while True:
            receipt = await self.bus.publish(
                updates_topic(job),
                container,
                codec=self.pipeline,
                headers=headers.to_headers(job),
                key=update_key(job, number, self.site, attempt),
                progress=progress,
                base=base,
                residuals=None if residuals is None else Deferred(residuals),
            )
            if not receipt.duplicate or await self._is_stored(receipt.id):
                return receipt
            attempt += 1  # the aggregator refused that one, and deleted it

    # --- what it is a change from --------------------------------------------------------------------

    @property
    def _is_change(self) -> bool:
        return any(stage.against_base for stage in self.pipeline.stages)

    @property
    def _digest(self) -> str:
        return str(self.model.info.digest)

    def _has_model(self) -> bool:
        return self.state.model(self._digest).exists()

    async def _base(self) -> Base:
        """The round's model, fetched now if the script never loaded it."""
        if not await asyncio.to_thread(self._has_model):
            path = await asyncio.to_thread(self.state.model, self._digest)
            await self.model.decode(lambda envelope: ModelCopy(None, path))
            await asyncio.to_thread(self.state.keep_model, self._digest)
        path = await asyncio.to_thread(self.state.model, self._digest)
        return await asyncio.to_thread(open_base, path, self.model.base)

    # --- what the last update left out ---------------------------------------------------------------

    @property
    def _has_feedback(self) -> bool:
        return any(not stage.undone for stage in self.pipeline.stages)

    async def _residuals(self) -> Residuals:
        """The residuals, which have advanced if the last update counted.

        It did unless the broker never stored it, or it is gone although updates of its round are still kept:
        then the aggregator has refused it.
        """
        residuals = await asyncio.to_thread(self.state.residuals)
        key = await asyncio.to_thread(residuals.unresolved)
        if key is not None:
            receipt = await self.bus.receipt(updates_topic(self.model.spec.job), key)
            if receipt is not None:
                kept = update_round(key) >= self.model.round - 1
                if not kept or await self._is_stored(receipt.id):
                    await asyncio.to_thread(residuals.commit)
        return residuals

    async def _is_stored(self, message_id: str) -> bool:
        """Whether the message is there; the broker knows keys of messages that were refused and deleted."""
        try:
            await self.bus.message(message_id)
        except NotFound:
            return False
        return True
