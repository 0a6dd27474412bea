"""Arriving: a model that a site may read while it is still being published.

Strategy. Reading an open message follows its publisher. Should that give up, or be killed so that nothing
comes any more, what was read is worth nothing, and the site waits for the model of this round: until it is
sealed, or somebody publishes it again. The script notices none of that. An aggregator that is started again
makes the same model, and mostly goes on with the very message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from tensorbus.bus.client.progress import ProgressCallback
from tensorbus.bus.messages import MessageInfo
from tensorbus.codecs.base import Sink
from tensorbus.errors import BrokerUnavailable, MessageAborted, NotFound, RoundClosed, TransferStalled
from tensorbus.streaming.headers import Envelope
from tensorbus.streaming.sinks import open_file_sink, open_sink

from .job import JobSpec
from .models import GlobalModel, coming_model, last_models, newest_model

log = logging.getLogger("tensorbus.participant")

SOON, SELDOM = 0.05, 5.0
"""Seconds between two looks at what has become of a model: at first, and after a while."""


class Arriving:
    """A global model, wherever it is on its way.

    Attributes:
        model: as it was known last; sealed once one of the methods has returned.
    """

    def __init__(self, model: GlobalModel) -> None:
        self.model = model

    @property
    def info(self) -> MessageInfo:
        """What the broker said of it; all of it once it was loaded, or saved."""
        return self.model.info

    @property
    def round(self) -> int:
        """The round that begins with it, from 1; rounds + 1 for the final one."""
        return self.model.round

    @property
    def final(self) -> bool:
        """Whether no round follows."""
        return self.model.final

    @property
    def spec(self) -> JobSpec:
        """The job's specification."""
        return self.model.spec

    async def load(self, into: object | None = None, progress: ProgressCallback | None = None) -> object:
        """The model in its container kind, or decoded in place into the tensors of ``into``.

        Raises:
            ManifestMismatch: ``into`` lacks a tensor, or has it with another shape or dtype.
            MissingBase: it is a change from a base that this client does not have.
            As `decode`.
        """
        return await self.decode(lambda envelope: open_sink(envelope, into), progress)

    async def save(self, path: str | Path, progress: ProgressCallback | None = None) -> None:
        """The model as a safetensors file, written in place and never loaded. Raises as `load`."""
        await self.decode(lambda envelope: open_file_sink(envelope, path), progress)

    async def decode(
        self, make_sink: Callable[[Envelope], Sink], progress: ProgressCallback | None = None
    ) -> object:
        """The whole model into a sink of your own; ``make_sink`` is called for each attempt.

        Raises:
            RoundClosed: the round is so long over that its model was deleted.
            JobCancelled: it will never be complete.
            As `Message.decode`.
        """
        while not self.model.sealed:
            try:
                message = await self.model.bus.fetch(self.model.info.id)
                made = await message.decode(make_sink, progress)
            except (MessageAborted, NotFound, TransferStalled, BrokerUnavailable) as error:
                log.info("model %d does not come to its end: %s", self.model.round, error)
                await self._look(open_too=True)
            else:
                if (await self.sealed()).info.id == message.id:
                    return made
                log.info("model %d was made again after it was read", self.model.round)
        return await self.model.decode(make_sink, progress)

    async def sealed(self) -> GlobalModel:
        """The model once it is complete. Raises as `decode`."""
        if not self.model.sealed:
            await self._look(open_too=False)
        return self.model

    async def look(self) -> None:
        """It broke off: find out what becomes of the round's model. Raises RoundClosed, JobCancelled."""
        if not self.model.sealed:
            await self._look(open_too=True)

    async def _look(self, *, open_too: bool) -> None:
        """Find the model of this round: sealed, or, with ``open_too``, published by somebody again."""
        bus, spec, number = self.model.bus, self.model.spec, self.model.round
        pause = SOON
        while True:
            models = await last_models(bus, spec.job, spec.kept + 2)
            if number in models:
                self.model = models[number]
                return
            if any(known > number for known in models):
                raise RoundClosed(f"job {spec.job!r} is past round {number}, whose model was deleted")
            await newest_model(bus, spec.job)  # unless it was cancelled
            coming = await coming_model(bus, spec.job) if open_too else None
            if coming is not None and coming.round == number:
                self.model = coming
                return
            await asyncio.sleep(pause)
            pause = min(SELDOM, 2 * pause)
