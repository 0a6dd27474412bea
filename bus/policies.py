"""What the broker says about how long messages are kept: frozen values and their JSON."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal, cast

from tensorbus.errors import InvalidName, InvalidRequest

from .fields import Fields
from .messages import to_iso
from .topics import check_filter

Retention = Literal["limits", "interest", "workqueue"]
Discard = Literal["old", "new"]

MAX_SECONDS = 100 * 365 * 86400.0
_FIELDS = ("filter", "retention", "max_messages", "max_bytes", "max_age", "discard", "duplicate_window")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def check_policy_name(name: str) -> str:
    """Return ``name`` if it is 1 to 64 characters of ``A-Z a-z 0-9 _ -``, else raise InvalidName."""
    if not _NAME.fullmatch(name):
        raise InvalidName(f"policy {name[:80]!r} must be 1 to 64 characters of A-Z a-z 0-9 _ -")
    return name


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """How long the messages of some topics are kept.

    Attributes:
        filter: topics, with ``*`` and ``>``; the limits hold for each topic by itself.
        retention: ``limits`` keeps a message until a limit removes it; ``interest`` until every consumer with
            a matching filter has settled it, and not at all if there is none; ``workqueue`` until the one
            consumer that may match has settled it.
        max_messages: the most messages that a topic holds; None is no limit, as below.
        max_bytes: the most bytes of message bodies that a topic holds.
        max_age: seconds after which a message is removed.
        discard: what happens to a message that finds ``max_messages`` or ``max_bytes`` used up: ``old``
            removes the oldest ones, ``new`` refuses it.
        duplicate_window: seconds for which an idempotency key is remembered though its message is gone; None
            is the broker's own.
    """

    filter: str
    retention: Retention = "limits"
    max_messages: int | None = None
    max_bytes: int | None = None
    max_age: float | None = None
    discard: Discard = "old"
    duplicate_window: float | None = None

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> PolicyConfig:
        """The value of a JSON object, defaults filled in; raises InvalidRequest, or InvalidName (filter)."""
        got = Fields(document, "policy", allowed=_FIELDS)
        config = cls(
            filter=check_filter(got.text("filter")),
            retention=cast(
                Retention, got.choice("retention", ("limits", "interest", "workqueue"), default="limits")
            ),
            max_messages=_count(got, "max_messages"),
            max_bytes=_count(got, "max_bytes"),
            max_age=_seconds(got, "max_age", at_least=0.001),
            discard=cast(Discard, got.choice("discard", ("old", "new"), default="old")),
            duplicate_window=_seconds(got, "duplicate_window", at_least=0.0),
        )
        if config.discard == "new" and config.max_messages is None and config.max_bytes is None:
            raise InvalidRequest(
                "policy: discard 'new' refuses what is over max_messages or max_bytes; give one of them"
            )
        return config


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """A policy, and what the topics under it hold now.

    Attributes:
        topics: how many of them hold messages.
        messages, bytes: in all of them together.
    """

    name: str
    config: PolicyConfig
    topics: int
    messages: int
    bytes: int
    created: datetime

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object; the configuration's fields lie beside the others."""
        return {
            "name": self.name,
            **self.config.to_json(),
            "topics": self.topics,
            "messages": self.messages,
            "bytes": self.bytes,
            "created": to_iso(self.created),
        }

    @classmethod
    def from_json(cls, document: object) -> PolicyInfo:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "policy")
        return cls(
            name=got.text("name"),
            config=PolicyConfig.from_json({name: got.document.get(name) for name in _FIELDS}),
            topics=got.integer("topics"),
            messages=got.integer("messages"),
            bytes=got.integer("bytes"),
            created=got.moment("created"),
        )


def _count(got: Fields, name: str) -> int | None:
    return None if got.document.get(name) is None else got.integer(name, at_least=1)


def _seconds(got: Fields, name: str, at_least: float) -> float | None:
    if got.document.get(name) is None:
        return None
    return got.number(name, at_least=at_least, at_most=MAX_SECONDS)
