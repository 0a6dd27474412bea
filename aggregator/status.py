"""JobStatus: how a job stands, by what lies at the broker; its aggregator need not be running."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Literal

from tensorbus.bus.client import Client
from tensorbus.errors import JobCancelled, NotFound, TensorbusError

from .headers import DeclineHeaders, parse_answer
from .job import JobSpec
from .models import coming_model, last_models, newest_model
from .records import Ledger, Records

State = Literal["waiting", "open", "closing", "paused", "cancelled", "done"]


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One look at a job.

    Attributes:
        state: "waiting" for a first model; "open" while updates are awaited; "closing" once it is decided of
            which the next model is made; "paused" (nothing closes); "cancelled"; "done".
        round, rounds: the open one, and how many there are; the last one once it is over.
        model: id of the newest model's message.
        seconds: for which the round has been open.
        full, enough: so many sites (updates, in buffered mode) close it at once, or after the deadline.
        sites: whose updates to this round lie at the broker; ``late``: to earlier ones, not in a model yet.
        declined: who said that the round goes on without it; ``left``: and all others too.
        publishing, publishing_of: bytes of the next model that have come, and of how many.
    """

    job: str
    state: State
    round: int = 0
    rounds: int = 0
    mode: str = "sync"
    model: str | None = None
    seconds: float | None = None
    full: int = 0
    enough: int = 0
    deadline: float = 0.0
    sites: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    declined: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    publishing: int | None = None
    publishing_of: int | None = None

    def to_json(self) -> dict[str, object]:
        """A flat map; sites as lists."""
        plain: dict[str, object] = asdict(self)
        lists = {"sites": self.sites, "late": self.late, "declined": self.declined, "left": self.left}
        return plain | {name: list(sites) for name, sites in lists.items()}


async def job_status(bus: Client, job: str) -> JobStatus:
    """How ``job`` stands.

    Raises:
        NotFound: the broker has never heard of it.
        InvalidRequest, InvalidSpecification: what lies on its topics is not of a job.
    """
    models = await last_models(bus, job, 1)
    ledger = await Records(bus, job).read()
    ordered = ledger.orders[-1].action if ledger.orders else None
    if not models:
        topics = {topic.topic for topic in await bus.topics()}
        if not any(topic.startswith(f"fl.{job}.") for topic in topics):
            raise NotFound(f"the broker knows no job {job!r}")
        return JobStatus(job, "cancelled" if await _is_cancelled(bus, job) else "waiting")
    ((number, model),) = models.items()
    spec = model.spec
    found = JobStatus(
        job,
        "open",
        round=min(number, spec.rounds),
        rounds=spec.rounds,
        mode=spec.mode,
        model=model.info.id,
        full=spec.full,
        enough=spec.enough,
        deadline=spec.deadline,
    )
    if await _is_cancelled(bus, job) or ordered == "cancel":
        return replace(found, state="cancelled")
    if model.final:
        return replace(found, state="done")
    if number in ledger.rosters:
        found = replace(found, state="closing")
    if ordered == "pause":
        found = replace(found, state="paused")
    opened = ledger.opened.get(number)
    coming = await coming_model(bus, job)
    if coming is not None and coming.round > number:
        found = replace(found, publishing=coming.info.bytes, publishing_of=coming.info.wire_bytes)
    found = replace(found, seconds=None if opened is None else max(0.0, time.time() - opened))
    return await _with_answers(bus, found, ledger, spec)


async def _with_answers(bus: Client, found: JobStatus, ledger: Ledger, spec: JobSpec) -> JobStatus:
    before = ledger.before(found.round)
    here: dict[str, None] = {}
    late: dict[str, None] = {}
    declined: dict[str, None] = {}
    left = dict.fromkeys(sorted(before.left))
    async for info in bus.messages(spec.answers_filter):
        try:
            answer = parse_answer(found.job, info.headers)
        except TensorbusError:
            continue  # the aggregator will refuse it
        if info.topic != spec.answers_topic(answer.site):
            continue  # so it will this
        if isinstance(answer, DeclineHeaders):
            if answer.leaves:
                left[answer.site] = None
            elif answer.number == found.round:
                declined[answer.site] = None
        elif answer.number == found.round:
            here[answer.site] = None
            left.pop(answer.site, None)
        elif info.id not in before.messages:
            late[answer.site] = None
    return replace(found, sites=tuple(here), late=tuple(late), declined=tuple(declined), left=tuple(left))


async def _is_cancelled(bus: Client, job: str) -> bool:
    try:
        await newest_model(bus, job)
    except JobCancelled:
        return True
    return False
