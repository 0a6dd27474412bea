"""Reads the headers of jobs' messages, in bounded requests, and again only where something has moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tensorbus.bus.activity import Transfer
from tensorbus.bus.broker import Broker
from tensorbus.bus.messages import MessageInfo, TopicInfo

from .job import JobMessages

PARTS = ("model", "updates", "rounds")
"""Last tokens of a job's topics; ``seed`` as well, of which only the name counts."""
MAX_JOBS = 20
"""Those that something was published for last; of others only the names are known."""
_LIMITS = {"model": 8, "updates": 1000, "rounds": 200}
"""Messages that are read of each topic, newest first."""


@dataclass(frozen=True, slots=True)
class JobName:
    """A job, and the topics (or filters) that a watcher has to be allowed to read to be shown it."""

    name: str
    topics: tuple[str, ...]


def job_of(topic: str) -> str | None:
    """The job that a topic belongs to. Sites may have topics of their own below ``updates``."""
    tokens = topic.split(".")
    if tokens[0] != "fl" or len(tokens) not in (3, 4):
        return None
    known = tokens[2] in (*PARTS, "seed") if len(tokens) == 3 else tokens[2] == "updates"
    return tokens[1] if known else None


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of topics, and what they were like then."""

    topics: Sequence[TopicInfo]
    messages: Sequence[MessageInfo]


class JobReader:
    """Keeps what it has read of each job until its topics change."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._read: dict[str, _Read] = {}

    def forget(self) -> None:
        """Give back what was read."""
        self._read = {}

    async def read(
        self, topics: Iterable[TopicInfo], transfers: Iterable[Transfer], consumers: Mapping[str, str]
    ) -> tuple[list[JobName], list[JobMessages]]:
        """All jobs, the most recent one first; and what there is of the first of them.

        ``consumers`` are filters by name: a site's consumer is called ``JOB--SITE`` and reads the models.
        """
        by_job: dict[str, dict[str, TopicInfo]] = {}
        for topic in topics:
            if (job := job_of(topic.topic)) is not None:
                by_job.setdefault(job, {})[topic.topic] = topic
        coming: dict[str, list[Transfer]] = {}
        for transfer in transfers:
            if (job := job_of(transfer.info.topic)) is not None:
                coming.setdefault(job, []).append(transfer)
                by_job.setdefault(job, {})
        names = sorted(by_job, key=lambda job: _recent(by_job[job].values(), job in coming), reverse=True)
        kept: dict[str, _Read] = {}
        found: list[JobMessages] = []
        for job in names[:MAX_JOBS]:
            models, updates, records = [await self._messages(job, part, by_job[job], kept) for part in PARTS]
            known = [
                name.removeprefix(f"{job}--")
                for name, pattern in consumers.items()
                if name.startswith(f"{job}--") and pattern == f"fl.{job}.model"
            ]
            found.append(JobMessages(job, models, records, updates, coming.get(job, ()), known))
        self._read = kept
        return [JobName(job, _filters(job, by_job[job], coming.get(job, ()))) for job in names], found

    async def _messages(
        self, job: str, part: str, topics: Mapping[str, TopicInfo], kept: dict[str, _Read]
    ) -> Sequence[MessageInfo]:
        """Those of a topic and what is below it, newest first."""
        whole = f"fl.{job}.{part}"
        there = [info for name, info in sorted(topics.items()) if f"{name}.".startswith(f"{whole}.")]
        if not there:
            return ()
        read = self._read.get(whole)
        if read is None or read.topics != there:
            found: list[MessageInfo] = []
            own = any(info.topic != whole for info in there)
            for pattern in (whole, f"{whole}.*") if own else (whole,):
                page = await self._broker.messages(topic=pattern, limit=_LIMITS[part], order="desc")
                found += page.messages
            found.sort(key=lambda info: info.seq or 0, reverse=True)
            read = _Read(there, found)
        kept[whole] = read
        return read.messages


def _filters(job: str, topics: Iterable[str], coming: Iterable[Transfer]) -> tuple[str, ...]:
    needed = tuple(f"fl.{job}.{part}" for part in PARTS)
    own = f"fl.{job}.updates."
    below = any(name.startswith(own) for name in (*topics, *(each.info.topic for each in coming)))
    return (*needed, f"{own}*") if below else needed


def _recent(topics: Iterable[TopicInfo], busy: bool) -> tuple[int, bool]:
    return max((topic.last_seq for topic in topics), default=2**63), busy
