"""Damaged messages, and the scrub."""

from __future__ import annotations

from .operation import Part, json_answer, json_body, operation, parameter, problem
from .values import COUNT, FLAG, MESSAGE_ID, TEXT, TIME, Schema, array, nullable, record, ref

_RATE: Schema = {"type": "integer", "minimum": 1, "maximum": 1 << 40}


def paths() -> Part:
    """Operations by path and method."""
    report = json_answer("How far it is, and what it has found.", "Scrub")
    return {
        "/v1/damaged": {
            "get": operation(
                "durability",
                "damaged",
                "List messages that are not delivered, because their frames are not what was stored.",
                {"200": json_answer("A page.", "DamagePage")},
                parameters=(
                    parameter("query", "after", COUNT, "Continue behind this seq."),
                    parameter(
                        "query", "limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "Messages."
                    ),
                ),
            )
        },
        "/v1/scrub": {
            "get": operation("durability", "scrub", "Ask how far the scrub is.", {"200": report}),
            "post": operation(
                "durability",
                "beginScrub",
                "Begin to verify everything that is stored.",
                {"202": json_answer("Begun.", "Scrub"), "409": problem("One is under way.")},
                body=json_body("ScrubPlan", required=False),
            ),
            "delete": operation("durability", "stopScrub", "End the scrub.", {"200": report}),
        },
    }


def schemas() -> dict[str, Schema]:
    """JSON values by name."""
    return {
        "Damage": record(
            {
                "id": MESSAGE_ID,
                "seq": COUNT,
                "topic": TEXT,
                "key": nullable(TEXT),
                "bytes": COUNT,
                "reason": TEXT,
                "found": TIME,
            },
            "A message that is not delivered; it can be deleted, or restored and found whole by a scrub.",
        ),
        "DamagePage": record(
            {"damaged": array(ref("Damage")), "next": nullable(COUNT)},
            "Part of a listing; `next` is the seq to continue after.",
        ),
        "ScrubPlan": record(
            {"rate": nullable(_RATE)},
            "`rate`: bytes per second that are read at the most.",
            optional=("rate",),
            closed=True,
        ),
        "Scrub": record(
            {
                "state": {"enum": ["never", "running", "done", "stopped", "failed"]},
                "started": nullable(TIME),
                "finished": nullable(TIME),
                "rate": nullable(_RATE),
                "messages": COUNT,
                "bytes": COUNT,
                "of_messages": COUNT,
                "of_bytes": COUNT,
                "damaged": array(record({"id": MESSAGE_ID, "reason": TEXT}, "Found by this scrub.")),
                "still_damaged": COUNT,
                "restored": array(MESSAGE_ID),
                "orphans": array(TEXT),
                "rows": array(TEXT),
                "problem": nullable(TEXT),
                "clean": FLAG,
            },
            "A scrub: `damaged` ids are new, `still_damaged` counts those known before, `restored` are whole "
            "again, `orphans` are files of no message, `rows` is what is wrong with the database.",
        ),
    }
