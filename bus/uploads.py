"""Resumable uploads as pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from .fields import Fields, to_iso
from .messages import State


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """How far a resumable upload is.

    Attributes:
        id: of the upload, and of the message that it becomes.
        topic, key: as it was created.
        state: ``open`` until all has come and is acknowledged, then ``sealed``.
        offset: bytes that have come; the next byte is the one at this offset.
        boundary: end of the last whole frame among them, which is verified.
        length: bytes of the body; None while that is not known.
        metadata: what its creator said of it; the values are base64.
        created, expires: when it began, and when it is removed if nobody goes on; None once it is sealed.
    """

    id: str
    topic: str
    key: str | None
    state: State
    offset: int
    boundary: int
    length: int | None
    metadata: Mapping[str, str]
    created: datetime
    expires: datetime | None

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {
            "id": self.id,
            "topic": self.topic,
            "key": self.key,
            "state": self.state,
            "offset": self.offset,
            "boundary": self.boundary,
            "length": self.length,
            "metadata": dict(self.metadata),
            "created": to_iso(self.created),
            "expires": None if self.expires is None else to_iso(self.expires),
        }

    @classmethod
    def from_json(cls, document: object) -> UploadInfo:
        """The value of a JSON object; raises InvalidRequest if a field is missing or of another type."""
        got = Fields(document, "upload")
        return cls(
            id=got.text("id"),
            topic=got.text("topic"),
            key=got.text_or_none("key"),
            state=cast(State, got.choice("state", ("open", "sealed"))),
            offset=got.integer("offset"),
            boundary=got.integer("boundary"),
            length=got.integer_or_none("length"),
            metadata=cast("Mapping[str, str]", got.mapping("metadata")),
            created=got.moment("created"),
            expires=got.moment_or_none("expires"),
        )
