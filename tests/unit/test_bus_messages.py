"""What the broker says about messages, and how it reads such JSON from outside."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tensorbus.bus.consumers import ConsumerConfig, ConsumerInfo, DeliveryInfo
from tensorbus.bus.messages import MessageInfo, MessagePage, Receipt, TopicInfo, check_headers
from tensorbus.errors import InvalidName, InvalidRequest, LimitExceeded

MOMENT = datetime(2025, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MESSAGE = MessageInfo(
    id="0" * 32,
    seq=7,
    topic="fl.sft.updates",
    key="round-1/site-a",
    state="sealed",
    bytes=5_993_930_752,
    frames=5717,
    headers={"num_examples": 812, "site": "a", "loss": 0.5, "final": False, "note": None},
    container="torch",
    pipeline={"quantizer": {"name": "nf4", "blocksize": 64}, "keep": []},
    items=147,
    original_bytes=5_993_930_752,
    wire_bytes=None,
    digest="ab" * 32,
    created=MOMENT,
    sealed=MOMENT,
)
CONSUMER = ConsumerInfo("aggregator", ConsumerConfig("fl.>", "new", 0.5, 3), 12, 2, 5, MOMENT)


@pytest.mark.parametrize(
    "value",
    [
        MESSAGE,
        MessagePage((MESSAGE,), 7),
        Receipt("0" * 32, 1, "a.b", None, 10, 3, "ab" * 32, duplicate=True),
        TopicInfo("a.b", 2, 100, 1, 9),
        ConsumerConfig("fl.*.updates"),
        CONSUMER,
        DeliveryInfo("token", "aggregator", 2, MESSAGE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_survive_json(
    value: MessageInfo | MessagePage | Receipt | TopicInfo | ConsumerConfig | ConsumerInfo | DeliveryInfo,
) -> None:
    """The client has what the broker had."""
    assert type(value).from_json(json.loads(json.dumps(value.to_json()))) == value


def test_times_are_utc_iso_8601() -> None:
    """Other languages read them."""
    assert MESSAGE.to_json()["created"] == "2025-01-02T03:04:05.678901Z"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "JSON object"),
        ({}, "filter"),
        ({"filter": 5}, "filter"),
        ({"filter": "a", "start": "tomorrow"}, "start"),
        ({"filter": "a", "ack_wait": -1}, "ack_wait"),
        ({"filter": "a", "ack_wait": float("nan")}, "ack_wait"),
        ({"filter": "a", "ack_wait": True}, "ack_wait"),
        ({"filter": "a", "ack_wait": 1e9}, "ack_wait"),
        ({"filter": "a", "max_ack_pending": 0}, "max_ack_pending"),
        ({"filter": "a", "max_ack_pending": 2**70}, "max_ack_pending"),
        ({"filter": "a", "max_ack_pending": 1.5}, "max_ack_pending"),
        ({"filter": "a", "maxackpending": 1}, "maxackpending"),
    ],
)
def test_a_malformed_consumer_is_refused_by_field(document: object, said: str) -> None:
    """The message names the field and what it may be."""
    with pytest.raises(InvalidRequest, match=said):
        ConsumerConfig.from_json(document)


def test_a_malformed_filter_is_refused() -> None:
    """A consumer with an impossible filter would wait for ever."""
    with pytest.raises(InvalidName):
        ConsumerConfig.from_json({"filter": "a.>.b"})


@pytest.mark.parametrize("value", [{"nested": 1}, [1], b"raw", float("inf"), 2**70])
def test_headers_hold_plain_values_only(value: object) -> None:
    """So that any language can read them, and nothing large hides in them."""
    with pytest.raises(InvalidRequest):
        check_headers({"name": value})


def test_headers_have_limits() -> None:
    """64 entries, 16 KiB."""
    with pytest.raises(LimitExceeded):
        check_headers({str(number): 1 for number in range(65)})
    with pytest.raises(LimitExceeded):
        check_headers({"name": "x" * 16_384})
