"""View: which part of all that there is a watcher wants to see. Pure but for reading a request's query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from aiohttp import web

from tensorbus.bus.server.queries import Query
from tensorbus.errors import InvalidRequest

TopicOrder = Literal["name", "messages", "bytes", "recent"]
ConsumerOrder = Literal["name", "lag", "pending", "redelivering", "dead"]

TOPIC_ORDERS = ("name", "messages", "bytes", "recent")
CONSUMER_ORDERS = ("name", "lag", "pending", "redelivering", "dead")
MAX_SEARCH = 255
MAX_JOBS = 20
MAX_SHOWN = 200
"""Topics, consumers, transfers."""
MAX_FROM = 10_000_000

PARAMETERS = (
    "search",
    "jobs",
    "transfers",
    "topics",
    "topics_from",
    "topics_by",
    "consumers",
    "consumers_from",
    "consumers_by",
)


@dataclass(frozen=True)
class View:
    """What a watcher wants to see.

    Attributes:
        search: text within the names of jobs, topics and consumers, and the topics of transfers; any case.
        jobs, transfers, topics, consumers: how many of each, at most.
        topics_from, consumers_from: how many to pass over.
        topics_by, consumers_by: their order; figures are largest first.
    """

    search: str = ""
    jobs: int = 20
    transfers: int = 50
    topics: int = 50
    topics_from: int = 0
    topics_by: TopicOrder = "name"
    consumers: int = 50
    consumers_from: int = 0
    consumers_by: ConsumerOrder = "name"

    @classmethod
    def of(cls, request: web.Request) -> View:
        """What a request asks for. Raises InvalidRequest."""
        query = Query(request, PARAMETERS)
        search = query.text("search", "")
        if len(search) > MAX_SEARCH:
            raise InvalidRequest(f"parameter 'search' has {len(search)} characters; allowed are {MAX_SEARCH}")
        return cls(
            search.casefold(),
            query.integer("jobs", 0, MAX_JOBS, cls.jobs),
            query.integer("transfers", 0, MAX_SHOWN, cls.transfers),
            query.integer("topics", 0, MAX_SHOWN, cls.topics),
            query.integer("topics_from", 0, MAX_FROM, cls.topics_from),
            cast(TopicOrder, query.choice("topics_by", TOPIC_ORDERS, cls.topics_by)),
            query.integer("consumers", 0, MAX_SHOWN, cls.consumers),
            query.integer("consumers_from", 0, MAX_FROM, cls.consumers_from),
            cast(ConsumerOrder, query.choice("consumers_by", CONSUMER_ORDERS, cls.consumers_by)),
        )

    def wants(self, name: str) -> bool:
        """Whether ``name`` is one that is searched for."""
        return not self.search or self.search in name.casefold()
