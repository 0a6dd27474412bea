"""What is going on: the status, the stream of it, and the page that shows it."""

from __future__ import annotations

from tensorbus.bus.server.page import MEDIA_TYPES, page_files
from tensorbus.bus.server.status.view import (
    CONSUMER_ORDERS,
    MAX_FROM,
    MAX_JOBS,
    MAX_SEARCH,
    MAX_SHOWN,
    TOPIC_ORDERS,
    View,
)

from .operation import Part, empty_answer, json_answer, operation, parameter, problem
from .values import (
    BINARY,
    COUNT,
    FLAG,
    MESSAGE_ID,
    SECONDS,
    TEXT,
    TIME,
    TOPIC,
    Schema,
    array,
    nullable,
    record,
    ref,
)

_RATE: Schema = nullable({"type": "number", "minimum": 0})
_NUMBER: Schema = {"type": "number"}
_EVENT: Schema = {
    "type": "object",
    "properties": {
        "event": {"enum": ["status", "problem"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}
_METRICS: Schema = {"type": "object", "additionalProperties": nullable(_NUMBER)}


def paths() -> Part:
    """Operations by path and method."""
    view = _view()
    events = {
        "description": "Events `status`: the whole at first, then the members that have changed; and "
        "`problem`, which is the last one. Comments are signs of life.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
    page = {"description": "The page.", "content": {"text/html": {"schema": TEXT}}}
    unchanged = empty_answer("Not modified.")
    tag = parameter("header", "If-None-Match", TEXT, "Only if this is not the entity tag.")
    files = sorted(page_files())
    return {
        "/v1/status": {
            "get": operation(
                "status",
                "status",
                "What is going on. Lists hold what the caller may read; the figures are of the whole broker.",
                {"200": json_answer("Now, or half a second ago.", "Going")},
                parameters=view,
            )
        },
        "/v1/status/stream": {
            "get": operation(
                "status",
                "statusStream",
                "What is going on, as Server-Sent Events, at most two a second.",
                {"200": events},
                parameters=view,
            )
        },
        "/": {
            "get": operation(
                "status",
                "page",
                "The status as a page for people.",
                {"200": page, "304": unchanged},
                parameters=(tag,),
                public=True,
            )
        },
        "/page/{file}": {
            "get": operation(
                "status",
                "pageFile",
                "One of the files that the page is made of.",
                {
                    "200": {
                        "description": "The file.",
                        "content": dict.fromkeys(sorted(MEDIA_TYPES.values()), BINARY),
                    },
                    "304": unchanged,
                    "404": problem("No such file."),
                },
                parameters=(parameter("path", "file", {"enum": files}, "The file."), tag),
                public=True,
            )
        },
    }


def _view() -> tuple[Part, ...]:
    text: Schema = {"type": "string", "maxLength": MAX_SEARCH}
    return (
        parameter("query", "search", text, "Only what has this in its name; jobs, topics, consumers."),
        _count("jobs", MAX_JOBS, View.jobs, "Jobs, the most recent ones."),
        _count("transfers", MAX_SHOWN, View.transfers, "Uploads and downloads that are under way."),
        _count("topics", MAX_SHOWN, View.topics, "Topics."),
        _count("topics_from", MAX_FROM, View.topics_from, "Topics to pass over."),
        _order("topics_by", TOPIC_ORDERS, "Order of the topics; figures largest first."),
        _count("consumers", MAX_SHOWN, View.consumers, "Consumers."),
        _count("consumers_from", MAX_FROM, View.consumers_from, "Consumers to pass over."),
        _order("consumers_by", CONSUMER_ORDERS, "Order of the consumers; figures largest first."),
    )


def _count(name: str, most: int, default: int, description: str) -> Part:
    schema: Schema = {"type": "integer", "minimum": 0, "maximum": most, "default": default}
    return parameter("query", name, schema, description)


def _order(name: str, orders: tuple[str, ...], description: str) -> Part:
    return parameter("query", name, {"enum": list(orders), "default": "name"}, description)


def schemas() -> dict[str, Schema]:
    """JSON values by name."""
    saving = nullable(ref("Saving"))
    return {
        "Going": record(
            {
                "at": TIME,
                "every": SECONDS,
                "broker": record(
                    {"version": TEXT, "started": TIME, "asks_for_tokens": FLAG, "writable": FLAG},
                    "The broker.",
                ),
                "you": nullable(_you()),
                "totals": _totals(),
                "rates": record(
                    dict.fromkeys(("received", "sent", "messages", "deliveries"), _RATE),
                    "Per second; null where it is not known yet.",
                ),
                "store": record(
                    {"kind": {"enum": ["files", "memory", "jetstream"]}, "shared": FLAG},
                    "What messages are kept in; `shared` by several brokers.",
                ),
                "brokers": _listed("SharingBroker"),
                "disk": record({"free": COUNT, "size": COUNT}, "The file system of the messages."),
                "quotas": _listed("Quota"),
                "codecs": array(
                    record(
                        {"codec": TEXT, "received": saving, "sent": saving},
                        "What a codec has saved since the broker started.",
                    )
                ),
                "transfers": _listed("Transfer"),
                "topics": _listed("Topic", paged=True),
                "consumers": _listed("WatchedConsumer", paged=True),
                "jobs": _listed("Job"),
            },
            "What is going on at a broker; `every` so many seconds it is looked anew. Sizes are bytes.",
        ),
        "SharingBroker": record(
            {
                "url": TEXT,
                "leads": FLAG,
                "version": TEXT,
                "started": TIME,
                "behind": nullable(COUNT),
                "uploads": COUNT,
                "downloads": COUNT,
                "received": _RATE,
                "sent": _RATE,
                "away": nullable(TIME),
            },
            "A broker of a shared store. `behind`: records of the log that it has not applied; `received`, "
            "`sent`: bytes per second; `away`: since when it has not been heard of.",
        ),
        "Saving": record(
            {"messages": COUNT, "original_bytes": COUNT, "wire_bytes": COUNT},
            "Messages, the bytes of their values, and the bytes that went over the wire.",
        ),
        "Quota": record(
            {
                "kind": {"enum": ["policy", "token"]},
                "name": TEXT,
                "filter": nullable(TEXT),
                "topics": nullable(COUNT),
                "bytes": COUNT,
                "max_bytes": nullable(COUNT),
                "messages": nullable(COUNT),
                "max_messages": nullable(COUNT),
            },
            "What is used of a quota. Limits of a policy are those of each of its topics.",
        ),
        "Transfer": record(
            {
                "id": TEXT,
                "direction": {"enum": ["upload", "download"]},
                "message": MESSAGE_ID,
                "topic": TOPIC,
                "bytes": nullable(COUNT),
                "total": nullable(COUNT),
                "rate": _RATE,
                "began": TIME,
                "resumable": FLAG,
                "idle": FLAG,
                "job": nullable(TEXT),
                "round": nullable(COUNT),
                "site": nullable(TEXT),
            },
            "A message on its way. `idle`: nobody is sending it.",
        ),
        "WatchedConsumer": {
            "allOf": [
                ref("Consumer"),
                record(
                    {
                        "redelivering": COUNT,
                        "dead_letter": nullable(TOPIC),
                        "dead": COUNT,
                        "redelivered": array(
                            record(
                                {"message": MESSAGE_ID, "attempt": COUNT, "due": SECONDS, "held": FLAG},
                                "One of those; `due` is in how many seconds it may be handed over again.",
                            )
                        ),
                    },
                    "Messages that it was handed more than once, and those that it could not deal with.",
                ),
            ]
        },
        "Job": _job(),
    }


def _listed(schema: str, *, paged: bool = False) -> Schema:
    begin = {"from": COUNT} if paged else {}
    return record({"count": COUNT, **begin, "shown": array(ref(schema))}, "How many there are; some of them.")


def _you() -> Schema:
    rights = dict.fromkeys(("publish", "subscribe", "admin"), array(TEXT))
    return record(
        {
            "id": TEXT,
            "name": TEXT,
            **rights,
            "expires": nullable(TIME),
            "max_bytes": nullable(COUNT),
            "used_bytes": nullable(COUNT),
        },
        "The caller's token.",
    )


def _totals() -> Schema:
    names = "messages bytes topics consumers ack_pending open_messages parked_uploads connections"
    bad = "damaged dead_letters"
    since = "sealed deliveries acks redeliveries dead received_bytes sent_bytes"
    return record(
        dict.fromkeys(f"{names} {bad} {since}".split(), COUNT),
        "As in `/metrics`; those from `sealed` on since the broker started. Bytes are those of all brokers.",
    )


def _job() -> Schema:
    states = ("sending", "late", "waited", "in", "declined", "left")
    site = record(
        {
            "site": TEXT,
            "state": {"enum": list(states)},
            "num_examples": nullable(_NUMBER),
            "metrics": _METRICS,
            "bytes": nullable(COUNT),
            "total": nullable(COUNT),
            "at": nullable(TIME),
            "reason": nullable(TEXT),
        },
        "A site in the open round.",
    )
    return record(
        {
            "job": TEXT,
            "state": {"enum": ["waiting", "open", "closing", "paused", "cancelled", "done"]},
            "round": nullable(COUNT),
            "rounds": nullable(COUNT),
            "mode": TEXT,
            "full": COUNT,
            "enough": nullable(COUNT),
            "deadline": nullable(SECONDS),
            "opened": nullable(TIME),
            "due": nullable(TIME),
            "overdue": FLAG,
            "up": TEXT,
            "down": TEXT,
            "model_bytes": nullable(COUNT),
            "model_original_bytes": nullable(COUNT),
            "publishing": nullable(record({"bytes": COUNT, "total": nullable(COUNT)}, "The next model.")),
            "counts": record(dict.fromkeys(states, COUNT), "Sites by their state."),
            "sites": array(site),
            "history": array(
                record(
                    {"round": COUNT, "updates": COUNT, "metrics": _METRICS},
                    "A round that is over: how many updates it had, and the means of the sites' metrics.",
                )
            ),
        },
        "A federated training, by the headers of its messages: nobody need have told the truth there.",
    )
