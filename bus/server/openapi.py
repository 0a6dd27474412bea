"""The API as an OpenAPI 3.1 document. A test compares it with the routes that the server really has."""

from __future__ import annotations

from collections.abc import Mapping

from tensorbus import __version__

from .media import FRAMES
from .problems import MEDIA_TYPE
from .schemas import CONSUMER_NAME, COUNT, FILTER, MESSAGE_ID, TEXT, TOPIC, Schema, ref, schemas

Part = dict[str, object]

_DESCRIPTION = """Tensorbus carries models between the sites of a federation. A message is published under
a topic as a stream of frames, is acknowledged when it is on stable storage, and is handed to durable
consumers at least once. Every error is `application/problem+json`."""

_BINARY: Schema = {}
_ETAG: Part = {"description": "The message's digest, quoted; the same for all parts of it.", "schema": TEXT}


def document() -> Part:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tensorbus",
            "version": __version__,
            "description": _DESCRIPTION.replace("\n", " "),
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": "messages"}, {"name": "consumers"}, {"name": "operations"}],
        "paths": _messages() | _consumers() | _operations(),
        "components": {"schemas": schemas()},
    }


def _parameter(place: str, name: str, schema: Schema, description: str) -> Part:
    return {
        "in": place,
        "name": name,
        "schema": schema,
        "description": description,
        "required": place == "path",
    }


def _json(description: str, schema: str) -> Part:
    return {"description": description, "content": {"application/json": {"schema": ref(schema)}}}


def _problem(description: str) -> Part:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": ref("Problem")}}}


def _body(schema: str, *, required: bool) -> Part:
    return {"required": required, "content": {"application/json": {"schema": ref(schema)}}}


def _operation(
    tag: str,
    name: str,
    summary: str,
    responses: Mapping[str, object],
    *,
    parameters: tuple[Part, ...] = (),
    body: Part | None = None,
) -> Part:
    operation: Part = {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "parameters": list(parameters),
        "responses": {**responses, "default": _problem("Anything else that went wrong.")},
    }
    if body is not None:
        operation["requestBody"] = body
    return operation


_ID = _parameter("path", "id", MESSAGE_ID, "The message.")
_NAME = _parameter("path", "name", CONSUMER_NAME, "The consumer.")
_NO_MESSAGE = _problem("No such message.")
_NO_CONSUMER = _problem("No such consumer.")


def _messages() -> Part:
    return {
        "/v1/topics": {
            "get": _operation("messages", "topics", "List topics.", {"200": _json("Topics.", "Topics")})
        },
        "/v1/topics/{topic}/messages": {"post": _publish()},
        "/v1/topics/{topic}/receipt": {
            "get": _operation(
                "messages",
                "receipt",
                "Ask what became of a key: the first receipt, also of a message that was deleted since. "
                "Waits for an upload of this key that is under way.",
                {
                    "200": _json("It was stored; `duplicate` is true.", "Receipt"),
                    "400": _problem("The topic or the key is malformed."),
                    "404": _problem("The topic never stored this key."),
                },
                parameters=(
                    _parameter("path", "topic", TOPIC, "Where it was published."),
                    _parameter("query", "key", TEXT, "The idempotency key. Required."),
                ),
            )
        },
        "/v1/messages": {"get": _list()},
        "/v1/messages/{id}": {
            "get": _operation(
                "messages",
                "message",
                "Inspect a message and its manifest.",
                {"200": _json("The message.", "MessageWithManifest"), "404": _NO_MESSAGE},
                parameters=(_ID,),
            ),
            "delete": _operation(
                "messages",
                "deleteMessage",
                "Delete a message and give its space back.",
                {"204": {"description": "Gone."}, "404": _NO_MESSAGE},
                parameters=(_ID,),
            ),
        },
        "/v1/messages/{id}/frames": {
            "get": _download("frames", "Download a message, or follow it while it is published.", (_ID,)),
            "head": _download("framesHead", "Size and entity tag of a message.", (_ID,), head=True),
        },
        "/v1/messages/{id}/items/{name}": {
            "get": _download("item", "Download the slice frames of one item.", (_ID, _ITEM)),
            "head": _download("itemHead", "Size of an item's frames.", (_ID, _ITEM), head=True),
        },
    }


_ITEM = _parameter("path", "name", TEXT, "The item's name, URL-escaped; a slash may stand as it is.")


def _publish() -> Part:
    key = "Stored once for each topic and key: a repeated upload is answered with the first one's receipt."
    expect = "`100-continue`: topic, key and size are checked before the body is sent."
    any_type = "Kept as a message of one item called `body`; needs Content-Length."
    text = "Text header `<name>` of a message whose body is not frames; any number of them."
    return _operation(
        "messages",
        "publish",
        "Publish a message.",
        {
            "201": _json("Stored.", "Receipt"),
            "200": _json("Was stored before under this key.", "Receipt"),
            "400": _problem("The topic, a header or the request is malformed."),
            "408": _problem("No byte arrived for the idle time-out."),
            "410": _problem("The upload was replaced by another one with the same key, or deleted."),
            "411": _problem("A body that is not frames came without Content-Length."),
            "413": _problem("A limit is exceeded."),
            "503": _problem("Too many messages are being published; try later."),
            "422": _problem("The body is no valid sequence of frames, or ended early."),
            "507": _problem("The disk is full."),
        },
        parameters=(
            _parameter("path", "topic", TOPIC, "Where to publish."),
            _parameter("header", "Idempotency-Key", TEXT, key),
            _parameter("header", "Expect", TEXT, expect),
            _parameter("header", "Tensorbus-Header-name", TEXT, text),
        ),
        body={
            "required": True,
            "content": {FRAMES: {"schema": _BINARY}, "*/*": {"schema": _BINARY}},
            "description": f"`{FRAMES}`, or anything. {any_type}",
        },
    )


