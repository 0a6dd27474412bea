"""Upward: how the sum of a region goes to the job above, as one update that weighs what its sites weigh."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tensorbus.bus.client import Client, Progress
from tensorbus.codecs.item import Item
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import InvalidSpecification
from tensorbus.streaming.sources import ItemSource

from .events import Emitter
from .headers import MAX_METRICS, UpdateHeaders
from .job import JobSpec, check_name, state_name
from .origin import ClosedRound
from .participant import Task
from .reducers.base import Reducer
from .reducers.spec import ReducerSpec
from .state_folder import StateFolder
from .uplink import Uplink


@dataclass(frozen=True, slots=True)
class Parent:
    """The job above, and who a region is there.

    Attributes:
        bus: client of its broker, which may be another one.
        job, site: its name, and the region's among its sites.
        state: folder for what updates to it need, see `Participant`; None is ``TENSORBUS_STATE``.
    """

    bus: Client
    job: str
    site: str
    state: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.job, "job")
        check_name(self.site, "site")


@dataclass(frozen=True, slots=True)
class Upward:
    """Of one region.

    Attributes:
        spec: the region's job.
        state: what updates to the job above need.
    """

    spec: JobSpec
    parent: Parent
    emit: Emitter
    state: StateFolder = field(init=False)

    def __post_init__(self) -> None:
        state = StateFolder(self.parent.state, state_name(self.parent.job, self.parent.site))
        object.__setattr__(self, "state", state)

    async def make(self, closed: ClosedRound, above: JobSpec) -> Sequence[Item]:
        """The exact sums, or the mean of those tensors that an update had."""
        if self.exactly(above):
            return closed.reducer.partial()
        items = await closed.reducer.close(closed.current, closed.find_base)
        return await asyncio.to_thread(_trained, closed.reducer, items)

    async def submit(self, closed: ClosedRound, made: Sequence[Item], task: Task) -> None:
        """Send what was made of a round, as the answer to ``task``; nothing if that is over above."""
        exactly = self.exactly(task.spec)
        weight = closed.round.weight
        headers = UpdateHeaders(
            self.parent.site,
            task.round,
            weight,
            dict(list(closed.round.metrics().items())[:MAX_METRICS]),
            partial=exactly,
        )

        def told(progress: Progress) -> None:
            moved, total = progress.bytes_on_wire, progress.total_on_wire
            self.emit("submitting", round=task.round, bytes=moved, total_bytes=total)

        source = ItemSource("numpy" if exactly else closed.model.info.container, made)
        uplink = Uplink(task.arriving, self.parent.site, self.state)
        receipt = await uplink.send(source, headers, told, exactly=exactly)
        if receipt is None:
            self.emit("overtaken", round=task.round, parent=self.parent.job)
            return
        self.emit(
            "submitted",
            round=task.round,
            parent=self.parent.job,
            message=receipt.id,
            weight=weight,
            exact=exactly,
            bytes_on_wire=receipt.bytes_on_wire,
            duplicate=receipt.duplicate,
        )

    def exactly(self, above: JobSpec) -> bool:
        """Whether exact sums are sent: they are if the mean above is to be exact.

        Raises:
            InvalidSpecification: it is to be, and cannot.
        """
        if not above.deterministic:
            return False
        reducer = ReducerSpec.parse(above.reducer)
        if not self.spec.deterministic:
            raise InvalidSpecification(
                f"job {above.job!r} is deterministic, so its regions have to be: --deterministic is missing"
            )
        if reducer.combiner.name != "mean":
            return False
        if reducer.transforms:
            names = ", ".join(step.name for step in reducer.transforms)
            raise InvalidSpecification(
                f"job {above.job!r} does {names} to each update, which cannot be done to the sums of a "
                "region: have the regions do it"
            )
        up = Pipeline.parse(above.up)
        if up.skip or any(stage.private for stage in up.stages):
            raise InvalidSpecification(
                f"updates to job {above.job!r} are to be clipped, noised or sent in part (its --up), which "
                "cannot be done to the exact sums of a region: have the regions' sites do it"
            )
        if self.spec.staleness:
            raise InvalidSpecification(
                f"job {above.job!r} is deterministic: a region's sums are of one model, so nothing in "
                "it may be late; --staleness has to be 0"
            )
        return True


def _trained(reducer: Reducer, items: Sequence[Item]) -> Sequence[Item]:
    """Without the tensors that no update had: above they count as not sent, too."""

    def had(name: str) -> bool:
        return reducer.values(name) is not None

    sent = {item.spec.name for item in items if item.spec.view is None and item.spec.kind == "tensor"}
    lacking = {name for name in sent if not had(name)}
    names = [(item, item.spec.name if item.spec.view is None else item.spec.view.of) for item in items]
    return [item for item, name in names if name not in lacking]
