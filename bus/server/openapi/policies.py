"""Policies of retention."""

from __future__ import annotations

from .operation import Part, empty_answer, json_answer, json_body, operation, parameter, problem
from .values import COUNT, FILTER, TIME, Schema, array, nullable, record, ref

_POLICY_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
_NAME = parameter("path", "name", _POLICY_NAME, "The policy.")
_NO_POLICY = problem("No such policy.")


def paths() -> Part:
    """Operations by path and method."""
    return {
        "/v1/policies": {
            "get": operation(
                "policies", "policies", "List policies.", {"200": json_answer("Policies.", "Policies")}
            )
        },
        "/v1/policies/{name}": {
            "put": operation(
                "policies",
                "putPolicy",
                "Create or change a policy, and enforce it at once.",
                {
                    "201": json_answer("Created.", "Policy"),
                    "200": json_answer("Changed, or was there.", "Policy"),
                    "409": problem(
                        "Another policy has topics in common with it; or it is a work queue and there are "
                        "consumers that would share messages or leave some out."
                    ),
                    "507": {"$ref": "#/components/responses/Full"},
                },
                parameters=(_NAME,),
                body=json_body("PolicyConfig", required=True),
            ),
            "get": operation(
                "policies",
                "policy",
                "Inspect a policy.",
                {"200": json_answer("The policy.", "Policy"), "404": _NO_POLICY},
                parameters=(_NAME,),
            ),
            "delete": operation(
                "policies",
                "deletePolicy",
                "Forget a policy; what its topics hold stays.",
                {"204": empty_answer("Gone."), "404": _NO_POLICY},
                parameters=(_NAME,),
            ),
        },
    }


def schemas() -> dict[str, Schema]:
    """JSON values by name."""
    config = _config()
    return {
        "PolicyConfig": record(
            config,
            "How long the messages of some topics are kept. The limits hold for each topic by itself.",
            optional=tuple(name for name in config if name != "filter"),
            closed=True,
        ),
        "Policy": record(
            {"name": _POLICY_NAME}
            | config
            | {"topics": COUNT, "messages": COUNT, "bytes": COUNT, "created": TIME},
            "A policy, and how many topics, messages and bytes are under it.",
        ),
        "Policies": record({"policies": array(ref("Policy"))}, "All policies."),
    }


def _config() -> dict[str, Schema]:
    count: Schema = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
    return {
        "filter": FILTER,
        "retention": {
            "enum": ["limits", "interest", "workqueue"],
            "default": "limits",
            "description": "`interest` keeps a message until every consumer that matches has settled it, "
            "`workqueue` until the one that may match has.",
        },
        "max_messages": nullable(count),
        "max_bytes": nullable(count),
        "max_age": nullable(_seconds(0.001) | {"description": "Seconds."}),
        "discard": {
            "enum": ["old", "new"],
            "default": "old",
            "description": "At a limit: `old` removes the oldest messages, `new` refuses the new one (507).",
        },
        "duplicate_window": nullable(
            _seconds(0) | {"description": "Seconds for which a key is remembered though its message is gone."}
        ),
    }


def _seconds(least: float) -> Schema:
    return {"type": "number", "minimum": least, "maximum": 100 * 365 * 86400}