def _list() -> Part:
    return _operation(
        "messages",
        "messages",
        "List messages.",
        {"200": _json("A page of messages.", "Messages"), "400": _problem("A parameter is malformed.")},
        parameters=(
            _parameter("query", "topic", FILTER | {"default": ">"}, "A topic, or a filter."),
            _parameter("query", "state", {"enum": ["sealed", "open"], "default": "sealed"}, "Which ones."),
            _parameter("query", "after", COUNT, "Continue behind this seq."),
            _parameter(
                "query",
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                "How many.",
            ),
            _parameter("query", "order", {"enum": ["asc", "desc"], "default": "asc"}, "By seq."),
        ),
    )


def _download(name: str, summary: str, path: tuple[Part, ...], *, head: bool = False) -> Part:
    content: Part = {} if head else {"content": {FRAMES: {"schema": _BINARY}}}
    return _operation(
        "messages",
        name,
        summary,
        {
            "200": {
                "description": "All of it; chunked while the message is open.",
                "headers": {"ETag": _ETAG},
            }
            | content,
            "206": {"description": "The range asked for.", "headers": {"ETag": _ETAG}} | content,
            "304": {"description": "Not modified."},
            "404": _problem("No such message or item."),
            "412": _problem("If-Match names another version."),
            "416": _problem("The range lies outside."),
        },
        parameters=(
            *path,
            _parameter("header", "Range", TEXT, "One range of bytes; several are answered with the whole."),
            _parameter("header", "If-Range", TEXT, "The range only if this is still the entity tag."),
            _parameter("header", "If-Match", TEXT, "Only if this is the entity tag."),
            _parameter("header", "If-None-Match", TEXT, "Only if this is not the entity tag."),
        ),
    )


def _consumers() -> Part:
    deliveries = "/v1/consumers/{name}/deliveries"
    found = {"200": _json("The consumer.", "Consumer"), "404": _NO_CONSUMER}
    return {
        "/v1/consumers": {
            "get": _operation(
                "consumers", "consumers", "List consumers.", {"200": _json("Consumers.", "Consumers")}
            )
        },
        "/v1/consumers/{name}": {
            "put": _operation(
                "consumers",
                "ensureConsumer",
                "Create a durable consumer, or find it there.",
                {
                    "201": _json("Created.", "Consumer"),
                    "200": _json("Was there, as wanted.", "Consumer"),
                    "409": _problem("Is there with another configuration."),
                },
                parameters=(_NAME,),
                body=_body("ConsumerConfig", required=True),
            ),
            "get": _operation("consumers", "consumer", "Inspect a consumer.", found, parameters=(_NAME,)),
            "delete": _operation(
                "consumers",
                "deleteConsumer",
                "Forget a consumer.",
                {"204": {"description": "Gone."}, "404": _NO_CONSUMER},
                parameters=(_NAME,),
            ),
        },
        deliveries: {
            "post": _operation(
                "consumers",
                "pull",
                "Take the next deliveries; waits for the first.",
                {"200": _json("Deliveries.", "Deliveries"), "404": _NO_CONSUMER},
                parameters=(_NAME,),
                body=_body("Pull", required=False),
            )
        },
        deliveries + "/{token}/ack": {"post": _settle("ack", "Settle a delivery for good; durable.")},
        deliveries + "/{token}/nak": {"post": _settle("nak", "Give a delivery back.", "Nak")},
        deliveries + "/{token}/term": {"post": _settle("term", "Refuse a delivery for good.")},
        deliveries + "/{token}/in_progress": {"post": _settle("inProgress", "Start its ack_wait anew.")},
    }


def _settle(name: str, summary: str, body: str | None = None) -> Part:
    return _operation(
        "consumers",
        name,
        summary,
        {
            "204": {"description": "Done."},
            "404": _problem("No such delivery of this consumer."),
            "409": _problem("It was settled before, or its message is still open."),
        },
        parameters=(_NAME, _parameter("path", "token", TEXT, "The delivery.")),
        body=_body(body, required=False) if body else None,
    )


def _operations() -> Part:
    def get(name: str, summary: str, answer: Mapping[str, object]) -> Part:
        return {"get": _operation("operations", name, summary, {"200": answer})}

    text = {"description": "Prometheus text format.", "content": {"text/plain": {"schema": TEXT}}}
    this = {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}
    return {
        "/healthz": get("healthz", "Is the process alive?", _json("Yes.", "Status")),
        "/readyz": get("readyz", "Does the store answer?", _json("Yes.", "Status")),
        "/metrics": get("metrics", "Counters and gauges.", text),
        "/openapi.json": get("openapi", "This document.", this),
    }
