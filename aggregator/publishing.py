"""Publisher: seals global models, and clears away what no round needs any more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tensorbus.bus.client import Client, Progress
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import JobError, NotFound

from .events import Emitter
from .headers import ModelHeaders
from .job import JobSpec, model_key, model_topic, seed_topic, updates_topic
from .models import GlobalModel, newest_model
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

    async def publish(self, number: int, container: object) -> GlobalModel:
        """Seal ``container`` as the model that round ``number`` begins with; the newest model.

        The key makes it happen once: when this model exists already, that one is returned.
        """
        headers = ModelHeaders(number, number > self.spec.rounds, self.spec)

        def told(progress: Progress) -> None:
            self.emit(
                "publishing", round=number, bytes=progress.bytes_on_wire, total_bytes=progress.total_on_wire
            )

        pipeline = Pipeline.parse(self.spec.down)
        has_feedback = any(not stage.undone for stage in pipeline.stages)
        residuals = (
            await asyncio.to_thread(self.state.residuals) if has_feedback and self.state.lasting else None
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
        model = await newest_model(self.bus, self.spec.job)
        if model is None or model.round < number:
            raise JobError(
                f"model {number} of job {self.spec.job!r} was sealed, and then deleted by somebody"
            )
        return model

    async def clean_up(self, model: GlobalModel) -> None:
        """Delete what is older than the model before ``model``, which stragglers may still be reading.

        The updates that went into ``model`` stay one round longer, those of a finished job do not. A listing
        decides, not what this process remembers, so that nothing stays behind after a restart.
        """
        job = self.spec.job
        await self._delete(model_topic(job), below=model.round - 1)
        await self._delete(updates_topic(job), below=model.round if model.final else model.round - 1)
        await self._delete(seed_topic(job), below=None)

    async def _delete(self, topic: str, below: int | None) -> None:
        """Delete the messages of rounds before ``below``, all for None."""
        old: list[str] = []
        async for info in self.bus.messages(topic):
            number = info.headers.get("round")
            if below is None or (isinstance(number, int) and number < below):
                old.append(info.id)
        for message_id in old:
            try:
                await self.bus.delete(message_id)
            except NotFound:
                pass  # somebody else was quicker
