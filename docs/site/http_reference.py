"""The HTTP API, operation by operation, as Markdown: all of it comes from the broker's OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from tensorbus.bus.server import openapi

Json = Mapping[str, Any]
"""A part of an OpenAPI document, whose shape that standard gives."""

_INTRODUCTION = """\
# Every request

Made of the broker's OpenAPI document when this page was built; [the HTTP API](http.md) shows how it is used.
A running broker serves the document at `/openapi.json`, and a page to try it out at `/docs`.
"""
_ORDINARY = ("400", "401", "403", "417", "429", "431", "500", "503")
"""Answers that every operation has; they are told once."""


def page() -> str:
    """The page."""
    document = cast(Json, openapi.document())
    parts = [_INTRODUCTION, *_common(document)]
    for tag in document["tags"]:
        parts.append(f"## {tag['name'].capitalize()}\n")
        for path, method, operation in operations(document):
            if operation["tags"][0] == tag["name"]:
                parts += _operation(document, path, method, operation)
    parts.append("## Values\n")
    for name, schema in document["components"]["schemas"].items():
        parts += _value(name, schema)
    return "\n".join(parts)


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Path, method in capitals, and operation, in the order of the document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def _common(document: Json) -> Iterator[str]:
    yield "## Answers of every request\n"
    yield "An error is a [Problem](#problem), `application/problem+json`. Any request may be answered with:\n"
    first = next(operation for _, _, operation in operations(document))
    yield "| status | |\n| --- | --- |"
    for status in _ORDINARY:
        if status in first["responses"]:
            yield f"| {status} | {_cell(_response(document, first['responses'][status])['description'])} |"
    yield ""


def _operation(document: Json, path: str, method: str, operation: Json) -> Iterator[str]:
    yield f"### {method} {path}\n"
    yield f"{operation['summary']}\n"
    if "description" in operation:
        yield f"{operation['description']}\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | value | |\n| --- | --- | --- | --- |"
        for parameter in parameters:
            needed = "" if parameter["in"] == "path" or not parameter.get("required") else "Required. "
            yield (
                f"| `{parameter['name']}` | {parameter['in']} | {_cell(_kind(parameter['schema']))} |"
                f" {needed}{_cell(parameter.get('description', ''))} |"
            )
        yield ""
    if body := operation.get("requestBody"):
        yield f"**Body:** {_content(body)}. {body.get('description', '')}\n"
    yield "| answer | | body |\n| --- | --- | --- |"
    for status, named in sorted(operation["responses"].items()):
        response = _response(document, named)
        # A status that all operations have is told here only where it means something else.
        if status in _ORDINARY and "$ref" in named:
            continue
        headers = "".join(f" `{header}`" for header in response.get("headers", {}))
        sent = f" Headers:{headers}." if headers else ""
        content = "" if _is_problem(response) else _content(response)
        yield f"| {status} | {_cell(response['description'])}{sent} | {_cell(content)} |"
    yield ""


def _response(document: Json, named: Json) -> Json:
    """The response itself where only its name is given."""
    reference = named.get("$ref")
    return named if reference is None else document["components"]["responses"][reference.rsplit("/", 1)[1]]


def _is_problem(response: Json) -> bool:
    return list(response.get("content", {})) == ["application/problem+json"]


def _content(holder: Json) -> str:
    """The media types of a body, with what is in them where that is JSON."""
    kinds: list[str] = []
    for media, value in holder.get("content", {}).items():
        schema = value.get("schema", {})
        kinds.append(f"{_kind(schema)} (JSON)" if media == "application/json" else f"`{media}`")
    return " or ".join(kinds)


def _value(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}\n"
    if "properties" not in schema:
        yield f"{_kind(schema)}. {schema.get('description', '')}\n"
        return
    if "description" in schema:
        yield f"{schema['description']}\n"
    required: Sequence[str] = schema.get("required", ())
    yield "| member | value | |\n| --- | --- | --- |"
    for member, value in schema["properties"].items():
        mark = "" if member in required else " (optional)"
        yield f"| `{member}`{mark} | {_cell(_kind(value))} | {_cell(_told(value))} |"
    yield ""


def _told(schema: Json) -> str:
    """The description of a value, also where it stands within one of its forms."""
    within = next((told for form in schema.get("anyOf", ()) if (told := _told(form))), "")
    return schema.get("description", within)


def _kind(schema: Json) -> str:
    """What a value may be, in words: `integer, 1 to 1000 (64)` is one with a default of 64."""
    if reference := schema.get("$ref"):
        name = reference.rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    forms = cast("Sequence[Json]", schema.get("anyOf") or schema.get("oneOf") or ())
    if forms:
        words = " or ".join(dict.fromkeys(kind for form in forms if (kind := _kind(form))))
    elif "enum" in schema:
        words = ", ".join(f"`{json.dumps(one).strip(chr(34))}`" for one in schema["enum"])
    elif "const" in schema:
        words = f"`{schema['const']}`"
    elif schema.get("type") == "array":
        words = f"array of {_kind(schema.get('items', {})) or 'anything'}"
    elif schema.get("type") == "object" and "properties" in schema:
        words = "object with " + ", ".join(f"`{member}`" for member in schema["properties"])
    else:
        kinds = cast("str | Sequence[str]", schema.get("type", ""))
        words = kinds if isinstance(kinds, str) else " or ".join(kinds)
        words += f" ({schema['format']})" if "format" in schema else ""
        words += _bounds(schema)
    return words + (f" (default {json.dumps(schema['default'])})" if "default" in schema else "")


def _bounds(schema: Json) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return f", {least:g} to {most:g}" if isinstance(most, float) else f", {least} to {most}"
    if least is not None:
        return f", {least} or more"
    length = schema.get("maxLength")
    return "" if length is None else f", at most {length} characters"


def _cell(text: str) -> str:
    """Text that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")
