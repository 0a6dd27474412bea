"""Names on the bus: topics, filters, consumers, message ids and idempotency keys. Pure; no I/O.

A topic is one to 64 tokens of ``A-Z a-z 0-9 _ -`` joined by dots. In a filter, ``*`` stands for exactly one
token and ``>``, as the last one, for one or more. A message id is 32 lower-case hex digits; only such ids
ever become part of a file name.
"""

from __future__ import annotations

import re

from tensorbus.errors import InvalidName

MAX_TOPIC_CHARS = 255
MAX_TOPIC_TOKENS = 64
MAX_KEY_CHARS = 255

_TOKEN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_CONSUMER = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


def _shown(text: str) -> str:
    """At most 40 characters of ``text``, escaped, for an error message."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _tokens(text: str, what: str) -> list[str]:
    if not text or len(text) > MAX_TOPIC_CHARS:
        raise InvalidName(
            f"{what} {_shown(text)} has {len(text)} characters; allowed are 1 to {MAX_TOPIC_CHARS}"
        )
    tokens = text.split(".")
    if len(tokens) > MAX_TOPIC_TOKENS:
        raise InvalidName(f"{what} {_shown(text)} has {len(tokens)} tokens; allowed are {MAX_TOPIC_TOKENS}")
    return tokens


def check_topic(topic: str) -> str:
    """Return ``topic`` if it is one.

    Raises:
        InvalidName: it is empty, too long, or a token holds anything but letters, digits, ``_`` and ``-``.
    """
    for token in _tokens(topic, "topic"):
        if not _TOKEN.fullmatch(token):
            raise InvalidName(
                f"topic {_shown(topic)}: token {_shown(token)} must be one or more of A-Z a-z 0-9 _ -"
            )
    return topic


def check_filter(pattern: str) -> str:
    """Return ``pattern`` if it is a topic filter.

    Raises:
        InvalidName: as ``check_topic``, or ``>`` stands elsewhere than at the end.
    """
    tokens = _tokens(pattern, "filter")
    for place, token in enumerate(tokens):
        if token == ">" and place != len(tokens) - 1:
            raise InvalidName(f"filter {_shown(pattern)}: > may only be the last token")
        if token not in ("*", ">") and not _TOKEN.fullmatch(token):
            raise InvalidName(
                f"filter {_shown(pattern)}: token {_shown(token)} must be *, > or of A-Z a-z 0-9 _ -"
            )
    return pattern


def is_literal(pattern: str) -> bool:
    """Whether a valid filter holds no wildcard, and so matches one topic only."""
    return "*" not in pattern and ">" not in pattern


def matches(pattern: str, topic: str) -> bool:
    """Whether a valid filter selects a valid topic."""
    wanted = pattern.split(".")
    given = topic.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(given) > place
        if place >= len(given) or token not in ("*", given[place]):
            return False
    return len(wanted) == len(given)


def covers(pattern: str, other: str) -> bool:
    """Whether every topic that the valid filter ``other`` selects is selected by ``pattern`` as well."""
    wanted = pattern.split(".")
    given = other.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(given) > place
        if place >= len(given) or given[place] == ">":
            return False
        if token not in ("*", given[place]):
            return False
    return len(wanted) == len(given)


def overlap(one: str, other: str) -> bool:
    """Whether there is a topic that both valid filters select."""
    left, right = one.split("."), other.split(".")
    for ours, theirs in zip(left, right, strict=False):
        if ">" in (ours, theirs):
            return True
        if "*" not in (ours, theirs) and ours != theirs:
            return False
    return len(left) == len(right)


def intersection(one: str, other: str) -> str | None:
    """The filter of exactly those topics that both valid filters select; None if there is none."""
    left, right = one.split("."), other.split(".")
    both: list[str] = []
    for ours, theirs in zip(left, right, strict=False):
        if ours == ">":
            return ".".join([*both, *right[len(both) :]])
        if theirs == ">":
            return ".".join([*both, *left[len(both) :]])
        if "*" not in (ours, theirs) and ours != theirs:
            return None
        both.append(theirs if ours == "*" else ours)
    return ".".join(both) if len(left) == len(right) else None


def check_consumer_name(name: str) -> str:
    """Return ``name`` if it is 1 to 64 characters of ``A-Z a-z 0-9 _ -``, else raise InvalidName."""
    if not _CONSUMER.fullmatch(name):
        raise InvalidName(f"consumer {_shown(name)} must be 1 to 64 characters of A-Z a-z 0-9 _ -")
    return name


def check_message_id(message_id: str) -> str:
    """Return ``message_id`` if it is 32 lower-case hex digits, else raise InvalidName."""
    if not _ID.fullmatch(message_id):
        raise InvalidName(f"message id {_shown(message_id)} must be 32 lower-case hex digits")
    return message_id


def check_key(key: str) -> str:
    """Return the idempotency key if it is 1 to 255 visible ASCII characters, else raise InvalidName."""
    if not _KEY.fullmatch(key):
        raise InvalidName(f"key {_shown(key)} must be 1 to {MAX_KEY_CHARS} visible ASCII characters")
    return key
