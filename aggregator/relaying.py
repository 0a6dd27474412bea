"""Relay: how a region passes a model from above on to its own sites, unopened."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from tensorbus.bus.client import Progress
from tensorbus.errors import JobError, NotFound, RoundClosed, StoreDamaged, TensorbusError
from tensorbus.streaming.relay import RelaySource

from .headers import ModelHeaders
from .models import GlobalModel, last_models
from .publishing import Publisher

log = logging.getLogger("tensorbus.aggregator")


@dataclass(frozen=True, slots=True)
class Relay:
    """Downloads the frames of a model into the state folder, and publishes them from there.

    So the way down goes on where it was cut, even by ``kill -9``; and memory is that of a frame.

    Attributes:
        publisher: of the region's job.
    """

    publisher: Publisher

    async def pass_on(self, upper: GlobalModel) -> GlobalModel:
        """``upper``, which is sealed, as a model of the region's job; published if it is not there yet.

        Raises:
            RoundClosed: it was deleted meanwhile.
            JobError: the region's job is ahead of it.
        """
        publisher = self.publisher
        job = publisher.spec.job
        newest = await last_models(publisher.bus, job, 1)
        if upper.round in newest:
            return newest[upper.round]
        if max(newest, default=0) > upper.round:
            raise JobError(
                f"job {job!r} is in round {max(newest)}, and {upper.spec.job!r} in {upper.round}: is that "
                "its parent? A new job needs a new name"
            )
        spec = replace(publisher.spec, rounds=upper.spec.rounds, down=upper.spec.down)
        headers = ModelHeaders(upper.round, upper.final, spec)
        path = await asyncio.to_thread(publisher.state.relay)
        try:
            model = await self._published(upper, headers, path)
        except StoreDamaged as error:
            log.warning("%s; the model is downloaded again", error)
            await asyncio.to_thread(path.unlink, missing_ok=True)
            model = await self._published(upper, headers, path)
        await asyncio.to_thread(path.unlink, missing_ok=True)
        return model

    async def _published(self, upper: GlobalModel, headers: ModelHeaders, path: Path) -> GlobalModel:
        source = await self._downloaded(upper, path)
        try:
            return await self.publisher.relay(headers, source)
        finally:
            source.close()

    async def _downloaded(self, upper: GlobalModel, path: Path) -> RelaySource:
        """Its frames in a file, which may be there from before a restart."""

        def told(progress: Progress) -> None:
            moved, total = progress.bytes_on_wire, upper.info.bytes
            self.publisher.emit("relaying", round=upper.round, bytes=moved, total_bytes=total)

        source = await asyncio.to_thread(_opened, path)
        if source is not None:
            if source.digest == upper.info.digest:
                return source
            source.close()
        try:
            message = await upper.bus.fetch(upper.info.id)
            await message.save_frames(path, told)
        except NotFound as error:
            raise RoundClosed(f"the model of round {upper.round} above was deleted") from error
        return await asyncio.to_thread(RelaySource, path)


def _opened(path: Path) -> RelaySource | None:
    try:
        return RelaySource(path)
    except TensorbusError:
        return None  # it is not there, or not whole
