"""What each codec saves: bytes of values against bytes on the wire, counted as messages go by. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

MAX_CODECS = 64
"""With figures of their own; names come from outside."""
MAX_TEXT = 80
OTHERS = "others"


def codec_text(pipeline: Mapping[str, object]) -> str:
    """A pipeline's specification (its JSON form) as people write it: ``delta | rotate | lloyd:2``.

    Of the parameters it has the bits alone: what the others save is the same, or nearly so.
    """
    stages = pipeline.get("stages")
    steps = list(cast("Sequence[object]", stages)) if isinstance(stages, list | tuple) else []
    return " | ".join([*map(_step_text, steps), _step_text(pipeline.get("quantizer"))])[:MAX_TEXT]


def _step_text(step: object) -> str:
    config: Mapping[str, object] = {}
    if isinstance(step, Mapping):
        config = cast("Mapping[str, object]", step)
    name, bits = config.get("name", "none"), config.get("bits")
    return f"{name}:{bits}" if isinstance(bits, int) else str(name)


@dataclass(slots=True)
class Saving:
    """Of one codec: messages, the bytes of their values, and the bytes of their bodies."""

    messages: int = 0
    original_bytes: int = 0
    wire_bytes: int = 0

    def to_json(self) -> dict[str, object]:
        """The three numbers."""
        return {
            "messages": self.messages,
            "original_bytes": self.original_bytes,
            "wire_bytes": self.wire_bytes,
        }


@dataclass(slots=True)
class Savings:
    """By codec."""

    by_codec: dict[str, Saving] = field(default_factory=lambda: {})

    def count(self, pipeline: Mapping[str, object], original_bytes: int | None, wire_bytes: int) -> None:
        """A message went by. One that did not say how large its values are is not counted."""
        if original_bytes is None:
            return
        text = codec_text(pipeline)
        saving = self.by_codec.get(text)
        if saving is None:
            if len(self.by_codec) >= MAX_CODECS:
                text = OTHERS
            saving = self.by_codec.setdefault(text, Saving())
        saving.messages += 1
        saving.original_bytes += original_bytes
        saving.wire_bytes += wire_bytes
