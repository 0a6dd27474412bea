"""Participant: a site's side of a job.

    participant = Participant(bus, job="sft", site="a")
    async for task in participant.rounds():
        model.load_state_dict(await task.load())
        …                                               # train
        await task.submit(model.state_dict(), num_examples=812, metrics={"loss": loss})
    model.load_state_dict(await participant.final.load())

Strategy: the newest model tells a site all it has to know; deliveries only wake it up. They are acknowledged
at once, since a training script keeps the event loop to itself for minutes and could not hold them. A site
that joins late, or comes back after a crash, finds by listing which model is the newest, and by the key of
its own update whether it has answered it. It is woken as soon as a model begins to be published, and may read
it from then on, see `Arriving`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from tensorbus.bus.client import Client, Delivery, Subscription
from tensorbus.bus.client.progress import ProgressCallback
from tensorbus.errors import AlreadySettled, Conflict, Forbidden, JobError, NotFound

from .arriving import Arriving
from .job import check_name, model_topic, site_consumer, state_name
from .models import GlobalModel, coming_model, newest_model
from .sampling import deadlines_in, drawn_after
from .state_folder import StateFolder
from .task import Task
from .uplink import Uplink

__all__ = ["Participant", "Task"]

log = logging.getLogger("tensorbus.participant")

LOOK_AGAIN = 10.0
"""Seconds after which the newest model is looked up although no delivery came: a second process of the same
site may have taken it."""


LOOK_SOON = 0.05
"""The same at first, when a model has begun to come; then twice as long each time."""


class Participant:
    """One site in one job.

    Args:
        job: the job's name.
        site: this site's name, unique within the job; see ``check_name``.
        base: what models may be sent as a change from: the path of a safetensors file, a container or a Base,
            which this site has, and the aggregator too. It is added to the bases of ``bus``.
        state: folder for what the job makes a site keep from round to round, see `StateFolder`; it may be
            shared by jobs and sites. None is ``TENSORBUS_STATE``, or a temporary folder that a restart loses.
        down, up: called with the Progress of each download and upload.

    Raises:
        InvalidName: for the job or the site.
    """

    def __init__(
        self,
        bus: Client,
        *,
        job: str,
        site: str,
        base: object | None = None,
        state: str | Path | None = None,
        down: ProgressCallback | None = None,
        up: ProgressCallback | None = None,
    ) -> None:
        self._bus = bus
        self._job = check_name(job, "job")
        self._site = check_name(site, "site")
        self._down = down
        self._up = up
        self._state = StateFolder(None if state is None else Path(state), state_name(job, site))
        self._final: Arriving | None = None
        self._unsettled: list[Delivery] = []
        self._left = False
        self._patience = LOOK_AGAIN
        self._missing = LOOK_SOON / 2
        self._waiting: tuple[int, float] | None = None  # the round, and since when its model is sealed
        if base is not None:
            bus.add_base(base)

    @property
    def final(self) -> Arriving:
        """The job's final model, once ``rounds`` has ended; it may still be on its way until it is loaded.

        Raises:
            JobError: it has not.
        """
        if self._final is None:
            raise JobError(f"job {self._job!r} has no final model yet; it comes when rounds() has ended")
        return self._final

    async def rounds(self) -> AsyncIterator[Task]:
        """A Task for each round that this site takes part in, always of the newest model; ends with the job.

        A round that the site has answered already, in this process or before a restart, is not given again,
        nor is one for which it was not selected, unless the round has no quorum at its deadline: then twice
        as many sites step in, and so on after each further deadline; and a site that declined is asked again.
        While the job is paused no round comes.

        Raises:
            BrokerUnavailable: the broker went away and did not come back in time.
            JobCancelled: the job was cancelled.
        """
        done, asked = 0, 0  # the round that came last, and the deadlines of it that had passed by then
        consumer = site_consumer(self._job, self._site)
        async with AsyncExitStack() as stack:
            deliveries = await self._subscribed(stack, consumer)
            while self._final is None and not self._left:
                model = await self._newest()
                if model is not None and (model.round, passed := self._deadlines(model)) > (done, asked):
                    again = model.round == done
                    task = Task(Arriving(model), self._site, self._down, self._up, self._state)
                    if self._is_drawn(model, passed):
                        done, asked = model.round, passed
                        if await self._wanted(task, again):
                            yield task
                            continue
                if self._final is None:
                    await self._woken(deliveries)
        if self._final is not None:
            await asyncio.to_thread(self._state.remove)
        try:
            await self._bus.delete_consumer(consumer)
        except (NotFound, Forbidden):
            pass  # a second process of this site was quicker; or another token's has taken the name

    async def leave(self, reason: str = "") -> None:
        """Take part no more: no round waits for this site, and ``rounds`` ends. It may come back at any time.

        Args:
            reason: told to whoever watches the aggregator, up to 500 characters.
        """
        self._left = True
        model = await newest_model(self._bus, self._job)
        if model is not None and not model.final:
            await Uplink(Arriving(model), self._site, self._state).decline(leaves=True, reason=reason)

    def release(self) -> None:
        """Let another object or process of this site work in its state folder, when nothing of this one is
        under way any more. It takes the folder again when it needs to.
        """
        self._state.release()

    async def _subscribed(self, stack: AsyncExitStack, consumer: str) -> Subscription:
        topic = model_topic(self._job)
        try:
            return await stack.enter_async_context(self._bus.subscribe(topic, consumer, follow=True))
        except Conflict as error:
            log.warning("%s; site %s goes without a name of its own", error, self._site)
            return await stack.enter_async_context(self._bus.subscribe(topic, follow=True))

    async def _newest(self) -> GlobalModel | None:
        """The newest model that begins a round, be it still on its way; the final one is noted."""
        model = await newest_model(self._bus, self._job)
        if model is None or not model.final:
            coming = await coming_model(self._bus, self._job)
            if coming is not None and (model is None or coming.round > model.round):
                model = coming
        if model is not None and model.final:
            self._final = Arriving(model)
            return None
        return model

    def _deadlines(self, model: GlobalModel) -> int:
        """How many of the round's deadlines have passed since its model was sealed, or first seen."""
        now = time.monotonic()
        if self._waiting is None or self._waiting[0] != model.round:
            self._waiting = model.round, math.inf
        if model.sealed:
            self._waiting = model.round, min(now, self._waiting[1])
        return deadlines_in(now - self._waiting[1], model.spec.deadline)

    def _is_drawn(self, model: GlobalModel, passed: int) -> bool:
        """Whether this site takes part in the round, or steps in after so many deadlines."""
        spec = model.spec
        return drawn_after(spec.job, model.round, self._site, spec.select) <= passed

    async def _wanted(self, task: Task, again: bool) -> bool:
        """Whether the round is to be given; ``again`` after another deadline, to a site that declined it."""
        uplink = Uplink(task.arriving, self._site, self._state)
        return not await uplink.answered() and await uplink.declined() == again

    async def _woken(self, deliveries: Subscription) -> None:
        """Wait for a delivery, which has then done its work, or for a while."""
        try:
            delivery = await deliveries.receive(timeout=self._patience)
        except NotFound:
            # A second process of this site came to the job's end first, and has deleted the consumer of both.
            self._missing = min(LOOK_AGAIN, 2 * self._missing)
            await asyncio.sleep(self._missing)
            return
        if delivery is not None:
            self._unsettled.append(delivery)
            self._patience = LOOK_SOON
        waiting, self._unsettled = self._unsettled, []
        for delivery in waiting:
            try:
                await delivery.ack()
            except (AlreadySettled, NotFound):
                pass  # it has done its work all the same
            except Conflict:
                self._unsettled.append(delivery)  # its message is still on its way
        # Of a message that has just begun nothing may be known yet, and no other delivery tells when it is.
        self._patience = min(LOOK_AGAIN, 2 * self._patience) if self._unsettled else LOOK_AGAIN
