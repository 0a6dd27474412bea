"""What operations are described with: parameters, bodies and answers."""

from __future__ import annotations

from collections.abc import Mapping

from tensorbus.bus.server.problems import MEDIA_TYPE

from .values import Schema, ref

Part = dict[str, object]

_COMMON = {
    "400": ("Malformed", "A name, a parameter, a header or the request itself is malformed."),
    "401": ("Unauthorized", "The token is missing, unknown, expired or revoked."),
    "403": ("Forbidden", "The token lacks the right for this."),
    "413": ("TooLarge", "The body, or something in it, is over a limit."),
    "417": ("ExpectationFailed", "`Expect` asks for something other than `100-continue`."),
    "429": ("TooManyRequests", "The token has as many connections, uploads or consumers as allowed."),
    "431": ("HeadersTooLarge", "The head of the request is over a limit."),
    "500": ("Failed", "The broker failed; its log says more."),
    "503": ("Unavailable", "The broker is stopping, or as busy as it may be; try later."),
    "507": ("Full", "The disk or a quota is full."),
}
"""Answers that any operation may give. They are written out once in the document and referred to."""

_PUBLIC = ("400", "417", "431", "500", "503")
_SECURED = ("400", "401", "403", "417", "429", "431", "500", "503")


def operation(
    tag: str,
    name: str,
    summary: str,
    responses: Mapping[str, object],
    *,
    parameters: tuple[Part, ...] = (),
    body: Part | None = None,
    public: bool = False,
) -> Part:
    """An operation; errors that all of them share are added to its ``responses``.

    ``public`` ones are answered without a token even where others need one.
    """
    common = _PUBLIC if public else _SECURED
    if body is not None:
        common += ("413",)
    described: Part = {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "parameters": list(parameters),
        "responses": {status: _shared(status) for status in sorted(common)} | dict(responses),
    }
    if body is not None:
        described["requestBody"] = body
    if public:
        described["security"] = []
    return described


def parameter(place: str, name: str, schema: Schema, description: str, *, required: bool = False) -> Part:
    """A parameter in the ``path`` (always required), the ``query`` or a ``header``."""
    return {
        "in": place,
        "name": name,
        "schema": schema,
        "description": description,
        "required": required or place == "path",
    }


def json_answer(
    description: str,
    schema: str,
    headers: Mapping[str, object] | None = None,
    links: Mapping[str, Mapping[str, str]] | None = None,
) -> Part:
    """An answer that is the JSON value named ``schema``.

    ``links`` says which operations may follow: operation id → parameter → where its value is here.
    """
    answer: Part = {"description": description, "content": {"application/json": {"schema": ref(schema)}}}
    if headers:
        answer["headers"] = dict(headers)
    if links:
        answer["links"] = {
            name: {"operationId": name, "parameters": dict(values)} for name, values in links.items()
        }
    return answer


def empty_answer(description: str, headers: Mapping[str, object] | None = None) -> Part:
    """An answer without a body."""
    answer: Part = {"description": description}
    if headers:
        answer["headers"] = dict(headers)
    return answer


def problem(description: str) -> Part:
    """An error."""
    return {"description": description, "content": {MEDIA_TYPE: {"schema": ref("Problem")}}}


def json_body(schema: str, *, required: bool) -> Part:
    """A request body that is the JSON value named ``schema``."""
    return {"required": required, "content": {"application/json": {"schema": ref(schema)}}}


def common_responses() -> Part:
    """The shared errors, for the document's components."""
    return {name: problem(description) for name, description in _COMMON.values()}


def _shared(status: str) -> Part:
    return {"$ref": f"#/components/responses/{_COMMON[status][0]}"}
