"""Durable consumers and their deliveries."""

from __future__ import annotations

from .operation import Part, empty_answer, json_answer, json_body, operation, parameter, problem
from .values import (
    CONSUMER_NAME,
    COUNT,
    FILTER,
    FLAG,
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

_NAME = parameter("path", "name", CONSUMER_NAME, "The consumer.")
_NO_CONSUMER = problem("No such consumer.")

_CONSUMER_LINKS = {name: {"name": "$response.body#/name"} for name in ("consumer", "pull", "deleteConsumer")}
_DELIVERY_LINKS = {
    name: {
        "name": "$response.body#/deliveries/0/consumer",
        "token": "$response.body#/deliveries/0/token",
    }
    for name in ("ack", "nak", "term", "inProgress")
} | {name: {"id": "$response.body#/deliveries/0/message/id"} for name in ("message", "frames")}


_WAIT: Schema = {"type": "number", "minimum": 0.01, "maximum": 86400}
_TOKENS: Schema = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 256}
_NAK: dict[str, Schema] = {
    "delay": SECONDS | {"default": 0, "maximum": 86400},
    "unread": FLAG | {"default": False},
}


def paths() -> Part:
    """Operations by path and method."""
    deliveries = "/v1/consumers/{name}/deliveries"
    found = {"200": json_answer("The consumer.", "Consumer"), "404": _NO_CONSUMER}
    return {
        "/v1/consumers": {
            "get": operation(
                "consumers", "consumers", "List consumers.", {"200": json_answer("Consumers.", "Consumers")}
            )
        },
        "/v1/consumers/{name}": {
            "put": operation(
                "consumers",
                "ensureConsumer",
                "Create a durable consumer, or find it there.",
                {
                    "201": json_answer("Created.", "Consumer", links=_CONSUMER_LINKS),
                    "200": json_answer("Was there, as wanted.", "Consumer", links=_CONSUMER_LINKS),
                    "409": problem("Is there with another configuration."),
                },
                parameters=(_NAME,),
                body=json_body("ConsumerConfig", required=True),
            ),
            "get": operation("consumers", "consumer", "Inspect a consumer.", found, parameters=(_NAME,)),
            "delete": operation(
                "consumers",
                "deleteConsumer",
                "Forget a consumer.",
                {"204": empty_answer("Gone."), "404": _NO_CONSUMER},
                parameters=(_NAME,),
            ),
        },
        deliveries: {
            "post": operation(
                "consumers",
                "pull",
                "Take the next deliveries; waits for the first.",
                {
                    "200": json_answer("Deliveries.", "Deliveries", links=_DELIVERY_LINKS),
                    "404": _NO_CONSUMER,
                },
                parameters=(_NAME,),
                body=json_body("Pull", required=False),
            )
        },
        deliveries + "/stream": {
            "get": operation(
                "consumers",
                "streamDeliveries",
                "Take deliveries as they come, for as long as the answer is read.",
                {"200": _stream_answer(), "404": _NO_CONSUMER},
                parameters=(
                    _NAME,
                    parameter(
                        "query",
                        "max",
                        {"type": "integer", "minimum": 1, "maximum": 10000, "default": 64},
                        "Deliveries on this stream that are not settled; more come when some are.",
                    ),
                    parameter(
                        "query",
                        "follow",
                        {"enum": ["false", "true"], "default": "false"},
                        "Also messages that are still open.",
                    ),
                    parameter(
                        "query",
                        "inline",
                        {"type": "integer", "minimum": 0, "maximum": 1 << 20, "default": 0},
                        "Bodies of up to so many bytes come along, as far as that is possible.",
                    ),
                    parameter(
                        "query",
                        "wait",
                        {"type": "integer", "minimum": 0, "maximum": 3600},
                        "End when nothing came for so many seconds.",
                    ),
                    parameter(
                        "query",
                        "heartbeat",
                        {"type": "integer", "minimum": 1, "maximum": 60, "default": 10},
                        "Seconds without a delivery after which a sign of life is sent.",
                    ),
                ),
            )
        },
        deliveries + "/stream/{stream}": {
            "delete": operation(
                "consumers",
                "endStream",
                "End a stream behind what was handed over, so that nothing of it is lost on the way.",
                {"204": empty_answer("It ends."), "404": problem("No such stream of this consumer.")},
                parameters=(_NAME, parameter("path", "stream", TEXT, "As `Tensorbus-Stream` said.")),
            )
        },
        "/v1/consumers/{name}/acks": {
            "post": _settle_all("acks", "Settle deliveries for good.", "DeliveryTokens")
        },
        "/v1/consumers/{name}/naks": {"post": _settle_all("naks", "Give deliveries back.", "Naks")},
        "/v1/consumers/{name}/in_progress": {
            "post": _settle_all("allInProgress", "Start the wait for deliveries anew.", "DeliveryTokens")
        },
        deliveries + "/{token}/ack": {"post": _settle("ack", "Settle a delivery for good; durable.")},
        deliveries + "/{token}/nak": {"post": _settle("nak", "Give a delivery back.", "Nak")},
        deliveries + "/{token}/term": {
            "post": _settle("term", "Refuse a delivery for good: it becomes a dead letter.", "Term")
        },
        deliveries + "/{token}/in_progress": {"post": _settle("inProgress", "Start its ack_wait anew.")},
    }


