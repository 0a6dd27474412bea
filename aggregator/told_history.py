"""What became of a job's rounds, by what lies at the broker: a restart knows no less than who was there."""

from __future__ import annotations

from tensorbus.bus.client import Client
from tensorbus.errors import TensorbusError

from .headers import UpdateHeaders, mean_metrics
from .history import appended
from .job import JobSpec
from .models import last_models
from .records import Records, Roster


async def told_history(bus: Client, spec: JobSpec) -> str | None:
    """The history up to the newest model's round, if that is closed; None before the first model."""
    models = await last_models(bus, spec.job, 1)
    if not models:
        return None
    ((number, model),) = models.items()
    roster = (await Records(bus, spec.job).read()).rosters.get(number)
    if roster is None:
        return model.headers.history
    updates = await _updates(bus, spec, roster)
    return appended(model.headers.history, number, len(roster.entries), mean_metrics(updates))


async def _updates(bus: Client, spec: JobSpec, roster: Roster) -> list[UpdateHeaders]:
    """The headers of those that a round was closed with, in its order; without those that are gone."""
    wanted = {entry.message for entry in roster.entries}
    found: dict[str, UpdateHeaders] = {}
    async for info in bus.messages(spec.answers_filter):
        if info.id in wanted:
            try:
                found[info.id] = UpdateHeaders.parse(spec.job, info.headers)
            except TensorbusError:
                continue  # it was refused
    return [found[entry.message] for entry in roster.entries if entry.message in found]
