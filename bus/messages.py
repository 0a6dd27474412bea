"""What the broker says about messages: frozen values and their JSON; ``consumers.py`` has the rest.

Broker, server and client share these. ``from_json`` checks every field's type, since the JSON comes from the
other side. Times are aware datetimes in UTC, ISO 8601 in JSON. Sizes are bytes, durations seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal, cast

from .dead import Death
from .fields import Fields, to_iso

__all__ = [
    "BrokerStats",
    "HeaderValue",
    "MessageInfo",
    "MessagePage",
    "Receipt",
    "State",
    "TopicInfo",
    "check_headers",
    "to_iso",
]

HeaderValue = str | int | float | bool | None
State = Literal["open", "sealed"]

MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class MessageInfo:
    """A message without its frames.

    Attributes:
        id: 32 hex digits.
        seq: position in the broker's log, from 1; None while the message is open.
        topic, key: as published; the idempotency key is None if there was none.
        state: ``open`` while it is being published, then ``sealed``.
        bytes, frames: what was verified so far; of the whole body once sealed.
        headers: the publisher's.
        container: the kind of container on the publisher's side: ``torch``, ``numpy``, ``bytes``, …
        pipeline: the pipeline's specification, as JSON.
        items: number of items, if the publisher declared it or the message is sealed.
        original_bytes, wire_bytes: size of the unencoded values, and of the whole body, where declared.
        digest: SHA-256 of the frame preludes in hex; None while open.
        created, sealed: when the upload began, and when it was acknowledged.
        dead: why it is a dead letter; None for every other message.
    """

    id: str
    seq: int | None
    topic: str
    key: str | None
    state: State
    bytes: int
    frames: int
    headers: Mapping[str, HeaderValue]
    container: str
    pipeline: Mapping[str, object]
    items: int | None
    original_bytes: int | None
    wire_bytes: int | None
    digest: str | None
    created: datetime
    sealed: datetime | None
    dead: Death | None = None

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {
            "id": self.id,
            "seq": self.seq,
            "topic": self.topic,
            "key": self.key,
            "state": self.state,
            "bytes": self.bytes,
            "frames": self.frames,
            "headers": dict(self.headers),
            "container": self.container,
            "pipeline": dict(self.pipeline),
            "items": self.items,
            "original_bytes": self.original_bytes,
            "wire_bytes": self.wire_bytes,
            "digest": self.digest,
            "created": to_iso(self.created),
            "sealed": None if self.sealed is None else to_iso(self.sealed),
            "dead": None if self.dead is None else self.dead.to_json(),
        }

    @classmethod
    def from_json(cls, document: object) -> MessageInfo:
        """The value of a JSON object; raises InvalidRequest if a field is missing or of another type."""
        got = Fields(document, "message")
        return cls(
            id=got.text("id"),
            seq=got.integer_or_none("seq"),
            topic=got.text("topic"),
            key=got.text_or_none("key"),
            state=cast(State, got.choice("state", ("open", "sealed"))),
            bytes=got.integer("bytes"),
            frames=got.integer("frames"),
            headers=check_headers(got.mapping("headers")),
            container=got.text("container"),
            pipeline=got.mapping("pipeline"),
            items=got.integer_or_none("items"),
            original_bytes=got.integer_or_none("original_bytes"),
            wire_bytes=got.integer_or_none("wire_bytes"),
            digest=got.text_or_none("digest"),
            created=got.moment("created"),
            sealed=got.moment_or_none("sealed"),
            dead=None if got.document.get("dead") is None else Death.from_json(got.mapping("dead")),
        )


def check_headers(headers: Mapping[str, object]) -> dict[str, HeaderValue]:
    """Return message headers whose values are all text, numbers, bools or None.

    Raises:
        LimitExceeded: over 64 entries, or over 16 KiB of names and texts in all.
        InvalidRequest: a value is of another type.
    """
    return Fields(headers, "headers").scalars(MAX_HEADERS, MAX_HEADER_BYTES)


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Part of a listing; ``next`` is the seq to continue after, None at the end."""

    messages: tuple[MessageInfo, ...]
    next: int | None

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {"messages": [message.to_json() for message in self.messages], "next": self.next}

    @classmethod
    def from_json(cls, document: object) -> MessagePage:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "message page")
        return cls(tuple(map(MessageInfo.from_json, got.array("messages"))), got.integer_or_none("next"))


@dataclass(frozen=True, slots=True)
class Receipt:
    """The broker's word that a message is verified and on stable storage.

    ``duplicate`` is True if the message had been stored before under this idempotency key; everything else
    is then the first one's. ``digest`` is hex. ``gone`` tells whoever asks for it that the message has been
    deleted since.
    """

    id: str
    seq: int
    topic: str
    key: str | None
    bytes: int
    frames: int
    digest: str
    duplicate: bool = False
    gone: bool = False

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        gone: dict[str, object] = {"gone": True} if self.gone else {}
        return gone | {
            "id": self.id,
            "seq": self.seq,
            "topic": self.topic,
            "key": self.key,
            "bytes": self.bytes,
            "frames": self.frames,
            "digest": self.digest,
            "duplicate": self.duplicate,
        }

    @classmethod
    def from_json(cls, document: object) -> Receipt:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "receipt")
        return cls(
            id=got.text("id"),
            seq=got.integer("seq"),
            topic=got.text("topic"),
            key=got.text_or_none("key"),
            bytes=got.integer("bytes"),
            frames=got.integer("frames"),
            digest=got.text("digest"),
            duplicate=got.flag("duplicate"),
            gone=got.flag("gone"),
        )


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What is stored under one topic: sealed messages, their bytes, and the range of their seqs."""

    topic: str
    messages: int
    bytes: int
    first_seq: int
    last_seq: int

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> TopicInfo:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "topic")
        return cls(
            topic=got.text("topic"),
            messages=got.integer("messages"),
            bytes=got.integer("bytes"),
            first_seq=got.integer("first_seq"),
            last_seq=got.integer("last_seq"),
        )


@dataclass(frozen=True, slots=True)
class BrokerStats:
    """Figures for ``/metrics``. ``*_total`` count since the broker started; the rest is the present state."""

    messages: int = 0
    bytes: int = 0
    open_messages: int = 0
    consumers: int = 0
    damaged: int = 0
    ack_pending: int = 0
    sealed_total: int = 0
    aborted_total: int = 0
    received_bytes_total: int = 0
    deliveries_total: int = 0
    acks_total: int = 0
    parked_uploads: int = 0
    disk_free: int = 0
    disk_size: int = 0
