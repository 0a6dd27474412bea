"""The JSON values of the API as JSON Schemas (draft 2020-12), for the OpenAPI document."""

from __future__ import annotations

Schema = dict[str, object]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "number", "minimum": 0}
TIME: Schema = {"type": "string", "format": "date-time"}
TOPIC: Schema = {"type": "string", "maxLength": 255, "pattern": r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){0,63}$"}
FILTER: Schema = {"type": "string", "maxLength": 255, "examples": ["fl.*.updates", "fl.>"]}
CONSUMER_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
MESSAGE_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
HEADERS: Schema = {
    "type": "object",
    "maxProperties": 64,
    "additionalProperties": {"type": ["string", "integer", "number", "boolean", "null"]},
}


def nullable(schema: Schema) -> Schema:
    """``schema`` or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def array(schema: Schema) -> Schema:
    """An array of ``schema``."""
    return {"type": "array", "items": schema}


def record(properties: dict[str, Schema], description: str, *, optional: tuple[str, ...] = ()) -> Schema:
    """An object with these properties, all of them required but the ``optional`` ones."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


def ref(name: str) -> Schema:
    """A reference to one of ``schemas()``."""
    return {"$ref": f"#/components/schemas/{name}"}


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
    "headers": HEADERS,
    "container": {"type": "string", "examples": ["torch", "numpy", "safetensors", "bytes"]},
    "pipeline": {"type": "object"},
    "items": nullable(COUNT),
    "original_bytes": nullable(COUNT),
    "wire_bytes": nullable(COUNT),
    "digest": nullable({"type": "string", "pattern": "^[0-9a-f]{64}$"}),
    "created": TIME,
    "sealed": nullable(TIME),
}

_CONSUMER_CONFIG: dict[str, Schema] = {
    "filter": FILTER,
    "start": {"enum": ["all", "new"], "default": "all"},
    "ack_wait": {"type": "number", "minimum": 0.01, "maximum": 86400, "default": 30},
    "max_ack_pending": {"type": "integer", "minimum": 1, "maximum": 10000, "default": 64},
}


def schemas() -> dict[str, Schema]:
    """All named schemas."""
    view = record(
        {"of": TEXT, "o": COUNT, "s": array(COUNT)}, "Into which item, at which element, with which strides."
    )
    return {
        "Problem": record(
            {"type": TEXT, "title": TEXT, "status": COUNT, "detail": TEXT, "instance": TEXT},
            "What went wrong, where, what to do (RFC 9457). `type` is `urn:tensorbus:problem:` and a word.",
        ),
        "Receipt": record(
            {
                "id": MESSAGE_ID,
                "seq": {"type": "integer", "minimum": 1},
                "topic": TOPIC,
                "key": nullable(TEXT),
                "bytes": COUNT,
                "frames": COUNT,
                "digest": TEXT,
                "duplicate": FLAG,
            },
            "Every frame of the message is verified and on stable storage.",
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
        "Topics": record(
            {
                "topics": array(
                    record(
                        {
                            "topic": TOPIC,
                            "messages": COUNT,
                            "bytes": COUNT,
                            "first_seq": COUNT,
                            "last_seq": COUNT,
                        },
                        "What is stored under one topic.",
                    )
                )
            },
            "All topics that hold messages.",
        ),
        "ConsumerConfig": record(
            _CONSUMER_CONFIG,
            "What a consumer wants. `ack_wait` is in seconds.",
            optional=("start", "ack_wait", "max_ack_pending"),
        ),
        "Consumer": record(
            {"name": CONSUMER_NAME}
            | _CONSUMER_CONFIG
            | {"position": COUNT, "ack_pending": COUNT, "backlog": COUNT, "created": TIME},
            "A durable consumer and where it stands.",
        ),
        "Consumers": record({"consumers": array(ref("Consumer"))}, "All consumers."),
        "Pull": record(
            {
                "max": {"type": "integer", "minimum": 1, "maximum": 256, "default": 1},
                "wait": SECONDS | {"default": 30, "description": "How long to wait for the first one."},
                "follow": FLAG | {"default": False, "description": "Also messages that are still open."},
            },
            "How many deliveries are wanted.",
            optional=("max", "wait", "follow"),
        ),
        "Deliveries": record(
            {
                "deliveries": array(
                    record(
                        {"token": TEXT, "consumer": TEXT, "attempt": COUNT, "message": ref("Message")},
                        "One hand-over of a message; settle it with its token.",
                    )
                )
            },
            "Empty if nothing came in time.",
        ),
        "Nak": record(
            {"delay": SECONDS | {"default": 0, "maximum": 86400}},
            "When it may come again.",
            optional=("delay",),
        ),
        "Status": record({"status": TEXT}, "A word."),
    }
