"""Tokens."""

from __future__ import annotations

from .operation import Part, empty_answer, json_answer, json_body, operation, parameter, problem
from .values import COUNT, FILTER, TEXT, TIME, Schema, array, nullable, record, ref

_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{12}$"}


def paths() -> Part:
    """Operations by path and method."""
    return {
        "/v1/tokens": {
            "get": operation("tokens", "tokens", "List tokens.", {"200": json_answer("Tokens.", "Tokens")}),
            "post": operation(
                "tokens",
                "createToken",
                "Make a token. The answer is the only place where its secret is ever shown.",
                {"201": json_answer("Made.", "NewToken")},
                body=json_body("TokenPlan", required=True),
            ),
        },
        "/v1/tokens/{id}": {
            "delete": operation(
                "tokens",
                "revokeToken",
                "Refuse a token from now on.",
                {"204": empty_answer("Gone."), "404": problem("No such token.")},
                parameters=(parameter("path", "id", _ID, "The token."),),
            )
        },
    }


def schemas() -> dict[str, Schema]:
    """JSON values by name."""
    known: dict[str, Schema] = {"id": _ID, **_plan(), "created": TIME}
    secret: Schema = {"type": "string", "pattern": "^tb_[0-9a-f]{12}_[0-9a-f]{64}$"}
    return {
        "TokenPlan": record(
            _plan(),
            "What a token may do, as topic filters; admin of `>` may do everything.",
            optional=tuple(name for name in _plan() if name != "name"),
            closed=True,
        ),
        "Token": record(known, "A token, without its secret."),
        "NewToken": record(known | {"token": secret}, "A token with its secret: `Authorization: Bearer` it."),
        "Tokens": record({"tokens": array(ref("Token"))}, "All tokens."),
    }


def _plan() -> dict[str, Schema]:
    filters = array(FILTER) | {"maxItems": 256}
    return {
        "name": TEXT | {"pattern": "^[A-Za-z0-9_.@-]{1,64}$"},
        "publish": filters,
        "subscribe": filters,
        "admin": filters,
        "expires": nullable(TIME),
        "max_bytes": nullable(COUNT),
        "max_uploads": nullable(COUNT),
        "max_connections": nullable(COUNT),
    }
