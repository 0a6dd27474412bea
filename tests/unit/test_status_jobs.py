"""How a job stands, by headers that anybody may have written; and the history that models carry."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorbus.aggregator.history import MAX_BYTES, appended
from tensorbus.bus.activity import Transfer
from tensorbus.bus.messages import HeaderValue, MessageInfo
from tensorbus.bus.savings import codec_text
from tensorbus.bus.server.status.job import JobMessages, job_status

NOW = 1_000_000.0
SPEC = {"job": "sft", "sites": 4, "rounds": 9, "quorum": "60%", "deadline": 100}


def message(seq: int | None = None, **headers: HeaderValue) -> MessageInfo:
    """One with these headers."""
    when = datetime.fromtimestamp(NOW, UTC)
    return MessageInfo(
        id=f"{seq or 0:032x}",
        seq=seq,
        topic="fl.sft.updates",
        key=None,
        state="open" if seq is None else "sealed",
        bytes=10,
        frames=1,
        headers=headers,
        container="numpy",
        pipeline={},
        items=None,
        original_bytes=None,
        wire_bytes=40,
        digest=None,
        created=when,
        sealed=None if seq is None else when,
    )


def model(seq: int, number: int, *, final: bool = False, history: str | None = None) -> MessageInfo:
    """A global model."""
    return message(seq, kind="model", round=number, final=final, spec=json.dumps(SPEC), history=history)


def states(status: dict[str, object]) -> dict[str, str]:
    """Of the sites."""
    sites = cast("list[dict[str, str]]", status["sites"])
    return {site["site"]: site["state"] for site in sites}


def test_who_is_in_late_declined_or_gone() -> None:
    """Each site once: what is behind the end of the round before is late, what counted then is awaited."""
    updates = [
        message(9, kind="update", round=2, site="d", num_examples=3, metrics='{"loss": 0.5, "x": null}'),
        message(8, kind="decline", round=2, site="e", leaves=False, reason="busy"),
        message(7, kind="decline", round=1, site="f", leaves=True, reason=""),
        message(6, kind="update", round=1, site="c"),
        message(4, kind="update", round=1, site="a"),
        message(3, kind="update", round=1, site="d"),
    ]
    records = [message(5, kind="close", round=1), message(2, kind="open", round=2, at=NOW - 50)]
    coming = [Transfer(message(None, kind="update", round=2, site="b"), 10, 40, True, False)]
    found = JobMessages("sft", [model(1, 2)], records, updates, coming, known=["g"])
    status = job_status(found, NOW)
    assert states(status) == {
        "b": "sending", "c": "late", "a": "waited", "g": "waited", "d": "in", "e": "declined", "f": "left",
    }  # fmt: skip
    assert list(states(status)) == ["b", "c", "a", "g", "d", "e", "f"]
    assert (status["state"], status["round"], status["full"], status["enough"]) == ("open", 2, 4, 3)
    assert status["overdue"] is False
    (entered,) = [site for site in cast("list[dict[str, object]]", status["sites"]) if site["state"] == "in"]
    assert entered["metrics"] == {"loss": 0.5, "x": None}
    late = job_status(found, NOW + 51)
    assert late["overdue"] is True
    assert states(late) == states(status) | {"a": "late", "g": "late"}


@pytest.mark.parametrize(
    ("models", "records", "state"),
    [
        ([], [], "waiting"),
        ([model(1, 2)], [], "open"),
        ([model(1, 2)], [message(3, kind="close", round=2)], "closing"),
        ([model(1, 2)], [message(3, kind="order", action="pause", at=1.0)], "paused"),
        ([model(1, 2)], [message(3, kind="order", action="cancel", at=1.0)], "cancelled"),
        ([message(2, kind="cancelled"), model(1, 2)], [], "cancelled"),
        ([model(1, 10, final=True)], [], "done"),
    ],
)
def test_states(models: list[MessageInfo], records: list[MessageInfo], state: str) -> None:
    """As `tensorbus job status` has them."""
    assert job_status(JobMessages("sft", models, records), NOW)["state"] == state


def test_a_pause_moves_the_deadline() -> None:
    """By as long as it lasted."""
    records = [
        message(4, kind="order", action="resume", at=NOW - 60),
        message(3, kind="order", action="pause", at=NOW - 110),
        message(2, kind="open", round=2, at=NOW - 120),
    ]
    status = job_status(JobMessages("sft", [model(1, 2)], records), NOW)
    assert status["overdue"] is False
    assert (
        status["due"] == datetime.fromtimestamp(NOW + 30, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
    )


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
header = st.dictionaries(
    st.sampled_from(["kind", "round", "site", "spec", "at", "metrics", "history", "leaves", "action"]),
    anything
    | st.sampled_from(
        ["model", "update", "decline", "open", "close", "order", "[[1,2]]", '[[1,1,{"a":"b"}]]', "[["]
    )
    | st.builds(json.dumps, st.dictionaries(st.sampled_from([*SPEC, "up", "buffer"]), anything)),
)


@given(st.lists(header, max_size=4), st.lists(header, max_size=4), st.lists(header, max_size=6))
def test_whatever_stands_in_headers_is_shown_as_json(
    models: list[dict[str, HeaderValue]],
    records: list[dict[str, HeaderValue]],
    updates: list[dict[str, HeaderValue]],
) -> None:
    """Headers are anybody's: nothing in them makes the status fail, or what no JSON reader takes."""
    some = [
        [message(9 - at, **each) for at, each in enumerate(group)] for group in (models, records, updates)
    ]
    coming = [Transfer(message(None, **each), None, None, True, True) for each in updates]
    status = job_status(JobMessages("sft", *some, coming=coming), NOW)
    json.dumps(status, allow_nan=False)


def test_history_grows_by_a_round_and_stays_small() -> None:
    """All rounds as long as they fit; then fewer old ones, and the newest always."""
    history: str | None = None
    for number in range(1, 31):
        history = appended(history, number, 4, {"loss": 1 / number, "accuracy": 0.123456789})
    assert [entry[0] for entry in json.loads(history or "")] == list(range(1, 31))
    assert json.loads(history or "")[-1] == [30, 4, {"loss": 0.033333, "accuracy": 0.12346}]
    for number in range(31, 3001):
        history = appended(history, number, 4, {"loss": 1 / number, "accuracy": 0.123456789})
    rounds = [entry[0] for entry in json.loads(history or "")]
    assert len(history or "") <= MAX_BYTES
    assert rounds[-1] == 3000 and rounds[-2] == 2999 and rounds[0] < 1500 and len(rounds) > 30
    assert rounds == sorted(set(rounds))


@pytest.mark.parametrize("damaged", [None, 7, "", "[", "{}", '[1,[2],"x"]', "[" * 100_000, "x" * 5000])
def test_a_history_that_makes_no_sense_is_begun_anew(damaged: object) -> None:
    """A round is closed all the same."""
    assert json.loads(appended(damaged, 3, 2, {"loss": 1.0})) == [[3, 2, {"loss": 1.0}]]


def test_codecs_are_named_as_people_write_them() -> None:
    """Bits are told, other parameters are not; what is no specification has some name as well."""
    pipeline = {
        "stages": [{"name": "delta"}, {"name": "rotate"}],
        "quantizer": {"name": "lloyd", "bits": 2, "blocksize": 64},
    }
    assert codec_text(pipeline) == "delta | rotate | lloyd:2"
    assert codec_text({}) == codec_text({"quantizer": {"name": "none"}, "keep": []}) == "none"
    assert len(codec_text({"stages": ["x"] * 1000, "quantizer": 7})) <= 80
