"""Publishing, listing, inspecting, downloading and deleting messages; topics."""

from __future__ import annotations

from tensorbus.bus.server.media import BATCH, FRAMES

from .operation import Part, empty_answer, json_answer, operation, parameter, problem
from .values import (
    BINARY,
    COUNT,
    DIGEST,
    FILTER,
    FLAG,
    KEY,
    MESSAGE_ID,
    SEQ,
    TEXT,
    TIME,
    TOPIC,
    Schema,
    array,
    nullable,
    record,
    ref,
)

_ETAG: Part = {"description": "The message's digest, quoted; the same for all parts of it.", "schema": TEXT}
_ID = parameter("path", "id", MESSAGE_ID, "The message.")
_ITEM = parameter("path", "name", TEXT, "The item's name, URL-escaped; a slash may stand as it is.")
_LOCATION: Part = {"Location": {"description": "The message.", "schema": TEXT}}
_MESSAGE_LINKS = {
    name: {"id": "$response.body#/id"} for name in ("message", "frames", "framesHead", "deleteMessage")
} | {"item": {"id": "$response.body#/id", "name": "body"}}
_NO_MESSAGE = problem("No such message.")


def paths() -> Part:
    """Operations by path and method."""
    return {
        "/v1/topics": {
            "get": operation("messages", "topics", "List topics.", {"200": json_answer("Topics.", "Topics")})
        },
        "/v1/topics/{topic}/messages": {"post": _publish()},
        "/v1/topics/{topic}/batch": {"post": _publish_batch()},
        "/v1/topics/{topic}/receipt": {
            "get": operation(
                "messages",
                "receipt",
                "Ask what became of a key: the first receipt, also of a message that was deleted since. "
                "Waits for an upload of this key that is under way.",
                {
                    "200": json_answer("It was stored; `duplicate` is true.", "Receipt"),
                    "404": problem("The topic never stored this key."),
                },
                parameters=(
                    parameter("path", "topic", TOPIC, "Where it was published."),
                    parameter("query", "key", KEY, "The idempotency key.", required=True),
                ),
            )
        },
        "/v1/messages": {"get": _list()},
        "/v1/messages/{id}": {
            "get": operation(
                "messages",
                "message",
                "Inspect a message and its manifest.",
                {"200": json_answer("The message.", "MessageWithManifest"), "404": _NO_MESSAGE},
                parameters=(_ID,),
            ),
            "delete": operation(
                "messages",
                "deleteMessage",
                "Delete a message and give its space back.",
                {"204": empty_answer("Gone."), "404": _NO_MESSAGE},
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


def _publish() -> Part:
    key = "Stored once for each topic and key: a repeated upload is answered with the first one's receipt."
    any_type = "Kept as a message of one item called `body`; needs Content-Length."
    text = "Text header `<name>` of a message whose body is not frames; any number of them."
    return operation(
        "messages",
        "publish",
        "Publish a message.",
        {
            "201": json_answer("Stored.", "Receipt", _LOCATION, _MESSAGE_LINKS),
            "200": json_answer("Was stored before under this key.", "Receipt", _LOCATION),
            "408": problem("No byte arrived for the idle time-out."),
            "410": problem("The upload was replaced by another one with the same key, or deleted."),
            "411": problem("A body that is not frames came without Content-Length."),
            "422": problem("The body is no valid sequence of frames, or ended early."),
            "507": problem("The disk or a quota is full."),
        },
        parameters=(
            parameter("path", "topic", TOPIC, "Where to publish."),
            parameter("header", "Idempotency-Key", KEY, key),
            parameter("header", "Tensorbus-Header-name", TEXT, text),
        ),
        body={
            "required": False,
            "content": {FRAMES: BINARY, "*/*": BINARY},
            "description": f"`{FRAMES}`, or anything. {any_type} With `Expect: 100-continue`, topic, key and "
            "size are checked before the body is sent.",
        },
    )


def _publish_batch() -> Part:
    return operation(
        "messages",
        "publishBatch",
        "Publish up to 256 small messages at once; they are durable when the answer comes.",
        {
            "200": json_answer("What became of each, in their order.", "BatchResults"),
            "408": problem("No byte arrived for the idle time-out."),
            "422": problem("The lengths of the records do not fit the body."),
            "507": problem("The disk is full."),
        },
        parameters=(parameter("path", "topic", TOPIC, "Where to publish."),),
        body={
            "required": True,
            "content": {BATCH: BINARY},
            "description": "Records, one behind the other, 1 MiB in all: length of the key and length of the "
            "frames (each a little-endian u32), the idempotency key (none has length 0), the frames. The "
            "frames of a message take up to 64 KiB, unless the broker is set up otherwise.",
        },
    )


def _list() -> Part:
    return operation(
        "messages",
        "messages",
        "List messages.",
        {"200": json_answer("A page of messages.", "Messages")},
        parameters=(
            parameter("query", "topic", FILTER | {"default": ">"}, "A topic, or a filter."),
            parameter("query", "state", {"enum": ["sealed", "open"], "default": "sealed"}, "Which ones."),
            parameter("query", "after", SEQ, "Continue behind this seq."),
            parameter(
                "query",
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                "How many.",
            ),
            parameter("query", "order", {"enum": ["asc", "desc"], "default": "asc"}, "By seq."),
        ),
    )


def _download(name: str, summary: str, path: tuple[Part, ...], *, head: bool = False) -> Part:
    content: Part = {} if head else {"content": {FRAMES: BINARY}}
    return operation(
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
            "304": empty_answer("Not modified."),
            "404": problem("No such message or item."),
            "409": problem("The message, or this item of it, is still being published."),
            "412": problem("If-Match names another version."),
            "416": problem("The range lies outside."),
        },
        parameters=(
            *path,
            parameter("header", "Range", TEXT, "One range of bytes; several are answered with the whole."),
            parameter("header", "If-Range", TEXT, "The range only if this is still the entity tag."),
            parameter("header", "If-Match", TEXT, "Only if this is the entity tag."),
            parameter("header", "If-None-Match", TEXT, "Only if this is not the entity tag."),
        ),
    )


def schemas() -> dict[str, Schema]:
    """JSON values by name."""
    view = record(
        {"of": TEXT, "o": COUNT, "s": array(COUNT)}, "Into which item, at which element, with which strides."
    )
    topic = record(
        {"topic": TOPIC, "messages": COUNT, "bytes": COUNT, "first_seq": COUNT, "last_seq": COUNT},
        "What is stored under one topic.",
    )
    return {
        "Receipt": record(
            {
                "id": MESSAGE_ID,
                "seq": {"type": "integer", "minimum": 1},
                "topic": TOPIC,
                "key": nullable(TEXT),
                "bytes": COUNT,
                "frames": COUNT,
                "digest": DIGEST,
                "duplicate": FLAG,
                "gone": FLAG,
            },
            "Every frame of the message is verified and on stable storage; or was, if it is gone since.",
            optional=("gone",),
        ),
        "BatchResults": record(
            {"results": array({"anyOf": [ref("Receipt"), ref("Problem")]})},
            "For each message of a batch its receipt, or the problem that it has.",
        ),
        "Message": record(_MESSAGE, "A message without its frames. Sizes are bytes."),
        "MessageWithManifest": record(
            _MESSAGE | {"manifest": array(ref("Entry"))}, "A message and the items that it holds."
        ),
        "Entry": record(
            {
                "n": {"type": "string", "description": "Name."},
                "d": {"type": "string", "description": "Dtype of the original."},
                "s": {"type": "array", "items": COUNT, "description": "Shape."},
                "k": {"enum": ["tensor", "scalar", "bytes"], "default": "tensor"},
                "q": {"type": "object", "description": "Configuration of the codec."},
                "v": view,
            },
            "One item, with the short keys that it has on the wire.",
            optional=("k", "q", "v"),
        ),
        "Messages": record(
            {"messages": array(ref("Message")), "next": nullable(COUNT)},
            "A page; `next` is the `after` of the following one, null at the end.",
        ),
        "Topic": topic,
        "Topics": record({"topics": array(ref("Topic"))}, "All topics that hold messages."),
    }


_HEADERS: Schema = {
    "type": "object",
    "maxProperties": 64,
    "additionalProperties": {"type": ["string", "integer", "number", "boolean", "null"]},
}

_MESSAGE: dict[str, Schema] = {
    "id": MESSAGE_ID,
    "seq": nullable(
        {"type": "integer", "minimum": 1, "description": "Position in the log; null while open."}
    ),
    "topic": TOPIC,
    "key": nullable({"type": "string", "maxLength": 255}),
    "state": {"enum": ["open", "sealed"]},
    "bytes": COUNT,
    "frames": COUNT,
    "headers": _HEADERS,
    "container": {"type": "string", "examples": ["torch", "numpy", "safetensors", "bytes"]},
    "pipeline": {"type": "object"},
    "items": nullable(COUNT),
    "original_bytes": nullable(COUNT),
    "wire_bytes": nullable(COUNT),
    "digest": nullable(DIGEST),
    "created": TIME,
    "sealed": nullable(TIME),
    "dead": nullable(ref("Death")),
}
