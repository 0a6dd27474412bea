"""Names on the bus."""

from __future__ import annotations

import pytest

from tensorbus.bus import topics
from tensorbus.errors import InvalidName


@pytest.mark.parametrize(
    ("pattern", "topic", "selected"),
    [
        ("fl.sft.updates", "fl.sft.updates", True),
        ("fl.sft.updates", "fl.sft.update", False),
        ("fl.sft.updates", "fl.sft", False),
        ("fl.sft", "fl.sft.updates", False),
        ("fl.*.updates", "fl.sft.updates", True),
        ("fl.*.updates", "fl.sft.a.updates", False),
        ("fl.*.updates", "fl.updates", False),
        ("*", "fl", True),
        ("*", "fl.sft", False),
        ("*.*", "fl.sft", True),
        (">", "fl", True),
        (">", "fl.sft.updates", True),
        ("fl.>", "fl.sft.updates", True),
        ("fl.>", "fl.sft", True),
        ("fl.>", "fl", False),
        ("fl.>", "flx.sft", False),
        ("*.sft.>", "fl.sft.model.1", True),
    ],
)
def test_wildcards_select_as_in_nats(pattern: str, topic: str, selected: bool) -> None:
    """``*`` is one token, ``>`` is one or more at the end."""
    assert topics.matches(topics.check_filter(pattern), topics.check_topic(topic)) is selected


@pytest.mark.parametrize(
    "topic",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a.",
        "..",
        "a/../b",
        "a b",
        "a\0b",
        "a\n",
        "ä",
        "*",
        "a.>",
        "x" * 10_000,
        "a." * 64 + "a",
    ],
)
def test_malformed_topics_are_refused_with_a_short_message(topic: str) -> None:
    """Whatever comes as a topic, the answer says what is wrong and does not repeat 10,000 characters."""
    with pytest.raises(InvalidName, match="topic") as refused:
        topics.check_topic(topic)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("pattern", ["", "a.>.b", "a*", "a.**", ">>", "a..>", "a.\0", ">" * 10_000])
def test_malformed_filters_are_refused(pattern: str) -> None:
    """A wildcard is a whole token, and ``>`` the last one."""
    with pytest.raises(InvalidName, match="filter"):
        topics.check_filter(pattern)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "../etc", "x" * 65, "a\0", "a\n", "ß"])
def test_malformed_consumer_names_are_refused(name: str) -> None:
    """1 to 64 letters, digits, ``_`` and ``-``."""
    with pytest.raises(InvalidName):
        topics.check_consumer_name(name)


@pytest.mark.parametrize(
    "name", ["", "0" * 31, "0" * 33, "A" * 32, "../" + "0" * 29, "0" * 31 + "\n", "٣" * 32]
)
def test_only_32_hex_digits_are_a_message_id(name: str) -> None:
    """So an id can safely be part of a file name."""
    with pytest.raises(InvalidName):
        topics.check_message_id(name)


@pytest.mark.parametrize("key", ["", "a b", "a\0", "ü", "k" * 256])
def test_malformed_idempotency_keys_are_refused(key: str) -> None:
    """1 to 255 visible ASCII characters."""
    with pytest.raises(InvalidName):
        topics.check_key(key)


def test_good_names_pass() -> None:
    """The names that the federation uses are all legal."""
    assert topics.check_topic("fl.Llama-3_2.updates") == "fl.Llama-3_2.updates"
    assert topics.check_topic("a" * 255)
    assert topics.check_key("sft/round-1/site-a")
    assert topics.is_literal("fl.sft.updates")
    assert not topics.is_literal("fl.*.updates")
    assert not topics.is_literal("fl.>")
