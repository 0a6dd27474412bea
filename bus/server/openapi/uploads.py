"""Resumable uploads: tus 1.0."""

from __future__ import annotations

from tensorbus.bus.server import tus_headers as tus

from .operation import Part, empty_answer, json_answer, operation, parameter, problem
from .values import BINARY, COUNT, KEY, MESSAGE_ID, SEQ, TEXT, TIME, TOPIC, Schema, nullable, record

_TOPIC = parameter("path", "topic", TOPIC, "Where to publish.")
_ID = parameter("path", "id", MESSAGE_ID, "The upload, and the message that it becomes.")
_VERSION = parameter(
    "header", "Tus-Resumable", {"enum": [tus.VERSION]}, "The version of the protocol.", required=True
)
_CHECKSUM = parameter(
    "header", "Upload-Checksum", TEXT, f"Of this body; one of {tus.ALGORITHMS}, and base64."
)
_LENGTH = parameter("header", "Upload-Length", SEQ, "Bytes of the whole message.")
_OFFSET: Part = {"description": "The byte to go on with.", "schema": COUNT}
_EXPIRES: Part = {"description": "When it is removed if nobody goes on.", "schema": TEXT}
_MESSAGE: Part = {"description": "The message, once all has come and is acknowledged.", "schema": MESSAGE_ID}
_PROGRESS: Part = {"Upload-Offset": _OFFSET, "Upload-Expires": _EXPIRES, "Tensorbus-Message": _MESSAGE}
_NO_UPLOAD = problem("No such upload, or not this token's.")
_OTHER_VERSION = problem("Tus-Resumable is missing, or another version.")
_BODY: Part = {"required": False, "content": {tus.CONTENT_TYPE: BINARY}}
_TAKING: Part = {
    "408": problem("No byte arrived for the idle time-out; what had arrived is kept."),
    "409": problem("It goes on at another byte, or a newer request goes on with it."),
    "410": problem("The upload was given up, deleted or replaced."),
    "412": _OTHER_VERSION,
    "415": problem(f"The body is not {tus.CONTENT_TYPE}."),
    "422": problem("The body is no valid sequence of frames."),
    "460": problem("The body does not match Upload-Checksum; it was dropped."),
    "507": problem("The disk or a quota is full."),
}


def paths() -> Part:
    """Operations by path and method."""
    return {
        "/v1/topics/{topic}/uploads": {"post": _create(), "options": _options("uploadsOptions", _TOPIC)},
        "/v1/uploads/{id}": {
            "head": operation(
                "uploads",
                "uploadOffset",
                "Where to go on; ends a request that may still hold the upload.",
                {
                    "200": empty_answer("How far it is.", _PROGRESS),
                    "404": _NO_UPLOAD,
                    "409": problem("A newer request goes on with it."),
                    "410": problem("The upload was given up, deleted or replaced."),
                    "412": _OTHER_VERSION,
                },
                parameters=(_ID, _VERSION),
            ),
            "patch": _patch(),
            "post": _override(),
            "delete": operation(
                "uploads",
                "deleteUpload",
                "Give an upload up, and its space back.",
                {
                    "204": empty_answer("Gone."),
                    "404": _NO_UPLOAD,
                    "409": problem("It is complete, and a message."),
                    "412": _OTHER_VERSION,
                },
                parameters=(_ID, _VERSION),
            ),
            "options": _options("uploadOptions", _ID),
            "get": operation(
                "uploads",
                "upload",
                "How far an upload is, without disturbing whoever writes to it.",
                {"200": json_answer("The upload.", "Upload"), "404": _NO_UPLOAD},
                parameters=(_ID,),
            ),
        },
        "/v1/uploads/{id}/heads": {
            "get": operation(
                "uploads",
                "uploadHeads",
                "Preludes and headers of the whole frames that have come, one behind the other.",
                {
                    "200": {
                        "description": "What a publisher needs to go on without encoding them again.",
                        "content": {"application/octet-stream": BINARY},
                        "headers": {
                            "Tensorbus-Boundary": {
                                "description": "Where they end in the body.",
                                "schema": COUNT,
                            }
                        },
                    },
                    "404": _NO_UPLOAD,
                    "409": problem("It is complete."),
                },
                parameters=(_ID,),
            )
        },
    }


def _create() -> Part:
    created = empty_answer(
        "Created, or found: the same publisher began it from the same `source`.",
        {"Location": {"description": "The upload.", "schema": TEXT}} | _PROGRESS,
    )
    deferred = "1: how long the message is will be said later. Else Upload-Length is needed."
    return operation(
        "uploads",
        "createUpload",
        "Begin an upload; its first bytes may come along.",
        {"201": created} | _TAKING,
        parameters=(
            _TOPIC,
            _VERSION,
            _LENGTH,
            parameter("header", "Upload-Defer-Length", {"enum": ["1"]}, deferred),
            parameter("header", "Upload-Metadata", TEXT, "Names and base64 values, separated by commas."),
            parameter("header", "Idempotency-Key", KEY, "As in a publish with one request."),
            _CHECKSUM,
        ),
        body=_BODY,
    )


def _patch() -> Part:
    offset = "The byte of the message at which these begin: where HEAD said to go on."
    return operation(
        "uploads",
        "patchUpload",
        "Add to an upload. The answer to what completes it is the message's acknowledgement.",
        {"204": empty_answer("Kept.", _PROGRESS), "404": _NO_UPLOAD} | _TAKING,
        parameters=(
            _ID,
            _VERSION,
            parameter("header", "Upload-Offset", SEQ, offset, required=True),
            _LENGTH,
            _CHECKSUM,
        ),
        body=_BODY,
    )


def _override() -> Part:
    return operation(
        "uploads",
        "overrideUpload",
        "PATCH, DELETE or HEAD for clients that cannot send those.",
        {
            "200": empty_answer("As HEAD.", _PROGRESS),
            "204": empty_answer("As PATCH or DELETE.", _PROGRESS),
            "404": _NO_UPLOAD,
            "405": problem("The method is none of these."),
        }
        | _TAKING,
        parameters=(
            _ID,
            _VERSION,
            parameter(
                "header",
                tus.METHOD_OVERRIDE,
                {"enum": ["PATCH", "DELETE", "HEAD"]},
                "The method that is meant; it has to be there.",
            ),
            parameter("header", "Upload-Offset", SEQ, "As in PATCH."),
        ),
        body=_BODY,
    )


def _options(name: str, parameter: Part) -> Part:
    able: Part = {
        field: {"description": description, "schema": TEXT}
        for field, description in (
            ("Tus-Version", "The versions that are spoken here."),
            ("Tus-Extension", "The extensions of tus."),
            ("Tus-Max-Size", "Bytes of the largest message."),
            ("Tus-Checksum-Algorithm", "What Upload-Checksum may use."),
        )
    }
    return operation(
        "uploads",
        name,
        "What the broker can do of tus.",
        {"204": empty_answer("See the fields.", able)},
        parameters=(parameter,),
    )


def schemas() -> dict[str, Schema]:
    """JSON values by name."""
    return {
        "Upload": record(
            {
                "id": MESSAGE_ID,
                "topic": TOPIC,
                "key": nullable(KEY),
                "state": {"enum": ["open", "sealed"]},
                "offset": COUNT,
                "boundary": COUNT,
                "length": nullable(COUNT),
                "metadata": {"type": "object", "additionalProperties": TEXT},
                "created": TIME,
                "expires": nullable(TIME),
            },
            "How far a resumable upload is: `offset` bytes have come, the whole frames end at `boundary`.",
        )
    }
