"""What JSON Schemas (draft 2020-12) of the API are made of."""

from __future__ import annotations

from typing import cast

Schema = dict[str, object]

BINARY: Schema = {"schema": {}}
"""Media type object of a body that is no text."""
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SEQ: Schema = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
KEY: Schema = {"type": "string", "pattern": "^[!-~]{1,255}$"}
SECONDS: Schema = {"type": "number", "minimum": 0}
TIME: Schema = {"type": "string", "format": "date-time"}
TOPIC: Schema = {
    "type": "string",
    "maxLength": 255,
    "pattern": r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){0,63}$",
    "examples": ["fl.sft.updates"],
}
FILTER: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^(([A-Za-z0-9_-]+|\*)\.){0,63}([A-Za-z0-9_-]+|\*|>)$",
    "examples": ["fl.*.updates", "fl.>"],
}
CONSUMER_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
MESSAGE_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def nullable(schema: Schema) -> Schema:
    """``schema`` or null."""
    if {"type": "null"} in cast(list[object], schema.get("anyOf", [])):
        return schema
    return {"anyOf": [schema, {"type": "null"}]}


def array(schema: Schema) -> Schema:
    """An array of ``schema``."""
    return {"type": "array", "items": schema}


def record(
    properties: dict[str, Schema], description: str, *, optional: tuple[str, ...] = (), closed: bool = False
) -> Schema:
    """An object with these properties, all of them required but the ``optional`` ones.

    ``closed``: others are refused, as everywhere in requests, and null is the same as leaving one out.
    Answers may get more properties in later versions.
    """
    if closed:
        properties = {
            name: nullable(schema) if name in optional else schema for name, schema in properties.items()
        }
    described: Schema = {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }
    return described | {"additionalProperties": False} if closed else described


def ref(name: str) -> Schema:
    """A reference to a schema by the name that its part gives it."""
    return {"$ref": f"#/components/schemas/{name}"}