def _stream_answer() -> Part:
    text: Schema = {"type": "string"}
    return {
        "description": "Deliveries, in the form that `Accept` asks for. Lines of JSON (the default): objects "
        "with one member each, `delivery`, `heartbeat`, or `problem`, which is the last one. Events, for "
        "browsers: the same as `delivery` and `problem`. Records, for programs: length of the JSON and "
        "length of the frames (each a little-endian u32), the JSON as in a line, the frames; two zeros are a "
        "sign of life.",
        "headers": {"Tensorbus-Stream": {"schema": text, "description": "Names this stream, to end it."}},
        "content": {
            "application/jsonl": {"schema": text},
            "text/event-stream": {"schema": text},
            "application/vnd.tensorbus.deliveries": {"schema": text | {"format": "binary"}},
        },
    }


def _settle(name: str, summary: str, body: str | None = None) -> Part:
    return operation(
        "consumers",
        name,
        summary,
        {
            "204": empty_answer("Done."),
            "404": problem("No such delivery of this consumer."),
            "409": problem("It was settled before, or its message is still open."),
        },
        parameters=(_NAME, parameter("path", "token", TEXT, "The delivery.")),
        body=json_body(body, required=False) if body else None,
    )


def _settle_all(name: str, summary: str, body: str) -> Part:
    return operation(
        "consumers",
        name,
        summary + " One transaction for all; each succeeds or fails by itself.",
        {"200": json_answer("Done, but for those that failed.", "Outcomes"), "404": _NO_CONSUMER},
        parameters=(_NAME,),
        body=json_body(body, required=True),
    )


def schemas() -> dict[str, Schema]:
    """JSON values by name."""
    return {
        "ConsumerConfig": record(
            _CONFIG,
            "What a consumer wants. Times are in seconds.",
            optional=tuple(name for name in _CONFIG if name != "filter"),
            closed=True,
        ),
        "Consumer": record(
            {"name": CONSUMER_NAME}
            | _CONFIG
            | {"position": COUNT, "ack_pending": COUNT, "backlog": COUNT, "created": TIME},
            "A durable consumer and where it stands.",
        ),
        "Consumers": record({"consumers": array(ref("Consumer"))}, "All consumers."),
        "Pull": record(
            {
                "max": {"type": "integer", "minimum": 1, "maximum": 256, "default": 1},
                "wait": ref("Wait"),
                "follow": FLAG | {"default": False, "description": "Also messages that are still open."},
                "inline": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 1 << 20,
                    "default": 0,
                    "description": "Bodies of up to so many bytes come along, as far as that is possible.",
                },
            },
            "How many deliveries are wanted.",
            optional=("max", "wait", "follow", "inline"),
            closed=True,
        ),
        "Deliveries": record(
            {
                "deliveries": array(
                    record(
                        {
                            "token": TEXT,
                            "consumer": TEXT,
                            "attempt": COUNT,
                            "message": ref("Message"),
                            "frames": {"type": "string", "contentEncoding": "base64"},
                        },
                        "One hand-over of a message; settle it with its token. `frames` is the whole body.",
                        optional=("frames",),
                    )
                )
            },
            "Empty if nothing came in time.",
        ),
        "Nak": record(
            _NAK,
            "When it may come again; an `unread` delivery does not count as an attempt.",
            optional=("delay", "unread"),
            closed=True,
        ),
        "Term": record(
            {"reason": {"type": "string", "maxLength": 1000}},
            "Why it can never be dealt with.",
            optional=("reason",),
            closed=True,
        ),
        "DeliveryTokens": record({"tokens": _TOKENS}, "Deliveries.", closed=True),
        "Naks": record(
            {"tokens": _TOKENS} | _NAK,
            "Deliveries, and when they may come again.",
            optional=("delay", "unread"),
            closed=True,
        ),
        "Outcomes": record(
            {
                "failed": array(
                    record(
                        {"token": TEXT, "type": TEXT, "status": COUNT, "detail": TEXT},
                        "A delivery that is not settled now, and why, as in a problem document.",
                    )
                )
            },
            "Every delivery that is not listed here is settled, and durably.",
        ),
    }


_CONFIG: dict[str, Schema] = {
    "filter": FILTER,
    "start": {
        "default": "all",
        "anyOf": [
            {"enum": ["all", "new"]},
            record(
                {"seq": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}},
                "From the message with this seq on.",
                closed=True,
            ),
            record(
                {"time": TIME}, "From the first message sealed then or later on; a past time.", closed=True
            ),
        ],
    },
    "ack_wait": _WAIT | {"default": 30},
    "max_ack_pending": {"type": "integer", "minimum": 1, "maximum": 10000, "default": 64},
    "backoff": {
        "type": "array",
        "items": _WAIT,
        "maxItems": 64,
        "description": "In place of `ack_wait`, one for each attempt. No more of them than `max_deliver`.",
    },
    "max_deliver": nullable(
        {
            "type": "integer",
            "minimum": 1,
            "maximum": 1_000_000,
            "description": "Attempts after which a message becomes a dead letter.",
        }
    ),
    "dead_letter": nullable(TOPIC | {"description": "Topic of the dead letters; `dead.` and the name."}),
    "inactive_threshold": nullable(
        {
            "type": "number",
            "minimum": 0.01,
            "maximum": 366 * 86400,
            "description": "A consumer that nobody uses for so long is deleted.",
        }
    ),
}
