"""Dead letters."""

from __future__ import annotations

from .operation import Part, json_answer, json_body, operation, parameter, problem
from .values import (
    CONSUMER_NAME,
    COUNT,
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
)


def paths() -> Part:
    """Operations by path and method."""
    return {
        "/v1/dead-letters": {
            "get": operation(
                "dead letters",
                "deadLetters",
                "List messages that consumers could not deal with, oldest first.",
                {"200": json_answer("A page.", "Messages")},
                parameters=(
                    parameter("query", "topic", FILTER | {"default": ">"}, "Which dead-letter topics."),
                    parameter("query", "after", SEQ, "Continue behind this seq."),
                    parameter(
                        "query",
                        "limit",
                        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                        "Of the page.",
                    ),
                ),
            ),
            "delete": operation(
                "dead letters",
                "purgeDeadLetters",
                "Remove all dead letters of some topics.",
                {"200": json_answer("How many there were.", "Purged")},
                parameters=(parameter("query", "topic", FILTER, "Which dead-letter topics.", required=True),),
            ),
        },
        "/v1/messages/{id}/replay": {
            "post": operation(
                "dead letters",
                "replay",
                "Make a dead letter a message of its original topic again; the letter is removed. Only the "
                "consumer that could not deal with it gets it, or everyone.",
                {
                    "201": json_answer("The new message.", "Message"),
                    "404": problem("No such message; or its consumer is gone, or takes other topics now."),
                    "409": problem("It is no dead letter."),
                },
                parameters=(parameter("path", "id", MESSAGE_ID, "The dead letter."),),
                body=json_body("Replay", required=False),
            )
        },
    }


_ALONE: dict[str, Schema] = {
    "consumer": CONSUMER_NAME,
    "message": MESSAGE_ID,
    "topic": TOPIC,
    "seq": COUNT,
    "key": nullable(KEY),
    "attempts": COUNT,
    "reason": TEXT,
    "at": TIME,
}


def schemas() -> dict[str, Schema]:
    """JSON values by name."""
    return {
        "Death": record(
            _ALONE
            | {"earlier": array(record(_ALONE, "A death of the message that this letter was delivered as."))},
            "Which consumer could not deal with which message, and why.",
        ),
        "Purged": record({"removed": COUNT}, "How many messages were removed."),
        "Replay": record(
            {"everyone": FLAG | {"default": False}},
            "Whether all consumers get the message again.",
            optional=("everyone",),
            closed=True,
        ),
    }
