"""GlobalModel: a job's model as it lies in the broker. The newest one says where the job is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorbus.bus.client import Client
from tensorbus.bus.client.progress import ProgressCallback
from tensorbus.bus.messages import MessageInfo
from tensorbus.codecs.base import Sink
from tensorbus.errors import JobCancelled, NotFound, RoundClosed
from tensorbus.streaming.headers import Envelope
from tensorbus.streaming.sinks import open_file_sink, open_sink

from .bus_update import BusUpdate
from .control import is_tombstone
from .headers import ModelHeaders
from .job import JobSpec, model_topic
from .reducers.base import FindBase
from .updates import FoldingInterrupted


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """A global model, not yet downloaded: sealed, or still being published, see `Arriving`."""

    bus: Client
    info: MessageInfo
    headers: ModelHeaders

    @property
    def round(self) -> int:
        """The round that begins with this model, from 1; rounds + 1 for the final one."""
        return self.headers.number

    @property
    def final(self) -> bool:
        """Whether no round follows."""
        return self.headers.final

    @property
    def spec(self) -> JobSpec:
        """The job's specification, as the aggregator had it when it published this model."""
        return self.headers.spec

    @property
    def sealed(self) -> bool:
        """Whether all of it is at the broker, for good."""
        return self.info.state == "sealed"

    @property
    def base(self) -> str:
        """Of a sealed one: the id under which an update may be a change from it, as everyone decodes it."""
        return f"message:{self.info.digest}"

    async def load(self, into: object | None = None, progress: ProgressCallback | None = None) -> object:
        """The model in its container kind, or decoded in place into the tensors of ``into``.

        Raises:
            RoundClosed: the round is so long over that its model was deleted.
            ManifestMismatch: ``into`` lacks a tensor, or has it with another shape or dtype.
            MissingBase: it is a change from a base that this client does not have.
        """
        return await self.decode(lambda envelope: open_sink(envelope, into), progress)

    async def save(self, path: str | Path, progress: ProgressCallback | None = None) -> None:
        """The model as a safetensors file, written in place and never loaded. Raises as `load`."""
        await self.decode(lambda envelope: open_file_sink(envelope, path), progress)

    async def decode(
        self, make_sink: Callable[[Envelope], Sink], progress: ProgressCallback | None = None
    ) -> object:
        """The model into a sink of your own; see `Message.decode`. Raises as `load`."""
        try:
            message = await self.bus.fetch(self.info.id)
            return await message.decode(make_sink, progress)
        except NotFound as error:
            raise self._gone() from error

    def _gone(self) -> RoundClosed:
        return RoundClosed(f"job {self.spec.job!r} is past round {self.round}, whose model was deleted")


async def newest_model(bus: Client, job: str) -> GlobalModel | None:
    """The newest sealed global model of a job; None before the first.

    Raises:
        JobCancelled: the job was cancelled.
        InvalidRequest, InvalidSpecification: what lies on the topic is no model of this job.
    """
    async for info in bus.messages(model_topic(job), newest_first=True):
        if is_tombstone(info):
            raise JobCancelled(
                f"job {job!r} was cancelled after the model of round {info.headers.get('round')}"
            )
        return GlobalModel(bus, info, ModelHeaders.parse(job, info.headers))
    return None


async def coming_model(bus: Client, job: str) -> GlobalModel | None:
    """The newest model of a job that is being published at the moment, if one is.

    Raises:
        InvalidRequest, InvalidSpecification: what lies on the topic is no model of this job.
    """
    found: GlobalModel | None = None
    for info in await bus.open_messages(model_topic(job)):
        if info.headers.get("kind") == "model":  # else its first frame has not come yet
            found = GlobalModel(bus, info, ModelHeaders.parse(job, info.headers))
    return found


async def last_models(bus: Client, job: str, count: int) -> dict[int, GlobalModel]:
    """The newest sealed models of a job by their round. Raises InvalidRequest, InvalidSpecification."""
    found: dict[int, GlobalModel] = {}
    if count < 1:
        return found
    async for info in bus.messages(model_topic(job), newest_first=True):
        if not is_tombstone(info):
            model = GlobalModel(bus, info, ModelHeaders.parse(job, info.headers))
            found[model.round] = model
            if len(found) == count:
                break
    return found


def finder(bus: Client, models: Mapping[int, GlobalModel]) -> FindBase:
    """What finds these models by their id as a base."""
    known = {model.base: model.info.id for model in models.values()}

    async def find(base: str) -> BusUpdate:
        try:
            return BusUpdate(await bus.fetch(known[base]))
        except (KeyError, NotFound) as error:
            raise FoldingInterrupted(f"the model {base} is gone") from error

    return find
