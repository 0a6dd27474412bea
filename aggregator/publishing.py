"""Publisher: seals global models, and clears away what no round needs any more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tensorbus.bus.client import Client, Progress
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import Residuals
from tensorbus.errors import JobError
from tensorbus.streaming.relay import Relayed

from .control import bury
from .deleting import delete_open, delete_rounds
from .events import Emitter
from .headers import ModelHeaders
from .job import JobSpec, model_key, model_topic, seed_topic, updates_topic
from .models import GlobalModel, last_models
from .state_folder import StateFolder


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes the models of one job.

    Attributes:
        state: keeps the residuals from model to model, if the pipeline wants any; where it does not outlive
            the process they are in memory.
    """

    bus: Client
    spec: JobSpec
    emit: Emitter
    state: StateFolder

    async def publish(self, number: int, container: object, history: str | None = None) -> GlobalModel:
        """Seal ``container`` as the model that round ``number`` begins with; the newest model.

        ``history`` tells of the rounds before.

        The key makes it happen once: when this model exists already, that one is returned.
        """
        pipeline = Pipeline.parse(self.spec.down)
        keeps = pipeline.keeps_errors and self.state.lasting
        residuals = await asyncio.to_thread(self.state.residuals) if keeps else None
        headers = ModelHeaders(number, number > self.spec.rounds, self.spec, history)
        return await self._seal(headers, container, pipeline, residuals)

    async def relay(self, headers: ModelHeaders, source: Relayed) -> GlobalModel:
        """Seal the very slices of another job's model as one of this job; otherwise as `publish`."""
        return await self._seal(headers, source, None, None)

    async def _seal(
        self,
        headers: ModelHeaders,
        container: object,
        pipeline: Pipeline | None,
        residuals: Residuals | None,
    ) -> GlobalModel:
        number = headers.number

        def told(progress: Progress) -> None:
            self.emit(
                "publishing", round=number, bytes=progress.bytes_on_wire, total_bytes=progress.total_on_wire
            )

        receipt = await self.bus.publish(
            model_topic(self.spec.job),
            container,
            codec=pipeline,
            headers=headers.to_headers(),
            key=model_key(self.spec.job, number),
            progress=told,
            residuals=residuals,
        )
        self.emit(
            "published",
            round=number,
            final=headers.final,
            message=receipt.id,
            bytes_on_wire=receipt.bytes_on_wire,
            bytes_original=receipt.bytes_original,
            duplicate=receipt.duplicate,
        )
        for newest, model in (await last_models(self.bus, self.spec.job, 1)).items():
            if newest >= number:
                return model
        raise JobError(f"model {number} of job {self.spec.job!r} was sealed, and then deleted by somebody")

    async def clean_up(self, model: GlobalModel) -> None:
        """Delete what is older than the models that stragglers may still be reading, or send updates to.

        The updates that went into ``model`` stay a round longer, those of a finished job do not. A listing
        decides, not what this process remembers, so that nothing stays behind after a restart.
        """
        job, oldest = self.spec.job, model.round - self.spec.kept
        await delete_rounds(self.bus, model_topic(job), below=oldest)
        for answers in self._answers(ended=model.final):
            await delete_rounds(self.bus, answers, below=model.round if model.final else oldest)
        await delete_rounds(self.bus, seed_topic(job), below=None)

    async def cancel(self) -> GlobalModel | None:
        """Tell the sites that the job was cancelled, and delete all but the last model.

        The final model, if it is sealed: then nothing was done. What is being published is given up first,
        so that no model is sealed after the word that there will be none; whoever reads it hears of it.
        """
        job = self.spec.job
        await delete_open(self.bus, model_topic(job))
        models = await last_models(self.bus, job, 1)
        newest = max(models, default=0)
        if newest and models[newest].final:
            return models[newest]
        await bury(self.bus, job, newest)
        await delete_rounds(self.bus, model_topic(job), below=newest)
        for topic in (*self._answers(ended=True), seed_topic(job)):
            await delete_open(self.bus, topic)
            await delete_rounds(self.bus, topic, below=None)
        return None

    def _answers(self, *, ended: bool) -> list[str]:
        """Where the sites' answers are; also where they were before a restart with another setting."""
        job = self.spec.job
        return [updates_topic(job), f"{updates_topic(job)}.*"] if ended else [self.spec.answers_filter]
